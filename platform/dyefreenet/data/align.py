"""A contrast volume onto the grid of its plain partner, with figures that say how well it fits.

The patient breathes between two scans. ``rigid`` maximises mutual information, which does not mind
that vessels differ; ``deformable`` then lets soft tissue move, by a field so smooth that a lit
vessel cannot pull it, on HU clipped so that it hardly differs from one without agent. Samples and
steps are fixed: the same pair gives the same voxels. ``gate`` says what a pair is good for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage, sparse

from dyefreenet.data.images import to_image
from dyefreenet.data.morphology import BODY_HU
from dyefreenet.data.volume import AIR_HU, Volume
from dyefreenet.errors import SeriesError

Mode = Literal["off", "rigid", "deformable"]
Array = NDArray[np.float32]

BONE_HU = 150  # after smoothing: a thin cortex must not come and go with a resampling
RIGID_MM = 3.0  # voxel size of the rigid search
# The preset of "deformable"; benchmarks/registration.py says what it leaves.
SOFT_HU = (-140.0, 80.0)  # where plain and contrast CT look alike
LEVELS_MM = (8.0, 4.0, 2.5)  # voxel sizes, coarse to fine
LEVEL_STEPS = (4, 2, 2)  # of Gauss-Newton at each
SOLVER_STEPS = 20  # of conjugate gradients within each of those
KNOT_MM = 40.0  # between control points
BENDING = 0.5  # HU^2 that a mean squared second difference of 1 mm^2 costs
DRIFT_MM = 12.0  # sd of the Gaussian; HU that differ more widely than that say nothing of motion
FIELD_MM = 4.0  # spacing of the stored displacement
QC_MM = 2.5
TABLE_MM = 15.0  # what is thinner in a slice is no patient
MIN_DICE = 0.7  # of the bodies: less is another patient, or another place
# Beyond these a pair may be scored but teaches blur. Where bodies are 3 mm apart on average, bone
# edges are 1.3 to 1.6 mm apart (benchmarks/registration.py --gate); Dice falls to 0.97 between 6
# and 12 mm, which counts where no bone is; warps of 9 mm on average squeeze to 0.7.
TRAIN_BONE_MM = 1.5
TRAIN_DICE = 0.97
TRAIN_JACOBIAN = 0.5
SEED = 20
LANDMARK_MM = 15.0  # height of the slabs in which landmarks are taken
END_MM = 8.0  # at either end of a scan, without landmarks


@dataclass(frozen=True)
class Truth:
    """How a made-up patient really moved.

    Attributes:
        motion: From the plain to the contrast scan, as in ``{key}_{phase}_motion.nii.gz``: mm
            along the image's own axes (z, y, x). A point at p in the plain scan is at p + motion(p)
            in the contrast scan.
        points: Where to ask, LPS mm, [N, 3].
    """

    motion: sitk.Image
    points: NDArray[np.float64]


def register(
    moving: Volume, fixed: Volume, mode: Mode, truth: Truth | None = None
) -> tuple[Volume, dict[str, float]]:
    """``moving`` on the voxels of ``fixed``.

    Args:
        moving: Contrast CT.
        fixed: Plain CT.
        mode: "off" trusts the geometry of the headers and resamples where the grids differ.
        truth: Of a phantom, to say what the motion found has missed.

    Returns:
        The volume on the fixed grid; its ``padding`` is True where ``moving`` measured nothing.
        Figures: body_dice (0 to 1), bone_edge_mm (mean distance from a bone edge of ``fixed`` to
        the nearest of ``moving``; NaN without bone), mutual_information and its gain over the
        headers' geometry (nats), for "deformable" min_jacobian and max_shift_mm, and with a truth
        landmark_mm, and landmark_mm_before for the headers' geometry.

    Raises:
        SeriesError: The two do not show one body in one place, or the deformation folds.
    """
    transform, aligned, qc = find_motion(moving, fixed, mode)
    dice, jacobian = qc["body_dice"], qc.get("min_jacobian", 1.0)
    if dice < MIN_DICE:
        raise SeriesError(
            "registration",
            f"body Dice of plain and contrast {dice:.2f}; expected {MIN_DICE} or more",
        )
    if jacobian <= 0:
        raise SeriesError("registration", f"the deformation folds: least Jacobian {jacobian:.2f}")
    if truth is not None:
        for name, found in (("", transform), ("_before", sitk.Transform())):
            qc[f"landmark_mm{name}"] = landmark_error(found, truth.motion, truth.points)
    return aligned, qc


def gate(qc: dict[str, float]) -> tuple[Literal["train", "evaluate"], str]:
    """What a pair that ``register`` gave back is good for, and if not for training, why.

    Args:
        qc: Figures of ``register``. Without bone (NaN) or a deformation, that figure says nothing.
    """
    dice, bone = qc["body_dice"], qc["bone_edge_mm"]
    jacobian = qc.get("min_jacobian", 1.0)
    doubts = []
    if dice < TRAIN_DICE:
        doubts.append(f"body Dice: expected {TRAIN_DICE} or more, found {dice:.3f}")
    if bone > TRAIN_BONE_MM:
        doubts.append(f"bone edges: expected {TRAIN_BONE_MM} mm apart or less, found {bone:.2f} mm")
    if jacobian < TRAIN_JACOBIAN:
        doubts.append(f"least Jacobian: expected {TRAIN_JACOBIAN} or more, found {jacobian:.2f}")
    return ("evaluate", "; ".join(doubts)) if doubts else ("train", "")


def find_motion(
    moving: Volume, fixed: Volume, mode: Mode
) -> tuple[sitk.Transform, Volume, dict[str, float]]:
    """``register`` without its refusals: the motion, ``moving`` through it, and the figures.

    The transform takes points of ``fixed`` to points of ``moving``.
    What lowers the mutual information is not kept: a search can miss, and the headers were better.
    """
    transform = sitk.Transform()
    aligned = resample_like(moving, fixed)
    qc = fit_of(aligned, fixed)
    start = qc["mutual_information"]
    if mode != "off":
        _require_overlap(aligned)
        found: sitk.Transform = _rigid(moving, fixed)
        seen = resample_like(moving, fixed, found)
        fit = fit_of(seen, fixed)
        if fit["mutual_information"] > start:
            transform, aligned, qc = found, seen, fit
        if mode == "deformable":
            found, figures = _deformable(moving, fixed, transform)
            seen = resample_like(moving, fixed, found)
            fit = fit_of(seen, fixed)
            if fit["mutual_information"] > qc["mutual_information"]:
                transform, aligned, qc = found, seen, fit | figures
            else:
                qc |= {"min_jacobian": 1.0, "max_shift_mm": 0.0}
    qc["mutual_information_gain"] = qc["mutual_information"] - start
    return transform, aligned, qc


def landmarks(
    labels: NDArray[np.uint8], fixed: Volume, structures: Sequence[int]
) -> NDArray[np.float64]:
    """Points to follow: of each structure in every LANDMARK_MM of height, middle and extremes.

    The middle is the structure's voxel nearest to its centroid, the extremes are its outermost
    voxels to the left, right, front and back. The ends of the scan are left out, since what lies
    there may have left the other scan.

    Args:
        labels: Structure of every voxel of ``fixed``, [Z, H, W].
        structures: Numbers in ``labels`` to take: organs and vessels, not fat or skin.

    Returns:
        LPS mm, [N, 3].
    """
    step = fixed.spacing[0]
    end = int(np.ceil(END_MM / step))
    slab = max(1, round(LANDMARK_MM / step))
    found: list[NDArray[np.float64]] = []
    for low in range(end, len(labels) - end, slab):
        part = labels[low : min(low + slab, len(labels) - end)]
        for number in structures:
            at = np.argwhere(part == number)
            if len(at) == 0:
                continue
            away = (((at - at.mean(axis=0)) * fixed.spacing) ** 2).sum(axis=1)
            rows = [away.argmin(), *at[:, 1:].argmin(axis=0), *at[:, 1:].argmax(axis=0)]
            found.append(at[rows] + [low, 0, 0])
    if not found:
        return np.zeros((0, 3))
    voxels = np.unique(np.concatenate(found), axis=0)
    return fixed.origin + (voxels * fixed.spacing)[:, ::-1] @ fixed.direction


def landmark_error(found: sitk.Transform, motion: sitk.Image, points: NDArray[np.float64]) -> float:
    """Mean distance left at landmarks, mm; NaN without landmarks.

    Args:
        found: From the plain to the contrast scan.
        motion: The truth, see ``Truth``; between its samples it is linear.
        points: In the plain scan, LPS mm, [N, 3].
    """
    if len(points) == 0:
        return float("nan")
    direction = np.array(motion.GetDirection()).reshape(3, 3)
    at = (points - motion.GetOrigin()) @ direction / motion.GetSpacing()  # x, y, z index
    field = sitk.GetArrayViewFromImage(motion)  # [Z, h, w, 3]
    ways = np.stack(
        [
            ndimage.map_coordinates(part, at.T[::-1], np.float64, order=1, mode="nearest")
            for part in np.moveaxis(field, -1, 0)
        ]
    )  # [3, N], along z, y, x
    true = points + ways[::-1].T @ direction.T
    reached = np.array([found.TransformPoint(point) for point in points.tolist()])
    return float(np.linalg.norm(reached - true, axis=1).mean())


def same_grid(one: Volume, other: Volume) -> bool:
    """Whether voxels lie on voxels, to a hundredth of a pixel."""
    return (
        one.hu.shape == other.hu.shape
        and np.allclose(one.spacing, other.spacing, rtol=1e-5)
        and np.allclose(one.origin, other.origin, atol=0.01 * min(one.spacing))
        and np.allclose(one.direction, other.direction, atol=1e-5)
    )


def resample_like(volume: Volume, fixed: Volume, transform: sitk.Transform | None = None) -> Volume:
    """A volume on another's voxels, linear between its own.

    Args:
        transform: From points of ``fixed`` to points of ``volume``; None: the same patient
            coordinates.

    Returns:
        Padding is True where the volume has none of its own measurements.
    """
    if transform is None and same_grid(volume, fixed):
        return volume
    transform = transform or sitk.Transform()
    grid = to_image(fixed)
    image = sitk.Resample(to_image(volume), grid, transform, sitk.sitkLinear, AIR_HU)
    measured = np.ones(volume.hu.shape, np.uint8)
    if volume.padding is not None:
        measured[volume.padding] = 0
    mask = to_image(volume.with_hu(measured.astype(np.int16)))
    inside = sitk.Resample(mask, grid, transform, sitk.sitkNearestNeighbor, 0)
    padding = sitk.GetArrayFromImage(inside) == 0
    hu = sitk.GetArrayFromImage(image).astype(np.int16, copy=False)
    hu[padding] = AIR_HU
    return Volume(hu, fixed.spacing, fixed.origin, fixed.direction, padding)


def fit_of(aligned: Volume, fixed: Volume) -> dict[str, float]:
    """How well two volumes of one grid lie on each other, where both have measurements."""
    step = tuple(max(1, round(QC_MM / length)) for length in fixed.spacing)
    every = tuple(slice(None, None, n) for n in step)
    spacing = [length * n for length, n in zip(fixed.spacing, step, strict=True)]
    both = np.ones(aligned.hu[every].shape, np.bool_)
    for volume in (aligned, fixed):
        if volume.padding is not None:
            both &= ~volume.padding[every]
    one, other = (np.where(both, volume.hu[every], AIR_HU) for volume in (aligned, fixed))
    smooth = [QC_MM / length for length in spacing]
    bone_one, bone_other = (
        ndimage.gaussian_filter(image.astype(np.float32), smooth) > BONE_HU
        for image in (one, other)
    )
    body_one, body_other = (_body(image, spacing) for image in (one, other))
    sizes = int(body_one.sum()) + int(body_other.sum())
    dice = 2.0 * int((body_one & body_other).sum()) / sizes if sizes else 0.0
    return {
        "body_dice": dice,
        "bone_edge_mm": _edge_distance(bone_other & body_other, bone_one, spacing),
        "mutual_information": _mutual_information(one, other, body_one | body_other),
    }


def _body(hu: NDArray[np.int16], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The patient, lungs included. The table is left out: it does not move with the patient."""
    cross = ndimage.generate_binary_structure(2, 1)[None]  # in the slice
    steps = max(1, round(TABLE_MM / 2 / max(spacing[1:])))
    thick = ndimage.binary_opening(hu > BODY_HU, cross, steps)
    return np.asarray(ndimage.binary_fill_holes(thick, cross))


