"""What each step of a run does, on Ray. RAY.

Each function takes the run's context and the planned step, fills the step's folder, and returns
facts for its manifest. ``pipeline`` decides when, and publishes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dyefreenet import runtime
from dyefreenet.config import PhantomConfig, Recipe
from dyefreenet.data.ingest import ingest as ingest_archives
from dyefreenet.data.phantom import write_one
from dyefreenet.errors import ResourceError
from dyefreenet.evaluate.score import evaluate as evaluate_run
from dyefreenet.plan import TRAINED, Planned
from dyefreenet.progress import Progress
from dyefreenet.report import write_quality
from dyefreenet.runtime import Resources, Share
from dyefreenet.stages import STAGES, launch
from dyefreenet.stages.describe import checkpoint_bytes
from dyefreenet.store import Folder, salt_of

KEPT = 3  # checkpoints at once: the best, the last, and the one that is being written


@dataclass
class Context:
    """What a running step may use."""

    recipe: Recipe
    run: Folder
    resources: Resources
    progress: Progress
    share: Share
    ticker: Any  # actor that the training workers tell how far they are
    shown: dict[str, int] = field(default_factory=dict)  # step last printed, by stage


def prepare(
    recipe: Recipe, run: Folder, resources: Resources, progress: Progress, names: Sequence[str]
) -> Context:
    """Check that cluster and store have what is asked for, before anything starts.

    Args:
        names: Of the steps that will run.

    Raises:
        ResourceError: They have not.
    """
    stages = [name for name in names if name in STAGES]
    needed = KEPT * sum(checkpoint_bytes(recipe, stage) for stage in stages)
    free = run.free_bytes()
    if free is not None and free < needed:
        raise ResourceError(
            f"{run}: expected {needed / 1e6:.0f} MB of free space for the checkpoints of "
            f"{', '.join(stages)}, found {free / 1e6:.0f} MB; free space there, or name another "
            "--store"
        )
    share = runtime.share_of(resources)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ticker = launch.Ticker.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    return Context(recipe, run, resources, progress, share, ticker)


def show(context: Context) -> None:
    """Bring what the workers told onto the terminal."""
    for stage, (step, steps, note) in ray.get(context.ticker.get.remote()).items():
        if context.shown.get(stage) != step:
            context.shown[stage] = step
            context.progress.tick(stage, step, steps, "steps", note)


@ray.remote
def _draw(
    config: PhantomConfig, index: int, kind: Literal["patient", "chest"], target: Folder
) -> None:
    """One made-up patient, drawn on this worker and put into the store."""
    with tempfile.TemporaryDirectory() as scratch:
        write_one(config, index, Path(scratch), kind)
        for file in sorted(Path(scratch).rglob("*")):
            if file.is_file():
                target.write(file.relative_to(scratch).as_posix(), file.read_bytes())


def phantom(context: Context, planned: Planned) -> dict[str, Any]:
    """The made-up archive: ``dicom/`` and, beside it, ``truth/``."""
    config = context.recipe.phantom
    assert config is not None  # the step exists only with a phantom
    # Workers run elsewhere than here, so paths are made whole; the config keeps them as written.
    maps = tuple(str(Path(place).absolute()) for place in config.label_maps)
    config = config.model_copy(update={"label_maps": maps})
    target = context.run / "phantom"
    target.clear()  # patients of another config would be taken for this one's
    jobs: list[tuple[int, Literal["patient", "chest"]]] = []
    jobs += [(i, "patient") for i in range(config.patients)]
    jobs += [(i, "chest") for i in range(config.chests)]
    waiting = [_draw.remote(config, index, kind, target) for index, kind in jobs]
    while waiting:
        done, waiting = ray.wait(waiting)
        ray.get(done)
        context.progress.tick("phantom", len(jobs) - len(waiting), len(jobs), "patients")
    return {"patients": config.patients, "chests": config.chests}


def ingest(context: Context, planned: Planned) -> dict[str, Any]:
    """Archives to shards."""
    recipe, run = context.recipe, context.run
    paired, truth = [Folder(uri) for uri in recipe.ingest.paired], None
    if recipe.phantom is not None:
        paired.append(run / "phantom" / "dicom")
        truth = run / "phantom" / "truth"
    facts = ingest_archives(
        recipe.ingest,
        recipe.grid,
        paired=paired,
        plain=[Folder(uri) for uri in recipe.ingest.plain],
        target=run / "ingest",
        truth=truth,
        salt=salt_of(run.parent) if recipe.ingest.paired or recipe.ingest.plain else "",
        report=lambda unit, done, total: context.progress.tick("ingest", done, total, unit),
    )
    write_quality(run / "ingest")
    return facts


def train(context: Context, planned: Planned) -> dict[str, Any]:
    """Any trained stage."""
    most, at_least = context.resources.workers, context.resources.at_least
    return launch.train(
        context.recipe,
        planned.step.name,
        context.run,
        planned.fingerprint,
        (at_least, most) if at_least else most,
        context.share,
        context.ticker,
    )


def evaluate(context: Context, planned: Planned) -> dict[str, Any]:
    """Every method on the test patients; those that are scored already stay."""
    return evaluate_run(
        context.recipe,
        context.run,
        report=lambda done, total: context.progress.tick("evaluate", done, total, "patients"),
        say=lambda line: context.progress.say("evaluate", line),
    )


RUN: dict[str, Callable[[Context, Planned], dict[str, Any]]] = {
    "phantom": phantom,
    "ingest": ingest,
    "evaluate": evaluate,
} | dict.fromkeys(TRAINED, train)
