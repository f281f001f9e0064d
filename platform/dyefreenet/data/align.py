"""A contrast volume onto the grid of its plain partner, with figures that say how well it fits.

The patient breathes between two scans. ``rigid`` maximises mutual information, which does not mind
that vessels differ; ``deformable`` then lets demons move soft tissue, on HU clipped to -200..100
so that a vessel full of contrast agent looks like one without. All of it runs on one thread with
fixed samples: the same pair gives the same voxels.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from dyefreenet.data.images import to_image
from dyefreenet.data.volume import AIR_HU, Volume
from dyefreenet.errors import SeriesError

Mode = Literal["off", "rigid", "deformable"]

BODY_HU = -300  # between air or lung and soft tissue
BONE_HU = 250
SOFT_HU = (-200.0, 100.0)  # where plain and contrast CT look alike
RIGID_MM = 3.0  # voxel size of the rigid search
DEMONS_MM = (8.0, 4.0)  # voxel sizes of the demons, coarse to fine
DEMONS_STEPS = (60, 40)
SMOOTH_MM = 8.0  # sd of the Gaussian that keeps the displacement smooth
QC_MM = 2.5
MIN_DICE = 0.7  # of the bodies: less is another patient, or another place
SEED = 20


def register(moving: Volume, fixed: Volume, mode: Mode) -> tuple[Volume, dict[str, float]]:
    """``moving`` on the voxels of ``fixed``.

    Args:
        moving: Contrast CT.
        fixed: Plain CT.
        mode: "off" trusts the geometry of the headers and resamples where the grids differ.

    Returns:
        The volume on the fixed grid; its ``padding`` is True where ``moving`` measured nothing.
        Figures: body_dice (0 to 1), bone_edge_mm (mean distance from a bone edge of ``fixed`` to
        the nearest of ``moving``; NaN without bone), mutual_information and its gain over the
        headers' geometry (nats), and for "deformable" min_jacobian and max_shift_mm.

    Raises:
        SeriesError: The two do not show one body in one place, or the deformation folds.
    """
    aligned = resample_like(moving, fixed)
    qc = fit_of(aligned, fixed)
    start = qc["mutual_information"]
    if mode != "off":
        _require_overlap(aligned)
        transform: sitk.Transform = _rigid(moving, fixed)
        found = resample_like(moving, fixed, transform)
        found_qc = fit_of(found, fixed)
        if found_qc["mutual_information"] > start:
            aligned, qc = found, found_qc
        else:  # a search over few samples can miss: the headers were better
            transform = sitk.Transform()
        if mode == "deformable":
            transform, figures = _deformable(moving, fixed, transform)
            aligned = resample_like(moving, fixed, transform)
            qc = fit_of(aligned, fixed) | figures
    qc["mutual_information_gain"] = qc["mutual_information"] - start
    dice, jacobian = qc["body_dice"], qc.get("min_jacobian", 1.0)
    if dice < MIN_DICE:
        raise SeriesError(
            "registration",
            f"body Dice of plain and contrast {dice:.2f}; expected {MIN_DICE} or more",
        )
    if jacobian <= 0:
        raise SeriesError("registration", f"the deformation folds: least Jacobian {jacobian:.2f}")
    return aligned, qc


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
    one, other = aligned.hu[every], fixed.hu[every]
    both = np.ones(one.shape, np.bool_)
    for volume in (aligned, fixed):
        if volume.padding is not None:
            both &= ~volume.padding[every]
    body_one, body_other = (one > BODY_HU) & both, (other > BODY_HU) & both
    sizes = int(body_one.sum()) + int(body_other.sum())
    dice = 2.0 * int((body_one & body_other).sum()) / sizes if sizes else 0.0
    return {
        "body_dice": dice,
        "bone_edge_mm": _edge_distance((other > BONE_HU) & both, (one > BONE_HU) & both, spacing),
        "mutual_information": _mutual_information(one, other, body_one | body_other),
    }


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
    method.SetNumberOfThreads(1)
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
    try:
        return method.Execute(fixed_image, moving_image)
    except RuntimeError as error:  # "all samples map outside the moving image", for instance
        raise SeriesError("registration", "the rigid search lost the overlap") from error


def _deformable(
    moving: Volume, fixed: Volume, rigid: sitk.Transform
) -> tuple[sitk.Transform, dict[str, float]]:
    """Demons after the rigid transform, coarse to fine (Thirion 1998, symmetric forces)."""
    field: Any = None
    for length, steps in zip(DEMONS_MM, DEMONS_STEPS, strict=True):
        target = sitk.Clamp(_shrunk(fixed, length), sitk.sitkFloat32, *SOFT_HU)
        source = sitk.Clamp(_shrunk(moving, length), sitk.sitkFloat32, *SOFT_HU)
        source = sitk.Resample(source, target, rigid, sitk.sitkLinear, SOFT_HU[0])
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(steps)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(
            [max(SMOOTH_MM / spacing, 0.5) for spacing in target.GetSpacing()]
        )
        if field is None:
            field = demons.Execute(target, source)
        else:
            field = sitk.Resample(field, target, sitk.Transform(), sitk.sitkLinear, 0.0)
            field = demons.Execute(target, source, field)
    jacobian = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    jacobian = jacobian[1:-1, 1:-1, 1:-1]  # at the border the filter has no neighbours to go by
    shifts = np.linalg.norm(sitk.GetArrayViewFromImage(field), axis=-1)
    qc = {"min_jacobian": float(jacobian.min()), "max_shift_mm": float(shifts.max())}
    warp = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    # The last one added acts first: from a point of the plain scan along the field, then rigidly.
    return sitk.CompositeTransform([rigid, warp]), qc


def _shrunk(volume: Volume, length_mm: float) -> sitk.Image:
    """Averaged down to voxels of about ``length_mm``, float32."""
    image = sitk.Cast(to_image(volume), sitk.sitkFloat32)
    factors = [max(1, round(length_mm / step)) for step in image.GetSpacing()]
    factors = [min(n, max(1, size // 4)) for n, size in zip(factors, image.GetSize(), strict=True)]
    return sitk.BinShrink(image, factors)
