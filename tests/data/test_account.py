"""What becomes of an archive, as its owner is told: pairs, reviews, an account of each series."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from dyefreenet.cli import main


@pytest.fixture
def studies(ct, tmp_path):
    """A study with plain, arterial and a series that nothing tells; one with two arterial ones."""
    hu = np.random.default_rng(0).integers(0, 80, (4, 24, 24))
    shown = [("1.1", "NATIV"), ("1.1", "ART"), ("1.1", "???"), ("1.2", "NATIV"), ("1.2", "ART")]
    for number, (study, words) in enumerate([*shown, ("1.2", "ART THIN")]):
        for at, content in enumerate(
            ct(
                hu,
                PixelRepresentation=1,
                SeriesInstanceUID=f"1.5.{number}",
                StudyInstanceUID=study,
                PatientID=study,
                SeriesDescription=words,
            )
        ):
            path = tmp_path / "archive" / f"{number}-{at}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return tmp_path / "archive"


def test_pairs_are_told_reviewed_and_fed_back(capsys, studies, tmp_path):
    review = tmp_path / "review.csv"
    words = ["pairs", "-i", str(studies)]
    assert main([*words, "--review", str(review)]) == 0
    out = capsys.readouterr().out
    assert "1 pair of plain and arterial" in out
    assert "3 series: phase-ambiguous" in out and "1 series: phase-unknown" in out
    rows = list(csv.DictReader(review.open()))
    assert len(rows) == 6 and rows[0]["state"] != "paired"  # what needs a person comes first
    for row in rows:
        if row["description"] == "ART THIN":
            row["phase"] = "ignore"
        if row["description"] == "???":
            row["phase"] = "portal"
    with review.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert main([*words, "--phases", str(review), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"series": 6, "pairs": {"arterial": 2, "portal": 1}, "refused": {"ignored": 1}}
