"""The body mask on a made-up trunk whose every voxel is known."""

import numpy as np
import pytest
from scipy import ndimage

from dyefreenet.evaluate.regions import COMPUTED, body_mask, computed_labels, dilated


@pytest.fixture
def trunk():
    """Plain HU and the true body, [4, 96, 96]: an ellipse with a lung, on a table."""
    rows, columns = np.mgrid[:96, :96]
    body = ((rows - 44) / 28) ** 2 + ((columns - 48) / 40) ** 2 <= 1
    lung = ((rows - 40) / 10) ** 2 + ((columns - 34) / 9) ** 2 <= 1
    hu = np.full((4, 96, 96), -1000, np.int16)
    hu[:, body] = 40
    hu[:, lung] = -850
    return hu, np.repeat(body[None], 4, axis=0)


def test_the_body_is_found_and_its_lung_filled(trunk):
    hu, body = trunk
    assert np.array_equal(body_mask(hu), body)


@pytest.mark.parametrize("row", [72, 84])
def test_the_table_is_left_out_whether_it_touches_or_not(trunk, row):
    hu, body = trunk
    hu[:, row : row + 2, 5:91] = 200  # row 72 is the last of the body
    mask = body_mask(hu)
    stray = mask & ~body
    assert not mask[:, :, :20][:, row - 2 :].any()
    assert stray.sum() <= 4 * 2 * 40  # at most what lies under the flat of the back
    assert mask[body].all()


def test_a_second_smaller_body_is_no_part_of_the_patient(trunk):
    hu, body = trunk
    hu[:, 80:95, 80:95] = 40
    assert np.array_equal(body_mask(hu), body)


def test_a_body_cut_by_the_edge_of_the_picture_is_not_worn_away():
    hu = np.full((2, 40, 40), 40, np.int16)
    assert body_mask(hu).all()


def test_air_alone_has_no_body():
    assert not body_mask(np.full((2, 40, 40), -1000, np.int16)).any()


def test_a_body_thinner_than_the_opening_is_still_found():
    hu = np.full((1, 30, 30), -1000, np.int16)
    hu[0, 10:13, 10:20] = 0
    assert body_mask(hu).sum() == 30


@pytest.mark.parametrize("spacing", [(5.0, 1.0, 1.0), (2.0, 0.7, 1.3), (2.0, 3.0, 0.8)])
def test_a_dilation_is_that_of_the_distance(spacing):
    mask = np.random.default_rng(4).random((3, 40, 52)) < 0.004
    mask[0] = False
    distance = [ndimage.distance_transform_edt(~s, sampling=spacing[1:]) for s in mask[1:]]
    grown = dilated(mask, spacing, 10.0)
    assert not grown[0].any()
    assert np.array_equal(grown[1:], np.array(distance) <= 10.0)


@pytest.fixture
def pair():
    """Plain, true, body of a trunk with a spine, lung, aorta and kidneys, and its labels."""
    rows, columns = np.mgrid[:128, :128]
    body = ((rows - 64) / 45) ** 2 + ((columns - 64) / 58) ** 2 <= 1
    spine = np.hypot(rows - 86, columns - 64) <= 9
    lung = np.hypot(rows - 56, columns - 30) <= 12
    aorta = np.hypot(rows - 66, columns - 66) <= 7
    kidney = np.hypot(rows - 76, columns - 98) <= 8
    node = np.hypot(rows - 40, columns - 80) <= 2  # as bright as the aorta, and far too small
    plain = np.full((10, 128, 128), -1000, np.int16)
    plain[:, body] = 45
    plain[:, spine], plain[:, lung] = 450, -850
    true = plain.copy()
    true[:, aorta] += 300
    true[:, kidney] += 130  # less than two thirds of the aorta's change
    true[4, node] += 300
    expected = 1 * spine + 2 * lung + 3 * aorta
    return plain, true, np.repeat(body[None], 10, axis=0), np.repeat(expected[None], 10, axis=0)


def test_bone_air_and_vessels_are_computed(pair):
    plain, true, body, expected = pair
    labels = computed_labels(plain, true, body, (4.0, 1.0, 1.0))
    assert set(COMPUTED) == {"computed_bone", "computed_air", "computed_vessel"}
    assert np.array_equal(labels == 1, expected == 1)
    assert np.array_equal(labels == 2, expected == 2)
    vessel = labels == 3
    assert not vessel[expected != 3].any()  # neither kidney nor node
    assert vessel.sum() > 0.8 * (expected == 3).sum()  # means at its rim hold what is beside it


def test_a_piece_below_a_millilitre_is_no_vessel(pair):
    plain, true, body, _ = pair
    assert not (computed_labels(plain, true, body, (0.5, 1.0, 1.0)) == 3).any()


def test_bone_that_moved_by_a_pixel_is_no_vessel(pair):
    plain, true, body, expected = pair
    moved = np.where(np.roll(expected == 1, 2, axis=2) & (expected == 0), np.int16(450), true)
    assert np.array_equal(
        computed_labels(plain, moved, body, (4.0, 1.0, 1.0)) == 3,
        computed_labels(plain, true, body, (4.0, 1.0, 1.0)) == 3,
    )


def test_a_pair_without_contrast_or_body_has_no_vessels(pair):
    plain, _, body, _ = pair
    assert set(np.unique(computed_labels(plain, plain, body, (4.0, 1.0, 1.0)))) == {0, 1, 2}
    assert not computed_labels(plain, plain, np.zeros_like(body), (4.0, 1.0, 1.0)).any()
