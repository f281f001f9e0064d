"""Registration against motions that are known because they were made here."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from dyefreenet.config import PhantomConfig
from dyefreenet.data import align
from dyefreenet.data.align import (
    Truth,
    fit_of,
    gate,
    landmark_error,
    landmarks,
    register,
    resample_like,
    same_grid,
)
from dyefreenet.data.images import to_image
from dyefreenet.data.phantom import LABELS, make_patient
from dyefreenet.data.phantom.scanner import MOTION_STEP, draw_motion
from dyefreenet.data.phantom.scanner import moved as anatomy_moved
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


def motion_image(motion: np.ndarray, volume: Volume, step: int = MOTION_STEP) -> sitk.Image:
    """A motion (z, y, x) in mm at every ``step``-th pixel of a volume's slices."""
    image = sitk.GetImageFromArray(motion, isVector=True)
    z, y, x = volume.spacing
    image.SetSpacing((x * step, y * step, z))
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.T.ravel().tolist())
    return image


@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, 1, -1)])
def test_a_known_warp_is_undone_whichever_way_the_axes_point(axes: tuple[int, int, int]):
    place = {"origin": (30.0, -70.0, 500.0), "direction": np.diag(axes).astype(float)}
    plain = Volume(body().hu, SPACING, **place)
    motion = draw_motion(np.random.default_rng(3), SHAPE, SPACING, 5.0)
    anatomy = np.pad(body(vessel_hu=350).hu, ((4, 4), (0, 0), (0, 0)), mode="edge")
    seen = anatomy_moved(anatomy.astype(np.float32), motion, SPACING, 4)
    seen = Volume(np.rint(seen).astype(np.int16), SPACING, **place)
    structures = np.where(plain.hu > 55, 1, 0).astype(np.uint8)
    structures[:, 52:58, 42:48] = 2  # the vessel
    truth = Truth(motion_image(motion, plain), landmarks(structures, plain, (1, 2)))
    _, qc = register(seen, plain, "deformable", truth)
    assert qc["landmark_mm_before"] > 2.0
    assert qc["landmark_mm"] < 0.35 * qc["landmark_mm_before"]
    assert qc["min_jacobian"] > 0.5


def test_a_breath_of_the_phantom_is_undone_by_its_own_truth():
    config = PhantomConfig(
        patients=1, matrix=(80,), slices=24, slice_mm=(4.0, 4.0), noise_hu=(8.0, 8.0),
        motion_mm=(6.0, 6.0), middle_mm=(200.0, 200.0), seed=4,
    )  # fmt: skip
    patient = make_patient(config, 0)
    plain = patient.phases["plain"]
    organs = [LABELS[name] for name in ("liver", "spleen", "kidney_cortex", "bone", "aorta")]
    points = landmarks(patient.labels, plain, organs)
    assert 30 < len(points) < 1000
    truth = Truth(motion_image(patient.motion_mm, plain), points)
    _, off = register(patient.phases["arterial"], plain, "off", truth)
    assert off["landmark_mm"] == off["landmark_mm_before"] > 1.5
    _, qc = register(patient.phases["arterial"], plain, "deformable", truth)
    assert qc["landmark_mm"] < 0.5 * off["landmark_mm"]
    assert gate(qc)[0] == "train"


def test_a_shift_is_the_distance_at_every_landmark():
    plain = body()
    shift = sitk.TranslationTransform(3, (7.0, -5.0, 4.0))
    motion = np.broadcast_to(np.float32([4.0, -5.0, 7.0]), (*SHAPE, 3)).copy()
    points = np.array([[60.0, 80.0, 30.0], [100.0, 70.0, 42.0]])
    truth = Truth(motion_image(motion, plain, 1), points)
    assert landmark_error(sitk.Transform(), truth.motion, points) == pytest.approx(np.sqrt(90))
    assert landmark_error(shift, truth.motion, points) == pytest.approx(0, abs=1e-5)
    assert np.isnan(landmark_error(shift, truth.motion, np.zeros((0, 3))))
    _, qc = register(moved(plain, shift), plain, "rigid", truth)
    assert qc["landmark_mm_before"] == pytest.approx(np.sqrt(90))
    assert qc["landmark_mm"] < 0.7


