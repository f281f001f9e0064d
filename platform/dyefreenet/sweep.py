"""Search of a stage's settings: Ray Tune with Optuna, each trial a real Ray Train run. RAY."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dyefreenet import recipes, runtime
from dyefreenet.config import Recipe
from dyefreenet.errors import ConfigError, DyeFreeNetError
from dyefreenet.progress import Progress
from dyefreenet.runtime import Resources
from dyefreenet.stages import STAGES
from dyefreenet.stages.launch import make_trainer
from dyefreenet.store import Folder, fingerprint

OBJECTIVE = "validation/enhanced_mae_hu"  # a blurred vessel costs here, while PSNR forgives it

Space = dict[str, dict[str, list[Any]]]


def default_space(stage: str) -> Space:
    """Lambda, learning rate and decay, as the paper left them open (L1, S5, T1, T2)."""
    return {
        f"{stage}.mse_weight": {"log": [1e-3, 1e2]},
        f"{stage}.lr": {"log": [1e-5, 1e-2]},
        f"{stage}.decay": {"choice": ["step", "cosine", "linear", "none"]},
    }


def read_space(path: str) -> Space:
    """A space from YAML: ``field: {log: [low, high]}``, ``{uniform: ...}`` or ``{choice: [...]}``.

    Raises:
        ConfigError: Not a file of that form.
    """
    try:
        space = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--space {path}: expected a YAML file, found: {error}") from error
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"--space {path}: expected fields with ranges, found {space!r}")
    return space


def check_space(space: Space, recipe: Recipe) -> None:
    """Every name is a field of the recipe, and both ends of each range are values of it.

    Raises:
        ConfigError: Before anything has started.
    """
    for name, entry in space.items():
        kind, values = next(iter(entry.items())) if isinstance(entry, dict) and entry else ("", [])
        if kind not in ("log", "uniform", "choice") or not isinstance(values, list) or not values:
            raise ConfigError(
                f"space {name}: expected {{log: [low, high]}}, {{uniform: [low, high]}} or "
                f"{{choice: [...]}}, found {entry!r}"
            )
        if kind != "choice":
            ends = [float(value) for value in values]
            if len(ends) != 2 or not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
                raise ConfigError(f"space {name}: expected low < high, found {values}")
        for value in values:
            recipes.change(recipe, {name: value})


def sweep(
    recipe: Recipe,
    run: Folder,
    stage: str,
    space: Space,
    trials: int,
    resources: Resources,
    progress: Progress,
) -> dict[str, Any]:
    """Try settings of one stage on the validation split; the best becomes a recipe file.

    The steps that the stage needs are finished before, and all trials share them. A sweep that was
    killed goes on: its finished trials stay finished.

    Returns:
        The best trial: its values, its objective, and where its recipe lies.
    """
    import optuna
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Another stage, space, recipe or number of trials is another sweep, in a folder of its own.
    asked = {"stage": stage, "space": space, "trials": trials}
    mark = fingerprint(asked | {"recipe": recipe.model_dump(mode="json")}, {})
    target = run / "sweep" / f"{stage}-{mark}"
    share = runtime.share_of(resources)
    epochs, total = STAGES[stage].config(recipe).epochs, trials
    values = recipe.model_dump(mode="json")

    def trial(chosen: dict[str, Any]) -> None:
        changed = recipes.change(recipes.validate(values), chosen)
        name = f"trial-{tune.get_context().get_trial_id()}"
        make_trainer(
            changed,
            stage,
            run,
            target / name,
            "train",
            resources.workers,
            share,
            callbacks=[TuneReportCallback()],
        ).fit()

    param_space = {}
    for name, entry in space.items():
        kind, ends = next(iter(entry.items()))
        if kind == "choice":
            param_space[name] = tune.choice(ends)
        else:
            draw = tune.loguniform if kind == "log" else tune.uniform
            param_space[name] = draw(float(ends[0]), float(ends[1]))

    class Told(tune.Callback):
        """Says how each trial does; Tune keeps it with the sweep, so it holds plain values only."""

        def say(self, trials: list[Any], trial: Any, text: str) -> None:
            Progress().say("sweep", f"trial {trials.index(trial) + 1}/{total} {text}")

        def on_trial_start(self, iteration, trials, trial, **info):  # type: ignore[no-untyped-def]
            settings = ", ".join(f"{name}={_short(value)}" for name, value in trial.config.items())
            self.say(trials, trial, f"started: {settings}")

        def on_trial_result(self, iteration, trials, trial, result, **info):  # type: ignore[no-untyped-def]
            error = f"{result[OBJECTIVE]:.1f} HU, epoch {result['epoch']:g} of {epochs}"
            self.say(trials, trial, error)

        def on_trial_complete(self, iteration, trials, trial, **info):  # type: ignore[no-untyped-def]
            self.say(trials, trial, "ended")

        def on_trial_error(self, iteration, trials, trial, **info):  # type: ignore[no-untyped-def]
            self.say(trials, trial, "failed")

    trainable = tune.with_resources(trial, {"CPU": 0.01})  # the trainer inside books its own
    experiment = f"{target.uri}/tune"
    progress.say("sweep", f"{trials} trials of {stage}, over {', '.join(space)}")
    if tune.Tuner.can_restore(experiment):
        tuner = tune.Tuner.restore(
            experiment, trainable, resume_unfinished=True, restart_errored=True
        )
    else:
        search = ConcurrencyLimiter(
            OptunaSearch(metric=OBJECTIVE, mode="min", seed=recipe.seed),
            max_concurrent=runtime.parallel_steps(resources),
        )
        scheduler = ASHAScheduler(
            time_attr="epoch", metric=OBJECTIVE, mode="min", max_t=epochs + 1, grace_period=1
        )
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(num_samples=trials, search_alg=search, scheduler=scheduler),
            run_config=tune.RunConfig(
                name="tune", storage_path=target.uri, verbose=0, callbacks=[Told()]
            ),
        )
    results = tuner.fit()
    rows: list[dict[str, Any]] = []
    for number in range(len(results)):
        result = results[number]
        metrics = result.metrics or {}
        rows.append(
            {
                "values": result.config,
                "objective": metrics.get(OBJECTIVE),
                "psnr": metrics.get("validation/psnr"),
                "epochs": metrics.get("epoch"),
                "error": str(result.error).splitlines()[-1] if result.error else None,
            }
        )
    good = [row for row in rows if row["objective"] is not None]
    if not good:
        raise DyeFreeNetError(f"sweep: expected a finished trial, found {len(rows)} that failed")
    best = min(good, key=lambda row: row["objective"])
    target.write_json("trials.json", {"objective": OBJECTIVE, "trials": rows})
    tuned = recipes.change(recipe, best["values"]).model_copy(
        update={"name": f"{recipe.name}-tuned"}
    )
    content = "# Found by a sweep; use it with --recipe.\n" + yaml.safe_dump(
        tuned.model_dump(mode="json"), sort_keys=False
    )
    target.write("best.yaml", content.encode())
    return best | {"recipe": f"{target}/best.yaml"}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
