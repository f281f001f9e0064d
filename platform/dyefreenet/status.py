"""How far a run or a target of ``generate`` is, from its folder alone. No Ray, no cluster.

Manifests say which steps are done, ``metrics.jsonl`` how a training goes, and ``progress.json``,
which the driver writes every few seconds, what it is doing, and whether it still does anything.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow.parquet as pq

from dyefreenet import recipes
from dyefreenet.config import Recipe
from dyefreenet.errors import InputError
from dyefreenet.plan import TRAINED, steps_of
from dyefreenet.progress import duration
from dyefreenet.space import METHODS
from dyefreenet.store import PROGRESS, Folder

SILENT = 300.0  # seconds without a word of the driver, after which it may be gone
JOB, GIVEN_UP = "job.json", "given_up.txt"  # as `generation.batch` and `stages.launch` have them


@dataclass(frozen=True)
class StepStatus:
    """One step of a run."""

    name: str
    state: str  # done, running, waiting, failed, stopped (begun and left), not begun
    seconds: float | None = None
    epoch: float | None = None  # of a training: the last that is finished
    epochs: int | None = None  # that it was asked for
    figures: dict[str, float] = field(default_factory=dict)  # of that epoch, as training names them
    count: str = ""  # what the driver last told: steps, patients, files
    error: str = ""


@dataclass(frozen=True)
class SweepStatus:
    """One sweep of a run; ``done`` holds trials that were stopped early, too."""

    method: str
    state: str  # done, or begun
    trials: int  # asked for
    done: int
    failed: int
    running: int


@dataclass(frozen=True)
class RunStatus:
    """A run: ``silent`` is for how many seconds its driver said nothing; None: it never did."""

    run: str
    state: str  # running, silent, done, failed, stopped, not begun
    silent: float | None
    steps: list[StepStatus]
    sweeps: list[SweepStatus]

    def text(self) -> str:
        """For a terminal."""
        told = {
            "running": f"running, last heard of {duration(self.silent or 0)} ago",
            "silent": f"no sign of life for {duration(self.silent or 0)}: it was killed, or its "
            "machine is gone; the same command goes on",
        }.get(self.state, self.state)
        lines = [f"{self.run}: {told}"]
        for step in self.steps:
            spent = "" if step.seconds is None else duration(step.seconds)
            lines.append(f"  {step.name:<16} {step.state:<10}{spent:<14}{_about(step)}".rstrip())
        for one in self.sweeps:
            lines.append(
                f"  sweep of {one.method}: {one.state}, {one.done} of {one.trials} trials done, "
                f"{one.running} running, {one.failed} failed"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class TargetStatus:
    """A target of ``generate``: series by what became of them, and why."""

    target: str
    model: str
    ended: bool  # a command has come to its end and written the ledger
    done: int
    refused: dict[str, int]
    failed: dict[str, int]

    def text(self) -> str:
        """For a terminal."""
        ended = "ledger written" if self.ended else "no ledger yet: the command has not ended"
        lines = [f"{self.target}: {ended}", f"  {self.done} done"]
        for status, codes in (("refused", self.refused), ("failed", self.failed)):
            lines += [f"  {count} {status}: {code}" for code, count in codes.items()]
        return "\n".join(lines)


def look(folder: Folder, now: datetime | None = None) -> RunStatus | TargetStatus:
    """What a folder is, and how far.

    Args:
        now: The time by which its driver's last word is judged; None: the clock's.

    Raises:
        InputError: It is neither a run nor a target of ``generate``.
    """
    if folder.exists(JOB):
        return _target(folder)
    if not folder.exists("recipe.json"):
        raise InputError(
            f"{folder}: expected a run that was begun, or a target of generate, found no "
            "recipe.json or job.json; look at --store, --run and --recipe"
        )
    return _run(folder, now or datetime.now(timezone.utc))


# ---- runs ----------------------------------------------------------------------------------------


def _run(run: Folder, now: datetime) -> RunStatus:
    recipe = recipes.validate(run.read_json("recipe.json"))
    told = run.read_json(PROGRESS) if run.exists(PROGRESS) else {}
    silent = max(0.0, _since(told["updated"], now)) if told else None
    alive = silent is not None and not told["ended"]
    heard = alive and silent is not None and silent < SILENT
    steps = [
        _step(run, recipe, step.name, told.get("steps", {}).get(step.name, {}), heard, now)
        for step in steps_of(recipe)
    ]
    states = {step.state for step in steps}
    if alive:
        state = "running" if heard else "silent"
    elif "failed" in states:
        state = "failed"
    elif states == {"done"} or states == {"not begun"}:
        (state,) = states
    else:
        state = "stopped"
    return RunStatus(run.uri, state, silent, steps, _sweeps(run))


def _step(
    run: Folder, recipe: Recipe, name: str, told: dict[str, Any], heard: bool, now: datetime
) -> StepStatus:
    """One step, by its manifest, by its curve, and by what the driver told of it.

    Args:
        heard: Whether the driver still says something.
    """
    place = run / name
    epoch, figures = _curve(place) if name in TRAINED else (None, {})
    epochs = getattr(recipe, name.removesuffix("_scratch")).epochs if name in TRAINED else None
    manifest = place.manifest()
    if manifest is not None:
        return StepStatus(name, "done", manifest.get("seconds"), epoch, epochs, figures)
    state, seconds, error = told.get("state", ""), told.get("seconds"), told.get("error", "")
    if state == "running" and heard:
        seconds = max(0.0, _since(told["began"], now))
    elif state == "failed":
        pass
    elif name in TRAINED and not heard and place.exists(GIVEN_UP):
        state, error = "failed", place.read(GIVEN_UP).decode()
    elif state or epoch is not None:
        state = "stopped"
    else:
        state = "waiting" if heard else "not begun"
    count = told.get("count", "") if state == "running" else ""
    return StepStatus(name, state, seconds, epoch, epochs, figures, count, error)


def _curve(place: Folder) -> tuple[float | None, dict[str, float]]:
    """The last epoch that a training told, and its losses and validation figures."""
    if not place.exists("metrics.jsonl"):
        return None, {}
    lines = place.read("metrics.jsonl").decode().splitlines()
    if not lines:
        return None, {}
    last = json.loads(lines[-1])
    shown = {name: value for name, value in last.items() if name.startswith(("loss/", "valid"))}
    return last.get("epoch"), shown


def _about(step: StepStatus) -> str:
    """Epoch, figures and count of a step, or its error."""
    parts = [step.count] if step.count else []
    if step.epoch is not None:
        losses = [name for name in step.figures if name.startswith("loss/")]
        told = ", ".join(
            f"{name.removeprefix('loss/')} {step.figures[name]:.3g}" for name in losses
        )
        if "validation/psnr" in step.figures:
            told += f"{told and ', '}PSNR {step.figures['validation/psnr']:.2f} dB"
        parts.append(f"epoch {step.epoch:g} of {step.epochs}{told and f': {told}'}")
    return "; ".join([*parts, *([step.error] if step.error else [])])


def _sweeps(run: Folder) -> list[SweepStatus]:
    found = []
    for method in METHODS:
        place = run / "sweep" / method
        if not place.exists("sweep.json"):
            continue
        asked = place.read_json("sweep.json")["trials"]
        if place.exists("trials.json"):
            states = Counter(row["state"] for row in place.read_json("trials.json")["trials"])
            failed = states.pop("failed", 0)
            found.append(SweepStatus(method, "done", asked, sum(states.values()), failed, 0))
            continue
        told = place.read_json(PROGRESS) if place.exists(PROGRESS) else {}
        counts = [told.get(name, 0) for name in ("done", "failed", "running")]
        found.append(SweepStatus(method, "begun", asked, *counts))
    return found


def _since(when: str, now: datetime) -> float:
    return (now - datetime.fromisoformat(when)).total_seconds()


# ---- targets of generate -------------------------------------------------------------------------


def _target(target: Folder) -> TargetStatus:
    """Records as they are now; of series that have none, what the last ledger says."""
    ended = target.exists("ledger.parquet")
    became: dict[str, tuple[str, str]] = {}  # status and code by series
    if ended:
        table = pq.read_table(io.BytesIO(target.read("ledger.parquet")))
        for row in table.select(["key", "status", "code"]).to_pylist():
            became[row["key"]] = (row["status"], row["code"])
    records = target / "records"
    with ThreadPoolExecutor(16) as pool:
        for one in pool.map(records.read_json, records.names()):
            became[one["key"]] = (one["status"], one["code"])
    counts = Counter(became.values())

    def by_code(status: str) -> dict[str, int]:
        return {code: n for (own, code), n in sorted(counts.items()) if own == status}

    return TargetStatus(
        target.uri,
        target.read_json(JOB).get("model", ""),
        ended,
        sum(by_code("done").values()),
        by_code("refused"),
        by_code("failed"),
    )
