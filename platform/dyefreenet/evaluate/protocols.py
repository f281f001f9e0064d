"""Metric protocols: a figure exists only under the name of how it was measured.

The same two volumes score anywhere from 24 to 43 dB depending on window, range and mask. So every
row carries the id of its protocol, and ``statistics.py`` refuses to pool or compare two ids. A
definition never changes under its id: a change is a new id. docs/metrics.md tells the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyefreenet.errors import ConfigError
from dyefreenet.evaluate import enhancement
from dyefreenet.evaluate.metrics import (
    mae,
    mae_per_slice,
    psnr,
    psnr_per_slice,
    ssim_by_region,
)
from dyefreenet.evaluate.multiscale import ms_ssim
from dyefreenet.evaluate.regions import dilated
from dyefreenet.evaluate.texture import (
    gradient_distance,
    high_frequency_power,
    ratio,
    step_between_slices,
)
from dyefreenet.evaluate.vessels import vessel_agreement

MUSCLE, VESSELS = "muscle", ("vessel", "computed_vessel")  # regions that roi/1 knows by name
MARGIN_MM = 10.0  # by which SynthRAD's masks reach beyond the skin

Row = dict[str, Any]  # metric, region, value, n; ``score_volume`` adds the protocol


@dataclass(frozen=True)
class Case:
    """What a protocol looks at: one patient's true scan and one method's prediction of it.

    Attributes:
        true: Measured contrast CT, int16 HU, [Z, H, W].
        predicted: The same from a method.
        plain: The plain scan that the method was given.
        body: True inside the patient, [Z, H, W], found on the plain scan (``regions.body_mask``).
        spacing: mm, (z, y, x).
        labels: Numbered structures, uint8, [Z, H, W]; None where nobody drew them.
        structures: Region's name to the numbers of the labels that make it up.

    Raises:
        ValueError: A volume has another shape than the true scan.
    """

    true: NDArray[np.int16]
    predicted: NDArray[np.int16]
    plain: NDArray[np.int16]
    body: NDArray[np.bool_]
    spacing: tuple[float, float, float]
    labels: NDArray[np.uint8] | None = None
    structures: Mapping[str, Collection[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("predicted", "plain", "body", "labels"):
            array = getattr(self, name)
            if array is not None and array.shape != self.true.shape:
                raise ValueError(
                    f"{name}: expected the shape of the true scan, {self.true.shape}, "
                    f"found {array.shape}"
                )

    @cached_property
    def around(self) -> NDArray[np.bool_]:
        """The body and what lies within 10 mm of it in plane, as SynthRAD's masks do."""
        return dilated(self.body, self.spacing, MARGIN_MM)


@dataclass(frozen=True)
class Protocol:
    """A named way to measure; ``definition`` is one line for the reader of a table."""

    id: str
    definition: str
    measure: Callable[[Case], list[Row]]


def score_volume(case: Case, protocols: Iterable[str]) -> list[Row]:
    """All figures of one patient under one method.

    Args:
        protocols: Ids; ``roi/1`` is added where labels are given.

    Returns:
        Rows {protocol, metric, region, value, n}. A region of which the patient shows nothing has
        no row.

    Raises:
        ConfigError: A protocol that does not exist.
    """
    named = [*protocols, *(["roi/1"] if case.labels is not None else [])]
    wanted = [protocol(name) for name in dict.fromkeys(named)]  # all known before any is measured
    return [{"protocol": one.id} | row for one in wanted for row in one.measure(case)]


def protocol(name: str) -> Protocol:
    """The protocol of an id, or one line that names those there are."""
    if name not in PROTOCOLS:
        raise ConfigError(
            f"evaluate.protocols: expected one of {', '.join(PROTOCOLS)}, found {name!r}"
        )
    return PROTOCOLS[name]


