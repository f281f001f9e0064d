"""From archives to shards: what goes in is known, so what comes out is, voxel by voxel."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk

from dyefreenet.cli import main
from dyefreenet.config import GridConfig, IngestConfig, PhantomConfig
from dyefreenet.data.archive import scan, short_hash
from dyefreenet.data.cohort import pair
from dyefreenet.data.ingest import ingest
from dyefreenet.data.phantom import write_one
from dyefreenet.data.prepare import (
    Job,
    body_middle,
    covered,
    fit,
    in_plane,
    make_shards,
    nearest,
    prepared,
    weights,
    window_start,
)
from dyefreenet.data.shards import read_slab
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.store import Folder

# Patients whose hashes fall on each side of a split of 0.3 and 0.3.
EVERY_SIDE = ("A", "B", "C", "D", "E", "F")
SPLIT = {"validation": 0.3, "test": 0.3}


def scene(seed: int, depth: int = 5, height: int = 40, width: int = 48) -> np.ndarray:
    """A soft body of its own noise in air, [Z, H, W]."""
    rng = np.random.default_rng(seed)
    hu = np.full((depth, height, width), -1000)
    hu[:, 8:-8, 6:-6] = rng.integers(0, 80, (depth, height - 16, width - 12))
    return hu


@pytest.fixture
def patient(write_ct):
    """Writes one patient's plain and arterial series; returns their HU."""

    def write(
        root: Path, name: str, seed: int = 0, depth: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        plain = scene(seed, depth)
        contrast = plain.copy()
        contrast[:, 18:22, 20:24] += 250
        shared = {"PatientID": name, "StudyInstanceUID": f"1.{seed}", "PixelRepresentation": 1}
        for number, (hu, words) in enumerate([(plain, "NATIV"), (contrast, "ART")]):
            uid = f"1.{seed}.{number}"
            folder = root / name / str(number)
            write_ct(folder, hu, SeriesInstanceUID=uid, SeriesDescription=words, **shared)
        return plain, contrast

    return write


def stacked(folder: Path, records: list[dict], what: str) -> np.ndarray:
    """The core slices of a pair, put together again."""
    slabs = [read_slab((folder / one["path"]).read_bytes()) for one in records]
    slabs.sort(key=lambda slab: slab.first)
    parts = [getattr(slab, what) for slab in slabs]
    return np.concatenate([part[1:-1] if what != "labels" else part for part in parts])


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- onto the grid -------------------------------------------------------------------------------


def test_halving_averages_areas():
    array = np.arange(3 * 4 * 6, dtype=np.int16).reshape(3, 4, 6) * 10
    expected = array.reshape(3, 2, 2, 3, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(in_plane(array, (0.8, 0.8), 1.6), expected)


def test_shrinking_keeps_the_mean_and_a_constant():
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (2, 60, 80)).astype(np.int16)
    out = in_plane(array, (0.7, 0.7), 1.0)
    assert out.shape == (2, 42, 56)
    assert out.mean() == pytest.approx(array.mean(), abs=2.0)
    assert np.unique(in_plane(np.full((2, 60, 80), 37, np.int16), (0.7, 0.7), 1.3)).tolist() == [37]


def test_growing_is_linear_between_centres():
    ramp = np.tile(np.arange(8, dtype=np.int16) * 100, (1, 4, 1))
    out = in_plane(ramp, (1.0, 1.0), 0.5)
    assert out.shape == (1, 8, 16)
    np.testing.assert_array_equal(out[0, 0, 1:-1], np.arange(14) * 50 + 25)


@pytest.mark.parametrize(("step", "target"), [(0.7, 1.3), (1.0, 0.6), (0.5, 0.5), (0.9, 2.5)])
def test_weights_sum_to_one_and_keep_the_middle_in_the_middle(step, target):
    table = weights(50, step, target)
    np.testing.assert_allclose(table.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(table, table[::-1, ::-1], atol=1e-6)
    assert len(nearest(50, step, target)) == len(table)


def test_labels_take_the_nearest_and_invent_none():
    labels = np.tile(np.array([0, 0, 7, 7, 7, 2], np.uint8), (2, 6, 1))
    out = in_plane(labels, (1.0, 1.0), 0.5)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out[0, 0], np.repeat([0, 0, 7, 7, 7, 2], 2))


def test_the_same_size_is_left_alone():
    hu = scene(0).astype(np.int16)[:, :, :40]
    assert window_start(hu, 40) == (0, 0)
    np.testing.assert_array_equal(fit(hu, 40, (0, 0)), hu)


def test_a_smaller_image_gets_air_on_either_side():
    hu = np.full((2, 4, 6), 5, np.int16)
    out = fit(hu, 8, window_start(hu, 8))
    assert out.shape == (2, 8, 8)
    assert (out[:, 2:6, 1:7] == 5).all() and (out == 5).sum() == hu.size
    assert out.min() == -1024
    assert fit(hu.astype(np.uint8), 8, (-2, -1)).min() == 0


def test_a_larger_image_is_cut_around_the_body_and_not_beyond_its_edge():
    hu = np.full((4, 200, 200), -1000, np.int16)
    hu[:, 100:160, 40:100] = 30
    hu[:, 190:192, :] = -200  # the sheet of a table
    assert body_middle(hu) == (130.0, 70.0)
    assert window_start(hu, 100) == (80, 20)
    hu[:, 140:200] = 30  # now the body touches the lower edge
    assert window_start(hu, 100)[0] == 100


def test_an_image_of_air_is_cut_in_the_middle():
    assert window_start(np.full((3, 60, 80), -1000, np.int16), 40) == (10, 20)


# ---- one pair ------------------------------------------------------------------------------------


def job_of(folder: Path) -> Job:
    ((one,), _) = pair(scan(str(folder)), ["arterial"])
    return Job(one.plain, one.contrast, "arterial", "train")


def test_shards_hold_the_hu_of_the_files(patient, tmp_path):
    plain, contrast = patient(tmp_path, "A", seed=3)
    made = make_shards(job_of(tmp_path), IngestConfig(slab=2), GridConfig(size=48))
    assert [(name[-13:], slices) for name, slices, _ in made.files] == [
        ("-0000.parquet", 2),
        ("-0001.parquet", 2),
        ("-0002.parquet", 1),
    ]
    slab = read_slab(made.files[0][2])
    assert slab.spacing == (2.5, 0.8, 0.7)
    assert slab.patient == short_hash("A") and slab.phase == "arterial"
    np.testing.assert_array_equal(slab.plain[1:, 4:44], plain[:3])
    np.testing.assert_array_equal(slab.contrast[1:, 4:44], contrast[:3])
    assert made.row["slices"] == 5 and made.row["body_dice"] == 1.0
    assert made.row["source"] == "real"


def test_pixels_are_brought_to_the_asked_size(patient, tmp_path):
    patient(tmp_path, "A")
    made = make_shards(job_of(tmp_path), IngestConfig(), GridConfig(pixel_mm=1.4, size=24))
    slab = read_slab(made.files[0][2])
    assert slab.spacing == (2.5, 1.4, 1.4)
    assert slab.plain.shape == slab.contrast.shape == (7, 24, 24)


def test_slices_that_contrast_does_not_reach_are_left_out(ct, patient, tmp_path):
    plain, _ = patient(tmp_path, "A", depth=8)
    for path in sorted((tmp_path / "A" / "1").glob("*.dcm"))[:3]:
        path.unlink()
    made = make_shards(job_of(tmp_path), IngestConfig(), GridConfig(size=48))
    slab = read_slab(made.files[0][2])
    assert made.row["slices"] == 5
    np.testing.assert_array_equal(slab.plain[1:-1, 4:44], plain[3:])


def test_what_one_scan_did_not_measure_is_air_in_both(write_ct, tmp_path):
    plain, contrast = scene(1), scene(1) + 10
    contrast[:, :, :10] = -3024
    for number, (hu, words) in enumerate([(plain, "NATIV"), (contrast, "ART")]):
        write_ct(
            tmp_path / str(number),
            hu,
            SeriesInstanceUID=f"1.{number}",
            SeriesDescription=words,
            PixelRepresentation=1,
        )
    slab = read_slab(make_shards(job_of(tmp_path), IngestConfig(), GridConfig(size=48)).files[0][2])
    assert (slab.plain[:, :, :10] == -1024).all() and (slab.contrast[:, :, :10] == -1024).all()
    np.testing.assert_array_equal(slab.plain[1:-1, 4:44, 10:], plain[:, :, 10:])


def test_truth_rides_along_on_the_same_grid(patient, tmp_path):
    patient(tmp_path / "dicom", "A")
    job = job_of(tmp_path / "dicom")
    labels = (np.arange(5 * 40 * 48).reshape(5, 40, 48) % 5).astype(np.uint8)
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10, -20, 100))
    (tmp_path / "truth").mkdir()
    sitk.WriteImage(image, str(tmp_path / "truth" / f"{job.plain.key}.nii.gz"))
    truth = Folder(str(tmp_path / "truth"))
    made = make_shards(job, IngestConfig(), GridConfig(size=48), truth)
    np.testing.assert_array_equal(read_slab(made.files[0][2]).labels[:, 4:44], labels)


