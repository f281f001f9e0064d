"""Virtual contrast for a whole archive: what to do, who does it, and the books. RAY.

    target/job.json           what this target is for: model, settings, date of the series
    target/ledger.parquet     one row a series: done, refused or failed, with code, figures, digests
    target/ledger.csv         the same for a spreadsheet

and what ``series.py`` lists. Series are named by salted hashes, derived ones by their own UID.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dyefreenet import __version__
from dyefreenet.config import GenerateConfig, Selection
from dyefreenet.data.archive import SeriesRow, survey
from dyefreenet.data.cohort import Refused, evidence, plain_only, unusable
from dyefreenet.data.guard import Guard
from dyefreenet.data.headers import DICOMDIR
from dyefreenet.data.ingest import spread_small
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, StoreError
from dyefreenet.generation.select import select
from dyefreenet.generation.series import (
    DONE,
    FAILED,
    REFUSED,
    Device,
    Model,
    Network,
    Record,
    blank,
    is_whole,
    load,
    make_series,
)
from dyefreenet.meters import measure, tell
from dyefreenet.runtime import answer_of, over_cluster
from dyefreenet.store import Folder, fingerprint, salt_of

JOB = "job.json"
WAVE = 4096  # series handed to the cluster at once, so that memory does not grow with the archive
AT_ONCE = 3  # series of an actor at least: one is read, one is with the network, one is written
MOST_AT_ONCE = 8  # however many CPUs it has: each series takes some GiB
CPUS_A_SERIES = 4  # of an actor without a GPU, whose network needs most of them itself
Report = Callable[[str, int, int], None]
Load = Callable[[str], Network]  # by device
FIGURES = (
    ("aorta_plain_hu", pa.float64()),
    ("aorta_hu", pa.float64()),
    ("aorta_share", pa.float64()),
    ("soft_hu", pa.float64()),
    ("flicker_hu", pa.float64()),
    ("outside_hu", pa.int32()),
    ("enhanced_ml", pa.float64()),
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("patient", pa.string()),
        ("status", pa.string()),  # done, refused or failed
        ("code", pa.string()),  # why, where it is not done
        ("detail", pa.string()),
        ("check", pa.string()),  # pass, flag, or "" where nothing was looked at
        ("flags", pa.string()),  # separated by spaces
        *FIGURES,
        ("slices", pa.int32()),
        ("breaks", pa.int32()),  # places where slices are missing
        ("output", pa.string()),  # below the target
        ("files", pa.int32()),
        ("files_sha256", pa.string()),  # of their names and digests, sorted
        ("source_sha256", pa.string()),  # of the voxels
        ("model", pa.string()),
        ("weights_sha256", pa.string()),
        ("phase", pa.string()),
        ("read_s", pa.float64()),
        ("predict_s", pa.float64()),
        ("write_s", pa.float64()),
        ("finished", pa.string()),
    ]
)


@dataclass(frozen=True)
class Workers:
    """Who does the work: actors, each with the model on its device."""

    gpu: bool
    cpus: float  # that each books, and threads of torch
    most: int  # actors, where there is room for them


def generate_archive(
    source: str,
    target: Folder,
    model: Model,
    config: GenerateConfig,
    selection: Selection,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    workers: Callable[[int], Workers | None] = lambda series: None,
    device: Device = "auto",
    loader: Load | None = None,
    report: Report = lambda unit, done, total: None,
) -> dict[str, Any]:
    """Virtual contrast of every plain series of an archive that is selected.

    What an earlier run finished stays, if source, model and settings are the same and its files
    are whole; a model is loaded for others alone. Two runs over one target write the same bytes.

    Args:
        source: Archive: folder, file, package, DICOMDIR or ``s3://``.
        limit: Of the series that are neither refused nor left out, the first so many by key.
        dry_run: Say what would be done; nothing is written.
        workers: Told how many series there are to do, it gives actors of a cluster that is joined;
            None: one after the other, here.
        device: Where the networks are, if there are no workers.
        loader: Of the networks, by device; None: ``series.load``.

    Returns:
        The account: series found, and how many are done, refused by code and failed by code.

    Raises:
        InputError: No archive, or the target lies in it.
        StoreError: The target holds series of another model, or made with other settings.
    """
    _require_apart(source, target)
    salt = _salt(target, dry_run)
    seen = survey(source, salt, spread=spread_small, seen=lambda count: report("files", count, 0))
    chosen, refused = _usable(seen.rows, config)
    chosen, left = select(chosen, selection, limit)
    refused += left
    account: dict[str, Any] = {
        "series": len(seen.rows),
        "skipped_files": dict(sorted(seen.skipped.items())),
    }
    if dry_run:
        return account | _counted(
            [_refusal(one, "") for one in refused], {"to_do": len(chosen)}, chosen
        )
    target.require_writable()
    made_on = _claim(target, model, config)
    marks = {row.key: _mark(row, model, config) for row in chosen}
    records = {
        one.row.key: _refusal(one, fingerprint({}, {"stamp": one.row.stamp})) for one in refused
    }
    rows = {row.key: row for row in chosen}
    known = _recorded(target, marks)
    for checked, (key, whole) in enumerate(spread_small(_Whole(target), known.items()), start=1):
        report("series checked", checked, len(known))
        if whole:
            records[key] = known[key]
    todo = [rows[key] for key in marks if key not in records]
    found = already = len(chosen) - len(todo)
    task = _Task(target, model, config, made_on, loader)
    actors = workers(len(todo)) if todo else None
    marked = [(row, marks[row.key]) for row in todo]
    for record in _done_by(actors, device, task, marked, report):
        records[record["key"]] = record
        found += 1
        report("series", found, len(chosen))
    ordered = [records[key] for key in sorted(records)]
    files = _write_ledger(target, ordered, model)
    return account | _counted(ordered, {"already_done": already}, chosen) | {"files": files}


def read_ledger(target: Folder) -> list[Record]:
    """The ledger's rows.

    Raises:
        InputError: There is none.
    """
    rows: list[Record] = pq.read_table(io.BytesIO(target.read("ledger.parquet"))).to_pylist()
    return rows


# ---- what to do ----------------------------------------------------------------------------------


def _usable(
    rows: Sequence[SeriesRow], config: GenerateConfig
) -> tuple[list[SeriesRow], list[Refused]]:
    if not config.any_phase:
        return plain_only(rows)
    reasons = {row.key: unusable(row) for row in rows}
    refused = [one for one in reasons.values() if one is not None and one.reason != "virtual"]
    out = {one.row.key for one in refused}
    return [row for row in rows if row.key not in out], refused


def _require_apart(source: str, target: Folder) -> None:
    place = _resolved(source.removesuffix(f"/{DICOMDIR}"))
    if f"{_resolved(target.uri)}/".startswith(f"{place}/"):
        raise InputError(
            f"{target}: expected a folder outside of the archive, which is never written to"
        )


def _resolved(uri: str) -> str:
    """An address without links and dots, to be compared."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().resolve())


