"""Archives to shards: scan, pair, split, and a job for each pair. RAY.

``prepare`` does all that happens to one pair and knows no Ray; it runs in a process of its own
(``guard``), so that a file which crashes a decoder costs its pair alone. ``ingest`` spreads headers
and then pairs over the cluster, where each task writes its own shards, and keeps the books:

    shards/*.parquet    slabs of slices (``shards.py``)
    looks/*.jpg         a small picture of each pair and plain series (``look.py``)
    phases/*.json       what the image showed of series whose headers do not tell their phase
    jobs/*.json         what became of each pair, written after its shards: done once, not again

and what ``books.py`` lists. Everything in them names series and patients by hash alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any, TypeVar

from dyefreenet.config import GridConfig, IngestConfig, Phase
from dyefreenet.data import masks
from dyefreenet.data.archive import SeriesRow, Survey, survey
from dyefreenet.data.books import FAILED, SSL, Books
from dyefreenet.data.cohort import Refused, evidence, pair, plain_only, silent, split_of
from dyefreenet.data.guard import Failed, Guard
from dyefreenet.data.prepare import Job, prepared, seen_phase
from dyefreenet.data.shards import SlabRecord
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.meters import measure, tell
from dyefreenet.runtime import answer_of, over_cluster
from dyefreenet.store import Folder, code_version, fingerprint

WAVE = 512  # tasks handed to the cluster at once, so that memory does not grow with the archive
Report = Callable[[str, int, int], None]
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ingest(
    config: IngestConfig,
    grid: GridConfig,
    *,
    paired: Sequence[Folder],
    plain: Sequence[Folder] = (),
    target: Folder,
    truth: Folder | None = None,
    salt: str = "",
    train: bool = True,
    report: Report = lambda unit, done, total: None,
) -> dict[str, Any]:
    """Fill ``target`` with the shards and books of the given archives.

    What an earlier run did stays as it is, if files and settings are the same; so a run that was
    killed goes on, and one over a grown archive does what is new. The same archives give the same
    bytes, however often a run was broken off. With Ray started, headers are read and pairs are made
    on the cluster, one CPU a task; without it, here one after the other.

    Args:
        paired: Archives with plain and contrast series. Their plain series without partner go to
            SSL too.
        plain: Archives of plain series alone: their owner says so, and headers that show contrast
            agent are refused.
        target: The ingest folder; the manifest is the caller's.
        truth: ``{key}.nii.gz`` label maps on the grid of plain series, of a phantom.
        salt: Goes into every hash of a series or patient.
        train: Pairs of ``config.phase`` in every split are needed; else the books tell what
            there is.
        report: Called with what is counted ("files", "phases", "series"), how many are done, and
            of how many; 0: not known yet.

    Returns:
        The account, which ``account.json`` keeps: every series found is in exactly one of used,
        refused by reason, and failed; and the digests of the books.

    Raises:
        InputError: No archive, or what ``train`` needs is not there.
    """
    look = partial(
        survey,
        salt=salt,
        phases=config.phases_csv,
        spread=spread_small,
        seen=lambda count: report("files", count, 0),
    )
    surveys, more = [look(folder) for folder in paired], [look(folder) for folder in plain]
    rows = _once(surveys)
    known, unreadable = rows, list[Refused]()
    if config.image_check:
        known, unreadable = _with_seen_phases(rows, config, target, report)
    jobs, refused = _jobs(config, paired, known, _once(more), train)

    masks.require(config)
    found = {}
    if config.masks not in (None, masks.TOTALSEGMENTATOR):
        found = masks.of_series(Folder(config.masks))
    drawn = {job.name: masks.mask_of(job.plain, found) for job in jobs if job.contrast}

    books = Books()
    for one in [*unreadable, *refused]:
        books.refuse(one.row, one.reason, one.detail)
    by_name = {job.name: job for job in jobs}
    make = partial(make_and_write, config=config, grid=grid, target=target, truth=truth)
    marks = {job.name: _mark(job, config, grid, drawn.get(job.name, ("", ""))) for job in jobs}
    outcomes = _recorded(
        target / "jobs",
        marks,
        lambda names: spread(
            make, ((by_name[name], marks[name], drawn.get(name, ("",))[0]) for name in names)
        ),
    )
    for done, (name, outcome) in enumerate(outcomes, start=1):
        job = by_name[name]
        if "reason" in outcome:
            for row in filter(None, (job.plain, job.contrast)):
                books.refuse(row, outcome["reason"], outcome["detail"])
        else:
            books.use(outcome, job.split)
        report("series", done, len(jobs))

    files = books.write(target)
    if train and not books.pairs[config.phase]:
        raise InputError(_all_refused(books.excluded.values()))
    if train:
        _require_splits(config, books.patients)
    _sweep_up(target, books.shards(), set(by_name), {row.key for row in rows})
    reasons = books.reasons()
    skipped = sum((one.skipped for one in [*surveys, *more]), Counter[str]())
    account = {
        "series": len({row.key for one in [*surveys, *more] for row in one.rows}),
        "used": len(books.used),
        "failed": reasons.pop(FAILED, 0),
        "refused": dict(sorted(reasons.items())),
        "pairs": dict(sorted(books.pairs.items())),
        "patients": dict(sorted(Counter(books.patients.values()).items())),
        "slices": dict(sorted(books.slices.items())),
        "ssl_series": books.plain,
        "skipped_files": dict(sorted(skipped.items())),
    }
    if config.phases_csv:
        nowhere = frozenset.intersection(*(one.unnamed for one in [*surveys, *more]))
        account["phases_csv_rows_without_series"] = len(nowhere)
    files["account.json"] = target.write_json("account.json", account)
    return account | {"files": files}


def _jobs(
    config: IngestConfig,
    paired: Sequence[Folder],
    rows: list[SeriesRow],
    more: list[SeriesRow],
    train: bool,
) -> tuple[list[Job], list[Refused]]:
    """What to make of the series: pairs, and plain series for SSL; and those of no use."""
    pairs, refused = pair(rows, config.keep)
    learnt = [one for one in pairs if one.phase == config.phase]
    if train and not learnt:
        raise InputError(_no_pairs(paired, rows, refused, config.phase))
    splits = {
        one.patient: split_of(one.plain.split_at, config.validation, config.test) for one in pairs
    }
    if train:
        _require_splits(config, {one.patient: splits[one.patient] for one in learnt})
    jobs = [Job(one.plain, one.contrast, one.phase, splits[one.patient]) for one in pairs]

    lone = [one.row for one in refused if one.reason == "no-partner"]
    lone = [row for row in lone if evidence(row)[0] == "plain"]
    extra, refused_plain = plain_only(more)
    used = {row.key for one in pairs for row in (one.plain, one.contrast)}
    for row in {row.key: row for row in [*lone, *extra] if row.key not in used}.values():
        if splits.get(row.patient, "train") == "train":
            jobs.append(Job(row, None, config.phase, SSL))
        else:
            refused_plain.append(
                Refused(row, "held-out", f"its patient has a pair in {splits[row.patient]}")
            )
    planned = {job.plain.key for job in jobs} | used
    return jobs, [one for one in [*refused, *refused_plain] if one.row.key not in planned]


def make_and_write(
    marked: tuple[Job, str, str],
    config: IngestConfig,
    grid: GridConfig,
    target: Folder,
    truth: Folder | None,
) -> tuple[str, dict[str, Any]]:
    """One job done: its shards lie in ``target``, then its record does. Its name and its outcome.

    A refusal is an outcome like any other, with reason and detail. A failure is told and not
    recorded: the next run tries again.

    Args:
        marked: A job, what its outcome follows from as the driver sees it (a worker may run from
            another copy of the code), and the name of its label map.
    """
    job, mark, drawn = marked
    guard = _guard(config.memory_gib, config.seconds)
    try:
        made, contents = guard.run(prepared, job, config, grid, truth, drawn)
    except SeriesError as refusal:
        outcome: dict[str, Any] = {"reason": refusal.reason, "detail": refusal.detail}
    except Failed as failure:
        _measure(job, FAILED)
        return job.name, {"reason": FAILED, "detail": str(failure)}
    else:
        slabs = []
        for (name, slices), content in zip(made["files"], contents[1:], strict=True):
            sha256 = target.write(f"shards/{name}", content)
            record = SlabRecord(
                f"shards/{name}",
                job.split,
                job.phase if job.contrast else "plain",
                job.plain.key,
                job.plain.patient,
                slices,
                sha256,
            )
            slabs.append(asdict(record))
        target.write(f"looks/{job.name}.jpg", contents[0])
        outcome = {"row": made["row"], "slabs": slabs, "look": made["look"]}
    target.write_json(f"jobs/{job.name}.json", {"mark": mark, "outcome": outcome})
    _measure(job, outcome.get("reason", ""), sum(one["slices"] for one in outcome.get("slabs", ())))
    return job.name, outcome


def _measure(job: Job, reason: str, slices: int = 0) -> None:
    status = "failed" if reason == FAILED else "refused" if reason else "done"
    count = 1 if job.contrast is None else 2
    measure("dyefreenet_series", count, job="ingest", status=status, code=reason)
    measure("dyefreenet_slices", slices, job="ingest")
    tell("pair", job="ingest", series=job.plain.key, status=status, code=reason, slices=slices)


def look_and_write(
    marked: tuple[SeriesRow, str], config: IngestConfig, target: Folder
) -> tuple[str, dict[str, Any]]:
    """What the image of a series tells of its phase; recorded, unless it could not be looked at."""
    row, mark = marked
    guard = _guard(config.memory_gib, config.seconds)
    try:
        outcome, _ = guard.run(seen_phase, row)
    except SeriesError as refusal:
        outcome = {"reason": refusal.reason, "detail": refusal.detail}
    except Failed as failure:
        return row.key, {"phase": "", "told_by": f"its image could not be looked at: {failure}"}
    target.write_json(f"phases/{row.key}.json", {"mark": mark, "outcome": outcome})
    return row.key, outcome


def _with_seen_phases(
    rows: list[SeriesRow], config: IngestConfig, target: Folder, report: Report
) -> tuple[list[SeriesRow], list[Refused]]:
    """The rows, with what the image shows of those whose headers say nothing.

    Also such as turned out to be unfit, whatever their phase.
    """
    asked = {row.key: row for row in rows if silent(row)}
    look = partial(look_and_write, config=config, target=target)
    marks = {
        key: fingerprint({}, {"code": code_version(), "series": row.stamp})
        for key, row in asked.items()
    }
    found = {}
    outcomes = _recorded(
        target / "phases",
        marks,
        lambda keys: spread(look, ((asked[key], marks[key]) for key in keys)),
    )
    for key, outcome in outcomes:
        found[key] = outcome
        report("phases", len(found), len(asked))
    fit, refused = [], []
    for row in rows:
        seen = found.get(row.key, {})
        if "reason" in seen:
            refused.append(Refused(row, seen["reason"], seen["detail"]))
        else:
            told = {"seen": seen["phase"], "seen_by": seen["told_by"]} if seen else {}
            fit.append(replace(row, **told))
    return fit, refused


@cache
def _guard(memory_gib: float, seconds: float) -> Guard:
    """The one of this process; starting its process takes longer than most of its work."""
    return Guard(memory_gib, seconds)


def _mark(job: Job, config: IngestConfig, grid: GridConfig, drawn: tuple[str, str]) -> str:
    """What a job's outcome follows from: another mark, and it is done again."""
    asked = config.model_dump(mode="json", exclude={"paired", "plain", "seconds", "memory_gib"})
    rows = [row for row in (job.plain, job.contrast) if row is not None]
    known = [[row.stamp, row.patient, row.declared, *evidence(row)] for row in rows]
    return fingerprint(
        {"ingest": asked, "grid": grid.model_dump(mode="json"), "split": job.split},
        {"code": code_version(), "series": json.dumps(known), "mask": drawn[1]},
    )