def _edge_distance(
    fixed: NDArray[np.bool_], moving: NDArray[np.bool_], spacing: list[float]
) -> float:
    """Mean way from the edge of one mask to the nearest edge of the other, mm.

    One way only: bright vessels give the contrast volume edges that the plain one has not.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (fixed, moving)]
    if not edges[0].any() or not edges[1].any():
        return float("nan")
    away = ndimage.distance_transform_edt(~edges[1], sampling=spacing)
    return float(np.mean(away[edges[0]]))


def _mutual_information(
    one: NDArray[np.int16], other: NDArray[np.int16], where: NDArray[np.bool_], bins: int = 48
) -> float:
    if not where.any():
        return 0.0
    low, high = -250, 650
    values = [volume[where].clip(low, high) for volume in (one, other)]
    counts = np.histogram2d(values[0], values[1], bins, [[low, high], [low, high]])[0]
    joint = counts / counts.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def _require_overlap(before: Volume) -> None:
    measured = 1.0 if before.padding is None else float((~before.padding).mean())
    if measured < 0.1:
        raise SeriesError(
            "registration",
            f"the contrast volume covers {100 * measured:.0f} % of the plain one by its headers; "
            "expected 10 % or more",
        )


def _rigid(moving: Volume, fixed: Volume) -> sitk.Transform:
    """Rotation and shift of greatest mutual information inside the body (Mattes et al. 2003)."""
    fixed_image, moving_image = (_shrunk(volume, RIGID_MM) for volume in (fixed, moving))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.25, SEED)
    method.SetMetricFixedMask(sitk.Cast(fixed_image > BODY_HU, sitk.sitkUInt8))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.02, numberOfIterations=120, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    centre = fixed_image.TransformContinuousIndexToPhysicalPoint(
        [(size - 1) / 2 for size in fixed_image.GetSize()]
    )
    start = sitk.Euler3DTransform()
    start.SetCenter(centre)
    method.SetInitialTransform(start, inPlace=False)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # So that sums run in one order: the method's own SetNumberOfThreads does not reach its metric.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        return method.Execute(fixed_image, moving_image)
    except RuntimeError as error:  # "all samples map outside the moving image", for instance
        raise SeriesError("registration", "the rigid search lost the overlap") from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _deformable(
    moving: Volume, fixed: Volume, rigid: sitk.Transform
) -> tuple[sitk.Transform, dict[str, float]]:
    """Cubic B-splines after the rigid transform (Rueckert et al. 1999), by Gauss-Newton.

    The least of mean (moving(p + u(p)) - fixed(p))^2 over what both measured, plus BENDING times
    the mean squared second difference of the control points. Least squares weigh a voxel by its
    gradient, so an even liver follows its edges and not its noise.
    """
    extent = np.array(fixed.hu.shape) * fixed.spacing
    control = np.zeros((3, *(len(_knots(length)) for length in extent)), np.float32)  # mm (z, y, x)
    for length, steps in zip(LEVELS_MM, LEVEL_STEPS, strict=True):
        target = sitk.Clamp(_shrunk(fixed, length), sitk.sitkFloat32, *SOFT_HU)
        source = sitk.Clamp(_shrunk(moving, length), sitk.sitkFloat32, *SOFT_HU)
        seen = _measured(moving, length)
        level = _Level(
            target=sitk.GetArrayFromImage(target),
            source=sitk.GetArrayFromImage(
                sitk.Resample(source, target, rigid, sitk.sitkLinear, SOFT_HU[0])
            ),
            measured=_inner(_measured(fixed, length)),
            seen=_inner(sitk.Resample(seen, target, rigid, sitk.sitkNearestNeighbor, 0)),
            spacing=np.array(target.GetSpacing()[::-1], np.float32),
            basis=_basis(target, fixed),
        )
        for _ in range(steps):
            control += _newton_step(control, level)

    grid = _field_grid(fixed)
    ways = _spread(control, _basis(grid, fixed))  # mm along (z, y, x), [3, Z, H, W]
    slopes = np.stack([np.stack(np.gradient(way, FIELD_MM)) for way in ways])
    slopes += np.eye(3, dtype=np.float32)[..., None, None, None]
    jacobian = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)))
    shift = float(np.linalg.norm(ways, axis=0).max())
    qc = {"min_jacobian": float(jacobian.min()), "max_shift_mm": shift}
    vectors = np.einsum("kzyx,kd->zyxd", ways[::-1], fixed.direction)  # LPS
    field = sitk.GetImageFromArray(vectors.astype(np.float64), isVector=True)
    field.CopyInformation(grid)
    # The last one added acts first: from a point of the plain scan along the field, then rigidly.
    return sitk.CompositeTransform([rigid, sitk.DisplacementFieldTransform(field)]), qc


@dataclass(frozen=True)
class _Level:
    """One resolution of the search; images are [Z, H, W] on the voxels of ``target``."""

    target: Array
    source: Array  # the contrast scan, rigidly moved
    measured: NDArray[np.bool_]  # by the plain scan
    seen: NDArray[np.bool_]  # by the contrast scan, rigidly moved
    spacing: Array  # mm (z, y, x)
    basis: list[Array]


def _newton_step(control: Array, level: _Level) -> Array:
    """What to add to the control points: one linear least-squares problem around where they are."""
    at = _spread(control, level.basis) / level.spacing[:, None, None, None]
    for axis, size in enumerate(level.target.shape):
        at[axis] += np.arange(size, dtype=np.float32).reshape(
            [-1 if i == axis else 1 for i in range(3)]
        )
    warped = ndimage.map_coordinates(level.source, at, np.float32, order=1, mode="nearest")
    seen = ndimage.map_coordinates(level.seen.view(np.uint8), at, order=0)
    del at
    weight = np.where(level.measured, seen, np.uint8(0)).astype(np.float32)
    miss = warped - level.target
    # The scanner's drift and an organ's even enhancement are no motion.
    drift = [DRIFT_MM / step for step in level.spacing]
    near = ndimage.gaussian_filter(weight, drift, truncate=3) + np.float32(1e-3)
    miss -= ndimage.gaussian_filter(weight * miss, drift, truncate=3) / near
    del near
    slope = np.stack(np.gradient((warped + level.target) / 2, *level.spacing)).astype(np.float32)
    weight /= weight.size
    stiffness = np.float32(BENDING / control[0].size)

    def normal(step: Array) -> Array:
        change = weight * (slope * _spread(step, level.basis)).sum(axis=0)
        return _gather(slope * change, level.basis) + stiffness * _bending(step)

    squares = [weights**2 for weights in level.basis]
    diagonal = _gather(weight * slope**2, squares) + 42 * stiffness  # 42: of an inner control point
    # Conjugate gradients with the diagonal as preconditioner.
    step = np.zeros_like(control)
    rest = -_gather(slope * (weight * miss), level.basis) - stiffness * _bending(control)
    way = rest / diagonal
    old = (rest * way).sum()
    for _ in range(SOLVER_STEPS):
        if not old > 0:
            break
        product = normal(way)
        length = old / (way * product).sum()
        step += length * way
        rest -= length * product
        ready = rest / diagonal
        new = (rest * ready).sum()
        way = ready + (new / old) * way
        old = new
    return step


def _knots(length: float) -> NDArray[np.float64]:
    """Where control points are, in units of KNOT_MM from the edge: all that reach into it."""
    return np.arange(-1.0, np.ceil(length / KNOT_MM) + 2)


def _basis(image: sitk.Image, fixed: Volume) -> list[Array]:
    """Weights of the control points at an image's voxels, for each axis [voxels, points]."""
    offset = fixed.direction @ (np.array(image.GetOrigin()) - fixed.origin)
    weights = []
    for axis in range(3):  # z, y, x
        count, step = image.GetSize()[2 - axis], image.GetSpacing()[2 - axis]
        at = offset[2 - axis] + np.arange(count) * step + fixed.spacing[axis] / 2
        knots = _knots(fixed.hu.shape[axis] * fixed.spacing[axis])
        away = np.abs(at[:, None] / KNOT_MM - knots)
        near = 2 / 3 - away**2 + away**3 / 2
        far = np.clip(2 - away, 0, None) ** 3 / 6
        weights.append(np.where(away < 1, near, far).astype(np.float32))
    return weights


