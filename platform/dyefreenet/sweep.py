"""Search of a method's settings: Ray Tune with Optuna, each trial real Ray Train runs. RAY."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dyefreenet import recipes, runtime
from dyefreenet.config import Recipe
from dyefreenet.errors import DyeFreeNetError, StorageError, StoreError
from dyefreenet.plan import steps_of
from dyefreenet.progress import Progress
from dyefreenet.report import write_sweep
from dyefreenet.runtime import Resources
from dyefreenet.space import AIMS, METHODS, Space, pareto, ranked, starting_point, trained
from dyefreenet.stages import STAGES
from dyefreenet.stages.launch import train
from dyefreenet.store import PROGRESS, Folder, fingerprint

STEP = "sweep"  # folder of the run
VALUES = "values.json"  # what a trial tries
GIVEN_UP = "given_up.json"  # why no node can train it
EPOCHS = "trial_epoch"  # of all stages of a trial together


def sweep(
    recipe: Recipe,
    run: Folder,
    method: str,
    space: Space,
    trials: int,
    resources: Resources,
    progress: Progress,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Try settings of a method, judged by validation patients; the best becomes a recipe file.

    What the method needs and no trial changes is finished before, and all trials share it. The
    first trial is the recipe as it is, where it lies within the space. A sweep that was killed goes
    on: its finished trials stay finished, others continue from their checkpoints.

    Args:
        minutes: After which no trial goes on; what is finished then is judged.

    Returns:
        What ``{run}/sweep/{method}/trials.json`` holds: the trials, the best, where things lie.

    Raises:
        StoreError: There is a sweep of this method with another space, recipe or number of trials.
        DyeFreeNetError: No trial was finished.
    """
    target = run / STEP / method
    _claim(target, recipe, space, trials)
    if target.exists("trials.json"):
        progress.say("sweep", "already done")
        return target.read_json("trials.json")  # type: ignore[no-any-return]
    results = _run_trials(recipe, run, target, method, space, trials, resources, progress, minutes)
    found = _summary(results, target, recipe, method, starting_point(space, recipe))
    journal, found["importance"] = _study(found, space)
    found |= {"recipe": f"{target}/best.yaml", "page": f"{target}/index.html"}
    target.write("optuna.journal", journal)
    best = recipes.change(recipe, found["trials"][found["best"]]["values"])
    best = best.model_copy(update={"name": f"{recipe.name}-tuned"})
    target.write("best.yaml", recipes.as_yaml(best, f"Found by a sweep of {method}"))
    write_sweep(target, found)
    target.write_json("trials.json", found)  # last: it says that all is there
    return found


def _claim(target: Folder, recipe: Recipe, space: Space, trials: int) -> None:
    """Say what this sweep is, or see that it is the one that was begun here."""
    values = recipe.model_dump(mode="json")
    mine = {
        "trials": trials,
        "space": {name: {one.kind: list(one.values)} for name, one in space.items()},
        "recipe": {name: values[name] for name in values if name not in ("name", "evaluate")},
    }
    if not target.exists("sweep.json"):
        target.write_json("sweep.json", mine)
        return
    theirs = target.read_json("sweep.json")
    for name, value in json.loads(json.dumps(mine)).items():
        if theirs.get(name) != value:
            told = f"{theirs.get(name)}, now {value}" if name != "recipe" else "another one"
            raise StoreError(
                f"{target}: this sweep was begun with {name} {told}; go on with the same, choose "
                "another --run name, or delete that folder"
            )


