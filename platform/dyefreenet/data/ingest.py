"""Archives to shards: scan, pair, split, and a job for each pair. RAY.

``prepare`` does all that happens to one pair and knows no Ray; it runs in a process of its own
(``guard``), so that a file which crashes a decoder costs its pair alone. ``ingest`` hands pairs out
to the cluster, where each task writes its own shards, and keeps the books:

    shards/*.parquet    slabs of slices (``shards.py``)
    jobs/*.json         what became of each pair, written after its shards: done once, not again
    slabs.json          one record a shard: what a training schedule needs, and its SHA-256
    pairs.parquet       one row a pair, with its split and the figures of its registration
    plain.parquet       one row a plain series without partner, for SSL
    excluded.parquet    one row a series that is not used, with reason and detail

Everything in them names series and patients by hash alone.
"""

from __future__ import annotations

import io
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dyefreenet.config import GridConfig, IngestConfig, Phase
from dyefreenet.data.archive import SeriesRow, Survey, survey
from dyefreenet.data.cohort import Refused, evidence, pair, plain_only, split_of
from dyefreenet.data.guard import Failed, Guard
from dyefreenet.data.prepare import Job, prepared
from dyefreenet.data.shards import SlabRecord
from dyefreenet.errors import DyeFreeNetError, InputError, SeriesError
from dyefreenet.store import Folder, code_version, fingerprint

SSL = "ssl"  # the split of plain series that have no contrast partner
FAILED = "failed"  # in place of a reason: the work broke off, and the next run tries again
WAVE = 512  # jobs handed to the cluster at once, so that memory does not grow with the archive

