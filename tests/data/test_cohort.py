"""Phases, pairs and splits: a phase is told or it is not, and nobody ever changes sides."""

from __future__ import annotations

import dataclasses

import pytest

from dyefreenet.data.archive import SeriesRow, short_hash
from dyefreenet.data.cohort import evidence, pair, phase_of, phases_in_words, plain_only, split_of


def row(uid: str = "1", patient: str = "P1", study: str = "S1", **values) -> SeriesRow:
    defaults = SeriesRow(
        key=short_hash(uid),
        patient=short_hash(patient),
        modality="CT",
        slices=40,
        series_uid=uid,
        study_uid=study,
        patient_id=patient,
    )
    return dataclasses.replace(defaults, **values)


def plain(uid: str = "1", **values) -> SeriesRow:
    return row(uid, **({"description": "NATIV 3.0"} | values))


def arterial(uid: str = "2", **values) -> SeriesRow:
    return row(uid, **({"description": "ART 3.0", "contrast_agent": "Iomeron"} | values))


# ---- phases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "phases"),
    [
        ("ABD NATIVE 3.0", {"plain"}),
        ("Non-Contrast 5mm", {"plain"}),
        ("W/O CONTRAST 2.5", {"plain"}),
        ("without IV contrast", {"plain"}),
        ("Thorax ohne KM", {"plain"}),
        ("Sans injection", {"plain"}),
        ("fase sin contraste", {"plain"}),
        ("senza mdc", {"plain"}),
        ("Нативная фаза", {"plain"}),
        ("腹部平扫", {"plain"}),
        ("C- 1.25", {"plain"}),
        ("ART 1.0 B30f", {"arterial"}),
        ("Abdomen arteriell", {"arterial"}),
        ("Temps artériel", {"arterial"}),
        ("late arterial", {"arterial"}),
        ("CTA aorta", {"arterial"}),
        ("腹部动脉期增强", {"arterial"}),
        ("PORTAL VENOUS 3", {"portal"}),
        ("Portalvenös", {"portal"}),
        ("DELAY 5 MIN", {"delayed"}),
        ("Late phase", {"delayed"}),
        ("nephrographic", {"delayed"}),
        ("ABDOMEN W CONTRAST", {"contrast"}),
        ("CTA PE protocol", {"contrast"}),
        ("W/WO CONTRAST", {"plain", "contrast"}),
        ("nativ + art", {"plain", "arterial"}),
        ("CT AP 5mm", set()),  # abdomen and pelvis, not arterial phase
        ("PARTIAL ARTEFACT", set()),  # not the words "art" or "plain"
        ("", set()),
    ],
)
def test_words(description, phases):
    assert phases_in_words(description) == phases


def test_seconds_after_the_agent_tell_the_phase():
    def at(acquired, **values):
        timed = {"contrast_start": "101500.00", "acquired": acquired, "description": ""}
        return phase_of(arterial(**(timed | values)))

    assert at("101530") == "arterial"
    assert at("101610.5") == "portal"
    assert at("102000") == "delayed"
    assert at("101501") is None  # before it can have arrived
    assert at("101400") is None  # a scan before the injection, whose header names the agent
    assert at("101400", description="NATIV") == "plain"
    assert at("101530", description="NATIV") is None
    assert at("101530", description="PORTAL") is None  # two things disagree
    assert at("1015", description="PORTAL") == "portal"  # no seconds: the word decides


def test_agent_and_words_must_agree():
    assert phase_of(arterial(description="NATIV")) is None
    assert "a contrast agent was given" in evidence(arterial(description="NATIV"))[1]
    assert phase_of(arterial(description="")) is None
    assert phase_of(plain(contrast_agent="NONE")) == "plain"
    assert phase_of(row(description="ABDOMEN")) is None
    assert phase_of(row(description="0,OPA,GE,LSQX,STANDARD,360,2.5,120,80,40,1.5")) == "plain"


def test_phases_csv_comes_first():
    assert phase_of(arterial(declared="plain")) == "plain"


# ---- pairs ---------------------------------------------------------------------------------------


def test_two_phases_of_a_study_pair():
    pairs, refused = pair([arterial(), plain()], ["arterial"])
    assert [(one.plain.series_uid, one.contrast.series_uid) for one in pairs] == [("1", "2")]
    assert refused == []


def test_two_plain_candidates_are_ambiguous_and_listed():
    rows = [plain("1", kernel="B30f"), plain("3", kernel="B70f"), arterial("2")]
    pairs, refused = pair(rows, ["arterial"])
    assert pairs == []
    assert {one.reason for one in refused} == {"phase-ambiguous"} and len(refused) == 3
    assert "kernel B30f" in refused[0].detail and "kernel B70f" in refused[0].detail
    rows[1] = dataclasses.replace(rows[1], declared="ignore")
    pairs, refused = pair(rows, ["arterial"])
    assert len(pairs) == 1 and [one.reason for one in refused] == ["ignored"]


def test_no_pair_across_studies_or_patients():
    for change in ({"study_uid": "S2"}, {"patient": short_hash("P2")}):
        pairs, refused = pair([plain(), arterial(**change)], ["arterial"])
        assert pairs == []
        assert [one.reason for one in refused] == ["no-partner", "no-partner"]


def test_another_phase_is_no_partner():
    portal = row("4", description="PORTAL")
    pairs, refused = pair([plain(), arterial(), portal], ["arterial"])
    assert len(pairs) == 1
    assert [(one.row.series_uid, one.reason) for one in refused] == [("4", "no-partner")]


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("not-ct", {"modality": "PT"}),
        ("localizer", {"localizer": True}),
        ("virtual", {"virtual": True}),
        ("phase-unknown", {"description": "ABDOMEN", "contrast_agent": ""}),
    ],
)
def test_what_is_no_measured_contrast_ct_pairs_with_nothing(reason, values):
    pairs, refused = pair([plain(), arterial(**values)], ["arterial"])
    assert pairs == []
    assert reason in {one.reason for one in refused}


def test_an_archive_called_plain_is_believed_unless_its_headers_show_contrast():
    rows = [
        plain("1"),
        row("2", description="CHEST"),
        row("3", description="CHEST", contrast_agent="X"),
        arterial("4"),
        row("5", description="CHEST W CONTRAST"),
    ]
    usable, refused = plain_only(rows)
    assert sorted(one.series_uid for one in usable) == ["1", "2"]
    assert {one.row.series_uid for one in refused} == {"3", "4", "5"}
    assert {one.reason for one in refused} == {"has-contrast"}


# ---- split ---------------------------------------------------------------------------------------


def test_the_split_is_stable_and_near_its_shares():
    patients = [short_hash(f"patient {number}") for number in range(4000)]
    splits = [split_of(patient, 0.15, 0.2) for patient in patients]
    assert splits == [split_of(patient, 0.15, 0.2) for patient in patients]
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.02)
    assert splits.count("validation") / 4000 == pytest.approx(0.15, abs=0.02)


def test_known_places_fall_on_known_sides():
    assert split_of("0" * 16, 0.1, 0.2) == "test"
    assert split_of("4" + "0" * 15, 0.1, 0.2) == "validation"  # 0.25
    assert split_of("f" * 16, 0.1, 0.2) == "train"
    assert split_of("0" * 16, 0.0, 0.0) == "train"