def _salt(target: Folder, dry_run: bool) -> str:
    if dry_run and not target.exists():
        return "dry run"  # keys will be others: the salt is made with the target
    return salt_of(target)


def _claim(target: Folder, model: Model, config: GenerateConfig) -> datetime:
    """Say what this target is for, or see that it is the same; the date of its series."""
    asked = config.model_dump(mode="json", exclude={"seconds", "memory_gib"})
    mine = {
        "model": model.model_id,
        "weights_sha256": model.weights_sha256,
        "phase": model.phase,
        "more_runs": len(model.runs) - 1,
        "settings": asked,
    }
    if not target.exists(JOB):
        now = datetime.now(timezone.utc).replace(microsecond=0)
        target.write_json(JOB, mine | {"made_on": now.isoformat()})
    theirs = target.read_json(JOB)  # of another run, if it was faster
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise StoreError(
                f"{target}: its series were made with {name} {theirs.get(name)}, now {value}; "
                "name another target, or delete that one"
            )
    return datetime.fromisoformat(theirs["made_on"])


def _mark(row: SeriesRow, model: Model, config: GenerateConfig) -> str:
    """What a series' outcome follows from: another mark, and it is made again."""
    asked = config.model_dump(mode="json", exclude={"seconds", "memory_gib"})
    known = [row.stamp, row.patient, row.declared, str(evidence(row)[0])]
    return fingerprint(
        {"generate": asked},
        {
            "version": __version__,
            "model": "/".join([model.model_id, model.weights_sha256, model.phase]),
            "series": json.dumps(known),
        },
    )