def _windowed(
    low: int, high: int, per_slice: bool, regions: tuple[str, ...], normalised: bool = False
) -> Callable[[Case], list[Row]]:
    """PSNR, SSIM and MAE of HU clipped to a window and counted from its lower end.

    Counted from 0, because the luminance term of SSIM asks for values that are not negative; with
    the width of the window as the span, any further scaling (to 0...255, say) changes no figure.
    ``normalised`` gives the error as a share of the span, slice by slice, in place of HU.
    """
    span = float(high - low)

    def measure(case: Case) -> list[Row]:
        true = np.clip(case.true, low, high) - np.int16(low)
        predicted = np.clip(case.predicted, low, high) - np.int16(low)
        masks = {name: case.body if name == "body" else None for name in regions}
        masks = {name: mask for name, mask in masks.items() if mask is None or mask.any()}
        similarity = ssim_by_region(true, predicted, span, masks)
        rows = []
        for name, mask in masks.items():
            if per_slice:
                decibels = psnr_per_slice(true, predicted, span, mask)
                rows += _over_slices("psnr", name, decibels)
            else:
                value = psnr(true, predicted, span, mask)
                rows.append(_row("psnr", name, value, len(true)))
            rows += _over_slices("ssim", name, similarity[name], spread=per_slice)
            if normalised:
                shares = mae_per_slice(true, predicted, mask) / span
                rows += _over_slices("nmae", name, shares)
            else:
                rows.append(_row("mae", name, mae(true, predicted, mask), len(true)))
        return rows

    return measure


def _synthrad(high: int, published: bool) -> Callable[[Case], list[Row]]:
    """MAE unclipped, PSNR and MS-SSIM from -1024 HU to ``high``, in the body and 10 mm around."""
    low = -1024

    def measure(case: Case) -> list[Row]:
        if not case.body.any():
            return []
        mask, slices = case.around, len(case.true)
        error = mae(case.true, case.predicted, mask)
        true, predicted = (np.clip(scan, low, high) for scan in (case.true, case.predicted))
        decibels = psnr(true, predicted, float(high - low), mask)
        rows = [_row("psnr", "around", decibels, slices), _row("mae", "around", error, slices)]
        similarity = ms_ssim(true, predicted, mask, low, high, published)
        if similarity is not None:
            rows.append(_row("ms_ssim", "around", similarity, slices))
        return rows

    return measure


