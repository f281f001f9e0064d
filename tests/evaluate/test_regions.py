"""The body mask on a made-up trunk whose every voxel is known."""

import numpy as np
import pytest
from scipy import ndimage

from dyefreenet.evaluate.regions import body_mask, dilated


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
