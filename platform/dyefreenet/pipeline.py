"""Runs the steps that are not done yet, side by side where nothing binds them. RAY."""

from __future__ import annotations

import concurrent.futures as futures
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from dyefreenet.config import Recipe
from dyefreenet.errors import ConfigError, DyeFreeNetError, StorageError
from dyefreenet.plan import Planned, plan, steps_of
from dyefreenet.progress import Progress, duration
from dyefreenet.runtime import Resources
from dyefreenet.store import MANIFEST, PROGRESS, Folder, fingerprint

BESIDE = "evaluate_all"  # folder of an evaluation beside the run's own
TOLD_EVERY = 5.0  # seconds


class Diary:
    """Leaves in the run folder what its driver does, for ``dyefreenet status``; fails no run."""

    def __init__(self, run: Folder, progress: Progress) -> None:
        self._run, self._progress = run, progress
        self._steps: dict[str, dict[str, Any]] = {}
        self._told, self._is_away = float("-inf"), False

    def begin(self, step: str) -> None:
        self._steps[step] = {"state": "running", "began": _now()}

    def end(self, step: str, seconds: float, error: str = "") -> None:
        state = "failed" if error else "done"
        self._steps[step] |= {"state": state, "seconds": round(seconds, 1), "error": error}

    def write(self, ended: str = "") -> None:
        """Say it, at most every ``TOLD_EVERY`` seconds and at the end.

        Args:
            ended: How the run ended; "": it goes on.
        """
        if not ended and time.monotonic() - self._told < TOLD_EVERY:
            return
        if ended and self._is_away:  # a second time nobody waits for a store that is away
            return
        for name, step in self._steps.items():
            if step["state"] == "running":
                step["count"] = self._progress.latest(name)
        told = {"updated": _now(), "ended": ended, "steps": self._steps}
        try:
            self._run.write_json(PROGRESS, told)
            self._is_away = False
        except StorageError:
            self._is_away = True
        self._told = time.monotonic()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def run_steps(
    recipe: Recipe,
    run: Folder,
    resources: Resources,
    progress: Progress,
    only: Sequence[str] = (),
    verbose: bool = False,
) -> int:
    """Do what is not done yet, side by side where nothing binds the steps; how many were done.

    Raises:
        DyeFreeNetError: The first failure, after steps that do not depend on it have ended.
    """
    todo = plan(recipe, run, only)
    for planned in todo:
        if planned.done:
            progress.say(planned.step.name, "already done")
    waiting = [planned for planned in todo if not planned.done]
    if not waiting:
        return 0
    for planned in waiting:
        for field, values in planned.step.config.items():
            batch = values.get("batch", 0) if isinstance(values, dict) else 0
            if 0 < batch < resources.workers:
                raise ConfigError(
                    f"--workers: expected at most {field}.batch={batch}, the global batch, found "
                    f"{resources.workers}"
                )
    run.require_writable()
    recipe_json = recipe.model_dump(mode="json")
    if not run.exists("recipe.json") or run.read_json("recipe.json") != recipe_json:
        run.write_json("recipe.json", recipe_json)

    from dyefreenet import runtime

    runtime.connect(verbose)  # before anything imports Ray, which reads its settings only then
    from dyefreenet import steps

    context = steps.prepare(
        recipe, run, resources, progress, [planned.step.name for planned in waiting]
    )
    finished = {planned.step.name for planned in todo if planned.done}
    pending_names = {planned.step.name for planned in waiting}
    failure: BaseException | None = None
    count, ended, diary = 0, "stopped", Diary(run, progress)
    pool = futures.ThreadPoolExecutor(runtime.parallel_steps(resources))
    try:
        running: dict[futures.Future[dict[str, Any]], tuple[Planned, float]] = {}
        while waiting or running:
            free = runtime.parallel_steps(resources) - len(running)
            for planned in list(waiting):
                ready = not (set(planned.step.needs) & pending_names - finished)
                if free > 0 and ready and failure is None:
                    progress.say(planned.step.name, "started")
                    diary.begin(planned.step.name)
                    call = pool.submit(steps.RUN[planned.step.name], context, planned)
                    running[call] = (planned, time.monotonic())
                    waiting.remove(planned)
                    free -= 1
            if not running:
                break
            done, _ = futures.wait(running, timeout=1.0, return_when=futures.FIRST_COMPLETED)
            steps.show(context)
            diary.write()
            for call in done:
                planned, began = running.pop(call)
                try:
                    facts = call.result()
                except BaseException as error:  # the others may end first
                    diary.end(planned.step.name, time.monotonic() - began, _one_line(error))
                    progress.end(planned.step.name, f"failed: {_one_line(error)}")
                    failure = failure or error
                    continue
                seconds = time.monotonic() - began
                (run / planned.step.name).publish(
                    planned.fingerprint,
                    planned.step.config,
                    needs=planned.needs,
                    seconds=round(seconds, 1),
                    **facts,
                )
                diary.end(planned.step.name, seconds)
                finished.add(planned.step.name)
                count += 1
                progress.end(planned.step.name, f"done in {duration(seconds)}")
        ended = "done" if failure is None else "failed"
    finally:  # nothing runs here but after a Ctrl-C, which waits for nobody
        pool.shutdown(wait=False, cancel_futures=True)
        diary.write(ended)
    if failure is not None:
        raise failure
    return count


def evaluate_under(
    recipe: Recipe,
    run: Folder,
    protocols: Sequence[str],
    progress: Progress,
    verbose: bool = False,
) -> str:
    """Score a trained run under other protocols than its recipe names; its own evaluation stays.

    Returns:
        Name of the folder beside ``evaluate``, made now or found done, with the same files.

    Raises:
        ConfigError: Steps that evaluation needs are not done.
        InputError: There is no test patient, or none could be scored.
    """
    needs = plan(recipe, run, ("evaluate",))[0].needs
    settings = recipe.evaluate.model_copy(update={"protocols": tuple(protocols)})
    recipe = recipe.model_copy(update={"evaluate": settings})
    config = next(step.config for step in steps_of(recipe) if step.name == "evaluate")
    mark, target = fingerprint(config, needs), run / BESIDE
    manifest = target.manifest()
    if manifest is not None and manifest["fingerprint"] == mark:
        return BESIDE
    run.require_writable()

    from dyefreenet import runtime

    runtime.connect(verbose)  # before anything imports Ray, which reads its settings only then
    from dyefreenet.evaluate.score import evaluate

    target.remove(MANIFEST)
    facts = evaluate(
        recipe,
        run,
        report=lambda done, total: progress.tick(BESIDE, done, total, "patients"),
        say=lambda line: progress.say(BESIDE, line),
        step=BESIDE,
    )
    target.publish(mark, config, needs=needs, **facts)
    return BESIDE


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1] if not isinstance(error, DyeFreeNetError) else text
