"""What becomes of an archive, as its owner is told: pairs, reviews, an account of each series."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dyefreenet import recipes
from dyefreenet.cli import main
from dyefreenet.config import GridConfig, IngestConfig, PhantomConfig
from dyefreenet.data.archive import scan, short_hash
from dyefreenet.data.cohort import pair
from dyefreenet.data.dicom import read_series
from dyefreenet.data.ingest import ingest
from dyefreenet.data.phantom.patients import make_patient
from dyefreenet.store import Folder


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
    assert told.pop("skipped_files") == {}
    assert told == {"series": 6, "pairs": {"arterial": 2, "portal": 1}, "refused": {"ignored": 1}}


def edited(review, words, **changes):
    """The table of ``pairs --review`` with columns changed by series description."""
    assert main([*words, "--review", str(review)]) == 0
    rows = list(csv.DictReader(review.open()))
    for row in rows:
        row |= changes.get(row["description"], {})
    with review.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_review_keeps_the_patients_that_were_written_into_it(studies, tmp_path):
    review, words = tmp_path / "review.csv", ["pairs", "-i", str(studies)]
    edited(review, words, **{"???": {"patient": "A", "phase": "plain"}})
    assert main([*words, "--phases", str(review), "--review", str(review)]) == 0
    (row,) = [row for row in csv.DictReader(review.open()) if row["description"] == "???"]
    assert (row["patient"], row["phase"]) == ("A", "plain")


def test_rows_of_a_table_that_name_no_series_are_counted(capsys, studies, tmp_path):
    table = tmp_path / "phases.csv"
    table.write_text("series,phase\n1.5.2,portal\n9.9.9,plain\n")
    assert main(["pairs", "-i", str(studies), "--phases", str(table)]) == 0
    assert "1 row of" in capsys.readouterr().err


def test_pairs_takes_several_archives_and_the_keys_of_an_ingest(
    capsys, studies, tmp_path, write_ct, steps
):
    write_ct(tmp_path / "more", steps, SeriesInstanceUID="7.7", PatientID="more")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "salt.txt").write_text("s")
    review = tmp_path / "review.csv"
    words = ["pairs", "-i", str(studies), "-i", str(tmp_path / "more")]
    assert main([*words, "--keys-of", str(tmp_path / "out"), "--review", str(review)]) == 0
    assert "7 series" in capsys.readouterr().out
    keys = {row["series"]: row["key"] for row in csv.DictReader(review.open())}
    assert keys["7.7"] == short_hash("7.7", "s")


def test_series_without_a_name_are_told_apart_by_their_folders(write_ct, steps, tmp_path):
    for folder, words in (("a", "NATIV"), ("b", "ART")):
        write_ct(
            tmp_path / folder,
            steps,
            SeriesInstanceUID="",
            StudyInstanceUID="",
            PatientID="",
            SeriesDescription=words,
        )
    one, other = scan(tmp_path)
    assert one.slices == other.slices == 4 and one.patient != other.patient
    assert not pair([one, other], ("arterial",))[0]  # nobody says that they are one patient's
    assert read_series(one.files).volume.hu.shape == steps.shape


def test_an_archive_of_nothing_usable_is_accounted_for(
    capsys, monkeypatch, write_ct, steps, tmp_path
):
    monkeypatch.setattr("dyefreenet.runtime.connect", lambda verbose: None)  # here, without Ray
    folder = write_ct(tmp_path / "bad", steps, SeriesDescription="NATIV")
    cut = folder / "0002.dcm"
    cut.write_bytes(cut.read_bytes()[:-10])
    (folder / "note.txt").write_text("hello")
    words = ["ingest", "-i", str(tmp_path / "bad"), "-o", str(tmp_path / "out"), "--json"]
    assert main(words) == 1
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert (facts["series"], facts["used"]) == (1, 0) and sum(facts["refused"].values()) == 1
    assert facts["skipped_files"] == {"not a DICOM file": 1}
    assert "found no series that can be used" in told.err
    assert (tmp_path / "out" / "account.json").exists()
    assert (tmp_path / "out" / "quality.html").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_archive_is_not_written_into(capsys, write_ct, steps, tmp_path):
    write_ct(tmp_path / "in", steps)
    assert main(["ingest", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "in" / "out")]) == 1
    assert "expected a folder outside of the archive" in capsys.readouterr().err
    assert not (tmp_path / "in" / "out").exists()


@pytest.mark.slow
def test_the_image_tells_a_phase_where_headers_are_silent_and_contradicts_where_they_lie(
    write_ct, tmp_path
):
    """One made-up patient under four names, whose series say nothing, the truth, or the reverse."""
    config = PhantomConfig(
        matrix=(192,), slices=48, slice_mm=(4.0, 4.0), middle_mm=(330.0, 330.0), motion_mm=(0, 0)
    )
    phases = make_patient(config, 1).phases
    said = {
        "silent": {"plain": "ABD 3.0", "arterial": "ABD 3.0"},
        "true": {"plain": "NATIV", "arterial": "ART"},
        "swapped": {"plain": "ART", "arterial": "NATIV"},
        "both plain": {"plain": "NATIV", "arterial": "NATIV"},
    }
    for number, (patient, words) in enumerate(said.items()):
        for phase, description in words.items():
            volume = phases[phase]
            write_ct(
                tmp_path / "archive" / patient / phase,
                volume.hu,
                step=volume.spacing[0],
                PixelSpacing=[f"{step:.4f}" for step in volume.spacing[1:]],
                SeriesInstanceUID=f"1.5.{number}.{len(phase)}",
                StudyInstanceUID=f"1.6.{number}",
                PatientID=patient,
                SeriesDescription=description,
                PixelRepresentation=1,
            )

    def account(target, **changes):
        facts = ingest(
            IngestConfig(**changes),
            GridConfig(size=192),
            paired=[Folder(str(tmp_path / "archive"))],
            target=Folder(str(tmp_path / target)),
            train=False,
        )
        books = {
            name: pq.read_table(tmp_path / target / f"{name}.parquet").to_pylist()
            for name in ("pairs", "excluded")
        }
        return facts, books

    facts, books = account("out")
    assert facts["pairs"] == {"arterial": 2}
    told = sorted(row["phase_told_by"] for row in books["pairs"])
    assert told[1] == "series description" and "HU" in told[0]
    reasons = sorted(row["reason"] for row in books["excluded"])
    # Swapped: each image shows the other's phase. Both plain: no pair, and one is fit for SSL.
    assert reasons == ["has-contrast"] * 3 and facts["ssl_series"] == 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "phases").iterdir()}
    assert len(before) == 2
    account("out")
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nobody looks twice
    facts, _ = account("trusting", image_check=False)
    assert facts["pairs"] == {"arterial": 2} and facts["refused"]["phase-unknown"] == 2


def test_a_table_of_phases_reaches_the_ingest_of_a_run_too(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("dyefreenet.cli._run", lambda options: asked.append(options.set))
    assert main(["ingest", "--recipe", "demo", "--phases", str(tmp_path / "a: b.csv")]) == 0
    recipe = recipes.load("demo", asked[0])
    assert recipe.ingest.phases_csv == str(tmp_path / "a: b.csv")
