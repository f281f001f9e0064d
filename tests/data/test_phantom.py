"""The phantom has answers known beforehand: that is what it is for."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dyefreenet.config import PhantomConfig
from dyefreenet.data.phantom import (
    ARTERIES,
    LABELS,
    Patient,
    full_motion,
    make_chest,
    make_patient,
    write_one,
)
from dyefreenet.data.phantom.scanner import draw_motion, moved
from dyefreenet.errors import InputError

ALL = ("plain", "arterial", "portal", "delayed")
SMALL = PhantomConfig(
    matrix=(112,), slices=50, slice_mm=(6.0, 6.0), phases=ALL, motion_mm=(0.0, 0.0),
    noise_hu=(6.0, 8.0), seed=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def abdomen() -> Patient:
    """The first patient whose scan shows the abdomen and the aorta's fork."""
    wanted = (
        "aorta",
        "iliac",
        "plaque",
        "liver",
        "spleen",
        "kidney_medulla",
        "pancreas",
        "sma",
        "stomach",
    )
    glance = SMALL.model_copy(update={"phases": ("plain",)})
    for index in range(40):
        counts = np.bincount(make_patient(glance, index).labels.ravel(), minlength=256)
        if min(counts[LABELS[name]] for name in wanted) > 25:
            return make_patient(SMALL, index)
    raise AssertionError("none of 40 patients has an abdomen")


def median_hu(patient: Patient, phase: str, *names: str) -> float:
    """Median inside a structure, one voxel away from its edge."""
    inside = np.isin(patient.labels, [LABELS[name] for name in names])
    inside = ndimage.binary_erosion(inside, np.ones((1, 3, 3)))
    assert inside.sum() > 10, names
    return float(np.median(patient.phases[phase].hu[inside]))


