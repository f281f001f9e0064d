"""Which series belong together: contrast phase, pairs, and the split by patient. No images.

A phase is told, in this order, by ``phases.csv``, by the contrast agent and the seconds since it
was given, by the words of the series description, and where all of these say nothing by what the
image showed somebody who looked (``blood.py``). Where two disagree or none says anything there is
no phase: a wrong one would teach the networks to invent contrast.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from dyefreenet.config import Phase
from dyefreenet.data.archive import IGNORE, SeriesRow, short_hash
from dyefreenet.data.dicom import known_modality
from dyefreenet.errors import Reason

Split = Literal["train", "validation", "test"]

# Seconds from the start of the injection to the scan (TotalSegmentator's bounds for its phases).
ARTERIAL_S, PORTAL_S, DELAYED_S = (10.0, 60.0), (60.0, 100.0), (100.0, 1800.0)

# Words of series descriptions: English, German, French, Spanish, Italian, Dutch, Russian. They are
# matched whole, in lower case, without accents, any sign between words being a space. "AP" is not
# among them: it means abdomen and pelvis at least as often as arterial phase.
WORDS: dict[Phase, str] = {
    "plain": r"non? (?:iv )?(?:contrast|con|ce|enh\w*|injecte)|noncon\w*|nc(?:ct)?|unenhanced|plain"
    r"|pre ?contrast|(?:wo|w o|without)(?: iv)?(?: (?:contrast|cm))?|nativ\w*|ohne(?: km)?|leer"
    r"|sans(?: \w+)?|sin contraste|simple|senza(?: \w+)?|basale|diretta|blanco|zonder(?: \w+)?"
    r"|нативн\w*|без контраст\w*",
    "arterial": r"art|(?:early |late )?arter\w*|(?:early |late )art|cta|angio\w*|cortico\w*"
    r"|артериальн\w*",
    "portal": r"portal\w*|porto\w*|pvp?|ven|venous|venos\w*|veneux|veineu\w*|veneus\w*"
    r"|портальн\w*|венозн\w*",
    "delayed": r"delay\w*|late|nephro\w*|excret\w*|urogr\w*|equilib\w*|tardi\w*|spat\w*|laat"
    r"|отсроченн\w*",
}
SIGNS: dict[Phase, str] = {  # Chinese and Japanese run on without spaces
    "plain": "平扫|単純",
    "arterial": "动脉|動脈",
    "portal": "门脉|静脉|門脈",
    "delayed": "延迟|平衡|遅延",
}
_CONTRAST = (
    r"with(?: iv)?(?: (?:contrast|cm))?|w c|(?:post ?)?contrast(?: enhanced)?|cect|ce|c\+|km"
)
_PULMONARY = r"pulm\w*|pe|ctpa|lae"  # its arterial phase is another one
_BOTH = r"(?:w|with)(?: and)? (?:w o|wo|without)"  # one description for two scans tells nothing
_NO_AGENT = {"", "NONE", "NO", "N/A", "NA", "0", "WITHOUT", "OHNE", "SANS", "UNKNOWN"}
# NLST scans were low-dose and without contrast by protocol; their descriptions are coded
# (0,OPA,GE,LSQX,STANDARD,...).
_NLST = re.compile(r"^[012],[OD][A-Z]{2},")
# Kernels of GE, Siemens, Canon and Toshiba, Philips: the header's field is free text.
_KERNELS = re.compile(
    r"STANDARD|SOFT|DETAIL|CHEST|BONE(?:PLUS)?|LUNG|EDGE|ULTRA|ANALYTIC|STND"
    r"|[ABDHIJQSTU][a-z]?\d\d[a-z]{0,2}(?:\\\d)?|FC\d\d|[A-F]|Y[A-D]|EB|EC|IMR\d?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pair:
    """Plain and contrast CT of one study."""

    plain: SeriesRow
    contrast: SeriesRow
    phase: Phase

    @property
    def key(self) -> str:
        return self.plain.key

    @property
    def patient(self) -> str:
        return self.plain.patient


@dataclass(frozen=True)
class Refused:
    """A series that takes no part, and why."""

    row: SeriesRow
    reason: Reason
    detail: str


def phase_of(row: SeriesRow) -> Phase | None:
    """Contrast phase of a series; None where nothing tells it, or where two things disagree."""
    return evidence(row)[0]


def evidence(row: SeriesRow) -> tuple[Phase | None, str]:
    """The phase and what told it, or None and why there is none; free of the header's own text."""
    if row.declared and row.declared != IGNORE:
        return cast(Phase, row.declared), "phases.csv"
    words = phases_in_words(row.description)
    if _has_agent(row):
        seconds = _seconds_since(row.contrast_start, row.acquired)
        timed = _phase_at(seconds)
        if timed and words <= {timed, "contrast"}:
            return timed, f"scanned {seconds:.0f} s after the contrast agent"
        if seconds is not None and seconds <= 0 and words == {"plain"}:
            return "plain", "series description, and scanned before the contrast agent"
        named = words - {"contrast"}
        if not timed and len(named) == 1 and "plain" not in named:
            return cast(Phase, named.pop()), "series description, and a contrast agent"
        if not timed and not named and row.seen not in ("", "plain"):
            return cast(Phase, row.seen), f"a contrast agent, and {row.seen_by}"
        told = f", scanned after {seconds:.0f} s" if timed else ""
        why = f"a contrast agent was given{told}; the description says {_listed(words)}"
        return None, f"{why}; {row.seen_by}" if row.seen_by else why
    if _NLST.match(row.description) or row.trial == "NLST":
        return "plain", "NLST protocol"
    if len(words) == 1 and "contrast" not in words:
        return cast(Phase, next(iter(words))), "series description"
    if len(words) == 2 and "contrast" in words and "plain" not in words:
        return cast(Phase, (words - {"contrast"}).pop()), "series description"
    if row.seen:
        return cast(Phase, row.seen), row.seen_by
    why = f"no contrast agent in the header; the description says {_listed(words)}"
    return None, f"{why}; {row.seen_by}" if row.seen_by else why


