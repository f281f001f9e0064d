"""Registration against motions that are known because they were made here."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dyefreenet.data.align import fit_of, register, resample_like, same_grid
from dyefreenet.data.images import to_image
from dyefreenet.data.volume import Volume
from dyefreenet.errors import SeriesError

SPACING = (3.0, 2.0, 2.0)
SHAPE = (24, 80, 96)


def body(vessel_hu: int = 40) -> Volume:
    """An ellipse with spine, ribs, organs and one vessel; noise-free, in the middle of the grid."""
    z, y, x = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in SHAPE)
    z, y, x = z[:, None, None] * 3, y[None, :, None] * 2, x[None, None, :] * 2
    hu = np.full(SHAPE, -1000, np.float32)

    def put(cz, cy, cx, rz, ry, rx, value):
        inside = ((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        hu[inside] = value

    put(0, 0, 0, 400, 62, 80, -90)
    put(0, 0, 0, 400, 54, 72, 45)
    put(-10, -8, -34, 26, 30, 28, 70)
    put(8, -10, 36, 18, 20, 18, 60)
    put(4, -20, 2, 14, 14, 20, -60)
    put(0, 32, 0, 400, 12, 14, 450)
    for height in (-24, 0, 24):
        put(height, 0, -66, 6, 12, 5, 500)
        put(height + 6, 0, 66, 6, 12, 5, 500)
    put(0, 14, -6, 400, 7, 7, vessel_hu)
    hu = ndimage.gaussian_filter(hu, 0.6)
    return Volume(np.rint(hu).astype(np.int16), SPACING)


def moved(volume: Volume, transform: sitk.Transform) -> Volume:
    """The volume seen after its points moved by ``transform``."""
    image = to_image(volume)
    out = sitk.Resample(image, image, transform.GetInverse(), sitk.sitkLinear, -1000)
    return volume.with_hu(sitk.GetArrayFromImage(out))


def error_hu(one: Volume, other: Volume) -> float:
    inside = np.s_[3:-3, 8:-8, 8:-8]
    return float(np.abs(one.hu[inside].astype(float) - other.hu[inside]).mean())


def test_equal_grids_come_back_untouched():
    volume = body()
    aligned, qc = register(volume, volume, "off")
    assert aligned is volume
    assert qc["body_dice"] == 1.0 and qc["bone_edge_mm"] == 0.0
    assert qc["mutual_information_gain"] == 0.0


def test_another_grid_is_resampled_by_its_geometry():
    fixed = body()
    spacing = (1.5, 4.0, 4.0)
    z, y, x = np.meshgrid(*(np.arange(n) for n in (40, 30, 36)), indexing="ij")
    hu = (z * 1.5 * 2 + y * 4.0 * 3 + x * 4.0).astype(np.int16)  # linear in mm
    finer = Volume(hu, spacing, origin=(6.0, 10.0, 3.0))
    assert not same_grid(finer, fixed)
    out = resample_like(finer, fixed)
    k, j, i = 8, 30, 40  # at z = 24, y = 60, x = 80 mm
    assert out.hu[k, j, i] == ((24 - 3) * 2 + (60 - 10) * 3 + (80 - 6))
    assert out.padding is not None and out.padding[0, 0, 0] and not out.padding[k, j, i]
    assert out.hu[0, 0, 0] == -1024
    assert (out.spacing, out.origin) == (fixed.spacing, fixed.origin)


def test_rigid_finds_a_known_shift_although_the_vessel_is_lit():
    plain, contrast = body(), body(vessel_hu=350)
    shift = sitk.TranslationTransform(3, (7.0, -5.0, 4.0))
    seen = moved(contrast, shift)
    before = error_hu(seen, contrast)
    aligned, qc = register(seen, plain, "rigid")
    assert error_hu(aligned, contrast) < 0.25 * before
    assert qc["mutual_information_gain"] > 0.1
    assert qc["body_dice"] > 0.97
    again, _ = register(seen, plain, "rigid")
    np.testing.assert_array_equal(aligned.hu, again.hu)  # the same pair, the same voxels


def test_deformable_takes_back_a_breath_and_keeps_the_vessel():
    plain, contrast = body(), body(vessel_hu=350)
    image = to_image(contrast)
    _, y, x = np.meshgrid(*(np.linspace(0, np.pi, n) for n in SHAPE), indexing="ij")
    wave = np.sin(y) * np.sin(x)
    field = np.stack([0 * wave, 3.0 * wave, 6.0 * wave], -1)  # mm (x, y, z)
    warp = sitk.GetImageFromArray(field, isVector=True)
    warp.CopyInformation(image)
    out = sitk.Resample(image, image, sitk.DisplacementFieldTransform(warp), sitk.sitkLinear, -1000)
    seen = contrast.with_hu(sitk.GetArrayFromImage(out))
    aligned, qc = register(seen, plain, "deformable")
    assert error_hu(aligned, contrast) < 0.6 * error_hu(seen, contrast)
    assert qc["min_jacobian"] > 0.3 and 3.0 < qc["max_shift_mm"] < 12.0
    vessel = ndimage.binary_erosion(contrast.hu > 300) & (body().hu < 60)
    assert np.median(aligned.hu[vessel]) > 300


def test_rigid_never_leaves_it_worse_than_the_headers():
    volume, other = body(), body(vessel_hu=350)
    aligned, qc = register(other, volume, "rigid")
    assert qc["mutual_information_gain"] >= 0.0
    assert error_hu(aligned, other) < 3.0


def test_another_place_is_refused_with_its_figure():
    plain = body()
    away = Volume(plain.hu, SPACING, origin=(150.0, 0.0, 0.0))
    with pytest.raises(SeriesError, match="body Dice") as error:
        register(away, plain, "off")
    assert error.value.reason == "registration"
    far = Volume(plain.hu, SPACING, origin=(0.0, 0.0, 900.0))
    with pytest.raises(SeriesError, match="covers 0 %"):
        register(far, plain, "rigid")


def test_figures_of_a_known_shift():
    plain = body()
    shifted = plain.with_hu(np.roll(plain.hu, 2, axis=2))  # 4 mm along x
    figures = fit_of(shifted, plain)
    assert 0.9 < figures["body_dice"] < 1.0
    assert 0.5 < figures["bone_edge_mm"] < 4.0
