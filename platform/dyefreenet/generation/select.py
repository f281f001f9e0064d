"""Which series of an archive are wanted, by what their headers say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dyefreenet import recipes
from dyefreenet.config import Selection
from dyefreenet.data.archive import SeriesRow
from dyefreenet.data.cohort import Refused


def read_selection(path: str) -> Selection:
    """Rules from a JSON or YAML file.

    Raises:
        ConfigError: No such field or value.
        InputError: There is no such file, or it is neither.
    """
    return recipes.read_rules("--select", path, Selection)


def select(
    rows: Sequence[SeriesRow], rules: Selection, limit: int | None = None
) -> tuple[list[SeriesRow], list[Refused]]:
    """The series that are wanted, by key, and the others with the rule that left them out."""
    wanted: list[SeriesRow] = []
    left: list[Refused] = []
    for row in sorted(rows, key=lambda row: row.key):
        why = _against(row, rules)
        if why:
            left.append(Refused(row, "not-selected", why))
        else:
            wanted.append(row)
    if rules.one_per_study:
        best: dict[tuple[str, str], SeriesRow] = {}
        for row in wanted:
            study = (row.patient, row.study_uid)
            best[study] = min(best.get(study, row), row, key=_rank)
        kept = {row.key for row in best.values()}
        left += [
            Refused(row, "not-selected", "one_per_study: another series of its study is thinner")
            for row in wanted
            if row.key not in kept
        ]
        wanted = [row for row in wanted if row.key in kept]
    if limit is not None:
        left += [Refused(row, "not-selected", f"beyond --limit {limit}") for row in wanted[limit:]]
        wanted = wanted[:limit]
    return wanted, left


def _rank(row: SeriesRow) -> tuple[float, int, str]:
    return (row.thickness or 1e9, -row.slices, row.key)


def _against(row: SeriesRow, rules: Selection) -> str:
    """The rule that a series breaks, without its header's own text; "" if none."""
    if rules.series and row.series_uid not in rules.series and row.key not in rules.series:
        return "series: not in the list"
    if rules.description and not re.search(rules.description, row.description):
        return "description: does not match"
    if rules.kernels and row.kernel not in rules.kernels:
        return "kernels: another one"
    if rules.slices and not rules.slices[0] <= row.slices <= rules.slices[1]:
        return f"slices: {row.slices}, expected {rules.slices[0]} to {rules.slices[1]}"
    if rules.thickness_mm:
        low, high = rules.thickness_mm
        if row.thickness is None or not low <= row.thickness <= high:
            return f"thickness_mm: {row.thickness}, expected {low:g} to {high:g}"
    return ""