_SERIES_FIELDS = [
    ("key", pa.string()),
    ("patient", pa.string()),
    ("slices", pa.int32()),
    ("spacing_z", pa.float64()),  # mm, of the plain series before it is brought onto the grid
    ("spacing_y", pa.float64()),
    ("spacing_x", pa.float64()),
    ("thickness", pa.float64()),  # mm
    ("kernel", pa.string()),
    ("source", pa.string()),  # "phantom" or "real"
]
PLAIN_SCHEMA = pa.schema(_SERIES_FIELDS)
PAIRS_SCHEMA = pa.schema(
    [
        *_SERIES_FIELDS,
        ("split", pa.string()),
        ("phase", pa.string()),
        ("contrast_key", pa.string()),
        ("contrast_thickness", pa.float64()),
        ("contrast_kernel", pa.string()),
        ("registration", pa.string()),
        ("body_dice", pa.float64()),
        ("bone_edge_mm", pa.float64()),
        ("mutual_information", pa.float64()),  # nats
        ("mutual_information_gain", pa.float64()),
        ("min_jacobian", pa.float64()),
        ("max_shift_mm", pa.float64()),
    ]
)
EXCLUDED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("patient", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


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
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Fill ``target`` with the shards and books of the given archives.

    What an earlier run did stays as it is, if files and settings are the same; so a run that was
    killed goes on, and one over a grown archive does what is new. The same archives give the same
    bytes, however often a run was broken off. With Ray started, pairs are made on the cluster, one
    CPU each; without it, here one after the other.

    Args:
        paired: Archives with plain and contrast series. Their plain series without partner go to
            SSL too.
        plain: Archives of plain series alone: their owner says so, and headers that show contrast
            agent are refused.
        target: The ingest folder; the manifest is the caller's.
        truth: ``{key}.nii.gz`` label maps on the grid of plain series, of a phantom.
        salt: Goes into every hash of a series or patient.
        train: Pairs of ``config.phase`` in every split are needed; else any usable series will do.
        report: Called with the number of pairs and series done, and of all.

    Returns:
        Counts for the manifest: every series found is in exactly one of used, refused by reason,
        and failed; and the digests of the books.

    Raises:
        InputError: No archive, nothing usable, or what ``train`` needs is not there.
    """
    surveys = [survey(folder, salt, config.phases_csv) for folder in paired]
    rows = _once(surveys)
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
    more = [survey(folder, salt, config.phases_csv) for folder in plain]
    extra, refused_plain = plain_only(_once(more))
    used = {job.plain.key for job in jobs} | {job.contrast.key for job in jobs if job.contrast}
    for row in {row.key: row for row in [*lone, *extra] if row.key not in used}.values():
        if splits.get(row.patient, "train") == "train":
            jobs.append(Job(row, None, config.phase, SSL))
        else:
            refused_plain.append(
                Refused(row, "held-out", f"its patient has a pair in {splits[row.patient]}")
            )
    kept = {job.plain.key for job in jobs}
    excluded = [
        _excluded(one.row, one.reason, one.detail)
        for one in [*refused, *refused_plain]
        if one.row.key not in kept and one.row.key not in used
    ]

    books: list[dict[str, Any]] = []
    slabs: list[dict[str, Any]] = []
    by_name = {job.name: job for job in jobs}
    for done, outcome in enumerate(_outcomes(jobs, config, grid, target, truth), start=1):
        job = by_name[outcome["name"]]
        if "reason" in outcome:
            for row in filter(None, (job.plain, job.contrast)):
                excluded.append(_excluded(row, outcome["reason"], outcome["detail"]))
        else:
            books.append(outcome["row"] | {"split": job.split})
            slabs += outcome["slabs"]
        if report is not None:
            report(done, len(jobs))

    books.sort(key=lambda row: (row["key"], row.get("phase", "")))
    pair_rows = [row for row in books if row["split"] != SSL]
    plain_rows = [row for row in books if row["split"] == SSL]
    if not books or (train and not any(row["phase"] == config.phase for row in pair_rows)):
        raise InputError(_all_refused(excluded))
    if train:
        _require_splits(
            config,
            {row["patient"]: row["split"] for row in pair_rows if row["phase"] == config.phase},
        )
    taken = {row["key"] for row in books} | {row["contrast_key"] for row in pair_rows}
    # A plain series whose portal partner failed may still have its arterial one.
    excluded = [row for row in excluded if row["key"] not in taken]
    excluded = list({row["key"]: row for row in excluded}.values())
    excluded.sort(key=lambda row: (row["key"], row["reason"]))
    slabs.sort(key=lambda slab: slab["path"])
    files = {
        "pairs.parquet": target.write("pairs.parquet", _table(pair_rows, PAIRS_SCHEMA)),
        "plain.parquet": target.write("plain.parquet", _table(plain_rows, PLAIN_SCHEMA)),
        "excluded.parquet": target.write("excluded.parquet", _table(excluded, EXCLUDED_SCHEMA)),
        "slabs.json": target.write_json("slabs.json", slabs),
    }
    _sweep_up(target, {slab["path"] for slab in slabs}, set(by_name))
    slices: Counter[str] = Counter()
    for slab in slabs:
        slices[slab["split"]] += slab["slices"]
    patients = {row["patient"]: row["split"] for row in pair_rows}
    reasons = Counter(row["reason"] for row in excluded)
    failed = reasons.pop(FAILED, 0)
    return {
        "series": len({row.key for one in [*surveys, *more] for row in one.rows}),
        "used": len(taken),
        "refused": dict(sorted(reasons.items())),
        "failed": failed,
        "pairs": dict(sorted(Counter(row["phase"] for row in pair_rows).items())),
        "patients": dict(sorted(Counter(patients.values()).items())),
        "slices": dict(sorted(slices.items())),
        "ssl_series": len(plain_rows),
        "skipped_files": dict(
            sorted(Counter(why for one in [*surveys, *more] for _, why in one.skipped).items())
        ),
        "files": files,
    }


def make_and_write(
    job: Job, config: IngestConfig, grid: GridConfig, target: Folder, truth: Folder | None
) -> dict[str, Any]:
    """One job done: its shards lie in ``target``, then its record does, which comes back.

    A refusal is a result like any other, with reason and detail. A failure is told and not
    recorded: the next run tries again.
    """
    told: dict[str, Any] = {"name": job.name}
    guard = _guard(config.memory_gib, config.seconds)
    try:
        made, contents = guard.run(prepared, job, config, grid, truth)
    except SeriesError as refusal:
        told |= {"reason": refusal.reason, "detail": refusal.detail}
    except Failed as failure:
        return told | {"reason": FAILED, "detail": str(failure)}
    else:
        slabs = []
        for (name, slices), content in zip(made["files"], contents, strict=True):
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
        told |= {"row": made["row"], "slabs": slabs}
    mark = _mark(job, config, grid)
    target.write_json(f"jobs/{job.name}.json", {"mark": mark, "outcome": told})
    return told


@cache
def _guard(memory_gib: float, seconds: float) -> Guard:
    """The one of this process; starting its process takes longer than most of its work."""
    return Guard(memory_gib, seconds)


def _mark(job: Job, config: IngestConfig, grid: GridConfig) -> str:
    """What a job's outcome follows from: another mark, and it is done again."""
    asked = config.model_dump(mode="json", exclude={"paired", "plain", "seconds", "memory_gib"})
    stamps = [row.stamp for row in (job.plain, job.contrast) if row is not None]
    return fingerprint(
        {"ingest": asked, "grid": grid.model_dump(mode="json"), "split": job.split},
        {"code": code_version(), "series": " ".join(stamps)},
    )


def _outcomes(
    jobs: Sequence[Job],
    config: IngestConfig,
    grid: GridConfig,
    target: Folder,
    truth: Folder | None,
) -> Iterator[dict[str, Any]]:
    """The outcome of every job, those first that an earlier run left, then as they come."""
    there = {name for name in target.names() if name.startswith("jobs/")}
    found = [job for job in jobs if f"jobs/{job.name}.json" in there]
    with ThreadPoolExecutor(16) as pool:
        records = pool.map(lambda job: target.read_json(f"jobs/{job.name}.json"), found)
        done = set()
        for job, record in zip(found, records, strict=True):
            if record["mark"] == _mark(job, config, grid):
                done.add(job.name)
                yield record["outcome"]
    todo = [job for job in jobs if job.name not in done]

    import ray  # here, so that a laptop reads an archive without it

    if not ray.is_initialized():
        for job in todo:
            yield make_and_write(job, config, grid, target, truth)
        return

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False

    def task(item: dict[str, Any]) -> dict[str, str]:
        job = pickle.loads(item["job"])  # our own bytes, from a few lines below
        try:
            return {"outcome": json.dumps(make_and_write(job, config, grid, target, truth))}
        except DyeFreeNetError as error:  # a full disk, no credentials: no fault of the series
            return {"outcome": json.dumps({"error": str(error)})}

    waiting = iter(todo)
    while wave := list(islice(waiting, WAVE)):
        items = [{"job": pickle.dumps(job)} for job in wave]
        # A block a job, so that a task is one series and memory holds no more series than CPUs.
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(task, num_cpus=1)
        for row in dataset.iter_rows():
            outcome = json.loads(row["outcome"])
            if "error" in outcome:
                raise InputError(outcome["error"])
            yield outcome


def _sweep_up(target: Folder, shards: set[str], jobs: set[str]) -> None:
    """Remove what earlier runs made of series that are gone or are used in another way."""
    wanted = shards | {f"jobs/{name}.json" for name in jobs}
    for name in target.names():
        if name.startswith(("shards/", "jobs/")) and name not in wanted:
            target.remove(name)


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


def _all_refused(excluded: list[dict[str, str]]) -> str:
    first = next((row for row in excluded if row["reason"] != "no-partner"), excluded[0])
    return (
        f"ingest: expected pairs that can be read, found none: {len(excluded)} series refused, for "
        f"instance {first['key']}, {first['reason']}: {first['detail']}"
    )


def _excluded(row: SeriesRow, reason: str, detail: str) -> dict[str, str]:
    return {"key": row.key, "patient": row.patient, "reason": reason, "detail": detail}


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()