def test_motion_is_linear_between_its_samples():
    volume = Volume(np.zeros((5, 17, 17), np.int16), (2.0, 1.0, 1.0))
    motion = np.zeros((5, 3, 3, 3), np.float32)
    motion[..., 2] = np.arange(3) * 4.0  # along x: 0, 4, 8 mm at x = 0, 8, 16 mm
    image = motion_image(motion, volume)
    for x, way in ((0.0, 0.0), (2.0, 1.0), (12.0, 6.0)):
        assert landmark_error(sitk.Transform(), image, np.array([[x, 5.0, 3.0]])) == way


def test_landmarks_are_middle_and_extremes_of_each_structure():
    labels = np.zeros((11, 20, 20), np.uint8)
    labels[5, 8:13, 6:15] = 3  # a bar of one slice
    labels[5, 2, 2] = 7
    labels[0, 3, 3] = 7  # at the end of the scan
    fixed = Volume(np.zeros(labels.shape, np.int16), (8.0, 1.0, 2.0), origin=(100.0, 0.0, 0.0))
    points = landmarks(labels, fixed, (3, 7))
    found = {tuple(np.rint(point).astype(int)) for point in points}
    assert {(100 + 2 * 10, 10, 40), (100 + 2 * 2, 2, 40)} <= found  # middles
    assert {x for x, _, _ in found} >= {112, 128} and {y for _, y, _ in found} >= {8, 12}
    assert all(z == 40 for _, _, z in found)
    assert len(landmarks(labels, fixed, (9,))) == 0


def test_deformable_leaves_a_pair_at_rest_where_it_is():
    plain, contrast = body(), body(vessel_hu=350)
    rng = np.random.default_rng(0)
    plain, contrast = (
        volume.with_hu((volume.hu + rng.normal(0, 15, SHAPE)).astype(np.int16))
        for volume in (plain, contrast)
    )
    corner = np.zeros(SHAPE, np.bool_)
    corner[:, :, :16] = True  # the contrast scan's field of view ends inside the body
    cut = Volume(np.where(corner, np.int16(-1024), contrast.hu), SPACING, padding=corner)
    points = landmarks((plain.hu > 55).astype(np.uint8), plain, (1,))
    points = points[points[:, 0] > 40.0]  # which is seen in both
    still = Truth(motion_image(np.zeros((*SHAPE, 3), np.float32), plain, 1), points)
    for volume in (contrast, cut):
        aligned, qc = register(volume, plain, "deformable", still)
        assert qc["landmark_mm"] < 0.3
        assert gate(qc) == ("train", "")
    again, _ = register(cut, plain, "deformable")
    np.testing.assert_array_equal(aligned.hu, again.hu)  # the same pair, the same voxels


def test_a_table_that_moves_is_no_patient_that_does():
    with_table = []
    for row in (77, 74):
        hu = body().hu.copy()
        hu[:, row : row + 2] = 900
        with_table.append(body().with_hu(hu))
    figures = fit_of(*with_table)
    assert figures["body_dice"] == 1.0
    assert figures["bone_edge_mm"] == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"bone_edge_mm": float("nan")}, None),  # no bone in sight
        ({"bone_edge_mm": 1.6}, "bone edges: expected 1.5 mm apart or less, found 1.60 mm"),
        ({"body_dice": 0.9}, "body Dice: expected 0.97 or more, found 0.900"),
        ({"min_jacobian": 0.4}, "least Jacobian: expected 0.5 or more, found 0.40"),
    ],
)
def test_the_gate_says_why(changes: dict[str, float], words: str | None):
    qc = {"body_dice": 0.99, "bone_edge_mm": 0.6, "mutual_information": 1.0, "min_jacobian": 0.9}
    assert gate(qc | changes) == (("train", "") if words is None else ("evaluate", words))


@pytest.mark.parametrize(("shift_mm", "verdict"), [(0.0, "train"), (6.0, "evaluate")])
def test_the_gate_on_shifts(shift_mm: float, verdict: str):
    plain = body()
    away = Volume(body(vessel_hu=350).hu, SPACING, origin=(shift_mm, 0.0, 0.0))
    assert gate(register(away, plain, "off")[1])[0] == verdict


def test_a_rigid_search_ends_at_the_same_bits_each_time():
    """Of noise: the least difference in a sum leads elsewhere there."""
    draw = np.random.default_rng(0)

    def noise() -> Volume:
        return Volume(draw.integers(-124, 176, (12, 96, 96)).astype(np.int16), (3.0, 1.0, 1.0))

    for fixed, moving in [(noise(), noise()) for _ in range(6)]:
        first, *others = (align._rigid(moving, fixed).GetParameters() for _ in range(4))
        assert all(other == first for other in others)