def digest(patient: Patient) -> str:
    parts = [volume.hu.tobytes() for volume in patient.phases.values()]
    parts += [patient.labels.tobytes(), patient.motion_mm.tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_same_seed_and_index_give_the_same_bytes():
    config = SMALL.model_copy(update={"slices": 4, "phases": ("plain", "arterial")})
    other_archive = config.model_copy(update={"patients": 3, "chests": 1, "jpegls": 0.9})
    first = digest(make_patient(config, 3))
    assert digest(make_patient(config, 3)) == first
    assert digest(make_patient(other_archive, 3)) == first
    assert digest(make_patient(config, 4)) != first
    assert digest(make_patient(config.model_copy(update={"seed": 21}), 3)) != first


def test_an_archive_may_show_one_part_of_the_body_alone():
    config = PhantomConfig(matrix=(32,), slices=4, middle_mm=(200.0, 210.0))
    heights = [make_patient(config, i).phases["plain"].origin[2] + 1000 for i in range(3)]
    assert all(200 <= height <= 210 for height in heights) and len(set(heights)) == 3


def test_a_phase_more_does_not_change_the_others():
    config = SMALL.model_copy(update={"slices": 4, "phases": ("plain", "arterial")})
    two = make_patient(config, 1)
    four = make_patient(config.model_copy(update={"phases": ALL}), 1)
    for phase in ("plain", "arterial"):
        assert np.array_equal(two.phases[phase].hu, four.phases[phase].hu)


def test_blood_is_bland_in_the_plain_phase_and_bright_in_the_arterial(abdomen):
    assert 25 < median_hu(abdomen, "plain", "aorta") < 60
    arterial = median_hu(abdomen, "arterial", "aorta")
    portal = median_hu(abdomen, "portal", "aorta")
    delayed = median_hu(abdomen, "delayed", "aorta")
    assert 190 < arterial < 460
    assert 110 < portal < 200
    assert 65 < delayed < 135


@pytest.mark.parametrize(
    ("name", "phase", "low", "high"),
    [
        ("muscle", "arterial", -6, 16),
        ("liver", "arterial", -6, 22),
        ("liver", "portal", 28, 72),
        ("spleen", "arterial", 50, 112),
        ("kidney_cortex", "arterial", 75, 190),
        ("body_fat", "arterial", -6, 6),
    ],
)
def test_organs_take_up_what_their_phase_says(abdomen, name, phase, low, high):
    rise = median_hu(abdomen, phase, name) - median_hu(abdomen, "plain", name)
    assert low < rise < high


def test_medulla_lags_in_the_arterial_phase_and_has_caught_up_in_the_portal(abdomen):
    def gap(phase: str) -> float:
        cortex = median_hu(abdomen, phase, "kidney_cortex")
        return cortex - median_hu(abdomen, phase, "kidney_medulla")

    assert gap("arterial") > 40
    assert abs(gap("portal")) < 40


def test_plaque_is_bright_in_both_phases():
    config = SMALL.model_copy(update={"slices": 24, "phases": ("plain", "arterial")})
    for index in range(40):
        patient = make_patient(config, index)
        plaque = patient.labels == LABELS["plaque"]
        if plaque.sum() > 20:
            break
    for volume in patient.phases.values():
        assert np.median(volume.hu[plaque]) > 130


def test_bone_and_fat_do_not_change(abdomen):
    for name in ("bone", "body_fat"):
        inside = ndimage.binary_erosion(abdomen.labels == LABELS[name], np.ones((1, 3, 3)))
        plain, arterial = (abdomen.phases[p].hu[inside].astype(float) for p in ALL[:2])
        assert abs(np.median(arterial - plain)) < 8


def test_the_aorta_is_one_piece_from_top_to_bifurcation(abdomen):
    # Calcium lies in the aorta's wall: with it, the vessel is whole.
    aorta = np.isin(abdomen.labels, [LABELS["aorta"], LABELS["plaque"]])
    pieces, _ = ndimage.label(aorta, np.ones((3, 3, 3)))
    largest = pieces == np.argmax(np.bincount(pieces[pieces > 0]))
    heights = np.flatnonzero((abdomen.labels == LABELS["aorta"]).any(axis=(1, 2)))
    assert len(heights) >= 12
    assert np.all(np.diff(heights) == 1)
    assert largest[heights].any(axis=(1, 2)).all()


def test_the_organs_of_an_abdomen_are_there(abdomen):
    there = {name for name, number in LABELS.items() if (abdomen.labels == number).sum() > 20}
    expected = (
        "body_fat muscle bone liver spleen kidney_cortex kidney_medulla stomach bowel aorta iliac "
        "sma ivc portal_vein pancreas skin spinal_canal"
    )
    assert set(expected.split()) <= there
    assert set(ARTERIES) <= set(LABELS)


def test_motion_is_what_the_contrast_phase_shows():
    shape, spacing, extra = (10, 64, 64), (3.0, 2.0, 2.0), 3
    motion = draw_motion(np.random.default_rng(1), shape, spacing, 4.0)
    assert np.linalg.norm(motion, axis=-1).max() == pytest.approx(4.0, rel=1e-5)
    # A ramp makes the displacement itself visible: moved(p + u(p)) = p.
    z, y, x = np.meshgrid(
        (np.arange(16) - extra) * 3.0, np.arange(64) * 2.0, np.arange(64) * 2.0, indexing="ij"
    )
    full = full_motion(motion, shape)
    inner = np.s_[2:-2, 8:-8, 8:-8]
    there = [place[extra:-extra] + full[..., i] for i, place in enumerate((z, y, x))]
    at = [place / step for place, step in zip(there, spacing, strict=True)]
    for ramp in (z, y, x):
        shown = moved(ramp.astype(np.float32), motion, spacing, extra)
        found = ndimage.map_coordinates(shown, at, order=1, mode="nearest")
        assert np.abs(found - ramp[extra:-extra])[inner].max() < 0.1  # mm


def test_a_patient_without_motion_has_none(abdomen):
    assert not abdomen.motion_mm.any()


def test_two_phases_differ_in_their_noise_but_not_in_their_place(abdomen):
    muscle = ndimage.binary_erosion(abdomen.labels == LABELS["muscle"], np.ones((1, 5, 5)))
    plain, arterial = (abdomen.phases[p].hu[muscle].astype(float) for p in ALL[:2])
    assert np.std(arterial - plain) > 3
    assert abdomen.phases["plain"].spacing == abdomen.phases["arterial"].spacing


@pytest.mark.parametrize("jpegls", [0.0, 1.0])
def test_dicom_gives_back_the_volume(tmp_path: Path, jpegls: float):
    config = SMALL.model_copy(
        update={"slices": 5, "jpegls": jpegls, "phases": ("plain", "arterial"),
                "motion_mm": (1.0, 3.0)}
    )  # fmt: skip
    patient = make_patient(config, 2)
    key = write_one(config, 2, tmp_path)
    for number, phase in enumerate(("plain", "arterial"), start=2):
        files = [pydicom.dcmread(path) for path in
                 (tmp_path / "dicom" / "PHANTOM-0003" / str(number)).iterdir()]  # fmt: skip
        files.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
        stored = np.stack([ds.pixel_array for ds in files]).astype(int)
        volume = patient.phases[phase]
        hu = stored * int(files[0].RescaleSlope) + int(files[0].RescaleIntercept)
        if volume.padding is not None:
            assert np.array_equal(stored == files[0].PixelPaddingValue, volume.padding)
            hu[volume.padding] = -1024
        assert np.array_equal(hu, volume.hu)
        assert ("ContrastBolusAgent" in files[0]) == (phase != "plain")
        assert float(files[0].PixelSpacing[0]) == pytest.approx(volume.spacing[1])
        if phase == "plain":
            uid = files[0].SeriesInstanceUID
    assert hashlib.sha256(uid.encode()).hexdigest()[:16] == key
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "truth" / f"{key}.nii.gz")))
    assert np.array_equal(truth, patient.labels)
    motion = sitk.GetArrayFromImage(
        sitk.ReadImage(str(tmp_path / "truth" / f"{key}_arterial_motion.nii.gz"))
    )
    assert np.allclose(motion, patient.motion_mm)
    assert json.loads((tmp_path / "truth" / "labels.json").read_text())["labels"] == LABELS


