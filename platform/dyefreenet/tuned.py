"""Every method with the settings that a sweep found for it, beside the recipe's own. RAY."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dyefreenet import recipes, runtime
from dyefreenet.config import Recipe
from dyefreenet.data.shards import read_records
from dyefreenet.evaluate.score import evaluate, fit_remap
from dyefreenet.evaluate.statistics import Row, differences, mean_of_trainings, summarise
from dyefreenet.plan import TRAINED, steps_of
from dyefreenet.progress import Progress
from dyefreenet.report.tuned import SUFFIX, tuned_text
from dyefreenet.runtime import Resources
from dyefreenet.space import METHODS, default_space
from dyefreenet.store import Folder
from dyefreenet.sweep import sweep, train_once

STEP = "tuned"  # folder of the run
SWEPT = ("unet", "pix2pix", "cascade")  # primary_scratch takes what the cascade's primary found
OWN, BEST = "own", "best"  # settings: the recipe's, and those that were found


def tune_all(
    recipe: Recipe,
    run: Folder,
    trials: int,
    seeds: int,
    resources: Resources,
    progress: Progress,
    minutes: float | None = None,
) -> str:
    """Sweep every method, train it with the best and with the recipe's settings, score all.

    Each method has a sweep of as many trials over the same ranges, on validation patients. Then
    each training is done with every seed, SSL too, and scored on the test patients; a patient's
    figure is the mean over the seeds. What is done already stays.

    Args:
        run: Whose archive, shards and SSL are finished.
        minutes: Of each sweep.

    Returns:
        The table; ``{run}/tuned`` holds it as ``summary.md``, with ``rows.parquet``,
        ``summary.json``, ``differences.json`` and ``best.yaml``.

    Raises:
        StoreError: A sweep was begun with other settings.
        DyeFreeNetError: A sweep finished no trial, or a training failed.
        InputError: There is no test patient, or none could be scored.
    """
    target = run / STEP
    names = {step.name for step in steps_of(recipe)}
    values: dict[str, Any] = {}
    for method in SWEPT:
        if names.issuperset(METHODS[method]):
            space = default_space(method)
            found = sweep(recipe, run, method, space, trials, resources, progress, minutes)
            values |= found["trials"][found["best"]]["values"]
    best = recipes.change(recipe, values).model_copy(update={"name": f"{recipe.name}-tuned"})
    target.write("best.yaml", recipes.as_yaml(best, "Found by a sweep of every method"))

    stages = [name for name in TRAINED if name in names and name != "ssl"]
    seeded = range(recipe.seed, recipe.seed + seeds)
    share = runtime.share_of(resources)
    ready = {"ingest": run / "ingest"}

    def train_all(settings: Recipe, label: str, wanted: Sequence[str], **ssl: Folder) -> None:
        place = target / label
        place.write_json("recipe.json", settings.model_dump(mode="json"))
        for stage in wanted:  # one after the other; what is done stays
            train_once(
                settings,
                stage,
                place,
                resources.workers,
                share,
                ready | ssl,
                say=lambda line: progress.end(STEP, f"{label}, {line}"),
            )

    jobs = {  # by label
        f"{kind}-{seed}": (kind, seed, recipes.change(settings, {"seed": seed}))
        for seed in seeded
        for kind, settings in {OWN: recipe, BEST: best}.items()
    }
    with ThreadPoolExecutor(runtime.parallel_steps(resources)) as pool:
        if "ssl" in names:  # no default range touches it: both settings share it
            own = {f"ssl-{seed}": jobs[f"{OWN}-{seed}"][2] for seed in seeded}
            calls = [pool.submit(train_all, one, label, ["ssl"]) for label, one in own.items()]
            for call in calls:
                call.result()
        calls = [
            pool.submit(train_all, mine, label, stages, ssl=target / f"ssl-{seed}" / "ssl")
            for label, (_, seed, mine) in jobs.items()
        ]
        for call in calls:
            call.result()

    scored: list[Row] = []
    shards = run / "ingest"
    remap = fit_remap(shards, read_records(shards), recipe.ingest.phase)  # once, for all trainings
    for label, (kind, _, mine) in jobs.items():
        step, say = f"{STEP}/{label}/evaluate", partial(progress.say, STEP)
        facts = evaluate(mine, run, say=say, step=step, trained=target / label, table=remap)
        table = (run / step).read("rows.parquet", facts["files"]["rows.parquet"])
        for row in pq.read_table(io.BytesIO(table)).to_pylist():
            if row["method"] in stages:
                scored.append(row | {"method": row["method"] + SUFFIX * (kind == BEST)})
        progress.end(STEP, f"{label} scored")
    rows = mean_of_trainings(scored)
    resamples = recipe.evaluate.resamples
    summary = summarise(rows, resamples, recipe.seed)
    compared = list(compare(rows, stages, resamples, recipe.seed))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    target.write("rows.parquet", sink.getvalue())
    target.write_json("summary.json", summary)
    target.write_json("differences.json", compared)
    text = tuned_text(summary, compared, seeds, trials, made_up=recipe.phantom is not None)
    target.write("summary.md", text.encode())
    return text


def compare(rows: Sequence[Row], stages: Sequence[str], resamples: int, seed: int) -> Iterator[Row]:
    """Each method tuned against itself as it was, and all tuned ones against tuned baselines."""
    for stage in stages:
        mine = [row for row in rows if row["method"] in (stage, stage + SUFFIX)]
        yield from differences(mine, (stage,), resamples, seed)
    tuned = [row for row in rows if row["method"].endswith(SUFFIX)]
    yield from differences(tuned, ("unet" + SUFFIX, "pix2pix" + SUFFIX), resamples, seed)
