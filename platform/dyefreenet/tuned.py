"""Every method with the settings that a sweep found for it, beside the recipe's own. RAY."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dyefreenet import recipes, runtime
from dyefreenet.config import Recipe
from dyefreenet.errors import StoreError
from dyefreenet.evaluate.score import evaluate
from dyefreenet.evaluate.statistics import differences, summarise
from dyefreenet.plan import TRAINED, steps_of
from dyefreenet.progress import Progress
from dyefreenet.report import tuned_text
from dyefreenet.runtime import Resources
from dyefreenet.space import METHODS, default_space
from dyefreenet.stages.launch import train
from dyefreenet.store import Folder, fingerprint
from dyefreenet.sweep import sweep

STEP = "tuned"  # folder of the run
SWEPT = ("unet", "pix2pix", "cascade")  # primary_scratch takes what the cascade's primary found
OWN, BEST = "own", "best"  # settings: the recipe's, and those that were found
SUFFIX = " tuned"  # of a method's name, with the settings that were found
Row = dict[str, Any]


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
    target, how = run / STEP, (resources, progress)
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
    seeded = [recipe.seed + number for number in range(seeds)]
    ready = {"ingest": run / "ingest"}
    ssl = [(recipes.change(recipe, {"seed": seed}), target / f"ssl-{seed}") for seed in seeded]
    jobs = [
        (kind, recipes.change(settings, {"seed": seed}), target / f"{kind}-{seed}", place)
        for seed, (_, place) in zip(seeded, ssl, strict=True)
        for kind, settings in {OWN: recipe, BEST: best}.items()
    ]
    with ThreadPoolExecutor(runtime.parallel_steps(resources)) as pool:
        if "ssl" in names:  # no default range touches it: both settings share it
            for call in [pool.submit(_train, *one, ["ssl"], ready, *how) for one in ssl]:
                call.result()
        calls = [
            pool.submit(_train, mine, place, stages, ready | {"ssl": common / "ssl"}, *how)
            for _, mine, place, common in jobs
        ]
        for call in calls:
            call.result()

    scored: list[Row] = []
    for kind, mine, place, _ in jobs:
        step = f"{STEP}/{_name(place)}/evaluate"
        say = partial(progress.say, STEP)
        facts = evaluate(mine, run, say=say, step=step, trained=place)
        table = (run / step).read("rows.parquet", facts["files"]["rows.parquet"])
        for row in pq.read_table(io.BytesIO(table)).to_pylist():
            if row["method"] in stages:
                scored.append(row | {"method": row["method"] + SUFFIX * (kind == BEST)})
        progress.end(STEP, f"{_name(place)} scored")
    rows = list(mean_of_seeds(scored))
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


def mean_of_seeds(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for each scan, method and figure: the mean over the trainings that have it."""
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    names = ("method", "protocol", "metric", "region", "patient", "pair")
    for row in rows:
        grouped[tuple(row[name] for name in names)].append(row)
    for group in grouped.values():
        yield group[0] | {"value": sum(row["value"] for row in group) / len(group)}


def compare(rows: Sequence[Row], stages: Sequence[str], resamples: int, seed: int) -> Iterator[Row]:
    """Each method tuned against itself as it was, and all tuned ones against tuned baselines."""
    for stage in stages:
        mine = [row for row in rows if row["method"] in (stage, stage + SUFFIX)]
        yield from differences(mine, (stage,), resamples, seed)
    tuned = [row for row in rows if row["method"].endswith(SUFFIX)]
    yield from differences(tuned, ("unet" + SUFFIX, "pix2pix" + SUFFIX), resamples, seed)


def _train(
    recipe: Recipe,
    place: Folder,
    stages: Sequence[str],
    shared: dict[str, Folder],
    resources: Resources,
    progress: Progress,
) -> None:
    """Stages of one seed, one after the other, into a folder of their own; what is done stays."""
    place.write_json("recipe.json", recipe.model_dump(mode="json"))
    steps = {step.name: step for step in steps_of(recipe)}
    for name in stages:
        folder, mark = place / name, fingerprint(steps[name].config, {})
        manifest = folder.manifest()
        if manifest is not None:
            if manifest["fingerprint"] != mark:
                raise StoreError(
                    f"{folder}: trained with other settings than now; delete {place.parent}, or "
                    "choose another --run name"
                )
            continue
        progress.say(STEP, f"{_name(place)}, {name}: started")
        share = runtime.share_of(resources)
        facts = train(recipe, name, place, mark, resources.workers, share, shared=shared)
        folder.publish(mark, steps[name].config, **facts)
        progress.end(STEP, f"{_name(place)}, {name}: done")


def _name(place: Folder) -> str:
    return place.uri.rpartition("/")[2]
