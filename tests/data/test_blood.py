"""Iodine in made volumes whose blood is known, in phantom patients, and in real CT."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_ct import X, Y, Z, scan

from dyefreenet.config import PhantomConfig
from dyefreenet.data.blood import (
    BloodPool,
    blood_pool,
    phase_in_image,
    phase_of_pool,
)
from dyefreenet.data.dicom import read_series
from dyefreenet.data.images import read_image
from dyefreenet.data.phantom import make_patient
from dyefreenet.data.volume import Volume


@pytest.mark.parametrize(
    ("aorta", "phase"),
    [(45, "plain"), (90, None), (160, "contrast"), (320, "arterial"), (550, "arterial")],
)
def test_the_level_is_that_of_the_aorta(aorta, phase):
    volume = scan(aorta)
    pool = blood_pool(volume)
    assert pool.level_hu == pytest.approx(aorta, abs=8)  # muscle of 50 HU lies around it
    assert pool.length_mm >= 114
    assert phase_in_image(volume)[0] == phase


def test_the_words_give_level_and_length():
    assert BloodPool(312.4, 20.0, 180.2).words == "blood pool of 312 HU over 180 mm"
    assert phase_in_image(scan(spine=False)) == (None, "no blood pool found")


def test_turned_volumes_are_turned_back():
    volume = scan(320)
    direction = np.diag([-1.0, -1.0, 1.0])
    turned = Volume(
        np.ascontiguousarray(volume.hu[:, ::-1, ::-1]), volume.spacing, direction=direction
    )
    assert blood_pool(turned) == blood_pool(volume)


@pytest.mark.parametrize("discs", [True, False])
def test_marrow_is_no_blood(discs):
    """A vertebral column of 200 HU is the largest bright thing in a plain scan."""
    assert phase_in_image(scan(45, discs=discs))[0] == "plain"


def test_noise_of_a_screening_scan_changes_nothing():
    assert phase_in_image(scan(45, noise=60.0))[0] == "plain"
    assert phase_in_image(scan(320, noise=60.0))[0] == "arterial"


def test_thick_slices():
    assert phase_in_image(scan(45, step=5.0))[0] == "plain"
    assert phase_in_image(scan(320, step=5.0))[0] == "arterial"


@pytest.mark.parametrize("level", [300, 3000])
def test_short_bright_things_make_a_plain_scan_doubtful_at_most(level):
    """Oral contrast over 36 of 120 mm, or metal."""
    volume = scan(45, insert=(level, 10, 22))
    assert blood_pool(volume).level_hu < 60
    assert phase_in_image(volume)[0] in (None, "plain")


def test_bright_bowel_is_told():
    phase, words = phase_in_image(scan(45, insert=(300, 10, 22)))
    assert phase is None
    assert "beside it something of 3" in words


def test_plain_needs_a_part_of_the_body_that_has_an_aorta():
    assert phase_in_image(scan(45, lungs=False))[0] is None
    assert phase_in_image(scan(320, lungs=False))[0] == "arterial"


def test_too_short_to_tell():
    volume = scan(320)
    assert np.isnan(blood_pool(Volume(volume.hu[:10], volume.spacing)).level_hu)


def test_what_is_no_trunk_says_nothing():
    y, x = np.ogrid[-60:60, -85:85]
    head = np.where((x / 35) ** 2 + (y / 45) ** 2 < 1, 35, -1000)
    head[((x / 40) ** 2 + (y / 50) ** 2 < 1) & (head < 0)] = 900
    legs = np.full((Y, X), -1000)
    for side in (-40, 40):
        away = np.hypot(x - side, y)
        legs[away < 38] = 55
        legs[away < 8] = 1200
        legs[away < 4] = -60
        legs[np.hypot(x - side, y + 20) < 4] = 350  # a bright artery, far from any spine
    for image in (head, legs, np.full((Y, X), -1000), np.full((Y, X), 0)):
        volume = Volume(np.repeat(image[None].astype(np.int16), Z, axis=0), (3.0, 2.0, 2.0))
        assert phase_in_image(volume)[0] is None
    assert phase_in_image(Volume(np.zeros((3, 2, 2), np.int16), (0.5, 0.5, 0.5)))[0] is None


def test_a_small_dark_pool_proves_nothing():
    assert phase_of_pool(BloodPool(50.0, 20.0, 90.0, trunk_mm=90.0))[0] == "plain"
    assert phase_of_pool(BloodPool(50.0, 0.4, 90.0, trunk_mm=90.0))[0] is None
    assert phase_of_pool(BloodPool(50.0, 20.0, 90.0, stray_hu=250.0, trunk_mm=90.0))[0] is None


def test_phantom_patients_are_never_called_what_they_are_not():
    config = PhantomConfig(
        seed=7, phases=("plain", "arterial", "portal"), middle_mm=(330, 430), matrix=(192,)
    )
    allowed = {
        "plain": {"plain", None},
        "arterial": {"arterial", "contrast", None},
        "portal": {"contrast", None},
    }
    said = [
        (phase, phase_in_image(volume)[0])
        for index in range(3)
        for phase, volume in make_patient(config, index).phases.items()
    ]
    assert all(word in allowed[phase] for phase, word in said), said
    assert sum(word is not None for _, word in said) >= 4, said


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "phase", "low", "high"),
    [
        ("acrin_flt001_abdpelvis_nc", "plain", 35, 72),
        ("nlst_101287_lowdose_nc", "plain", 35, 72),
        ("ts_portal_dicom20", "contrast", 140, 190),  # aorta 180 HU, portal vein 137
    ],
)
def test_real_series(real_data, name, phase, low, high):
    files = [p for p in (real_data / name).iterdir() if p.suffix not in (".txt", ".gz")]
    volume = read_series(sorted(files)).volume
    assert phase_in_image(volume)[0] == phase
    assert low < blood_pool(volume).level_hu < high


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "phase", "low", "high"),
    [
        ("ts_arterial_cta/ct.nii.gz", "arterial", 450, 520),  # true lumen 496 HU
        ("ts_native_ct/example_ct.nii.gz", "plain", 35, 60),  # aorta 42 HU, liver 47
    ],
)
def test_real_images(real_data, name, phase, low, high):
    volume = read_image(real_data / name)
    assert phase_in_image(volume)[0] == phase
    assert low < blood_pool(volume).level_hu < high
