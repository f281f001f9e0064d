"""Pairs to rows without Ray: what is scored once, what is left out and how that is told."""

import hashlib
import json

import numpy as np
import pytest
import torch

from dyefreenet.cascade import Cascade, Method
from dyefreenet.config import EvaluateConfig, Recipe
from dyefreenet.data.phantom import LABELS
from dyefreenet.data.shards import SlabRecord, read_slab, write_slabs
from dyefreenet.evaluate import remap
from dyefreenet.evaluate.score import pairs_to_score, score_pair, score_patient, write_tables
from dyefreenet.store import Folder

RECIPE = Recipe(evaluate=EvaluateConfig(protocols=("window600/1", "enhancement/1"), resamples=50))
TABLE = np.arange(remap.LOW, remap.HIGH + 1, dtype=np.float64) + 5.0


def volumes():
    """Plain, contrast and labels of a trunk with an aorta, [6, 48, 48]."""
    rng = np.random.default_rng(0)
    plain = np.full((6, 48, 48), -1000, np.int16)
    plain[:, 8:40, 8:40] = rng.integers(20, 80, (6, 32, 32))
    labels = np.zeros(plain.shape, np.uint8)
    labels[:, 20:26, 20:26] = LABELS["aorta"]
    return plain, np.where(labels > 0, np.int16(350), plain), labels


@pytest.fixture
def store(tmp_path):
    """Ingest folder with a pair of three shards, its (path, SHA-256), and an empty target."""
    ingest, target = Folder(str(tmp_path / "ingest")), Folder(str(tmp_path / "evaluate"))
    files = write_slabs(
        "p0", "pair0", "patient0", (3.0, 1.0, 1.0), *volumes(), phase="arterial", slab=2
    )
    return ingest, target, [(name, ingest.write(name, content)) for name, _, content in files]


def networks(**methods):
    return Cascade(
        RECIPE, {name: Method(name, call, 2, "0" * 64) for name, call in methods.items()}
    )


def score(store, made_from="weights", cascade=None, shards=None):
    """The part of the pair; and how often networks were asked for."""
    ingest, target, all_shards = store
    asked = []

    def load():
        asked.append(1)
        return cascade or networks()

    path, sha256 = score_pair(
        *("pair0", "patient0", ingest, target, shards or all_shards),
        *({"made": made_from}, load, TABLE, RECIPE),
    )
    content = target.read(path)
    assert hashlib.sha256(content).hexdigest() == sha256
    return json.loads(content), len(asked)


def test_a_pair_is_scored_under_every_protocol(store):
    part, _ = score(store)
    values = {
        (r["method"], r["protocol"], r["metric"], r["region"]): r["value"] for r in part["rows"]
    }
    assert values["identity", "window600/1", "mae", "image"] > 0
    assert values["remap", "window600/1", "mae", "body"] > 4
    assert values["identity", "roi/1", "true_median_hu", "vessel"] == 350.0
    assert values["identity", "roi/1", "dice", "vessel"] == 0.0
    assert values["identity", "enhancement/1", "missed", "body"] > 0
    assert {(r["patient"], r["pair"]) for r in part["rows"]} == {("patient0", "pair0")}
    assert part["left_out"] == []


def test_a_pair_that_is_scored_is_not_scored_again(store):
    first, asked = score(store)
    assert asked == 1
    again, asked = score(store)
    assert asked == 0 and again == first
    _, asked = score(store, made_from="other weights")
    assert asked == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "picture", "other picture"])
def test_what_is_damaged_is_scored_again(store, damage):
    first, _ = score(store)
    target, path = store[1], "parts/pair0.json"
    content = target.read(path)
    if damage == "cut":
        target.write(path, content[:-40])
    elif damage == "changed":
        first_value = first["rows"][0]["value"]
        target.write(path, content.replace(repr(first_value).encode(), b"99.0", 1))
    elif damage == "picture":
        target.remove("panels/pair0.npz")
    else:
        target.write("panels/pair0.npz", b"of another evaluation")
    again, asked = score(store)
    assert asked == 1 and again == first