def test_the_known_motion_of_a_phantom_tells_what_registration_left(tmp_path):
    config = PhantomConfig(matrix=(128,), slices=24, slice_mm=(5.0, 5.0), motion_mm=(4.0, 4.0))
    key = write_one(config, 1, tmp_path)
    truth = Folder(str(tmp_path / "truth"))
    ((one,), _) = pair(scan(str(tmp_path / "dicom")), ["arterial"])
    job = Job(one.plain, one.contrast, "arterial", "test")
    rows = {
        mode: make_shards(job, IngestConfig(registration=mode), GridConfig(size=128), truth).row
        for mode in ("off", "deformable")
    }
    motion = sitk.GetArrayFromImage(
        sitk.ReadImage(str(tmp_path / "truth" / f"{key}_arterial_motion.nii.gz"))
    )
    left = {mode: row["landmark_mm"] for mode, row in rows.items()}
    assert left["off"] == rows["off"]["landmark_mm_before"]
    assert 0.2 < left["off"] <= np.linalg.norm(motion, axis=-1).max()
    assert left["deformable"] < 0.7 * left["off"]


def test_too_small_an_overlap_is_refused():
    padding = np.ones((6, 4, 4), np.bool_)
    padding[2:4] = False
    volume = Volume(np.zeros((6, 4, 4), np.int16), (1.0, 1.0, 1.0), padding=padding)
    with pytest.raises(SeriesError, match="share 2 slices"):
        covered(volume)


