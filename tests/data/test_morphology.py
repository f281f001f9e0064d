"""Shapes that are grown, worn away and filled, against scipy's own filters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dyefreenet.data.morphology import around, ball, enclosed, largest, over_ball, square, window

DRAW = np.random.default_rng(5)
MASK = ndimage.gaussian_filter(DRAW.normal(size=(6, 30, 34)), 1.2) > 0.05


@pytest.mark.parametrize("side", [1, 3, 5, 7])
@pytest.mark.parametrize("grow", [True, False])
def test_squares_and_windows_are_rank_filters(side, grow):
    rank = ndimage.maximum_filter if grow else ndimage.minimum_filter
    expected = rank(MASK, (1, side, side), mode="nearest")
    np.testing.assert_array_equal(square(MASK, grow, side), expected)
    np.testing.assert_array_equal(
        window(MASK, grow, side, axis=0), rank(MASK, (side, 1, 1), mode="nearest")
    )


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 2.0), (1.0, 1.4, 1.7), (8.0, 1.0, 1.0)])
def test_a_ball_is_joined_as_a_footprint_is(spacing):
    values = DRAW.normal(100, 30, (9, 20, 22)).astype(np.float32)
    shape = ball(4.5, spacing)
    assert all(side % 2 for side in shape.shape) and shape[tuple(n // 2 for n in shape.shape)]
    for join, rank in ((np.minimum, ndimage.minimum_filter), (np.maximum, ndimage.maximum_filter)):
        np.testing.assert_array_equal(over_ball(values, shape, join), rank(values, footprint=shape))
    total = ndimage.convolve(values.astype(float), shape.astype(float))
    np.testing.assert_allclose(over_ball(values, shape, np.add), total, rtol=1e-5)


def test_the_largest_piece_and_the_part_around_it():
    mask = np.zeros((4, 20, 20), bool)
    mask[1:3, 4:9, 6:12] = mask[:, 15, 15] = True
    kept = largest(mask)
    assert kept.sum() == 60 and not kept[:, 15, 15].any()
    assert around(kept, 2) == (slice(None), slice(2, 11), slice(4, 14))
    assert around(kept, 30)[1] == slice(0, 39)  # as far as the picture goes
    assert not largest(np.zeros((2, 3, 3), bool)).any()
    assert around(np.zeros((2, 3, 3), bool), 1) == (slice(None),) * 3


def test_what_a_slice_encloses():
    mask = np.zeros((2, 9, 9), bool)
    mask[:, 2:7, 2:7] = True
    mask[:, 3:6, 3:6] = False
    mask[1, 2, 4] = False  # a way out
    found = enclosed(mask)
    assert found[0].sum() == 9 and found[0, 3:6, 3:6].all() and not found[1].any()
