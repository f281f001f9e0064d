"""The steps of a run: what each is, what it needs, and which are done already.

Planning reads manifests and imports neither Ray nor torch, so a finished run says so in a second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyefreenet.config import PhantomConfig, Recipe
from dyefreenet.errors import ConfigError, StoreError
from dyefreenet.store import Folder, fingerprint

# Every stage after its parents; else the longest first, which ends soonest where two go at a time.
TRAINED = ("ssl", "primary", "pix2pix", "primary_scratch", "unet", "refine")


@dataclass(frozen=True)
class Step:
    """A folder of the run, made once. Workers and GPUs are no part of its identity."""

    name: str
    config: dict[str, Any]  # hashed into the manifest, which is written last
    needs: tuple[str, ...] = ()  # steps whose folders it reads


@dataclass(frozen=True)
class Planned:
    """A step with its fingerprint; ``done`` if its folder already holds just this."""

    step: Step
    fingerprint: str
    needs: dict[str, str]
    done: bool


def steps_of(recipe: Recipe) -> list[Step]:
    """The cascade of a recipe, in an order in which every step comes after its needs."""
    values = recipe.model_dump(mode="json")
    steps = []
    if recipe.phantom is not None:
        steps.append(Step("phantom", {"phantom": values["phantom"]}))
    grid = {name: values["grid"][name] for name in ("pixel_mm", "size")}
    steps.append(
        Step(
            "ingest",
            {"ingest": values["ingest"], "grid": grid},
            ("phantom",) if recipe.phantom is not None else (),
        )
    )
    for name in TRAINED:
        if name == "ssl" and not any("ssl" in recipe.needs(stage) for stage in TRAINED):
            continue
        if name == "primary_scratch" and not recipe.ablation:
            continue
        if name in ("unet", "pix2pix") and not recipe.baselines:
            continue
        section = name.removesuffix("_scratch")
        config = {section: values[section], "grid": values["grid"], "seed": recipe.seed}
        if section in ("ssl", "primary", "refine"):
            config["generator"] = values["generator"]
        steps.append(Step(name, config, ("ingest", *recipe.needs(name))))
    trained = tuple(step.name for step in steps if step.name in TRAINED and step.name != "ssl")
    steps.append(
        Step(
            "evaluate",
            {"evaluate": values["evaluate"], "grid": values["grid"]},
            ("ingest", *trained),
        )
    )
    return steps


def plan(recipe: Recipe, run: Folder, only: Sequence[str] = ()) -> list[Planned]:
    """Which steps are done, and which are to do.

    Args:
        only: Names of the steps wanted; empty: all. What they need must be done or wanted too.

    Raises:
        StoreError: A finished step has another config than the recipe says; its field is named.
        ConfigError: A step that does not exist, or whose needs are missing.
    """
    if recipe.phantom is None and not recipe.ingest.paired:
        raise ConfigError(
            "ingest.paired: expected a folder of plain and contrast CT, found none; name one with "
            "--set ingest.paired='[FOLDER]', or use --recipe demo for made-up CT"
        )
    steps = {step.name: step for step in steps_of(recipe)}
    for name in only:
        if name not in steps:
            raise ConfigError(f"--stage: expected {', '.join(steps)}, found {name!r}")
    planned: dict[str, Planned] = {}
    for step in steps.values():
        needs = {name: planned[name].fingerprint for name in step.needs}
        mark = fingerprint(step.config, needs)
        manifest = (run / step.name).manifest()
        if manifest is not None and manifest["fingerprint"] != mark:
            if not _older(step, needs, manifest):
                raise StoreError(_difference(run, step, manifest))
            mark = manifest["fingerprint"]  # by which later steps name it
        planned[step.name] = Planned(step, mark, needs, done=manifest is not None)
    if not only:
        return list(planned.values())
    for name in only:
        for need in steps[name].needs:
            if not planned[need].done and need not in only:
                raise ConfigError(
                    f"--stage {name}: it needs {need!r}, which is not done in {run}; run "
                    f"--stage {need} first"
                )
    return [planned[name] for name in steps if name in only]


def _older(step: Step, needs: dict[str, str], manifest: dict[str, Any]) -> bool:
    """Whether a step was finished when its config had fewer fields, which have their defaults now.

    A new field with a default changes no result, so it must not cost anybody a training.
    """

    def filled(was: Any, now: Any, default: Any) -> Any:
        if not (isinstance(was, dict) and isinstance(now, dict) and isinstance(default, dict)):
            return was
        kept = {key: filled(was[key], now.get(key), default.get(key)) for key in was}
        return {key: default[key] for key in now if key in default} | kept

    defaults = Recipe(phantom=PhantomConfig()).model_dump(mode="json")
    config = json.loads(json.dumps(step.config))
    return manifest.get("needs") == needs and filled(manifest["config"], config, defaults) == config


def _difference(run: Folder, step: Step, manifest: dict[str, Any]) -> str:
    """One line that names the first field in which a finished step differs from the recipe."""

    def walk(was: Any, now: Any, path: str) -> str | None:
        if isinstance(was, dict) and isinstance(now, dict):
            for key in sorted(set(was) | set(now)):
                found = walk(was.get(key), now.get(key), f"{path}.{key}" if path else key)
                if found:
                    return found
            return None
        if was == now:
            return None
        return f"{path}={json.dumps(was)}, the recipe says {json.dumps(now)}"

    # JSON has no tuples: compare what would be read back.
    found = walk(manifest["config"], json.loads(json.dumps(step.config)), "")
    return (
        f"{run}/{step.name}: was made with {found or 'other inputs'}; choose another --run name, "
        f"or delete that folder and those that need it"
    )
