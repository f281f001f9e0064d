"""Every method on every test patient: rows, summary, and slices for the report. RAY at the rim."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dyefreenet.cascade import Cascade
from dyefreenet.config import Recipe
from dyefreenet.data.phantom import ARTERIES, LABELS
from dyefreenet.data.shards import Slab, SlabRecord, read_records, read_slab
from dyefreenet.errors import InputError
from dyefreenet.evaluate import remap
from dyefreenet.evaluate.protocols import PROTOCOLS, Case, score_volume
from dyefreenet.evaluate.regions import body_mask
from dyefreenet.evaluate.statistics import differences, levels, summarise
from dyefreenet.store import Folder

ORGANS = ("aorta", "liver", "muscle")  # of a phantom, whose HU are compared beside the arteries
PANEL_SLICES = 6  # of each patient, kept for the figure


def evaluate(
    recipe: Recipe, run: Folder, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Score all methods on the test split; fills ``{run}/evaluate``.

    Raises:
        InputError: There is no test patient.
    """
    import ray

    ingest, target = run / "ingest", run / "evaluate"
    records = read_records(ingest)
    by_pair: dict[str, list[SlabRecord]] = defaultdict(list)
    for record in records:
        if record.split == "test" and record.phase == recipe.ingest.phase:
            by_pair[record.pair].append(record)
    if not by_pair:
        raise InputError(f"{ingest}: expected patients in the test split, found none")
    table = remap.fit(
        (slab.plain[1:-1], slab.contrast[1:-1])
        for slab in (
            read_slab(ingest.read(r.path, r.sha256))
            for r in records
            if r.split == "train" and r.phase == recipe.ingest.phase
        )
        if slab.contrast is not None
    )
    fitted = {"low_hu": remap.LOW, "mapped_hu": table.round(2).tolist()}
    files = {"remap.json": target.write_json("remap.json", fitted)}

    def score(item: dict[str, Any]) -> dict[str, Any]:
        shards = zip(item["paths"], item["sha256"], strict=True)
        slabs = [read_slab(ingest.read(path, sha256)) for path, sha256 in shards]
        scored, panel = score_patient(slabs, _cascade(run), table)
        path = f"panels/{slabs[0].pair}.npz"
        return {"rows": json.dumps(scored), "panel": path, "sha256": target.write(path, panel)}

    groups = [sorted(by_pair[pair], key=lambda record: record.path) for pair in sorted(by_pair)]
    items = [{"paths": [r.path for r in g], "sha256": [r.sha256 for r in g]} for g in groups]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(score)
    rows: list[dict[str, Any]] = []
    for done, row in enumerate(dataset.iter_rows(), start=1):
        rows += json.loads(row["rows"])
        files[row["panel"]] = row["sha256"]
        report(done, len(items))
    files |= write_tables(rows, recipe, target)
    measured = sorted({row["protocol"] for row in rows})
    return {
        "patients": len({row["patient"] for row in rows}),
        "definitions": {name: PROTOCOLS[name].definition for name in measured},
        "files": files,
    }


@cache
def _cascade(run: Folder) -> Cascade:
    """The networks, loaded once in each worker process."""
    return Cascade.load(run)


def score_patient(
    slabs: Iterable[Slab], cascade: Cascade, table: NDArray[np.float64]
) -> tuple[list[dict[str, Any]], bytes]:
    """Rows of one patient for every method, and its slices for the figure (npz). No Ray.

    Args:
        slabs: All shards of one pair.
        table: The HU remap that was fitted on the training split.
    """
    slabs = sorted(slabs, key=lambda slab: slab.first)
    plain = np.concatenate([slab.plain[1:-1] for slab in slabs])
    true = np.concatenate([slab.contrast[1:-1] for slab in slabs if slab.contrast is not None])
    labels = None
    if slabs[0].labels is not None:
        labels = np.concatenate([slab.labels for slab in slabs if slab.labels is not None])
    body = body_mask(plain)
    predictions = {"identity": plain, "remap": remap.apply(plain, table)}
    for method in cascade.methods:
        predictions[method] = cascade.predict_grid(plain, method)
    patient, rows = slabs[0].patient, []
    structures = {"vessel": {LABELS[name] for name in ARTERIES}}
    structures |= {name: {LABELS[name]} for name in ORGANS}
    for method, predicted in predictions.items():
        case = Case(true, predicted, plain, body, slabs[0].spacing, labels, structures)
        for row in score_volume(case, cascade.recipe.evaluate.protocols):
            rows.append({"patient": patient, "method": method} | row)
    chosen = np.unique(np.linspace(0, len(plain) - 1, PANEL_SLICES + 2).round().astype(int)[1:-1])
    arrays = {"plain": plain, "true": true}
    arrays |= {k: v for k, v in predictions.items() if k != "identity"}
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        index=chosen,
        patient=np.array(patient),
        spacing=np.array(slabs[0].spacing),
        **{name: volume[chosen] for name, volume in arrays.items()},
    )
    return rows, sink.getvalue()


def write_tables(rows: list[dict[str, Any]], recipe: Recipe, target: Folder) -> dict[str, str]:
    """Write the rows as Parquet, and what is computed from them; the digests of the files."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    resamples, seed = recipe.evaluate.resamples, recipe.seed
    compared = differences(rows, resamples=resamples, seed=seed)
    return {
        "rows.parquet": target.write("rows.parquet", sink.getvalue()),
        "summary.json": target.write_json("summary.json", summarise(rows, resamples, seed)),
        "differences.json": target.write_json("differences.json", compared),
        "levels.json": target.write_json("levels.json", levels(rows, resamples, seed)),
    }
