"""The model card of a run: for whom it is, what it learnt from, what it scored, and its hashes."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import yaml

from dyefreenet.report.figures import label
from dyefreenet.report.results import HEADLINE, STEPS, Column, Results
from dyefreenet.report.words import caution, data_source, interval, number, verdicts

WARNING = "For research only. Not for diagnosis or treatment."


class Section(NamedTuple):
    """A heading, and what is said below it: (term, text)."""

    title: str
    facts: list[tuple[str, str]]


def model_card(results: Results) -> list[Section]:
    """The sections of the card, in the order of reading."""
    return [
        Section("Intended use and limits", _use(results)),
        Section("Data", _data(results)),
        Section("Figures", _figures(results)),
        Section("Weights", _weights(results)),
        Section("Made by", _made(results)),
    ]


def markdown(results: Results, sections: list[Section]) -> str:
    """The card as Markdown, with the recipe at its end."""
    lines = [f"# Model card: run {_plain(results.name)}", "", f"**{WARNING}**"]
    for section in sections:
        lines += ["", f"## {section.title}", ""]
        lines += [f"- **{_plain(term)}**: {_plain(text)}" for term, text in section.facts]
    recipe = yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True)
    # Indented, for nothing within the recipe can end such a block.
    lines += ["", "## Recipe", "", *(f"    {line}" for line in recipe.splitlines())]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: a name from the run is no markup."""
    return re.sub(r"([\\`*_<>&#|~]|\](?=[(\[:]))", r"\\\1", " ".join(text.split()))


def _use(results: Results) -> list[tuple[str, str]]:
    phases = sorted({str(pair["phase"]) for pair in results.pairs})
    facts = [
        (
            "Intended use",
            "Research into virtual contrast CT: how well an enhanced CT can be told from the plain "
            "one, and where that fails.",
        ),
        (
            "Not intended",
            "Diagnosis, treatment, planning, triage, or any other decision about a patient. It is "
            "no medical device and has been cleared by nobody.",
        ),
        (
            "Limits",
            "The networks guess where contrast agent would have gone. They can light up what "
            "would not have enhanced and miss what would: a lesion that only the agent shows is "
            "not in the plain scan. HU of an output are predictions, not measurements.",
        ),
    ]
    if phases:
        facts.append(("Phase", f"{', '.join(phases)}; other phases were not learnt"))
    if results.patients("phantom", "train"):
        facts.append(
            (
                "Made-up CT",
                "The networks were trained on phantoms. What they do on patients does not "
                "follow from figures measured on phantoms.",
            )
        )
    return facts


def _data(results: Results) -> list[tuple[str, str]]:
    loud, counts = data_source(results)
    reasons = Counter(str(row["reason"]) for row in results.excluded).most_common()
    left_out = ", ".join(f"{reason} {count}" for reason, count in reasons)
    return [
        ("Origin", loud),
        ("Splits, by patient", counts),
        ("Left out", f"{len(results.excluded)} series: {left_out}" if reasons else "no series"),
    ]


def _figures(results: Results) -> list[tuple[str, str]]:
    """Means over test patients with their intervals, of every method under the headline."""
    facts = []
    for method in results.methods:
        said = []
        for column in HEADLINE:
            line = results.mean(method, column)
            if line is not None:
                span = interval(line, column.digits)
                said.append(
                    f"{_named(column)} {number(line['mean'], column.digits)} {span}".strip()
                )
                said[-1] += f", n={line['n']}"
        if said:
            facts.append((label(method), "; ".join(said)))
    final = results.final
    for by in results.worst_columns if final else []:
        for patient, value in results.worst(str(final), 1, by):
            worst = f"{_named(by)} {number(value, by.digits)}, patient {patient}"
            facts.append((f"Worst case of {label(str(final))}", worst))
    facts += [("Verdict", verdict.headline) for verdict in verdicts(results)]
    if caution(results):
        facts.append(("Caution", caution(results)))
    facts.append(("Reading", "mean over test patients [95 % bootstrap interval], n patients"))
    return facts


def _named(column: Column) -> str:
    unit = f", {column.unit}" if column.unit else ""
    return f"{column.title}{unit} ({column.where}, {column.protocol})"


def _weights(results: Results) -> list[tuple[str, str]]:
    """SHA-256 of each file of weights, as the manifest of its step has it."""
    facts = [
        (f"{step}/{name}", f"SHA-256 {digest}")
        for step in STEPS
        for name, digest in (results.steps.get(step, {}).get("files") or {}).items()
        if name.startswith("weights/")
    ]
    return facts or [("Weights", "none in this run folder")]


def _made(results: Results) -> list[tuple[str, str]]:
    facts = [("Recipe", str(results.recipe.get("name") or "not stored"))]
    if results.missing:
        facts.append(("Not in this run", ", ".join(results.missing)))
    for step in STEPS:
        manifest = results.steps.get(step)
        if manifest is not None:
            said = f"code {manifest.get('code', 'unknown')}, fingerprint {manifest['fingerprint']}"
            if manifest.get("finished"):
                said += f", finished {manifest['finished']}"
            facts.append((label(step), said))
    return facts
