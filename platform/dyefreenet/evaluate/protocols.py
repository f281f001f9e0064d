"""Metric protocols: a figure exists only under the name of how it was measured.

The same two volumes score anywhere from 24 to 43 dB depending on window, range and mask. So every
row carries the id of its protocol, and ``statistics.py`` refuses to pool or compare two ids. A
definition never changes under its id: a change is a new id. docs/metrics.md tells the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyefreenet.errors import ConfigError
from dyefreenet.evaluate.metrics import mae, psnr, psnr_per_slice, ssim_by_region
from dyefreenet.evaluate.texture import (
    gradient_distance,
    high_frequency_power,
    ratio,
    step_between_slices,
)

Row = dict[str, Any]  # metric, region, value, n; ``score_volume`` adds the protocol


@dataclass(frozen=True)
class Case:
    """What a protocol looks at: one patient's true scan and one method's prediction of it.

    Attributes:
        true: Measured contrast CT, int16 HU, [Z, H, W].
        predicted: The same from a method.
        body: True inside the patient, [Z, H, W], found on the plain scan (``regions.body_mask``).
        labels: Numbered structures, uint8, [Z, H, W]; None where nobody drew them.
        structures: Region's name to the numbers of the labels that make it up.
    """

    true: NDArray[np.int16]
    predicted: NDArray[np.int16]
    body: NDArray[np.bool_]
    labels: NDArray[np.uint8] | None = None
    structures: Mapping[str, Collection[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("predicted", "body", "labels"):
            array = getattr(self, name)
            if array is not None and array.shape != self.true.shape:
                raise ValueError(
                    f"{name}: expected the shape of the true scan, {self.true.shape}, "
                    f"found {array.shape}"
                )


@dataclass(frozen=True)
class Protocol:
    """A named way to measure; ``definition`` is one line for the reader of a table."""

    id: str
    definition: str
    measure: Callable[[Case], list[Row]]


def score_volume(
    true: NDArray[np.int16],
    predicted: NDArray[np.int16],
    body: NDArray[np.bool_],
    labels: NDArray[np.uint8] | None,
    vessel_numbers: Collection[int],
    protocols: Iterable[str],
    structures: Mapping[str, Collection[int]] | None = None,
) -> list[Row]:
    """All figures of one patient under one method.

    Args:
        true: Measured contrast CT, HU, [Z, H, W].
        predicted: A method's prediction, HU, on the same grid.
        body: Inside of the patient, from the plain scan.
        labels: Numbered structures, or None.
        vessel_numbers: Numbers of the labels that are arteries: together the region "vessel".
        protocols: Ids; ``roi/1`` is added where labels are given.
        structures: Further regions of ``roi/1``, for instance {"aorta": {12}, "liver": {3}}.

    Returns:
        Rows {protocol, metric, region, value, n}. A region of which the patient shows nothing has
        no row.

    Raises:
        ConfigError: A protocol that does not exist.
        ValueError: Shapes differ.
    """
    regions = {"vessel": vessel_numbers} | dict(structures or {})
    case = Case(true, predicted, body, labels, regions)
    wanted = list(dict.fromkeys([*protocols, *(["roi/1"] if labels is not None else [])]))
    return [{"protocol": name} | row for name in wanted for row in protocol(name).measure(case)]


def protocol(name: str) -> Protocol:
    """The protocol of an id, or one line that names those there are."""
    if name not in PROTOCOLS:
        raise ConfigError(
            f"evaluate.protocols: expected one of {', '.join(PROTOCOLS)}, found {name!r}"
        )
    return PROTOCOLS[name]


def _windowed(low: int, high: int, per_slice: bool, regions: tuple[str, ...]) -> Callable:
    """PSNR, SSIM and MAE of HU clipped to a window and counted from its lower end.

    Counted from 0, because the luminance term of SSIM asks for values that are not negative; with
    the width of the window as the span, any further scaling (to 0...255, say) changes no figure.
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
                rows += _over_slices("psnr", name, psnr_per_slice(true, predicted, span))
            else:
                value = psnr(true, predicted, span, mask)
                rows.append(_row("psnr", name, value, len(true)))
            rows += _over_slices("ssim", name, similarity[name], spread=per_slice)
            rows.append(_row("mae", name, mae(true, predicted, mask), len(true)))
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
    """Errors in HU, unclipped, within each labelled structure."""
    if case.labels is None:
        return []
    rows = []
    for name, numbers in case.structures.items():
        inside = np.isin(case.labels, list(numbers))
        voxels = int(inside.sum())
        if not voxels:
            continue
        error = case.predicted[inside].astype(np.float64) - case.true[inside]
        medians = np.median(case.predicted[inside]) - np.median(case.true[inside])
        rows += [
            _row("mae", name, float(np.abs(error).mean()), voxels),
            _row("bias", name, float(error.mean()), voxels),
            _row("median_error", name, float(abs(medians)), voxels),
        ]
    return rows


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


def _row(metric: str, region: str, value: float, n: int) -> Row:
    """One figure; ``n`` counts slices, steps between slices, or voxels of a structure."""
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
            "roi/1",
            "HU as they are within labelled structures: MAE, bias, difference of the medians",
            _structures,
        ),
        Protocol(
            "texture/1",
            "HU clipped to [-200, 400]; power above half of Nyquist (axial slices, Hann window) "
            "and step between slices in the body as predicted / true, target 1; 1-Wasserstein "
            "distance of in-plane gradients inside the body, HU/pixel, target 0",
            _texture,
        ),
    )
}