def _spread(control: Array, basis: list[Array]) -> Array:
    """Control points to voxels, [3, points...] to [3, Z, H, W]."""
    # No BLAS here nor in _gather: it adds in an order that depends on its threads.
    z, y, x = basis
    slabs = np.einsum("kcbx,yb->kcyx", np.einsum("kcba,xa->kcbx", control, x), y)
    rise = sparse.csr_array(z)  # 4 points reach a voxel
    return np.stack([rise @ part.reshape(len(part), -1) for part in slabs]).reshape(
        3, len(z), len(y), len(x)
    )


def _gather(image: Array, basis: list[Array]) -> Array:
    """The transpose of ``_spread``."""
    z, y, x = basis
    fall = sparse.csr_array(z.T)
    slabs = np.stack([fall @ part.reshape(len(part), -1) for part in image])
    rows = np.einsum("kcyx,yb->kcbx", slabs.reshape(3, -1, len(y), len(x)), y)
    return np.einsum("kcbx,xa->kcba", rows, x)


def _bending(control: Array) -> Array:
    """Half the gradient of the sum of squared second differences, mixed ones twice."""
    out = np.zeros_like(control)
    for one in (1, 2, 3):
        for other in range(one, 4):
            second = np.diff(np.diff(control, axis=one), axis=other)
            for axis in (one, other):
                room = [(1, 1) if i == axis else (0, 0) for i in range(4)]
                second = np.diff(np.pad(second, room), axis=axis)
            out += second if one == other else 2 * second
    return out