def silent(row: SeriesRow) -> bool:
    """Whether no header says anything of a phase, so that the image is the last thing to ask."""
    if row.declared or evidence(row)[0] is not None or unusable(row) is not None:
        return False
    timed = _has_agent(row) and _phase_at(_seconds_since(row.contrast_start, row.acquired))
    return not timed and not phases_in_words(row.description) - {"contrast"}


def phases_in_words(description: str) -> set[str]:
    """Phases that a description names; "contrast" for contrast without a phase."""
    text = unicodedata.normalize("NFKD", description.lower())
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    found: set[str] = {phase for phase, signs in SIGNS.items() if re.search(signs, text)}
    if re.search(r"(?<!\w)c ?[-\u2212](?!\w)", text):  # "C-", before signs become spaces
        found.add("plain")
    text = re.sub(r"[^\w+]+|_", " ", text)
    if _has(_BOTH, text):
        return {"plain", "contrast"}
    for phase, words in WORDS.items():
        if _has(words, text):
            found.add(phase)
            # "without contrast" must not count as contrast too, nor "late arterial" as late
            text = re.sub(rf"(?<!\w)(?:{words})(?!\w)", " ", text)
    if _has(_CONTRAST, text):
        found.add("contrast")
    if "arterial" in found and _has(_PULMONARY, text):
        found = (found - {"arterial"}) | {"contrast"}
    return found


def _has(words: str, text: str) -> bool:
    return re.search(rf"(?<!\w)(?:{words})(?!\w)", text) is not None


def known_kernel(text: str) -> str:
    """A kernel by the name that its maker gave it; "" for any other text, which may be anything."""
    return text if _KERNELS.fullmatch(text) else ""


def pair(rows: Sequence[SeriesRow], phases: Sequence[Phase]) -> tuple[list[Pair], list[Refused]]:
    """Plain and contrast series of the same patient and study, a pair for each phase.

    Where two series claim one place all of them are refused: which is meant, a person says in
    ``phases.csv``.

    Returns:
        Pairs sorted by key, and every other series with the reason. A plain series without a
        contrast partner comes back as "no-partner": SSL can use it.
    """
    pairs: list[Pair] = []
    refused: list[Refused] = []
    studies: dict[tuple[str, str], dict[str, list[SeriesRow]]] = {}
    for row in sorted(rows, key=lambda row: row.key):
        reason = unusable(row)
        if reason:
            refused.append(reason)
            continue
        found, why = evidence(row)
        if found is None:
            refused.append(Refused(row, "phase-unknown", why))
        elif found == "plain" or found in phases:
            studies.setdefault((row.patient, row.study_uid), {}).setdefault(found, []).append(row)
        else:
            wanted = " or ".join(phases)
            refused.append(Refused(row, "no-partner", f"{found} phase; {wanted} is wanted"))
    for study in studies.values():
        plain = study.pop("plain", [])
        for phase, contrast in study.items():
            if not plain:
                refused += [
                    Refused(row, "no-partner", "no plain series in its study") for row in contrast
                ]
            elif len(plain) > 1 or len(contrast) > 1:
                detail = (
                    f"{len(plain)} plain ({_candidates(plain)}) and {len(contrast)} {phase} "
                    f"({_candidates(contrast)}) in one study; name one of each in phases.csv"
                )
                refused += [Refused(row, "phase-ambiguous", detail) for row in contrast]
            else:
                pairs.append(Pair(plain[0], contrast[0], cast(Phase, phase)))
        if not study:
            detail = f"no {' or '.join(phases)} series in its study"
            refused += [Refused(row, "no-partner", detail) for row in plain]
        elif len(plain) > 1:
            detail = f"{len(plain)} plain series ({_candidates(plain)}) in one study; name one"
            refused += [Refused(row, "phase-ambiguous", detail) for row in plain]
        elif plain and all(len(contrast) > 1 for contrast in study.values()):
            detail = "each of its contrast phases has several series"
            refused += [Refused(row, "phase-ambiguous", detail) for row in plain]
    return (
        sorted(pairs, key=lambda pair: (pair.key, pair.phase)),
        sorted(refused, key=lambda refusal: refusal.row.key),
    )


