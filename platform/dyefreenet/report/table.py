"""The final table as plain text, 80 columns wide, for a terminal or a log."""

from __future__ import annotations

from dyefreenet.report.results import ARTERIES, HEADLINE, METHODS, Column, Results, read_results
from dyefreenet.report.words import caution, data_source, deltas, interval, number, verdicts
from dyefreenet.store import Folder

_LABEL, _CELL = 20, 22


def table_text(run: Folder) -> str:
    """Means over test patients with 95 % intervals; ``*`` marks the best of a column.

    Raises:
        StoreError: The run has no finished evaluation.
    """
    results = read_results(run)
    loud, _ = data_source(results)
    n = max(line["n"] for line in results.summary)
    lines = [
        loud,
        f"Mean over {n} test patient{'s' if n != 1 else ''} [95 % interval]; * best of the column",
    ]
    whole = [column for column in results.columns if column.region == "image"]
    first = [column for column in HEADLINE if column in results.columns]
    rest = [column for column in whole if column not in first]
    blocks = [first[start : start + 3] for start in range(0, len(first), 3)]
    for block in [*blocks, *(rest[start : start + 2] for start in range(0, len(rest), 2))]:
        lines += ["", *_block(results, block)]
        if ARTERIES[1] in block:
            counts = [
                found["n"] for m in results.methods if (found := results.mean(m, ARTERIES[1]))
            ]
            lines.append(f"computed: {ARTERIES[1].where}, n={max(counts)}")
    compared = deltas(results)
    if compared and results.final is not None:
        lines += ["", f"{METHODS[results.final]} minus".ljust(46) + "ours".ljust(26) + "paper"]
        for delta in compared:
            column = delta.column
            name = f"  {METHODS[delta.rival]}".ljust(19)
            name += f"{column.title} {column.unit}".ljust(9) + column.protocol.ljust(13)
            ours = number(delta.ours["mean"], column.digits, sign=True)
            ours += " " + interval(delta.ours, column.digits, sign=True)
            lines.append(name.ljust(41) + ours.ljust(27) + f"{delta.paper:+.2f}".rjust(6))
    lines += ["", *(verdict.headline for verdict in verdicts(results))]
    lines += [caution(results)] if caution(results) else []
    if results.missing:
        lines.append(f"Not in this run: {', '.join(results.missing)}.")
    return "\n".join(lines).rstrip()


def _block(results: Results, columns: list[Column]) -> list[str]:
    """A heading and one line a method, for up to three columns."""
    titles = [f"{c.title} {c.unit}".strip() for c in columns]
    lines = [
        "".ljust(_LABEL) + "".join(title.ljust(_CELL) for title in titles).rstrip(),
        "".ljust(_LABEL) + "".join(_under(c).ljust(_CELL) for c in columns).rstrip(),
    ]
    for method in results.methods:
        cells = []
        for column in columns:
            line = results.mean(method, column)
            if line is None:
                cells.append("-".ljust(_CELL))
                continue
            mark = "*" if results.best(column) == method else " "
            value = number(line["mean"], column.digits) + mark
            cells.append(f"{value} {interval(line, column.digits)}".ljust(_CELL))
        lines.append(METHODS.get(method, method).ljust(_LABEL) + "".join(cells).rstrip())
    return lines


def _under(column: Column) -> str:
    """What stands below a column's title: the protocol, and whether nobody drew the arteries."""
    return f"{column.protocol} computed" if column == ARTERIES[1] else column.protocol
