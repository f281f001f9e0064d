"""One stage's config to one Ray Train run to one run folder. Ray ends here."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import Tensor

from dyefreenet.config import AugmentConfig, Phase, Recipe, SslConfig
from dyefreenet.data.shards import Slab, SlabRecord, read_records, read_slab
from dyefreenet.data.slices import (
    Batch,
    batches,
    in_order,
    schedule,
    steps_per_epoch,
    worker_lanes,
)
from dyefreenet.errors import ConfigError, DyeFreeNetError, InputError, StorageError
from dyefreenet.meters import measure, tell
from dyefreenet.runtime import Share, quiet_data
from dyefreenet.stages import STAGES
from dyefreenet.store import MANIFEST, Folder
from dyefreenet.train.loop import Numbers, fit
from dyefreenet.train.sight import NO_MLFLOW, Sight, lacks_mlflow, shown_slices, strip_of
from dyefreenet.train.state import load_tensors, load_weights
from dyefreenet.workers import mean_over_workers

READ_CPUS = 0.05  # of a core for each task that fetches shards: they wait more than they work
READERS = 2  # processes that fetch for one worker; each new one costs seconds to start
TOGETHER = 32  # shards fetched by one task
FITS = 4  # times that a training is put on Ray, should the store go away
AWAY = 300.0  # seconds for which it may
GIVEN_UP = "given_up.txt"  # why a training ended that no second try would mend
PORTION = 64  # shards of the first portion that is read ahead
PORTION_BYTES = 400e6  # of the later ones: each costs the start of a Ray Data run


@ray.remote(num_cpus=0)
class Ticker:
    """Where workers leave how far they are, for the driver's progress line."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, int, str]] = {}

    def put(self, stage: str, step: int, steps: int, note: str) -> None:
        self._latest[stage] = (step, steps, note)

    def get(self) -> dict[str, tuple[int, int, str]]:
        return self._latest


def records_of(ingest: Folder, stage: str, split: str, phases: Sequence[Phase]) -> list[SlabRecord]:
    """Index lines of the shards that a stage reads, of the contrast phases that are learnt.

    SSL needs no partner: it learns from the plain-only series (D1), and where an archive has none,
    from the plain side of the training pairs.

    Raises:
        InputError: There are none for training.
    """
    records = read_records(ingest)
    found = [record for record in records if record.split == split and record.phase in phases]
    if stage == "ssl" and split == "train":
        found = [record for record in records if record.split == "ssl"] or found
    if not found and split == "train":
        raise InputError(f"{ingest}: expected slices of the split {split!r}, found none")
    return found


def make_trainer(
    recipe: Recipe,
    stage: str,
    run: Folder,
    target: Folder,
    name: str,
    workers: int | tuple[int, int],
    share: Share,
    ticker: Any = None,
    shared: dict[str, Folder] | None = None,
    callbacks: Sequence[Any] = (),
) -> TorchTrainer:
    """The Ray Train run of one stage; the same name goes on where it was killed.

    Args:
        run: Where the steps that it needs lie, but for those of ``shared``.
        target: Where its own metrics and checkpoints go.
        workers: How many, or at least and at most.
        shared: Steps that lie elsewhere, by name.
    """
    return TorchTrainer(
        worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "stage": stage,
            "run": run.uri,
            "shared": {step: place.uri for step, place in (shared or {}).items()},
            "target": target.uri,
            "threads": share.threads,
            "ticker": ticker,
            "mark": name,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # Ray's own is narrower than its text
            use_gpu=share.gpu,
            resources_per_worker={"CPU": share.cpus} | ({"GPU": 1} if share.gpu else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if share.gpu else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=target.uri,
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(  # Ray keeps the best and the last
                num_to_keep=1, checkpoint_score_attribute="score", checkpoint_score_order="max"
            ),
            callbacks=list(callbacks),
        ),
    )