def _recorded(target: Folder, marks: dict[str, str]) -> dict[str, Record]:
    """Records of earlier runs that hold, by key; what failed is tried again."""
    folder = target / "records"
    there = {name.removesuffix(".json") for name in folder.names()}
    with ThreadPoolExecutor(16) as pool:
        found = [key for key in marks if key in there]
        records = list(pool.map(lambda key: folder.read_json(f"{key}.json"), found))
    return {
        key: record
        for key, record in zip(found, records, strict=True)
        if record.get("mark") == marks[key] and record.get("status") in (DONE, REFUSED)
    }


@dataclass(frozen=True)
class _Whole:
    """Whether a record's files are what was written; sent to where the work is done."""

    target: Folder

    def __call__(self, item: tuple[str, Record]) -> tuple[str, bool]:
        key, record = item
        return key, is_whole(self.target, record)


def _refusal(one: Refused, mark: str) -> Record:
    told = {"status": REFUSED, "code": one.reason, "detail": one.detail}
    return blank(one.row, mark) | told


# ---- who does it ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What an actor needs to know."""

    target: Folder
    model: Model
    config: GenerateConfig
    made_on: datetime
    loader: Load | None


class Worker:
    """The model on one device, for several series at a time: one is with it, others around it.

    Threads call it side by side. Each call has a process of its own for reading and writing
    (``data.guard``); the network is one, and series wait for it.
    """

    def __init__(
        self,
        task: _Task,
        device: Device,
        threads: int,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._task = task
        # One thread for all predictions: OpenMP keeps a team of threads for each that calls it.
        self._turn = ThreadPoolExecutor(1)
        self._turn.submit(self._load, device, threads, tick).result()
        self._free: list[Guard] = []

    def _load(self, device: Device, threads: int, tick: Callable[[int, int], None]) -> None:
        import torch

        torch.set_num_threads(threads)
        task = self._task
        if task.loader:
            self._network = task.loader(device)
        else:
            self._network = load(task.model, task.config, device, tick)

    def do(self, row: SeriesRow, mark: str) -> Record:
        task = self._task
        try:
            guard = self._free.pop()
        except IndexError:
            # It holds a series while others are with the network, however long that takes.
            guard = Guard(task.config.memory_gib, task.config.seconds, idle_s=86_400)
        making = task.model.making(row, task.made_on, task.config)
        try:
            record = make_series(row, mark, task.target, task.config, making, guard, self._predict)
        finally:
            self._free.append(guard)
        _measure(record)
        return record

    def _predict(
        self, volume: Volume, breaks: Sequence[int]
    ) -> tuple[NDArray[np.int16], NDArray[np.int16] | None]:
        return self._turn.submit(self._predict_in_turn, volume, breaks).result()

    def _predict_in_turn(
        self, volume: Volume, breaks: Sequence[int]
    ) -> tuple[NDArray[np.int16], NDArray[np.int16] | None]:
        virtual = self._network.predict(volume, breaks)
        apart = None
        if self._task.config.uncertainty:
            apart = self._network.spread(volume, breaks)
        return virtual, apart


def _measure(record: Record) -> None:
    job, status = "generate", record["status"]
    measure("dyefreenet_series", 1, job=job, status=status, code=record["code"])
    for part, seconds in record["seconds"].items():
        measure("dyefreenet_seconds", seconds, job=job, part=part)
    if status == DONE:
        measure("dyefreenet_slices", record["slices"], job=job)
        measure("dyefreenet_bytes", record["bytes"], job=job)
    told = {name: record[name] for name in ("status", "code", "slices", "seconds")}
    tell("series", job=job, series=record["key"], **told)


class _Actor:
    """A ``Worker`` as Ray Data calls it."""

    def __init__(self, task: bytes, gpu: bool, threads: int) -> None:
        self._worker = Worker(pickle.loads(task), "cuda" if gpu else "cpu", threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        return answer_of(lambda item: self._worker.do(*item), row)


def _done_by(
    workers: Workers | None,
    device: Device,
    task: _Task,
    items: Sequence[tuple[SeriesRow, str]],
    report: Report,
) -> Iterator[Record]:
    """Records as series end, in any order.

    Raises:
        DyeFreeNetError: The first that is no fault of a series; others may be done by then.
    """
    if not items:
        return
    if workers is None:
        tick = partial(report, "slices of a series")
        worker = Worker(task, device, os.cpu_count() or 1, tick)
        for row, mark in items:
            yield worker.do(row, mark)
        return

    from ray import cloudpickle
    from ray.data import ActorPoolStrategy

    packed = cloudpickle.dumps(task)  # a loader may be a function of a benchmark or a test
    at_once = int(workers.cpus) // (1 if workers.gpu else CPUS_A_SERIES)
    yield from over_cluster(
        _Actor,
        items,
        WAVE,
        fn_constructor_args=(packed, workers.gpu, max(1, int(workers.cpus))),
        compute=ActorPoolStrategy(
            min_size=1,
            max_size=min(workers.most, len(items)),
            max_concurrent_calls_per_actor=max(AT_ONCE, min(at_once, MOST_AT_ONCE)),
            enable_true_multi_threading=True,  # or Ray Data lets in one call after the other
        ),
        num_cpus=workers.cpus,
        num_gpus=1 if workers.gpu else 0,
    )


# ---- books ---------------------------------------------------------------------------------------


def _counted(
    records: Iterable[Record], more: dict[str, int], chosen: Sequence[SeriesRow]
) -> dict[str, Any]:
    by_status: dict[str, Counter[str]] = {REFUSED: Counter(), FAILED: Counter()}
    done = flagged = slices = 0
    for record in records:
        if record["status"] == DONE:
            done, slices = done + 1, slices + record["slices"]
            flagged += bool((record["quality"] or {}).get("flags"))
        else:
            by_status[record["status"]][record["code"]] += 1
    return {
        "selected": len(chosen),
        "selected_slices": sum(row.slices for row in chosen),
        "done": done,
        "done_slices": slices,
        "flagged": flagged,
        "refused": dict(sorted(by_status[REFUSED].items())),
        "failed": dict(sorted(by_status[FAILED].items())),
    } | more


def _write_ledger(target: Folder, records: Sequence[Record], model: Model) -> dict[str, str]:
    rows = [_row(record, model) for record in records]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    text = io.StringIO()
    writer = csv.DictWriter(text, SCHEMA.names)
    writer.writeheader()
    writer.writerows(rows)
    return {
        "ledger.parquet": target.write("ledger.parquet", sink.getvalue()),
        "ledger.csv": target.write("ledger.csv", text.getvalue().encode()),
    }


def _row(record: Record, model: Model) -> dict[str, Any]:
    quality, seconds = record["quality"] or {}, record["seconds"]
    files = sorted(record["files"].items())
    output = next((name for name, _ in files if name.startswith("series/")), "")
    folders = output.split("/")
    return {
        "key": record["key"],
        "patient": record["patient"],
        "status": record["status"],
        "code": record["code"],
        "detail": record["detail"],
        "check": "" if not quality else "flag" if quality["flags"] else "pass",
        "flags": " ".join(quality.get("flags", ())),
        **{name: quality.get(name) for name, _ in FIGURES},
        "slices": record["slices"],
        "breaks": record["breaks"],
        "output": "/".join(folders[:2]),
        "files": len(files),
        "files_sha256": fingerprint({}, dict(files)) if files else "",
        "source_sha256": record["source_sha256"],
        "model": model.model_id if files else "",
        "weights_sha256": model.weights_sha256 if files else "",
        "phase": model.phase if files else "",
        **{f"{name}_s": seconds.get(name) for name in ("read", "predict", "write")},
        "finished": record["finished"],
    }
