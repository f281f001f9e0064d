"""A made-up run folder for the tests of report and notebooks: every figure in it is known."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dyefreenet.report.results import METHODS, STEPS
from dyefreenet.store import Folder

PATIENTS = [f"patient-{number}" for number in range(8)]
TRAINED = [step for step in STEPS if step not in ("ingest", "evaluate")]
UNSEEN = [  # what PSNR does not see: mean of the first method, half of its interval
    ("texture/1", "high_frequency", "image", 0.4, 0.1),
    ("texture/1", "gradient_w1", "body", 2.5, 0.2),
    ("texture/1", "flicker", "body", 0.9, 0.1),
    ("enhancement/1", "invented", "body", 0.005, 0.002),
    ("enhancement/1", "missed", "body", 0.03, 0.01),
    ("enhancement/1", "outside_change", "outside", 0.3, 0.1),
    ("enhancement/1", "change_flicker", "body", 0.8, 0.1),
    ("roi/1", "dice", "vessel", 0.5, 0.05),
    ("roi/1", "hd95", "vessel", 12.0, 2.0),
    ("roi/1", "cnr", "vessel", 3.0, 0.5),
    ("roi/1", "true_cnr", "vessel", 6.0, 0.5),
]
ENDS = ("mean", "low", "high")
EVIL = "</script><script>alert('x')</script>&\"<img src=x>"


def parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def line(method, protocol, metric, region, mean, half):
    names = {"method": method, "protocol": protocol, "metric": metric, "region": region}
    return names | {"n": len(PATIENTS), "mean": mean, "low": mean - half, "high": mean + half}


def medians(method, true, apart):
    """Rows of true and predicted median HU, ``apart`` HU from each other."""
    return [
        {"patient": patient, "method": method, "protocol": "roi/1", "region": "vessel", "n": 99}
        | {"metric": metric, "value": float(value)}
        for patient, wanted, off in zip(PATIENTS, true, apart, strict=True)
        for metric, value in (("true_median_hu", wanted), ("median_hu", wanted + off))
    ]


def take_labels(folder, patients):
    """The arteries of these patients were not drawn: theirs are vessels found on the true scan.

    With all patients the drawn ones are gone; else both kinds stand in the tables, and the error in
    the vessels that were found is 50 HU higher.
    """
    evaluate = folder / "evaluate"
    taken, all_of_them = {"region": "computed_vessel"}, len(patients) == len(PATIENTS)

    def found(entry):
        higher = () if all_of_them or entry.get("metric") != "mae" else ("value", *ENDS)
        return entry | taken | {key: entry[key] + 50 for key in higher if key in entry}

    rows = pq.read_table(io.BytesIO(evaluate.read("rows.parquet"))).to_pylist()
    rows = [
        found(row) if row["region"] == "vessel" and row["patient"] in patients else row
        for row in rows
    ]
    evaluate.write("rows.parquet", parquet(rows))
    for name in ("summary.json", "differences.json", "levels.json"):
        entries = evaluate.read_json(name)
        drawn = [entry for entry in entries if entry["region"] == "vessel"]
        if all_of_them:
            entries = [entry for entry in entries if entry not in drawn]
        evaluate.write_json(name, entries + [found(entry) for entry in drawn])


def difference(versus, protocol, metric, region, mean, half, verdict):
    return line("refine", protocol, metric, region, mean, half) | {
        "versus": versus,
        "verdict": verdict,
        "p": 0.01,
        "p_holm": 0.03,
    }


def write_panel(run, patient, pair=None, slices=3, size=32, methods=tuple(METHODS)):
    generator = np.random.default_rng(5)
    names = ["plain", "true", *(m for m in methods if m != "identity")]
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        index=np.arange(4, 4 + slices),
        patient=np.array(patient),
        spacing=np.array([3.0, 1.5, 1.5]),
        **{n: generator.integers(-900, 900, (slices, size, size)).astype(np.int16) for n in names},
    )
    run.write(f"evaluate/panels/{pair or patient}.npz", sink.getvalue())


def made_up_run(place):
    """A finished run with every method, in ``{place}/trial``."""
    folder = Folder(str(place / "trial"))
    folder.write_json("recipe.json", {"name": "trial", "primary": {"lr": 0.00123}})
    for step in STEPS:
        files = {"weights/generator.safetensors": f"{len(step):064x}", "remap.json": "0"}
        facts = {"files": files} if step in ("primary", "refine") else {}
        (folder / step).publish(f"mark-{step}", {}, seconds=12.5, **facts)
    for step in TRAINED:
        name = "accuracy" if step == "ssl" else "psnr"
        lines = [
            {"epoch": e, "step": 9 * e, "loss/l1": 5.0 / e, f"validation/{name}": 0.2 * e}
            for e in (1.0, 2.0, 3.0)
        ]
        content = "\n".join(json.dumps(entry) for entry in lines)
        (folder / step).write("metrics.jsonl", content.encode())
    pairs = [
        {"key": f"k{i}", "patient": patient, "split": "test", "phase": "arterial"}
        | {"slices": 28, "source": "phantom", "thickness": [1.0, 5.0][i % 2], "spacing_x": 0.7}
        | {"bone_edge_mm": 0.1 * i, "kernel": "soft" if i < 6 else "sharp", "landmark_mm": None}
        for i, patient in enumerate(PATIENTS)
    ]
    (folder / "ingest").write("pairs.parquet", parquet(pairs))
    excluded = [
        {"key": "k90", "patient": "p90", "reason": "gap", "detail": EVIL},
        {"key": "k91", "patient": "p91", "reason": "gap", "detail": "step of 5.00 mm"},
    ]
    (folder / "ingest").write("excluded.parquet", parquet(excluded))

    summary = []
    for place, method in enumerate(METHODS):
        summary += [
            line(method, "window600/1", "psnr", "image", 27.11 + place, 0.5),
            line(method, "window600/1", "ssim", "image", 0.811 + place / 100, 0.02),
            line(method, "paper8/1", "psnr", "image", 29.22 + place, 0.5),
            line(method, "roi/1", "mae", "vessel", 177.3 - 10 * place, 8.0),
        ]
    spread = {"psnr": 0.1, "ssim": 0.001, "mae": -2.0}  # patient 0 fares worst, patient 7 best
    rows = [
        {
            "patient": patient,
            "pair": patient,
            "n": 28,
            "value": entry["mean"] + (i - 3.5) * spread[entry["metric"]],
        }
        | {k: entry[k] for k in ("method", "protocol", "metric", "region")}
        for entry in summary
        for i, patient in enumerate(PATIENTS)
    ]
    for place, method in enumerate(METHODS):
        summary += [
            line(method, protocol, metric, region, mean + place / 100, half)
            for protocol, metric, region, mean, half in UNSEEN
        ]
    rows += medians("refine", [300 + 10 * i for i in range(8)], [-30, -10, -30, -10] * 2)
    evaluate = folder / "evaluate"
    evaluate.write("rows.parquet", parquet(rows))
    evaluate.write_json("summary.json", summary)
    ends = {"slope_low": -0.02, "slope_high": 0.2}
    ends |= {"variance_ratio_low": 0.05, "variance_ratio_high": 0.3}
    evaluate.write_json(
        "levels.json",
        [
            {"method": method, "protocol": "roi/1", "region": region, "n": len(PATIENTS)}
            | {"slope": 0.03 + place / 100, "variance_ratio": 0.13 + place / 100}
            | ends
            for place, method in enumerate(METHODS)
            for region in ("aorta", "vessel")
        ],
    )
    evaluate.write_json(
        "differences.json",
        [
            difference("unet", "window600/1", "psnr", "image", 1.37, 0.4, "better"),
            difference("unet", "window600/1", "ssim", "image", 0.004, 0.01, "no difference shown"),
            difference("unet", "roi/1", "mae", "vessel", 6.5, 2.0, "worse"),
            difference("pix2pix", "window600/1", "psnr", "image", 0.2, 0.3, "no difference shown"),
        ],
    )
    for patient in PATIENTS[:2]:
        write_panel(folder, patient)
    return folder
