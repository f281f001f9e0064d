"""From rows to a table: means and differences over patients, with bootstrap intervals.

The unit is the patient: 489 slices are not 489 patients. A row has at least method, protocol,
metric, region, patient and value; ``pair`` tells several scans of a patient apart. Rows of
different protocols are never pooled: the functions that group rows keep them apart, and those that
pool refuse a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

Row = dict[str, Any]
RESAMPLES = 10_000
HIGHER_IS_BETTER = ("psnr", "ssim", "ms_ssim", "dice")
ENOUGH = 6  # patients: the fewest that, all of one sign, reach p < 0.05 (Wilcoxon)
LOWER_IS_BETTER = ("mae", "nmae", "median_error", "hd95", "invented", "missed")
TARGETS = {  # neither more nor less
    "high_frequency": 1.0,
    "gradient_w1": 0.0,
    "flicker": 1.0,
    "outside_change": 0.0,
    "change_flicker": 1.0,
}
KEY = ("method", "protocol", "metric", "region")
LEVEL_KEY = ("method", "protocol", "region")


class Table(Protocol):
    """A pyarrow.Table, of which only this is needed."""

    def to_pylist(self) -> list[Row]: ...


def summarise(rows: list[Row] | Table, resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """Mean over patients of every (method, protocol, metric, region), in the order they come.

    Returns:
        {method, protocol, metric, region, n, mean, low, high}: n patients and the 95 % interval.
    """
    summary = []
    for key, group in _grouped(_as_list(rows), KEY).items():
        values = np.array(list(by_patient(group).values()))
        mean, low, high = interval(values, resamples, seed)
        summary.append(
            dict(zip(KEY, key, strict=True))
            | {"n": len(values), "mean": mean, "low": low, "high": high}
        )
    return summary


def differences(
    rows: list[Row] | Table,
    versus: Sequence[str] = ("unet", "pix2pix", "identity"),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Method minus comparator, paired by patient, for every method and every comparator present.

    Only metrics of which more, or less, is better, or that have a target: a bias and a spread have
    no such order. Of a metric with a target it is the distances from it, |value - target| of each
    scan, that are compared, and less is better.

    Returns:
        {method, versus, protocol, metric, region, target, n, mean, low, high, p, p_holm, verdict}.
        target is None where the values themselves are compared. n counts the patients that both
        have. p is of the paired Wilcoxon test, p_holm the same corrected (Holm) over the methods
        held against one comparator. The verdict is "better" or "worse"
        where the whole interval lies on one side of 0 and p_holm is below 0.05, else "no difference
        shown"; and "too few patients" where there are fewer than 6, whose p cannot be.
    """
    differing: list[Row] = []
    for (protocol, metric, region), family in _grouped(_as_list(rows), KEY[1:]).items():
        target = TARGETS.get(metric)
        if target is not None:
            family = [row | {"value": abs(row["value"] - target)} for row in family]
        elif metric not in HIGHER_IS_BETTER + LOWER_IS_BETTER:
            continue
        methods = {key[0]: group for key, group in _grouped(family, KEY[:1]).items()}
        for other in versus:
            if other not in methods:
                continue
            against = []
            for method, own in methods.items():
                # Scans that both have: a patient's mean over other scans would be no pair.
                both = _scans(own) & _scans(methods[other])
                values, others = (
                    by_patient(row for row in group if _scan(row) in both)
                    for group in (own, methods[other])
                )
                shared = list(values)
                if method == other or not shared:
                    continue
                mine = np.array([values[patient] for patient in shared])
                theirs = np.array([others[patient] for patient in shared])
                both_exact = np.isinf(mine) & np.isinf(theirs)  # inf - inf: no difference
                delta = np.where(both_exact, 0.0, mine - np.where(both_exact, 0.0, theirs))
                mean, low, high = interval(delta, resamples, seed)
                against.append(
                    {"method": method, "versus": other, "protocol": protocol, "metric": metric}
                    | {"region": region, "target": target, "n": len(shared)}
                    | {"mean": mean, "low": low, "high": high}
                    | {"p": _signed_rank(delta)}
                )
            for row, corrected in zip(against, _holm([row["p"] for row in against]), strict=True):
                row |= {"p_holm": corrected, "verdict": _verdict(row | {"p_holm": corrected})}
            differing += against
    return differing


def _scan(row: Row) -> tuple[str, str]:
    return str(row["patient"]), str(row.get("pair", ""))


def _scans(rows: Iterable[Row]) -> set[tuple[str, str]]:
    return {_scan(row) for row in rows}


