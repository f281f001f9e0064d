"""Tuned settings beside the recipe's own, as a table that both a terminal and Markdown take."""

from __future__ import annotations

from collections.abc import Sequence

from dyefreenet.report.results import HEADLINE, METHODS, Column, Row
from dyefreenet.report.words import interval, number

SUFFIX = " tuned"  # of a method's name, with settings that a sweep found


def tuned_text(
    summary: Sequence[Row], compared: Sequence[Row], seeds: int, trials: int, made_up: bool
) -> str:
    """A line a method, as the recipe has it and tuned, and what the tuning gained.

    Args:
        summary, compared: Rows of ``statistics.summarise`` and ``differences``; a method's name
            ends in ``SUFFIX`` where its settings were found by a sweep.
        made_up: Whether the patients are a phantom.
    """
    columns = [
        column for column in HEADLINE if any(_of(row, column) and row["n"] for row in summary)
    ]
    n = max(row["n"] for row in summary)
    source = "MADE-UP PATIENTS (phantom)" if made_up else "Paired CT of the recipe"
    heads = " | ".join(
        f"{c.title} {c.unit}".strip() + f" ({c.protocol}, {c.where})" for c in columns
    )
    lines = [
        f"{source}. Mean over {n} test patients [95 % interval of patients]; a patient's figure is "
        f"the mean of {seeds} training{'s' * (seeds != 1)}; {trials} trials for each method.",
        "",
        f"| method | settings | {heads} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for method in METHODS:
        for name, settings in ((method, "recipe's"), (method + SUFFIX, "tuned")):
            cells = [_cell(summary, column, method=name) for column in columns]
            if any(cells):
                lines.append(f"| {METHODS[method]} | {settings} | {' | '.join(cells)} |")
    pairs = [(method + SUFFIX, method) for method in METHODS]
    pairs += [("refine" + SUFFIX, other + SUFFIX) for other in ("unet", "pix2pix")]
    lines += ["", f"| difference | {heads} |", "|---|" + "---|" * len(columns)]
    for method, versus in pairs:
        cells = [_cell(compared, column, method=method, versus=versus) for column in columns]
        if any(cells):
            lines.append(f"| {_title(method)} − {_title(versus)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    method = name.removesuffix(SUFFIX)
    return METHODS[method] + name[len(method) :]


def _of(row: Row, column: Column) -> bool:
    return (row["protocol"], row["metric"], row["region"]) == tuple(column)


def _cell(rows: Sequence[Row], column: Column, **wanted: str) -> str:
    """Mean and interval, and of a difference what it shows; "" where there is none."""
    for row in rows:
        if _of(row, column) and all(row[name] == value for name, value in wanted.items()):
            signed = "versus" in wanted
            text = number(row["mean"], column.digits, sign=signed)
            text += " " + interval(row, column.digits, sign=signed)
            return f"{text}, {row['verdict']}" if signed else text
    return ""
