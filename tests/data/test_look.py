"""Pictures of scenes whose every edge is known, read back as pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dyefreenet.data.look import (
    EDGES,
    PAIR_BYTES,
    PLAIN_BYTES,
    add,
    histogram,
    look,
)
from dyefreenet.data.volume import Volume

SPACING = (4.0, 2.0, 2.0)  # mm
ACROSS = 208  # pixels of a view
GAP = 4  # pixels between views


def body(depth: int = 21) -> np.ndarray:
    """A block of soft tissue in air; bone on the patient's left, at the back, in the upper half."""
    hu = np.full((depth, 121, 121), -1000, np.int16)
    hu[:, 30:-30, 20:-20] = 40
    hu[depth // 2 :, 58:85, 80:95] = 900
    return hu


def pixels(picture: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(picture))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def views(plain: Volume, read: Volume, aligned: Volume) -> list[list[np.ndarray]]:
    """The picture of a pair, taken apart: rows of two views."""
    tall = len(pixels(look(plain)[0]))  # the axial view of these scenes is the taller one
    whole = pixels(look(plain, read, aligned)[0])
    low = (len(whole) - 3 * GAP) // 2 - tall
    tops = np.cumsum([0, tall + GAP, low + GAP, tall + GAP])
    return [
        [whole[top : top + height, :ACROSS], whole[top : top + height, ACROSS + GAP :]]
        for top, height in zip(tops, (tall, low, tall, low), strict=True)
    ]


def shifted(volume: Volume, x: float, y: float, z: float) -> Volume:
    """In mm, to the patient's left, back and head."""
    origin = (volume.origin[0] + x, volume.origin[1] + y, volume.origin[2] + z)
    return Volume(volume.hu, volume.spacing, origin, volume.direction, volume.padding)


def colour(view: np.ndarray) -> np.ndarray:
    """Red minus blue: above 0 orange, below blue."""
    return view[..., 0] - view[..., 2]


# ---- histogram -----------------------------------------------------------------------------------


def test_the_edges_are_64_even_bins_from_air_to_bone():
    assert len(EDGES) == 65
    assert (EDGES[0], EDGES[-1]) == (-1024, 1600)
    assert set(np.diff(EDGES)) == {41}


def test_a_histogram_is_numpys_with_the_outer_bins_open():
    rng = np.random.default_rng(0)
    hu = rng.integers(-3000, 4000, (4, 30, 20)).astype(np.int16)
    expected, _ = np.histogram(hu.clip(-1024, 1599), EDGES)
    assert histogram(Volume(hu, SPACING)) == expected.tolist()


def test_what_was_not_measured_is_not_counted():
    hu = np.full((3, 4, 5), 40, np.int16)
    padding = np.zeros(hu.shape, np.bool_)
    padding[1] = True
    counts = histogram(Volume(hu, SPACING, padding=padding))
    assert sum(counts) == counts[(40 + 1024) // 41] == 40


def test_histograms_add_up():
    one, other = [1] * 64, [2] * 64
    assert add(add(None, one), other) == [3] * 64
    with pytest.raises(ValueError):
        add(one, [1, 2])


# ---- pictures ------------------------------------------------------------------------------------


def test_a_series_is_seen_as_radiologists_do():
    """Left of the patient on the right, his back below, his head up."""
    picture, counts = look(Volume(body(), SPACING))
    assert counts["contrast"] is None and sum(counts["plain"]) == 21 * 121 * 121
    view = pixels(picture)
    axial, coronal = (np.argwhere(half > 250) for half in (view[:, :ACROSS], view[:, ACROSS:]))
    assert axial[:, 0].mean() > len(view) / 2 and axial[:, 1].min() > ACROSS / 2
    assert coronal[:, 0].max() < len(view) / 2 and coronal[:, 1].min() > ACROSS / 2


@pytest.mark.parametrize("axes", [(2,), (1,), (0,), (1, 2), (0, 1, 2)])
def test_a_flipped_array_in_its_place_gives_the_same_picture(axes):
    """Stored feet first or prone, a body lies as it lies."""
    straight = Volume(body(), SPACING)
    hu, direction, origin = straight.hu, np.eye(3), np.zeros(3)
    for axis in axes:
        hu = np.flip(hu, axis)
        origin[2 - axis] = (hu.shape[axis] - 1) * SPACING[axis]
        direction[2 - axis, 2 - axis] = -1
    flipped = Volume(np.ascontiguousarray(hu), SPACING, tuple(origin), direction)
    assert np.array_equal(pixels(look(flipped)[0]), pixels(look(straight)[0]))
    moved = shifted(straight, 4, 0, 8)
    assert look(flipped, moved, flipped)[0] == look(straight, moved, straight)[0]


def test_views_have_true_proportions():
    """162 mm of body from right to left, 122 mm from front to back, 84 mm of slices."""
    view = pixels(look(Volume(body(), SPACING))[0]) > 60
    axial, coronal = view[:, :ACROSS], view[:, ACROSS + GAP :]
    across = axial[len(view) // 2].sum()
    assert across > 0.8 * ACROSS  # cut around the body
    assert axial[:, ACROSS // 2].sum() / across == pytest.approx(122 / 162, abs=0.02)
    assert coronal[:, ACROSS // 2].sum() / across == pytest.approx(84 / 162, abs=0.02)


def test_what_lies_right_is_grey_and_what_lies_wrong_has_coloured_rims():
    plain = Volume(body(), SPACING)
    scans, _, overlays, _ = views(plain, shifted(plain, 6, 0, 0), plain)
    before, after = map(colour, overlays)
    for grey in (*map(colour, scans), after):
        assert np.abs(grey).max() < 12
    right, left = before[:, : ACROSS // 4], before[:, -ACROSS // 4 :]
    assert right.max() > 60 and right.min() > -30  # plain alone: orange
    assert left.min() < -60 and left.max() < 30  # contrast alone: blue


def test_contrast_agent_is_blue_all_over():
    plain = Volume(body(), SPACING)
    hu = plain.hu.copy()
    hu[:, 50:60, 40:50] = 240
    enhanced = plain.with_hu(hu)
    after = colour(views(plain, enhanced, enhanced)[2][1])
    assert after.min() < -90 and after.max() < 30


def test_a_shift_along_the_body_is_seen_in_the_coronal_view():
    plain = Volume(body(), SPACING)
    *_, axial, coronal = views(plain, shifted(plain, 0, 0, -12), plain)
    assert colour(coronal[0]).max() > 60
    assert np.abs(colour(coronal[1])).max() < 12
    assert np.abs(colour(axial[0])).max() < 12


def test_the_axial_view_is_where_both_scans_are():
    """The contrast scan holds the upper six slices alone, and there is no bone below them."""
    hu = body()
    hu[:15] = hu[0]
    plain = Volume(hu, SPACING)
    padding = np.zeros(hu.shape, np.bool_)
    padding[:15] = True
    aligned = Volume(np.where(padding, np.int16(-1024), hu), SPACING, padding=padding)
    read = Volume(hu[15:], SPACING, (0.0, 0.0, 60.0))
    scans, _, overlays, _ = views(plain, read, aligned)
    assert scans[1].max() > 250 and np.abs(colour(overlays[0])).max() < 12


def test_a_picture_stays_small_whatever_the_noise():
    rng = np.random.default_rng(1)
    hu = body(60).copy()
    hu += rng.normal(0, 150, hu.shape).astype(np.int16)
    volume = Volume(hu, SPACING)
    assert len(look(volume)[0]) <= PLAIN_BYTES
    assert len(look(volume, shifted(volume, 9, 9, 9), volume)[0]) <= PAIR_BYTES


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 64, 64), (400, 32, 32), (3, 8, 200)])
def test_odd_series_have_a_picture_too(shape):
    """Air alone, a few voxels, a whole body, a strip."""
    volume = Volume(np.full(shape, -1000, np.int16), (5.0, 1.0, 1.0))
    far = shifted(volume, 1e4, 0, 0)
    nothing = Volume(volume.hu, volume.spacing, padding=np.ones(shape, np.bool_))
    for picture in (look(volume)[0], look(volume, far, nothing)[0]):
        assert pixels(picture).shape[0] <= 4 * 1.3 * 208 + 13


def test_the_same_pair_gives_the_same_bytes():
    volume = Volume(body(), SPACING)
    moved = shifted(volume, 3, 2, 1)
    assert look(volume, moved, volume) == look(volume, moved, volume)