def test_a_network_that_diverged_is_left_out_and_the_others_stand(store):
    def broken(triplet, phase):
        return torch.full_like(triplet[:, 1:2], torch.nan)

    part, _ = score(store, cascade=networks(unet=broken, refine=lambda t, phase: t[:, 1:2]))
    assert {row["method"] for row in part["rows"]} == {"identity", "remap", "refine"}
    (line,) = part["left_out"]
    assert "patient patient0" in line and "p0-0000.parquet" in line
    assert "unet: expected finite HU" in line and "6 of 6, first in slice 0" in line


def test_a_missing_shard_is_named_and_gives_no_rows(store):
    shards = store[2]
    part, _ = score(store, shards=[shards[0], shards[2]])
    assert part["rows"] == [] and part["panel"] == {}
    assert "patient patient0" in part["left_out"][0]
    assert "p0-0002.parquet: expected slice 2 first, found 4" in part["left_out"][0]


def test_a_shard_that_is_gone_or_damaged_leaves_its_patient_out(store):
    ingest, _, shards = store
    ingest.write(shards[1][0], b"damaged")
    assert "patient patient0" in score(store)[0]["left_out"][0]
    ingest.remove(shards[1][0])
    part, _ = score(store)
    assert part["rows"] == [] and "expected a file, found none; left out" in part["left_out"][0]


def test_labels_of_another_shape_are_refused():
    plain, contrast, labels = volumes()
    files = write_slabs(
        *("p0", "pair0", "patient0", (3.0, 1.0, 1.0), plain, contrast),
        *(labels,),
        phase="arterial",
        slab=3,
    )
    slabs = [(name, read_slab(content)) for name, _, content in files]
    slabs[1] = (slabs[1][0], read_slab(_without_labels(plain, contrast)))
    with pytest.raises(ValueError, match=r"labels: expected the shape .*\(6, 48, 48\)"):
        score_patient(slabs, networks(), TABLE, RECIPE)


def _without_labels(plain, contrast):
    parts = write_slabs(
        *("p0", "pair0", "patient0", (3.0, 1.0, 1.0), plain, contrast, None),
        phase="arterial",
        slab=3,
    )
    return parts[1][2]


def record(path, split, patient, phase="arterial"):
    return SlabRecord(path, split, phase, f"pair-{patient}", patient, 4)


def test_a_patient_who_was_seen_in_training_is_left_out_and_named():
    records = [
        record("b.parquet", "test", "clean"),
        record("a.parquet", "test", "leaked"),
        record("c.parquet", "train", "leaked", "portal"),
        record("d.parquet", "ssl", "other"),
        record("e.parquet", "test", "late", "portal"),
    ]
    by_pair, lines = pairs_to_score(records, "arterial")
    assert list(by_pair) == ["pair-clean"]
    assert lines == [
        "patient leaked, a.parquet: expected in the test split alone, found in train too "
        "(c.parquet); left out"
    ]


def test_tables_hold_levels_beside_the_summary(store, tmp_path):
    part, _ = score(store)
    target = Folder(str(tmp_path / "tables"))
    files = write_tables(part["rows"], RECIPE, target)
    assert set(files) == {"rows.parquet", "summary.json", "differences.json", "levels.json"}
    lines = target.read_json("levels.json")
    assert {line["region"] for line in lines} == {"vessel", "aorta"}


def test_a_pair_without_labels_is_scored_in_computed_regions(tmp_path):
    plain, contrast, _ = volumes()
    contrast = np.where(contrast > 200, np.int16(350), plain)
    ingest = Folder(str(tmp_path / "ingest"))
    files = write_slabs(
        *("p0", "pair0", "patient0", (5.0, 3.0, 3.0), plain, contrast, None),
        phase="arterial",
        slab=6,
    )
    shards = [(name, ingest.write(name, content)) for name, _, content in files]
    part, _ = score((ingest, Folder(str(tmp_path / "evaluate")), shards))
    values = {
        (r["method"], r["metric"], r["region"]): r["value"]
        for r in part["rows"]
        if r["protocol"] == "roi/1"
    }
    assert values["identity", "true_median_hu", "computed_vessel"] == 350.0
    assert values["identity", "dice", "computed_vessel"] == 0.0
    assert not any(region == "vessel" for _, _, region in values)
