"""One result under every convention, from a folder that holds what evaluation writes."""

import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dyefreenet.errors import StoreError
from dyefreenet.report import protocols_text, summary_object
from dyefreenet.store import Folder


@pytest.fixture
def run(tmp_path):
    """Identity and refine under two protocols, beside a run's own evaluation."""
    folder = Folder(str(tmp_path / "trial"))
    pair = {"patient": "p0", "split": "test", "source": "phantom", "slices": 4}
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([pair]), sink)
    (folder / "ingest").write("pairs.parquet", sink.getvalue())
    summary = [
        {"method": method, "protocol": protocol, "metric": metric, "region": "body"}
        | {"n": 9, "mean": mean, "low": low, "high": mean}
        for method, protocol, metric, mean, low in (
            ("identity", "window600/1", "psnr", 27.552, 26.0),
            ("identity", "synthrad/1", "psnr", 43.21, 42.0),
            ("refine", "window600/1", "psnr", math.inf, 30.0),
        )
    ]
    step = folder / "evaluate_all"
    step.write_json("summary.json", summary)
    step.write_json("levels.json", [{"method": "refine", "slope": 0.23}])
    definitions = {"window600/1": "HU clipped", "synthrad/1": "body and 10 mm"}
    step.publish("mark", {}, definitions=definitions, left_out=["patient p7: a shard is missing"])
    return folder


def test_every_protocol_has_its_lines_and_every_method_its_column(run):
    text = protocols_text(run, "evaluate_all")
    lines = [line.split() for line in text.splitlines()]
    assert ["psnr", "body", "27.55", "∞"] in lines
    assert ["psnr", "body", "43.21", "-"] in lines  # refine has none
    assert ["window600/1", "identity", "refine"] in lines
    assert "MADE-UP PHANTOM" in text and "patient p7: a shard is missing" in text
    assert "Mean over 9 test patients" in text


def test_the_object_is_strict_json(run):
    found = summary_object(run, "evaluate_all")
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["run"] == "trial"
    assert found["summary"][2]["mean"] == "Infinity" and found["summary"][0]["mean"] == 27.552
    assert found["levels"] == [{"method": "refine", "slope": 0.23}]
    assert found["protocols"]["synthrad/1"] == "body and 10 mm"
    assert found["left_out"] == ["patient p7: a shard is missing"]


def test_an_evaluation_that_is_not_finished_is_refused(run):
    with pytest.raises(StoreError, match="evaluate: expected a finished evaluation, found none"):
        summary_object(run)