# ---- whole archives ------------------------------------------------------------------------------


@pytest.fixture
def archive(patient, write_ct, tmp_path) -> Path:
    """Six pairs, one plain series without partner, one pair with a missing slice, one scout."""
    root = tmp_path / "archive"
    for seed, name in enumerate(EVERY_SIDE, start=1):
        patient(root, name, seed=seed)
    write_ct(
        root / "lone",
        scene(90),
        SeriesInstanceUID="1.90",
        PatientID="lone",
        SeriesDescription="NATIV",
    )
    patient(root, "gap", seed=91)
    (root / "gap" / "1" / "0003.dcm").unlink()
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.92"}
    write_ct(root / "scout", scene(92)[:1], **scout)
    (root / "notes.txt").write_text("not an image")
    return root


def run(archive: Path, target: Path, **changes) -> dict:
    return ingest(
        IngestConfig(**(SPLIT | {"slab": 2} | changes)),
        GridConfig(size=48),
        paired=[Folder(str(archive))],
        target=Folder(str(target)),
    )


def check_books(folder: Path, facts: dict) -> None:
    slabs = Folder(str(folder)).read_json("slabs.json")
    pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
    excluded = pq.read_table(folder / "excluded.parquet").to_pylist()
    plain = pq.read_table(folder / "plain.parquet").to_pylist()
    assert facts["pairs"]["arterial"] == len(pairs) == 6
    assert {row["split"] for row in pairs} == {"train", "validation", "test"}
    assert {row["patient"] for row in pairs} == {short_hash(name) for name in EVERY_SIDE}
    assert [row["patient"] for row in plain] == [short_hash("lone")]
    assert sorted(row["reason"] for row in excluded) == ["gap", "gap", "localizer"]
    assert {row["patient"] for row in excluded if row["reason"] == "gap"} == {short_hash("gap")}
    split_of_pair = {row["key"]: row["split"] for row in pairs} | {
        row["key"]: "ssl" for row in plain
    }
    assert {slab["pair"]: slab["split"] for slab in slabs} == split_of_pair
    assert sum(slab["slices"] for slab in slabs) == 7 * 5 == sum(facts["slices"].values())
    assert facts["skipped_files"] == {"not a DICOM file": 1}
    assert facts["refused"] == {"gap": 2, "localizer": 1}
    assert facts["series"] == facts["used"] + sum(facts["refused"].values()) + facts["failed"]
    assert [slab["path"] for slab in slabs] == sorted(slab["path"] for slab in slabs)
    names = {slab["path"] for slab in slabs}
    assert names == {f"shards/{path.name}" for path in (folder / "shards").iterdir()}