def _field_grid(fixed: Volume) -> sitk.Image:
    """Empty voxels of FIELD_MM that cover the volume with one to spare all around."""
    extent = np.array(fixed.hu.shape[::-1]) * fixed.spacing[::-1]  # x, y, z
    grid = sitk.Image([int(np.ceil(length / FIELD_MM)) + 3 for length in extent], sitk.sitkUInt8)
    grid.SetSpacing([FIELD_MM] * 3)
    grid.SetDirection(fixed.direction.T.ravel().tolist())
    corner = -FIELD_MM - np.array(fixed.spacing[::-1]) / 2
    grid.SetOrigin((np.array(fixed.origin) + corner @ fixed.direction).tolist())
    return grid


def _measured(volume: Volume, length_mm: float) -> sitk.Image:
    """1 where all that ``_shrunk`` averages was measured."""
    measured = np.full(volume.hu.shape, 1000, np.int16)
    if volume.padding is not None:
        measured[volume.padding] = 0
    return _shrunk(volume.with_hu(measured), length_mm) > 999


def _inner(mask: sitk.Image) -> NDArray[np.bool_]:
    """Voxels whose neighbours are True too, so that a gradient means something."""
    return np.asarray(ndimage.binary_erosion(sitk.GetArrayViewFromImage(mask), border_value=1))


def _shrunk(volume: Volume, length_mm: float) -> sitk.Image:
    """Averaged down to voxels of about ``length_mm``, float32."""
    image = sitk.Cast(to_image(volume), sitk.sitkFloat32)
    factors = [max(1, round(length_mm / step)) for step in image.GetSpacing()]
    factors = [min(n, max(1, size // 4)) for n, size in zip(factors, image.GetSize(), strict=True)]
    return sitk.BinShrink(image, factors)