def _run_trials(
    recipe: Recipe,
    run: Folder,
    target: Folder,
    method: str,
    space: Space,
    trials: int,
    resources: Resources,
    progress: Progress,
    minutes: float | None,
) -> Any:
    """Tune's result grid."""
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    share = runtime.share_of(resources)
    values = recipe.model_dump(mode="json")
    epochs = _epochs(recipe, method)

    def trial(drawn: dict[str, Any]) -> None:
        own = target / f"trial-{tune.get_context().get_trial_id()}"
        if own.exists(GIVEN_UP):  # Tune tries it again, as if its node had been lost
            raise DyeFreeNetError(own.read_json(GIVEN_UP)["error"])
        try:
            _train_trial(recipes.validate(values), run, own, method, drawn, resources, share)
        except DyeFreeNetError as error:
            own.write_json(GIVEN_UP, {"error": str(error)})
            raise

    class Told(tune.Callback):
        """Says how each trial does; Tune keeps it with the sweep, so it holds plain values only."""

        def say(self, trials: list[Any], trial: Any, text: str) -> None:
            Progress().say("sweep", f"trial {trials.index(trial) + 1} {text}")

        def note(self, trials: list[Any], trial: Any, status: str) -> None:
            """Leave the counts for ``dyefreenet status``; of this one, Tune's own comes later."""
            states = Counter(status if one is trial else one.status for one in trials)
            names = {"done": "TERMINATED", "failed": "ERROR", "running": "RUNNING"}
            with suppress(StorageError):
                target.write_json(PROGRESS, {name: states[word] for name, word in names.items()})

        def on_trial_start(self, iteration, trials, trial, **info):  # type: ignore[no-untyped-def]
            settings = ", ".join(f"{name}={_short(value)}" for name, value in trial.config.items())
            self.say(trials, trial, f"started: {settings}")
            self.note(trials, trial, "RUNNING")

        def on_trial_result(self, iteration, trials, trial, result, **info):  # type: ignore[no-untyped-def]
            figures = ", ".join(
                f"{aim.title} {result[aim.figure]:.4g}" for aim in AIMS if aim.figure in result
            )
            self.say(trials, trial, f"epoch {result[EPOCHS]:g} of {epochs}: {figures}")

        def on_trial_complete(self, iteration, trials, trial, **info):  # type: ignore[no-untyped-def]
            self.say(trials, trial, "ended")
            self.note(trials, trial, "TERMINATED")
            results = [one.last_result or {} for one in trials]
            Progress().say("sweep", standing(results, epochs))

        def on_trial_error(self, iteration, trials, trial, **info):  # type: ignore[no-untyped-def]
            self.say(trials, trial, "failed; the others go on")
            self.note(trials, trial, "ERROR")

    # The trainers of a trial book their own CPUs; a CPU booked here would starve them.
    trainable = tune.with_resources(trial, {"CPU": 0.01})
    experiment = f"{target.uri}/tune"
    progress.say("sweep", f"{trials} trials of {method}, over {', '.join(space)}")
    if tune.Tuner.can_restore(experiment):
        tuner = tune.Tuner.restore(
            experiment, trainable, resume_unfinished=True, restart_errored=False
        )
        return tuner.fit()
    first = starting_point(space, recipe)
    search = OptunaSearch(
        _distributions(space),
        metric=[aim.figure for aim in AIMS],
        mode=[aim.mode for aim in AIMS],
        sampler=optuna.samplers.TPESampler(seed=recipe.seed, multivariate=True),
        points_to_evaluate=[{name: _plain(value) for name, value in first.items()}]
        if first
        else None,
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=trials,
            search_alg=ConcurrencyLimiter(search, runtime.parallel_steps(resources)),
            scheduler=ASHAScheduler(  # by the first of the aims: it is the task
                time_attr=EPOCHS,
                metric=AIMS[0].figure,
                mode=AIMS[0].mode,
                max_t=epochs + 1,
                grace_period=(epochs + 1) // 2,  # a slow learner may lead by then
                reduction_factor=2,
            ),
            time_budget_s=None if minutes is None else 60 * minutes,
            trial_dirname_creator=lambda one: one.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=target.uri,
            verbose=0,
            callbacks=[Told()],
            failure_config=tune.FailureConfig(max_failures=3),  # a trial goes on elsewhere
        ),
    )
    return tuner.fit()