def _over_slices(
    metric: str, region: str, values: NDArray[np.float64], spread: bool = True
) -> list[Row]:
    """Mean over slices, and their standard deviation as a row of its own.

    A slice that agrees exactly (infinite PSNR) or lacks the region (NaN) is left out, and ``n``
    counts those that remain. Where all agree exactly, the figure is infinite.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        exact = values[np.isinf(values)]
        return [_row(metric, region, float("inf"), len(exact))] if len(exact) else []
    rows = [_row(metric, region, float(finite.mean()), len(finite))]
    if spread:
        rows.append(_row(f"{metric}_sd", region, float(finite.std()), len(finite)))
    return rows


def _structures(case: Case) -> list[Row]:
    """Errors and levels in HU, unclipped, within each labelled structure; how vessels are drawn."""
    if case.labels is None:
        return []
    rows = []
    muscle = _inside(case, case.structures.get(MUSCLE, ()))
    scans = {"": case.predicted, "true_": case.true}
    ground = {
        prefix: (float(np.median(scan[muscle])), float(scan[muscle].std()))
        for prefix, scan in scans.items()
        if muscle.any()
    }
    for name, numbers in case.structures.items():
        inside = _inside(case, numbers)
        voxels = int(inside.sum())
        if not voxels:
            continue
        values = {prefix: scan[inside] for prefix, scan in scans.items()}
        medians = {prefix: float(np.median(hu)) for prefix, hu in values.items()}
        error = np.subtract(values[""], values["true_"], dtype=np.int32)
        rows += [
            _row("mae", name, float(np.abs(error).mean()), voxels),
            _row("bias", name, float(error.mean()), voxels),
            _row("median_error", name, abs(medians[""] - medians["true_"]), voxels),
        ]
        for prefix, median in medians.items():
            rows.append(_row(f"{prefix}median_hu", name, median, voxels))
            usual, spread = ground.get(prefix, (0.0, 0.0))
            if name != MUSCLE and spread > 0:
                rows.append(_row(f"{prefix}cnr", name, abs(median - usual) / spread, voxels))
        if name in VESSELS:
            drawn = vessel_agreement(case.true, case.predicted, case.plain, inside, case.spacing)
            if drawn is not None:
                rows += [_row("dice", name, drawn[0], voxels), _row("hd95", name, drawn[1], voxels)]
    return rows


def _inside(case: Case, numbers: Collection[int]) -> NDArray[np.bool_]:
    assert case.labels is not None
    return np.isin(case.labels, list(numbers))


def _texture(case: Case) -> list[Row]:
    """Grain, edges and steadiness beside those of the true scan, of HU from -200 to 400.

    A figure that the true scan gives nothing to compare with has no row: flicker of one slice, say.
    """
    true, predicted = (np.clip(volume, -200, 400) for volume in (case.true, case.predicted))
    power = ratio(high_frequency_power(predicted), high_frequency_power(true))
    steps = [step_between_slices(volume, case.body) for volume in (predicted, true)]
    figures = (
        ("high_frequency", "image", power, len(true)),
        ("gradient_w1", "body", gradient_distance(true, predicted, case.body), len(true)),
        ("flicker", "body", ratio(*steps), len(true) - 1),
    )
    return [_row(name, where, value, n) for name, where, value, n in figures if value is not None]


def _enhancement(case: Case) -> list[Row]:
    """What lit up and should not have, what should have, and what changed where nothing may."""
    found = enhancement.measure(case.true, case.predicted, case.plain, case.body)
    inside = int(case.body.sum())
    figures = (
        ("invented", "body", found.invented, inside),
        ("missed", "body", found.missed, inside),
        ("outside_change", "outside", found.outside, case.body.size - inside),
        ("change_flicker", "body", found.flicker, len(case.true) - 1),
    )
    return [_row(name, where, value, n) for name, where, value, n in figures if value is not None]


def _row(metric: str, region: str, value: float, n: int) -> Row:
    """One figure; ``n`` counts slices, steps between slices, or voxels of a region."""
    return {"metric": metric, "region": region, "value": value, "n": n}


PROTOCOLS: dict[str, Protocol] = {
    entry.id: entry
    for entry in (
        Protocol(
            "window600/1",
            "HU clipped to [-200, 400] and counted from -200, span 600; PSNR over the volume, "
            "SSIM as mean of axial slices; whole image and body",
            _windowed(-200, 400, per_slice=False, regions=("image", "body")),
        ),
        Protocol(
            "paper8/1",
            "HU clipped to [-200, 600] and scaled to 0...255, span 255; mean of axial slices; "
            "whole image",
            _windowed(-200, 600, per_slice=True, regions=("image",)),
        ),
        Protocol(
            "full12/1",
            "HU clipped to [-1024, 3071] and counted from -1024, span 4095; PSNR, SSIM and MAE as "
            "a share of the span, mean of axial slices; body",
            _windowed(-1024, 3071, per_slice=True, regions=("body",), normalised=True),
        ),
        Protocol(
            "synthrad/1",
            "body and 10 mm around it in plane, outside -1024 HU; MAE unclipped; PSNR and 3-D "
            "MS-SSIM of HU clipped to [-1024, 3000], span 4024; luminance at the coarsest scale",
            _synthrad(3000, published=False),
        ),
        Protocol(
            "synthrad-published/1",
            "as synthrad/1 with what the code published in 2025 does: HU clipped to [-1024, 3071], "
            "span 4095; luminance at every scale; air before the first voxel of a coarser scale",
            _synthrad(3071, published=True),
        ),
        Protocol(
            "roi/1",
            "HU as they are within structures, labelled or computed: MAE, bias, medians and their "
            "difference, CNR to muscle; of vessels Dice and HD95 of what lights up within 5 mm",
            _structures,
        ),
        Protocol(
            "texture/1",
            "HU clipped to [-200, 400]; power above half of Nyquist (axial slices, Hann window) "
            "and step between slices in the body as predicted / true, target 1; 1-Wasserstein "
            "distance of in-plane gradients inside the body, HU/pixel, target 0",
            _texture,
        ),
        Protocol(
            "enhancement/1",
            "change from the plain scan, 3x3 mean: share of the body above 100 HU where the true "
            "change is below 30 (invented), and the reverse (missed); |change| outside the body, "
            "target 0; step of the change between slices as predicted / true, target 1",
            _enhancement,
        ),
    )
}