def test_writing_twice_gives_the_same_files(tmp_path: Path):
    config = SMALL.model_copy(update={"slices": 3, "phases": ("plain",), "jpegls": 0.5})
    for name in ("a", "b"):
        write_one(config, 0, tmp_path / name)
    for first in (tmp_path / "a" / "dicom").rglob("*.dcm"):
        second = tmp_path / "b" / first.relative_to(tmp_path / "a")
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.program("dciodvfy")
def test_a_validator_finds_no_error(tmp_path: Path):
    config = SMALL.model_copy(update={"slices": 3, "phases": ("plain", "arterial")})
    write_one(config, 0, tmp_path)
    write_one(config, 0, tmp_path, "chest")
    files = sorted(tmp_path.rglob("0001.dcm"))
    assert len(files) == 3
    for path in files:
        run = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
        assert "Error" not in run.stderr + run.stdout


def test_a_chest_series_is_noisy_plain_and_named_as_in_a_screening_trial(tmp_path: Path):
    config = SMALL.model_copy(update={"slices": 6})
    chest = make_chest(config, 0)
    assert list(chest.phases) == ["plain"]
    assert (chest.labels == LABELS["lung"]).mean() > 0.03
    write_one(config, 0, tmp_path, "chest")
    ds = pydicom.dcmread(next(tmp_path.rglob("*.dcm")), stop_before_pixels=True)
    assert len(ds.SeriesDescription.split(",")) == 11
    assert "ContrastBolusAgent" not in ds


def test_a_label_map_of_real_ct_is_a_second_source(tmp_path: Path):
    """A box of liver, a rod of aorta, a rod of vertebra, on 4 mm voxels."""
    labels = np.zeros((20, 60, 80), np.uint8)
    labels[:, 15:45, 12:34] = 5
    labels[:, 34:46, 36:48] = 29
    labels[:, 25:32, 40:47] = 52
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((4.0, 4.0, 4.0))
    sitk.WriteImage(image, str(tmp_path / "map.nii.gz"))
    config = SMALL.model_copy(
        update={"label_maps": (str(tmp_path),), "label_map_share": 1.0, "slices": 8}
    )
    patient = make_patient(config, 0)
    assert {"liver", "aorta", "bone", "body_fat"} <= {
        name for name, number in LABELS.items() if (patient.labels == number).any()
    }
    assert 190 < median_hu(patient, "arterial", "aorta") < 460
    assert median_hu(patient, "arterial", "liver") < 100
    with pytest.raises(InputError, match="found none"):
        make_patient(config.model_copy(update={"label_maps": (str(tmp_path / "no"),)}), 0)