def _train_trial(
    recipe: Recipe,
    run: Folder,
    own: Folder,
    method: str,
    drawn: dict[str, Any],
    resources: Resources,
    share: runtime.Share,
) -> None:
    """The stages of one trial, one after the other, each published in the trial's own folder.

    Reports to Tune every epoch of the method's own stages and, at the end, the figures of the
    weights that are kept.
    """
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    class Reported(TuneReportCallback):  # type: ignore[misc]  # it declares no types
        """Of several stages, epochs go on counting.

        The last epoch is told below, with the weights saved: a trial that is stopped for it would
        have been trained for nothing.
        """

        def __init__(self, before: int) -> None:
            super().__init__()
            self.before = before

        def after_report(self, run_context: Any, metrics: list[Any], checkpoint: Any) -> None:
            mine = metrics[0] | {EPOCHS: self.before + metrics[0]["epoch"]}
            if mine[EPOCHS] < total:
                super().after_report(run_context, [mine], checkpoint)

    own.write_json(VALUES, unpacked(drawn))
    changed = recipes.change(recipe, unpacked(drawn))
    stages = trained(recipe, changed, method)
    shared = {name: run / name for name in ("ingest", *STAGES) if name not in stages}
    before, total, figures = 0, _epochs(changed, method), {}
    for name in stages:
        counts = name in METHODS[method]
        callbacks = [Reported(before)] if counts else []
        manifest = train_once(
            changed, name, own, resources.workers, share, shared, callbacks=callbacks
        )
        if counts:
            before += STAGES[name].config(changed).epochs
            figures = manifest["figures"]
    tune.report(figures | {EPOCHS: float(before), "finished": True})


