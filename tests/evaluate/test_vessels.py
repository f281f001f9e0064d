"""Dice and HD95 of vessels that are boxes, and distances against a plain search."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dyefreenet.evaluate.protocols import Case, protocol
from dyefreenet.evaluate.vessels import hausdorff95, vessel_agreement

SPACING = (3.0, 1.0, 1.0)


@pytest.fixture
def scan():
    """Plain, true and labels of a vessel of 8 x 8 pixels through 4 slices: 40 and 340 HU."""
    plain = np.full((4, 40, 40), 40, np.int16)
    labels = np.zeros(plain.shape, bool)
    labels[:, 16:24, 16:24] = True
    true = np.where(labels, np.int16(340), plain)
    return plain, true, labels


def test_a_perfect_prediction_agrees(scan):
    plain, true, labels = scan
    assert vessel_agreement(true, true, plain, labels, SPACING) == (1.0, 0.0)


def test_half_way_between_the_levels_is_the_threshold(scan):
    plain, true, labels = scan
    for level, dice in ((191, 1.0), (190, 0.0)):
        predicted = np.where(labels, np.int16(level), plain)
        assert vessel_agreement(true, predicted, plain, labels, SPACING)[0] == dice


def test_a_vessel_that_is_missed_is_as_far_away_as_its_box_is_wide(scan):
    plain, true, labels = scan
    assert vessel_agreement(true, plain, plain, labels, SPACING) == (
        0.0,
        pytest.approx(np.sqrt((4 * 3) ** 2 + 8**2 + 8**2)),
    )


def test_a_vessel_drawn_too_wide_is_measured_in_millimetres(scan):
    plain, true, labels = scan
    wide = plain.copy()
    wide[:, 16:24, 14:26] = 340  # two pixels to either side
    dice, distance = vessel_agreement(true, wide, plain, labels, SPACING)
    assert dice == pytest.approx(2 * 64 / (64 + 96))
    assert distance == 2.0


def test_a_vessel_that_ends_within_the_scan_has_an_end():
    plain = np.full((20, 40, 40), 40, np.int16)
    labels = np.zeros(plain.shape, bool)
    labels[4:16, 8:32, 8:32] = True
    true = np.where(labels, np.int16(340), plain)
    predicted = true.copy()
    predicted[14:16] = 40  # two slices too short
    found = vessel_agreement(true, predicted, plain, labels, SPACING)
    assert found[1] == hausdorff95(labels, predicted > 190, SPACING) == 6.0


def test_what_is_far_away_or_bright_in_truth_too_counts_for_neither(scan):
    plain, true, labels = scan
    true[:, 16:24, 26:28] = 900  # bone within 5 mm
    predicted = true.copy()
    predicted[:, :8] = 500  # a fault, more than 5 mm away: not of this figure
    assert vessel_agreement(true, predicted, plain, labels, SPACING) == (1.0, 0.0)


def test_vessels_without_contrast_have_no_figure(scan):
    plain, _, labels = scan
    assert vessel_agreement(plain, plain, plain, labels, SPACING) is None


def test_distances_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 5, 12, 13)) < 0.05).astype(bool)
    spacing = (2.5, 0.8, 0.7)
    there = [np.argwhere(mask) * spacing for mask in (first, second)]
    between = cdist(*there)  # so few voxels that each is surface
    expected = max(np.percentile(between.min(axis=axis), 95) for axis in (0, 1))
    assert hausdorff95(first, second, spacing) == pytest.approx(expected)


def test_the_end_of_the_volume_is_no_surface():
    """One square tube within another: what is farthest of the outer wall are its corners."""
    inner, outer = np.zeros((2, 9, 30, 30), bool)
    inner[:, 10:20, 10:20], outer[:, 7:23, 7:23] = True, True
    for slices in (1, 9):
        apart = hausdorff95(inner[:slices], outer[:slices], (5.0, 1.0, 1.0))
        assert apart == pytest.approx(np.sqrt(18))


def test_levels_and_contrast_of_structures_are_known():
    labels = np.zeros((2, 20, 20), np.uint8)
    labels[:, 2:6, 2:6], labels[:, 10:14, 2:12], labels[:, 16, 16] = 1, 2, 3
    true = np.zeros(labels.shape, np.int16)
    true[labels == 1] = 350
    true[:, 10:14, 2:12] = np.where(np.arange(10) % 2, 60, 40)  # muscle: 50 and 10 HU of spread
    predicted = true.copy()
    predicted[labels == 1] = 250
    structures = {"vessel": {1}, "muscle": {2}, "spleen": {3}}
    plain = np.zeros_like(true)
    case = Case(true, predicted, plain, labels > 0, SPACING, labels, structures)
    rows = {(r["metric"], r["region"]): r["value"] for r in protocol("roi/1").measure(case)}
    assert rows["median_hu", "vessel"] == 250.0 and rows["true_median_hu", "vessel"] == 350.0
    assert rows["cnr", "vessel"] == 20.0 and rows["true_cnr", "vessel"] == 30.0
    assert rows["cnr", "spleen"] == 5.0
    assert ("cnr", "muscle") not in rows
    assert rows["dice", "vessel"] == 1.0 and rows["hd95", "vessel"] == 0.0
    assert ("dice", "spleen") not in rows
    assert rows["mae", "vessel"] == 100.0 and rows["bias", "vessel"] == -100.0