def train(
    recipe: Recipe,
    stage: str,
    run: Folder,
    fingerprint: str,
    workers: int | tuple[int, int],
    share: Share,
    ticker: Any = None,
    shared: dict[str, Folder] | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train a stage on the cluster; its weights land in ``{run}/{stage}/weights``.

    Args:
        workers, shared: As in ``make_trainer``.
        callbacks: Of Ray Train, told of every epoch.

    Returns:
        Facts for the manifest: digests of the files and the last epoch's figures.

    Raises:
        DyeFreeNetError: A loss was not finite, or MLflow is missing.
        StoreError: The last checkpoint did not come back as it was saved.
    """
    step = run / stage
    name = f"train-{fingerprint}"
    if step.exists(GIVEN_UP):
        step.remove(GIVEN_UP)
    result = _fit(
        lambda: make_trainer(
            recipe, stage, run, step, name, workers, share, ticker, shared, callbacks
        ),
        step,
    )
    if step.exists(GIVEN_UP):
        raise DyeFreeNetError(f"{stage}: {step.read(GIVEN_UP).decode()}")
    if result.checkpoint is None:
        raise DyeFreeNetError(f"{stage}: expected a checkpoint at the end, found none")
    checkpoint, figures = result.checkpoint, result.metrics
    if STAGES[stage].config(recipe).keep == "best":
        checkpoint, figures = max(result.best_checkpoints or (), key=lambda one: one[1]["score"])
    files = {}
    with checkpoint.as_directory() as folder:
        saved = json.loads((Path(folder) / "state.json").read_text())
        for network, file in saved["weights"].items():
            content = (Path(folder) / file).read_bytes()
            load_tensors(content, saved["sha256"][file], f"{step}: checkpoint, {file}")
            target = f"weights/{network}.safetensors"
            files[target] = step.write(target, content)
    files["metrics.jsonl"] = hashlib.sha256(step.read("metrics.jsonl")).hexdigest()
    return {"files": files, "figures": figures}


def _fit(make: Callable[[], TorchTrainer], step: Folder) -> ray.train.Result:
    """Train to the end, though the store be away for some minutes, or a node for good.

    Ray's controller gives up a training when object storage does not answer at once, and a worker
    does after a while. Its checkpoints are still there, so the same training goes on when the store
    is back.
    """
    for _ in range(FITS - 1):
        try:
            return make().fit()
        except ray.exceptions.RayActorError:  # the controller's node is gone
            pass
        except (ray.train.TrainingFailedError, OSError) as error:
            if "://" not in step.uri or not _may_be_storage(error):
                raise
        _wait_for(step)
    return make().fit()


def _may_be_storage(error: Exception) -> bool:
    """Whether a training may have ended for want of storage.

    Ray's controller fails at its own access to it; of workers, those that fail at our access, or at
    Ray's, which raises OSError. What ended a worker comes as it was raised, so its type tells; but
    what ended a Ray Data task comes as Ray's own error, with ours in its text.
    """
    if isinstance(error, ray.train.WorkerGroupError):
        return any(
            isinstance(failure, (OSError, StorageError)) or StorageError.__name__ in str(failure)
            for failure in error.worker_failures.values()
        )
    return True


def _wait_for(step: Folder) -> None:
    """Until object storage answers, and no longer than ``AWAY``."""
    began = time.monotonic()
    while True:
        try:
            step.exists(MANIFEST)  # which has some patience of its own
            return
        except StorageError:
            if time.monotonic() - began > AWAY:
                raise


def worker(payload: dict[str, Any]) -> None:
    """What each training worker does; what all of them give up alike is not tried again."""
    try:
        _work(payload)
    except (FloatingPointError, ConfigError) as error:
        if ray.train.get_context().get_world_rank() == 0:
            Folder(payload["target"]).write(GIVEN_UP, str(error).encode())


def _work(payload: dict[str, Any]) -> None:
    torch.set_num_threads(payload["threads"])
    recipe = Recipe.model_validate(payload["recipe"])
    stage = payload["stage"]
    spec, run, target = STAGES[stage], Folder(payload["run"]), Folder(payload["target"])
    config, ticker = spec.config(recipe), payload["ticker"]

    def place_of(step: str) -> Folder:
        return Folder(payload["shared"][step]) if step in payload["shared"] else run / step

    ingest = place_of("ingest")
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    chief, device = rank == 0, get_device()

    lacking = torch.tensor([float(lacks_mlflow())], device=device)
    if mean_over_workers(lacking) > 0:  # of one worker or more; all give up together
        raise ConfigError(NO_MLFLOW)
    torch.manual_seed(recipe.seed)  # every worker starts from the same weights
    state = spec.code.build(config, recipe, lambda step: load_weights(place_of(step)))
    if config.ema:
        state.start_averages()
    state.to(device)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state.load(Path(folder))

    records = records_of(ingest, stage, "train", recipe.phases(stage))
    plan = schedule(records, config.batch, config.epochs, recipe.seed)
    epoch_steps = steps_per_epoch(records, config.batch)
    lanes = worker_lanes(config.batch, rank, workers)
    history = _history(target, state.step) if chief else []
    sight = Sight(target, stage, payload["mark"], config.model_dump()) if chief else None

    def held_out() -> Iterator[Slab]:
        for one in records_of(ingest, stage, "validation", recipe.phases(stage)):
            yield read_slab(ingest.read(one.path, one.sha256))

    shown = shown_slices(held_out()) if chief and hasattr(spec.code, "virtual") else None

    def strip() -> bytes:
        def virtual(batch: dict[str, Tensor]) -> Tensor:
            made: Tensor = spec.code.virtual(state.as_used(), batch, config, recipe.grid)
            return made

        assert shown is not None
        return strip_of(virtual, state, shown, recipe.grid, device)

    def report(numbers: Numbers) -> None:
        """Every worker reports, or the others wait for ever; one of them uploads."""
        with tempfile.TemporaryDirectory() as folder:
            if chief:
                state.save(Path(folder))
                history.append(numbers)
                lines = "".join(json.dumps(entry) + "\n" for entry in history)
                target.write("metrics.jsonl", lines.encode())
                assert sight is not None
                sight.tell(numbers, strip() if shown is not None else None)
                _measure(target, stage, numbers)
            saved = ray.train.Checkpoint.from_directory(folder) if chief else None
            ray.train.report(numbers, saved)

    def validation() -> Iterator[Batch]:
        """A small set, once an epoch: read here, since a Ray Data run costs more than it saves."""
        if chief:
            yield from in_order(held_out(), config.batch)

    told = time.monotonic()

    def tick(step: int, rate: float) -> None:
        nonlocal told
        if chief and ticker is not None and time.monotonic() - told > 1.0:
            told = time.monotonic()
            name = target.parent.uri.rpartition("/")[2]
            measure("dyefreenet_rate", rate, run=name, stage=stage)
            note = f"epoch {min(step // epoch_steps + 1, config.epochs)} of {config.epochs}"
            ticker.put.remote(stage, step, plan.steps, f"{note}, {rate:.1f} slices/s")

    by_path = {record.path: record for record in records}
    coming = batches(
        plan,
        fetch(ingest, [by_path[path] for path in plan.paths(lanes, state.step)]),
        lanes,
        config.crop,
        state.step,
        partners=not isinstance(config, SslConfig),
        augment=None if config.augment == AugmentConfig() else config.augment,
    )
    fit(
        spec.code,  # type: ignore[arg-type]  # a module with the functions of the protocol
        state,
        coming,
        config,
        recipe.grid,
        steps=plan.steps,
        epoch_steps=epoch_steps,
        device=device,
        validation=validation,
        report=report,
        tick=tick,
        identify=lambda step: ", ".join(plan.samples(step)),
    )


def _measure(target: Folder, stage: str, numbers: Numbers) -> None:
    names = {"run": target.parent.uri.rpartition("/")[2], "stage": stage}
    measure("dyefreenet_epoch", numbers["epoch"], **names)
    for name, value in numbers.items():
        kind, _, what = name.partition("/")
        if kind == "loss":
            measure("dyefreenet_loss", value, **names, term=what)
        elif kind == "validation":
            measure("dyefreenet_validation", value, **names, figure=what)
    tell("epoch", **names, step=numbers["step"], epoch=numbers["epoch"])


def fetch(folder: Folder, records: list[SlabRecord]) -> Iterator[Slab]:
    """Shards in the order asked for, read ahead by Ray Data and decoded here, once.

    Files travel as they are, compressed: cells are a third of the arrays they become. One portion
    is read to its end while the one before is used; how many shards make a portion follows from the
    size of those before. A stream that the consumer holds back would keep Ray Data's executor
    spinning in this process, at three quarters of a core (measured).
    """
    quiet_data()
    ray.data.DataContext.get_current().execution_options.preserve_order = True

    def read(batch: dict[str, Any]) -> dict[str, Any]:
        with ThreadPoolExecutor(8) as pool:
            return {"content": list(pool.map(folder.read, batch["path"], batch["sha256"]))}

    def portion(start: int, count: int) -> ray.data.Dataset:
        asked = records[start : start + count]
        items = [{"path": record.path, "sha256": record.sha256} for record in asked]
        return (
            ray.data.from_items(items, override_num_blocks=-(-len(items) // TOGETHER))
            .map_batches(read, batch_size=TOGETHER, num_cpus=READ_CPUS, concurrency=READERS)
            .materialize()
        )

    if not records:
        return
    with ThreadPoolExecutor(1) as ahead:
        start, count = 0, PORTION
        coming = ahead.submit(portion, start, count)
        while start < len(records):
            ready = coming.result()
            start += count
            if start < len(records):
                count = max(1, round(PORTION_BYTES * ready.count() / ready.size_bytes()))
                coming = ahead.submit(portion, start, count)
            for block in ready.to_arrow_refs():  # as they lie in the object store, uncopied
                for cell in ray.get(block)["content"]:
                    yield read_slab(cell.as_buffer())


def _history(step: Folder, reached: int) -> list[Numbers]:
    """Epochs told before a resume; what came after the checkpoint is told again."""
    if not reached or not step.exists("metrics.jsonl"):
        return []
    lines = step.read("metrics.jsonl").decode().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["step"] <= reached]