def test_an_archive_becomes_shards_and_books(archive, tmp_path):
    facts = run(archive, tmp_path / "out")
    check_books(tmp_path / "out", facts)
    slabs = Folder(str(tmp_path / "out")).read_json("slabs.json")
    key = short_hash("1.2.0")
    records = [slab for slab in slabs if slab["pair"] == key]
    plain = stacked(tmp_path / "out", records, "plain")
    np.testing.assert_array_equal(plain[:, 4:44], scene(2))


def test_a_second_run_writes_the_same_bytes(archive, tmp_path):
    run(archive, tmp_path / "one")
    run(archive, tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_more_patients_move_nobody(archive, patient, tmp_path):
    run(archive, tmp_path / "before")
    for seed, name in enumerate(("N1", "N2", "N3"), start=40):
        patient(archive, name, seed=seed)
    run(archive, tmp_path / "after")
    before, after = (
        {
            row["key"]: row["split"]
            for row in pq.read_table(tmp_path / when / "pairs.parquet").to_pylist()
        }
        for when in ("before", "after")
    )
    assert len(after) == 9 and before.items() <= after.items()


def test_plain_archives_go_to_ssl_but_not_those_of_held_out_patients(archive, write_ct, tmp_path):
    run(archive, tmp_path / "first")
    rows = pq.read_table(tmp_path / "first" / "pairs.parquet").to_pylist()
    sides = {row["patient"]: row["split"] for row in rows}
    extra = tmp_path / "nlst"
    for seed, name in enumerate(EVERY_SIDE, start=60):
        write_ct(
            extra / name,
            scene(seed),
            SeriesInstanceUID=f"1.{seed}",
            PatientID=name,
            SeriesDescription="CHEST",
        )
    ingest(
        IngestConfig(**SPLIT),
        GridConfig(size=48),
        paired=[Folder(str(archive))],
        plain=[Folder(str(extra))],
        target=Folder(str(tmp_path / "out")),
    )
    ssl = {row["patient"] for row in pq.read_table(tmp_path / "out/plain.parquet").to_pylist()}
    train = {patient for patient, split in sides.items() if split == "train"}
    assert ssl == train | {short_hash("lone")}
    excluded = pq.read_table(tmp_path / "out/excluded.parquet").to_pylist()
    held_out = {row["patient"] for row in excluded if row["reason"] == "held-out"}
    assert held_out == set(sides) - train


def test_what_is_done_is_not_done_again(archive, patient, tmp_path):
    run(archive, tmp_path / "out")
    whole = digest(tmp_path / "out")
    records = sorted((tmp_path / "out" / "jobs").iterdir())
    assert len(records) == 8
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/shards").iterdir()}
    # As a kill leaves it: one job without its record, the books unwritten.
    records[0].unlink()
    (tmp_path / "out" / "slabs.json").unlink()
    run(archive, tmp_path / "out")
    assert digest(tmp_path / "out") == whole
    again = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert again and all(path.name.startswith(records[0].stem) for path in again)


def test_a_series_more_is_one_job_more_and_one_gone_leaves_nothing(archive, patient, tmp_path):
    run(archive, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/jobs").iterdir()}
    patient(archive, "new", seed=70)
    run(archive, tmp_path / "out")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/jobs").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    shutil.rmtree(archive / "new")
    facts = run(archive, tmp_path / "out")
    check_books(tmp_path / "out", facts)
    assert len(list((tmp_path / "out" / "jobs").iterdir())) == len(before)


def test_a_file_that_changed_is_read_again(archive, tmp_path, write_ct):
    run(archive, tmp_path / "out")
    whole = digest(tmp_path / "out")
    path = archive / "A" / "1" / "0001.dcm"
    ds = pydicom.dcmread(path)
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(path)
    run(archive, tmp_path / "out")
    changed = {name for name, mark in digest(tmp_path / "out").items() if whole.get(name) != mark}
    key = short_hash("1.1.0")
    assert changed and all(
        key in name or name in ("pairs.parquet", "slabs.json", "histogram.json") for name in changed
    )


VICTIM = short_hash("1.3.0")


def crash_on_one(job, *rest):
    """In place of ``prepared``, over there: a decoder that brings its process down."""
    if job.plain.key == VICTIM:
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepared(job, *rest)


def test_a_crash_costs_one_pair_and_is_tried_again(archive, tmp_path, monkeypatch):
    run(archive, tmp_path / "whole")
    crash_on_one.__module__ = Path(__file__).stem
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setattr("dyefreenet.data.ingest.prepared", crash_on_one)
    facts = run(archive, tmp_path / "out", seconds=101.0)  # another guard than the other tests'
    assert facts["failed"] == 2 and facts["pairs"] == {"arterial": 5}
    excluded = pq.read_table(tmp_path / "out" / "excluded.parquet").to_pylist()
    details = {row["detail"] for row in excluded if row["reason"] == "failed"}
    assert details == {"its process ended with -11"}
    monkeypatch.undo()
    assert run(archive, tmp_path / "out")["failed"] == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_what_a_table_of_phases_says_later_is_heard(archive, tmp_path):
    """The same files under other words: another patient, so another row in the books."""
    run(archive, tmp_path / "out")
    (archive / "phases.csv").write_text("series,phase,patient\n1.1.0,plain,Z\n1.1.1,arterial,Z\n")
    run(archive, tmp_path / "out", validation=0.0, test=0.0)
    rows = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert {row["patient"] for row in rows if row["key"] == short_hash("1.1.0")} == {
        short_hash("Z")
    }


def test_a_job_that_fails_leaves_no_record_of_other_settings(archive, tmp_path):
    run(archive, tmp_path / "out", registration="off")
    record = tmp_path / "out" / "jobs" / f"{short_hash('1.1.0')}-arterial.json"
    assert record.exists()
    with pytest.raises(InputError):  # too little memory for any
        run(archive, tmp_path / "out", registration="rigid", memory_gib=1e-6)
    assert not record.exists()


def test_a_salt_changes_every_name_and_moves_nobody(archive, tmp_path):
    run(archive, tmp_path / "plain")
    ingest(
        IngestConfig(**SPLIT, slab=2),
        GridConfig(size=48),
        paired=[Folder(str(archive))],
        target=Folder(str(tmp_path / "salted")),
        salt="pepper",
    )
    plain, salted = (
        pq.read_table(tmp_path / name / "pairs.parquet").to_pylist() for name in ("plain", "salted")
    )
    assert not {row["patient"] for row in plain} & {row["patient"] for row in salted}
    assert not {row["key"] for row in plain} & {row["key"] for row in salted}
    assert {row["patient"] for row in salted} == {short_hash(n, "pepper") for n in EVERY_SIDE}
    assert sorted(row["split"] for row in plain) == sorted(row["split"] for row in salted)


def test_every_phase_becomes_pairs(archive, write_ct, tmp_path):
    write_ct(
        archive / "A" / "2",
        scene(1),
        SeriesInstanceUID="1.1.2",
        SeriesDescription="PORTAL",
        PatientID="A",
        StudyInstanceUID="1.1",
        PixelRepresentation=1,
    )
    facts = run(archive, tmp_path / "out")
    assert facts["pairs"] == {"arterial": 6, "portal": 1}
    slabs = Folder(str(tmp_path / "out")).read_json("slabs.json")
    key = short_hash("1.1.0")
    assert {slab["phase"] for slab in slabs if slab["pair"] == key} == {"arterial", "portal"}
    assert len({slab["path"] for slab in slabs}) == len(slabs)
    only = run(archive, tmp_path / "only", keep=("arterial",))
    assert only["pairs"] == {"arterial": 6}


def test_nothing_written_names_a_patient(write_ct, tmp_path):
    root = tmp_path / "CANARYpath"
    for seed, name in enumerate(EVERY_SIDE):
        for number, words in enumerate(("NATIV", "ART")):
            write_ct(
                root / f"{name}{number}",
                scene(seed),
                SeriesInstanceUID=f"1.777.{seed}.{number}",
                StudyInstanceUID=f"1.777.{seed}",
                PatientID=name,
                PatientName="CANARY^A",
                SeriesDescription=f"{words} CANARY",
                InstitutionName="CANARY",
            )
    run(root, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes() if path.is_file() else path.name.encode()
        assert b"CANARY" not in content and b"1.777" not in content, path.name


# ---- refusals ------------------------------------------------------------------------------------


def test_no_pairs_says_what_was_found(write_ct, tmp_path):
    for number, words in enumerate(("NATIV", "PORTAL", "CHEST")):
        write_ct(
            tmp_path / str(number),
            scene(1),
            SeriesInstanceUID=f"1.{number}",
            SeriesDescription=words,
        )
    with pytest.raises(InputError) as error:
        run(tmp_path, tmp_path / "out")
    assert "found 3 series (1 of unknown phase, 1 plain, 1 portal)" in str(error.value)
    assert "phases.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"validation": 0.0, "test": 1.0}, "none in train"),
        ({"validation": 0.0001, "test": 0.3}, "none in validation.*raise ingest.validation"),
    ],
)
def test_an_empty_split_is_named(archive, tmp_path, share, message):
    with pytest.raises(InputError, match=message):
        run(archive, tmp_path / "out", **share)


def test_pairs_that_all_fail_are_an_error_with_the_first_reason(patient, tmp_path):
    for seed, name in enumerate(EVERY_SIDE):
        patient(tmp_path / "archive", name, seed=seed)
        (tmp_path / "archive" / name / "0" / "0003.dcm").unlink()
    with pytest.raises(InputError, match=r"gap: step of 5\.00 mm"):
        run(tmp_path / "archive", tmp_path / "out")


# ---- on the cluster, last: from here on Ray runs -----------------------------------------------


@pytest.mark.ray
def test_the_cluster_writes_the_same_bytes(archive, tmp_path, cluster):
    seen = []
    config = IngestConfig(**SPLIT, slab=2)
    facts = ingest(
        config,
        GridConfig(size=48),
        paired=[Folder(str(archive))],
        target=Folder(str(tmp_path)) / "out",
        report=lambda *told: seen.append(told),
    )
    check_books(tmp_path / "out", facts)
    assert [told for told in seen if told[0] == "series"] == [("series", n, 8) for n in range(1, 9)]
    assert seen[0] == ("files", 76, 0)
    pairs, _ = pair(scan(str(archive)), ["arterial"])
    compared = 0
    for one in pairs:
        if one.patient == short_hash("gap"):
            continue
        here = make_shards(
            Job(one.plain, one.contrast, "arterial", "train"), config, GridConfig(size=48)
        )
        for name, _, content in here.files:
            assert (tmp_path / "out" / "shards" / name).read_bytes() == content
            compared += 1
    assert compared == 6 * 3


@pytest.mark.ray
def test_any_archive_into_any_folder_with_an_account_of_every_series(
    archive, tmp_path, cluster, capsys
):
    words = ["ingest", "-i", str(archive), "-o", str(tmp_path / "out"), "--json"]
    small = ["--set", "grid.size=64", "--set", "grid.pixel_mm=null"]
    assert main([*words, *small]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["series"], told["used"], told["failed"]) == (16, 13, 0)
    assert told["refused"] == {"gap": 2, "localizer": 1}
    assert (tmp_path / "out" / "salt.txt").stat().st_size == 64
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert not {row["patient"] for row in pairs} & {short_hash(name) for name in EVERY_SIDE}
    assert main(words[:3]) == 1
    assert "expected both -i ARCHIVE and -o FOLDER" in capsys.readouterr().err