def _recorded(
    folder: Folder,
    marks: dict[str, str],
    do: Callable[[Iterable[str]], Iterable[tuple[str, dict[str, Any]]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and outcome of each task: first those that an earlier run left, then what ``do`` gives.

    A record with another mark is removed before anything is done: what it tells of is about to go.

    Args:
        marks: What the outcome of each task follows from.
    """
    there = {name.removesuffix(".json") for name in folder.names()}
    found = [name for name in marks if name in there]
    done = set()
    with ThreadPoolExecutor(16) as pool:
        records = pool.map(lambda name: folder.read_json(f"{name}.json"), found)
        for name, record in zip(found, records, strict=True):
            if record["mark"] == marks[name]:
                done.add(name)
                yield name, record["outcome"]
            else:
                folder.remove(f"{name}.json")
    yield from do(name for name in marks if name not in done)


def spread(
    work: Callable[[Item], Answer], items: Iterable[Item], here_s: float = 0.0
) -> Iterator[Answer]:
    """``map`` over the cluster, in any order, a CPU for each item; without Ray, here.

    Args:
        here_s: For so many seconds items are done here first, if there is a cluster.

    Raises:
        DyeFreeNetError: The first that ``work`` raises.
    """
    # Not imported before it is needed: a laptop reads an archive without it.
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        yield from map(work, items)
        return
    waiting, until = iter(items), time.monotonic() + here_s
    while time.monotonic() < until:
        try:
            item = next(waiting)
        except StopIteration:
            return
        yield work(item)
    yield from over_cluster(partial(answer_of, work), waiting, WAVE, num_cpus=1)


def spread_small(work: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """``spread`` of small items: few of them are done before the cluster has started workers."""
    return spread(work, items, here_s=5.0)


def _sweep_up(target: Folder, shards: set[str], jobs: set[str], keys: set[str]) -> None:
    """Remove what earlier runs made of series that are gone or are used in another way."""
    wanted = {
        "shards": {name.removeprefix("shards/") for name in shards},
        "looks": {f"{name}.jpg" for name in jobs},
        "jobs": {f"{name}.json" for name in jobs},
        "phases": {f"{key}.json" for key in keys},
    }
    for folder, names in wanted.items():
        for name in set((target / folder).names()) - names:
            (target / folder).remove(name)


def _once(surveys: Sequence[Survey]) -> list[SeriesRow]:
    """Every series once, though two archives may hold it."""
    return list({row.key: row for one in reversed(surveys) for row in one.rows}.values())


def _require_splits(config: IngestConfig, splits: dict[str, Any]) -> None:
    counts = Counter(splits.values())
    shares = {
        "test": config.test,
        "validation": config.validation,
        "train": 1 - config.test - config.validation,
    }
    for split, share in shares.items():
        if not counts[split] and (share > 0 or split == "train"):
            field = "test and validation" if split == "train" else split
            change = "lower" if split == "train" else "raise"
            raise InputError(
                f"ingest: expected patients in every split, found none in {split}: "
                f"{len(splits)} paired patients in all, split by hash with a share of {share:.2f}; "
                f"add patients or {change} ingest.{field}"
            )


def _no_pairs(
    paired: Sequence[Folder], rows: list[SeriesRow], refused: list[Refused], phase: Phase
) -> str:
    phases = Counter(evidence(row)[0] or "of unknown phase" for row in rows)
    reasons = Counter(one.reason for one in refused)
    return (
        f"{', '.join(map(str, paired))}: expected a plain and one {phase} series of the same "
        f"patient and study, found {len(rows)} series ("
        + ", ".join(f"{count} {name}" for name, count in sorted(phases.items()))
        + "); none pairs: "
        + ", ".join(f"{count} {name}" for name, count in sorted(reasons.items()))
        + "; say in phases.csv what the headers do not"
    )


def _all_refused(excluded: Iterable[dict[str, str]]) -> str:
    told = sorted(excluded, key=lambda one: (one["reason"] == "no-partner", one["key"]))
    return (
        f"ingest: expected pairs that can be read, found none: {len(told)} series refused, for "
        f"instance {told[0]['key']}, {told[0]['reason']}: {told[0]['detail']}"
    )
