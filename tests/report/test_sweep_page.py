"""The page of a sweep, from a summary as sweep.py writes it."""

import xml.etree.ElementTree as ET

import pytest

from dyefreenet.report import write_sweep
from dyefreenet.report.charts import parallel_chart, scatter_chart
from dyefreenet.store import Folder

AIMS = [
    {
        "figure": "validation/enhanced_mae_hu",
        "title": "Error where contrast went, HU",
        "mode": "min",
    },
    {"figure": "validation/psnr_window600", "title": "PSNR, dB", "mode": "max"},
]


def trial(state, mae, psnr, curve, error=None):
    return {
        "values": {"primary.lr": 0.002 if mae is None else mae / 1e4, "primary.decay": "step"},
        "state": state,
        "epochs": float(len(curve)),
        "seconds": 12.0,
        "error": error,
        "curve": curve,
        AIMS[0]["figure"]: mae,
        AIMS[1]["figure"]: psnr,
    }


@pytest.fixture
def page(tmp_path):
    folder = Folder(str(tmp_path))
    write_sweep(
        folder,
        {
            "method": "primary",
            "aims": AIMS,
            "trials": [
                trial("done", 101.0, 25.5, [[1, 120.0], [2, 101.0]]),
                trial("done", 96.5, 25.1, [[1, 119.0], [2, 96.5]]),
                trial("stopped", 180.0, 21.0, [[1, 180.0]]),
                trial("failed", None, None, [], "lr too <high>"),
            ],
            "front": [0, 1],
            "best": 1,
            "epochs_saved": 0.375,
            "importance": {"primary.lr": 0.9, "primary.decay": 0.1},
        },
    )
    return folder.read("index.html").decode()


def test_the_page_tells_every_trial_and_what_was_saved(page):
    assert "4 trials: 2 trained to the end, 1 stopped early, 1 failed" in page
    assert "saved 38&nbsp;%" in page
    assert "lr too &lt;high&gt;" in page and "<script" not in page
    assert "done, best" in page and "done, front" in page
    drawings = [f"<svg{part.split('</svg>')[0]}</svg>" for part in page.split("<svg")[1:]]
    assert len(drawings) == 3
    for drawing in drawings:
        ET.fromstring(drawing)
    assert drawings[0].count("<polyline") == 3  # the failed one has no figures
    assert drawings[0].index("t-front") < drawings[0].index("t-best")  # the best lies above


def test_odd_axes_are_drawn():
    axes = [
        ("a", [1e-5, 1e-1, 1e-3]),
        ("b", ["x", [1, 2], "x"]),
        ("c", [3, 3, 3]),
        ("d", [None] * 3),
    ]
    drawn = parallel_chart("t", axes, [("s", 0), ("s", 1), ("s", 2)])
    lines = [line.split('"')[0] for line in drawn.split('points="')[1:]]
    heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    assert heights[0][0] == 270 and heights[1][0] == 58
    assert heights[2][0] == pytest.approx(164)  # 1e-3 is half way from 1e-5 to 1e-1
    assert len(heights[0]) == 3  # nothing is known of d
    ET.fromstring(drawn)
    assert scatter_chart("t", []) == "" == scatter_chart("t", [(float("nan"), 1.0, "s", "1")])
    ET.fromstring(scatter_chart("t", [(1.0, 2.0, "s", "<1>")]))