def train_once(
    recipe: Recipe,
    stage: str,
    place: Folder,
    workers: int,
    share: runtime.Share,
    shared: dict[str, Folder],
    say: Callable[[str], None] = lambda line: None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """What a stage's manifest says, in a folder of its own; trained now if it is not done.

    Args:
        shared: Steps that lie elsewhere, by name.
        say: Told when it starts and when it is done.

    Raises:
        StoreError: It was trained there with other settings.
    """
    folder = place / stage
    config = next(step.config for step in steps_of(recipe) if step.name == stage)
    mark, manifest = fingerprint(config, {}), folder.manifest()
    if manifest is not None:
        if manifest["fingerprint"] != mark:
            raise StoreError(
                f"{folder}: trained with other settings than now; delete {place.parent}, or choose "
                "another --run name"
            )
        return manifest
    say(f"{stage}: started")
    facts = train(recipe, stage, place, mark, workers, share, shared=shared, callbacks=callbacks)
    folder.publish(mark, config, **facts)
    say(f"{stage}: done")
    return facts


def _epochs(recipe: Recipe, method: str) -> int:
    return sum(STAGES[stage].config(recipe).epochs for stage in METHODS[method])


def _distributions(space: Space) -> dict[str, Any]:
    """Ranges as Optuna knows them. Its choices are plain values; others travel as JSON."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for name, one in space.items():
        if one.kind == "choice":
            found[name] = CategoricalDistribution([_plain(value) for value in one.values])
        elif one.kind == "whole":
            found[name] = IntDistribution(*one.values)
        else:
            low, high = one.values
            found[name] = FloatDistribution(low, high, log=one.kind == "log")
    return found


def _plain(value: Any) -> Any:
    """A list as JSON, since Optuna's choices cannot be lists."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def unpacked(drawn: dict[str, Any]) -> dict[str, Any]:
    """What Optuna drew, with lists as they were written in the space."""
    return {
        name: json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        for name, value in drawn.items()
    }


def _summary(
    results: Any, target: Folder, recipe: Recipe, method: str, first: dict[str, Any] | None
) -> dict[str, Any]:
    """A row a trial, the Pareto front and the best of those that were trained to the end.

    Args:
        first: The recipe's own settings, if a trial has them.

    Raises:
        DyeFreeNetError: There are none.
    """
    total = _epochs(recipe, method)
    rows: list[dict[str, Any]] = []
    for result in results:
        metrics, own = result.metrics or {}, target / f"trial-{Path(result.path).name}"
        if not own.exists(VALUES):
            continue  # the time was over before it began
        state = "failed" if result.error else "done" if metrics.get("finished") else "stopped"
        rows.append(
            {
                "values": own.read_json(VALUES),  # of a failed one, Tune forgets them
                "state": state,
                "epochs": metrics.get(EPOCHS, 0.0),
                "seconds": metrics.get("time_total_s"),
                "error": str(result.error).splitlines()[-1] if result.error else None,
                "curve": _curve(result),
            }
            | {aim.figure: metrics.get(aim.figure) for aim in AIMS}
        )
    done = [
        place
        for place, row in enumerate(rows)
        if row["state"] == "done" and all(row[aim.figure] is not None for aim in AIMS)
    ]
    if not done:
        errors = [row["error"] for row in rows if row["error"]]
        raise DyeFreeNetError(
            f"sweep: expected a trial trained to its end, found none of {len(rows)}"
            + (f"; the first failed with: {errors[0]}" if errors else "")
        )
    finished = [rows[place] for place in done]
    mine = next((place for place, row in enumerate(finished) if row["values"] == first), None)
    spent = sum(float(row["epochs"]) for row in rows)
    return {
        "method": method,
        "aims": [aim._asdict() for aim in AIMS],
        "trials": rows,
        "front": [done[place] for place in pareto(finished)],
        "best": done[ranked(finished, mine)[0]],
        "epochs_saved": 1.0 - spent / (total * len(rows)),
    }


def _curve(result: Any) -> list[list[float]]:
    """Epoch and the first of the aims, of every report of a trial."""
    told = result.metrics_dataframe
    if told is None or AIMS[0].figure not in told or EPOCHS not in told:
        return []
    pairs = told[[EPOCHS, AIMS[0].figure]].dropna().drop_duplicates(EPOCHS, keep="last")
    return [[float(epoch), float(value)] for epoch, value in pairs.itertuples(index=False)]


def standing(results: Sequence[dict[str, Any]], epochs: int) -> str:
    """The best five trials so far, for a terminal while a sweep goes on.

    Args:
        results: What each trial last told, empty if nothing yet.
    """
    told = [(number, one) for number, one in enumerate(results, 1) if AIMS[0].figure in one]
    sign = 1 if AIMS[0].mode == "min" else -1
    told.sort(key=lambda entry: sign * entry[1][AIMS[0].figure])
    lines = [["trial", "epoch", *(aim.title for aim in AIMS)]]
    for number, one in told[:5]:
        figures = [f"{one[aim.figure]:.4g}" if aim.figure in one else "-" for aim in AIMS]
        lines.append([str(number), f"{one[EPOCHS]:g} of {epochs}", *figures])
    return "\n".join(["best so far, by the first figure:", *_columns(lines, " " * 17)])


def table_text(found: dict[str, Any]) -> str:
    """The trials of a summary, for a terminal."""
    heads = ["trial", "state", "epochs", *(aim["title"] for aim in found["aims"]), "settings"]
    lines = []
    for number, row in enumerate(found["trials"]):
        mark = "best" if number == found["best"] else "front" if number in found["front"] else ""
        figures = [
            "-" if row[aim["figure"]] is None else f"{row[aim['figure']]:.4g}"
            for aim in found["aims"]
        ]
        settings = ", ".join(f"{name}={_short(value)}" for name, value in row["values"].items())
        state = f"{row['state']} {mark}".strip()
        lines.append([str(number + 1), state, f"{row['epochs']:g}", *figures, settings])
    saved = f"early stopping saved {100 * found['epochs_saved']:.0f} % of the epochs"
    return "\n".join([*_columns([heads, *lines]), saved])


def _columns(lines: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        indent
        + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _study(found: dict[str, Any], space: Space) -> tuple[bytes, dict[str, float]]:
    """The trials as a file that optuna-dashboard opens, and how much each field matters.

    Importance is PED-ANOVA's, for the first of the aims; empty under two finished trials.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState, create_trial

    distributions = _distributions(space)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings(
            "ignore", "PedAnova"
        )  # that low is good; all three aims are so told
        place = Path(folder) / "optuna.journal"
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(place))),
            study_name=found["method"],
            directions=["minimize" if aim.mode == "min" else "maximize" for aim in AIMS],
        )
        study.set_metric_names([aim.title for aim in AIMS])
        for row in found["trials"]:
            figures = [row[aim.figure] for aim in AIMS]
            good = row["state"] == "done" and None not in figures
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if good else TrialState.FAIL,
                    values=figures if good else None,
                    params={name: _plain(value) for name, value in row["values"].items()},
                    distributions=distributions,
                    user_attrs={"state": row["state"], "epochs": row["epochs"]},
                )
            )
        importance: dict[str, float] = {}
        if sum(one.state == TrialState.COMPLETE for one in study.trials) > 1:
            importance = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target=lambda one: one.values[0]
            )
        return place.read_bytes(), {name: float(share) for name, share in importance.items()}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