def review(rows: Sequence[SeriesRow], phases: Sequence[Phase]) -> list[dict[str, str]]:
    """One line a series for a person to check, those that no pair takes first.

    The lines name series by UID and description: they are for whoever owns the archive, to be
    edited and given back as a table of phases, and for nobody else.
    """
    pairs, refused = pair(rows, phases)
    states: dict[str, tuple[str, str]] = {one.row.key: (one.reason, one.detail) for one in refused}
    states |= {row.key: ("paired", "") for one in pairs for row in (one.plain, one.contrast)}
    lines = []
    for row in rows:
        phase, told_by = evidence(row)
        state, detail = states[row.key]
        lines.append(
            {
                "series": row.series_uid,
                "key": row.key,
                "phase": row.declared or phase or "",
                "patient": row.declared_patient,
                "state": state,
                "told_by": told_by,
                "detail": detail,
                "description": row.description,
                "slices": str(row.slices),
                "thickness_mm": str(row.thickness or ""),
                "kernel": row.kernel,
                "study": short_hash(row.study_uid),
            }
        )
    return sorted(lines, key=lambda line: (line["state"] == "paired", line["study"]))


def plain_only(rows: Sequence[SeriesRow]) -> tuple[list[SeriesRow], list[Refused]]:
    """Series of an archive that its owner calls plain, less those whose headers show contrast."""
    usable: list[SeriesRow] = []
    refused: list[Refused] = []
    for row in sorted(rows, key=lambda row: row.key):
        reason = unusable(row)
        phase, why = evidence(row)
        named = phases_in_words(row.description) - {"plain"}
        if reason:
            refused.append(reason)
        elif phase not in (None, "plain") or (phase is None and (_has_agent(row) or named)):
            refused.append(Refused(row, "has-contrast", why))
        else:
            usable.append(row)
    return usable, refused


def unusable(row: SeriesRow) -> Refused | None:
    """Why a series can be neither plain nor contrast; None if it may be."""
    if row.declared == IGNORE:
        return Refused(row, "ignored", "phases.csv says ignore")
    if row.modality != "CT":
        return Refused(row, "not-ct", f"expected modality CT, found {known_modality(row.modality)}")
    if row.localizer:
        return Refused(row, "localizer", f"{row.slices} images, all of them scouts or projections")
    if row.virtual:
        return Refused(row, "virtual", "made by a network, so not a measurement to learn from")
    return None


def split_of(patient: str, validation: float, test: float) -> Split:
    """The split of a patient, from the hash alone.

    A later run with more patients moves nobody, and every series of a patient is on one side. The
    price is that the shares hold only on average.

    Args:
        patient: Hash of the patient's ID, 16 hex digits.
        validation: Share of patients, 0 to 1.
        test: Share of patients, 0 to 1.
    """
    place = int(patient[:16], 16) / 16**16  # uniform in [0, 1)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _has_agent(row: SeriesRow) -> bool:
    return row.contrast_agent.strip().upper() not in _NO_AGENT


def _candidates(rows: Sequence[SeriesRow]) -> str:
    return ", ".join(
        f"{row.key}: {row.slices} slices, {row.thickness} mm, "
        f"kernel {known_kernel(row.kernel) or '?'}"
        for row in rows
    )


def _seconds_since(start: str, acquired: str) -> float | None:
    """Seconds between two DICOM times (HHMMSS.FFFFFF); None where one is missing or malformed."""
    seconds = []
    for time in (start, acquired):
        digits = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d+)?)", time.strip())
        if digits is None:
            return None
        hours, minutes, rest = digits.groups()
        seconds.append(int(hours) * 3600 + int(minutes) * 60 + float(rest))
    return seconds[1] - seconds[0]


def _phase_at(seconds: float | None) -> Phase | None:
    if seconds is None:
        return None
    bounds: dict[Phase, tuple[float, float]] = {
        "arterial": ARTERIAL_S,
        "portal": PORTAL_S,
        "delayed": DELAYED_S,
    }
    return next((name for name, (low, high) in bounds.items() if low <= seconds < high), None)


def _listed(words: set[str]) -> str:
    return " and ".join(sorted(words)) or "nothing of a phase"