def levels(rows: list[Row] | Table, resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """Whether predicted levels follow the patients: slope and variance ratio of each region.

    Over patients, of the median HU of a region: the slope beta of the least-squares line of the
    predicted against the true level, and the variance of the predicted levels over that of the true
    ones. A method that gives everyone the average level has 0 of both; the aim is 1.

    Returns:
        {method, protocol, region, n, slope, slope_low, slope_high, variance_ratio,
        variance_ratio_low, variance_ratio_high}: n patients, and 95 % intervals over resampled
        patients. Figures are None where fewer than 3 patients, or no two true levels differ.
    """
    lines = []
    for (method, protocol, region), group in _grouped(_as_list(rows), LEVEL_KEY).items():
        found, real = (
            by_patient(row for row in group if row["metric"] == metric)
            for metric in ("median_hu", "true_median_hu")
        )
        if not found:
            continue
        predicted = np.array(list(found.values()))
        true = np.array([real[patient] for patient in found])
        line = {"method": method, "protocol": protocol, "region": region, "n": len(true)}
        lines.append(line | _level_figures(predicted, true, resamples, seed))
    return lines


def _level_figures(
    predicted: NDArray[np.float64], true: NDArray[np.float64], resamples: int, seed: int
) -> Row:
    names = ("slope", "variance_ratio")
    if len(true) < 3 or np.ptp(true) == 0.0:
        return {f"{name}{end}": None for name in names for end in ("", "_low", "_high")}
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(true), (resamples, len(true)))
    varied = np.ptp(true[drawn], axis=1) > 0  # one patient drawn n times has no slope
    figures: Row = {}
    whole, resampled = (
        _follow(predicted[None], true[None]),
        _follow(predicted[drawn[varied]], true[drawn[varied]]),
    )
    for name, value, draws in zip(names, whole, resampled, strict=True):
        low, high = np.quantile(draws, [0.025, 0.975])
        figures |= {name: float(value[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return figures


def _follow(
    predicted: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope of predicted against true, and the ratio of their variances, of each row [R, n]."""
    p = predicted - predicted.mean(axis=1, keepdims=True)
    t = true - true.mean(axis=1, keepdims=True)
    variance = (t * t).sum(axis=1)
    return (p * t).sum(axis=1) / variance, (p * p).sum(axis=1) / variance


def by_patient(rows: Iterable[Row]) -> dict[str, float]:
    """Patient to value, of rows that may be pooled; the mean where a patient has several scans.

    Raises:
        ValueError: The rows mix methods, protocols, metrics or regions, a value is NaN, or a scan
            has two rows.
    """
    values: dict[str, list[float]] = {}
    seen: set[tuple[str, str]] = set()
    first: tuple[Any, ...] | None = None
    for row in rows:
        key = tuple(row[name] for name in KEY)
        first = first or key
        if key != first:
            raise ValueError(f"rows to pool: expected all of {first}, found {key} among them")
        patient, value = row["patient"], float(row["value"])
        if math.isnan(value):
            raise ValueError(f"patient {patient}: expected a number for {key}, found NaN")
        if "pair" in row:
            if _scan(row) in seen:
                raise ValueError(
                    f"patient {patient}, pair {row['pair']}: expected one row for {key}, found two"
                )
            seen.add(_scan(row))
        values.setdefault(patient, []).append(value)
    return {patient: sum(scans) / len(scans) for patient, scans in values.items()}


def mean_of_trainings(rows: Iterable[Row]) -> list[Row]:
    """A row for each scan, method and figure: the mean over the trainings that have it."""
    return [
        group[0] | {"value": sum(row["value"] for row in group) / len(group)}
        for group in _grouped(rows, (*KEY, "patient", "pair")).values()
    ]


def missing(rows: list[Row] | Table) -> list[str]:
    """A line for each patient that some methods have and another has not.

    Means over different patients are no comparison; differences take only the patients that both
    have. So it must be told.
    """
    patients: dict[str, None] = {}
    by_method: dict[str, set[str]] = {}
    for row in _as_list(rows):
        patients[row["patient"]] = None
        by_method.setdefault(row["method"], set()).add(row["patient"])
    return [
        f"patient {patient}: expected rows of every method, found none of {method}; its mean is "
        "over other patients than theirs"
        for patient in patients
        for method, found in by_method.items()
        if patient not in found
    ]


def interval(
    values: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float | None, float | None]:
    """Mean with its 95 % interval: percentiles of the means of resampled patients.

    One patient has no interval (None, None): resampling it would feign certainty. Infinite values,
    of scans that agree exactly, make the mean infinite, and a bound if it is reached that often.

    Args:
        values: One per patient, [n].
        resamples: How often n patients are drawn with replacement.
        seed: Of the draws. They are the same for all methods of equally many patients.
    """
    if not len(values):
        raise ValueError("values: expected at least one patient, found none")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, None, None
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 1000):  # draws of many patients would fill the memory
        count = min(1000, resamples - start)
        drawn = generator.integers(0, len(values), (count, len(values)))
        means[start : start + count] = values[drawn].mean(axis=1)
    # A percentile is one of the means, not a mixture of two: half of infinity says nothing.
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    return mean, float(low), float(high)


def _verdict(row: Row) -> str:
    low, high = row["low"], row["high"]
    if low is None or high is None or not (low > 0.0 or high < 0.0):  # NaN lies on no side
        return "no difference shown"
    if row["n"] < ENOUGH:
        return "too few patients"
    if row["p_holm"] >= 0.05:
        return "no difference shown"
    return "better" if (high < 0.0) == (row["metric"] not in HIGHER_IS_BETTER) else "worse"


def _signed_rank(delta: NDArray[np.float64]) -> float:
    """Two-sided p of the paired Wilcoxon test; 1 where no patient differs."""
    if not delta.any():
        return 1.0
    return float(wilcoxon(delta).pvalue)


def _holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: the i-th smallest of m times (m - i), never falling, at most 1."""
    corrected, running = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = running
    return corrected


def _grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _as_list(rows: list[Row] | Table) -> list[Row]:
    return rows if isinstance(rows, list) else rows.to_pylist()
