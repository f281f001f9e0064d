"""Numbers and verdicts in words, the same for terminal and page."""

from __future__ import annotations

import math
from typing import NamedTuple

from dyefreenet.report.results import HEADLINE, METHODS, PAPER, Column, Results, Row

FEW = 20  # patients; with fewer, a bootstrap interval comes out too narrow


def number(value: float, digits: int, sign: bool = False) -> str:
    if math.isnan(value):  # infinities of both signs have no mean
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def interval(line: Row, digits: int, sign: bool = False) -> str:
    """``[low, high]``, or empty where one patient allows none."""
    if line["low"] is None or line["high"] is None:
        return ""
    return f"[{number(line['low'], digits, sign)}, {number(line['high'], digits, sign)}]"


def data_source(results: Results) -> tuple[str, str]:
    """A loud headline on what the figures were measured on, and the counts behind it."""
    test_phantom = results.patients("phantom", "test")
    test_real = results.patients("real", "test")
    if not results.pairs:
        loud = "Origin of the data unknown: the run folder holds no table of pairs"
    elif test_phantom and test_real:
        loud = f"Mixed: {test_phantom} made-up phantoms and {test_real} real patients were scored"
    elif test_real:
        loud = "Real CT: the figures below were measured on patients"
    elif test_phantom:
        loud = "MADE-UP PHANTOM: no figure below was measured on a patient"
    else:
        loud = "Origin of the data unknown: the table of pairs names no test patient"
    counts = []
    for split in ("train", "validation", "test"):
        inside = [pair for pair in results.pairs if pair["split"] == split]
        slices = sum(pair["slices"] or 0 for pair in inside)
        made_up = results.patients("phantom", split)
        real = results.patients("real", split)
        who = " + ".join(f"{n} {kind}" for n, kind in ((made_up, "made-up"), (real, "real")) if n)
        ending = "" if made_up + real == 1 else "s"
        counts.append(f"{split}: {who or 'no'} patient{ending}, {slices:,} slices")
    return loud, " · ".join(counts)


class Finding(NamedTuple):
    """One comparison of the final method with a rival under one column."""

    column: Column
    verdict: str  # better, worse, no difference shown, too few patients
    text: str


class Verdict(NamedTuple):
    """The final method against one rival."""

    rival: str
    headline: str
    findings: list[Finding]


def verdicts(results: Results) -> list[Verdict]:
    """What the run shows about its final method, whichever way it falls."""
    found = []
    for rival in PAPER:
        findings = []
        for column in HEADLINE:
            line = results.difference(results.final or "", rival, column)
            if line is None:
                continue
            unit = f" {column.unit}" if column.unit else ""
            value = number(line["mean"], column.digits, sign=True)
            title = column.name[:1].upper() + column.name[1:]
            text = f"{title} {value}{unit} {interval(line, column.digits, sign=True)}"
            findings.append(Finding(column, line["verdict"], text.strip()))
        if not findings:
            continue
        phrases = []
        for kind in ("better", "worse", "no difference shown", "too few patients"):
            titles = [finding.column.name for finding in findings if finding.verdict == kind]
            if titles:
                word = "too few patients to judge" if kind == "too few patients" else f"{kind} in"
                phrases.append(f"{word} {' and '.join(titles)}")
        name, other = METHODS[results.final or ""], METHODS[rival]
        found.append(Verdict(rival, f"{name} against {other}: {'; '.join(phrases)}.", findings))
    return found


def caution(results: Results) -> str:
    """What the number of patients does to the intervals; empty where they are many."""
    n = max(line["n"] for line in results.summary)
    if n == 1:
        return "One patient: there are no intervals, and nothing can be concluded."
    if n < FEW:
        return (
            f"{n} patients: a bootstrap over so few draws intervals that are too narrow; "
            "take them as a hint."
        )
    return ""


class Delta(NamedTuple):
    """Our difference to a rival beside the paper's."""

    rival: str
    column: Column
    ours: Row
    paper: float


def deltas(results: Results) -> list[Delta]:
    """The final method minus U-Net and minus Pix2Pix, whole image, every protocol."""
    return [
        Delta(rival, column, line, paper[column.metric])
        for rival, paper in PAPER.items()
        for column in results.columns
        if column.metric in paper and column.region == "image"
        if (line := results.difference(results.final or "", rival, column)) is not None
    ]
