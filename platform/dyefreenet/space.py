"""What a sweep searches, what its trials train, and how it chooses. No Ray.

A space is fields of the recipe, each with a range: ``{"primary.lr": Range("log", (1e-5, 1e-2))}``,
or in YAML ``primary.lr: {log: [1.0e-5, 1.0e-2]}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from dyefreenet import recipes
from dyefreenet.config import Recipe
from dyefreenet.errors import ConfigError
from dyefreenet.plan import Step, steps_of

# What a sweep can tune: the stages whose settings it searches, in the order of training.
METHODS: dict[str, tuple[str, ...]] = {
    "unet": ("unet",),
    "pix2pix": ("pix2pix",),
    "primary_scratch": ("primary_scratch",),
    "primary": ("primary",),
    "cascade": ("primary", "refine"),
}
DATA = ("phantom", "ingest")  # steps that all trials share

Kind = Literal["log", "uniform", "whole", "choice"]


@dataclass(frozen=True)
class Range:
    """Values that a field may take.

    ``log``, ``uniform``: numbers from the first to the second, drawn evenly by logarithm or value;
    ``whole``: whole numbers, both ends included; ``choice``: any of the values.
    """

    kind: Kind
    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        if self.kind == "choice":
            return json.dumps(value) in map(json.dumps, self.values)
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]


Space = dict[str, Range]


class Aim(NamedTuple):
    """A figure of the validation patients by which trials are compared."""

    figure: str  # as training reports it
    title: str
    mode: Literal["min", "max"]


# PSNR alone rewards blur; the other two make it pay. The first two say how good it is.
AIMS = (
    Aim("validation/enhanced_mae_hu", "Error where contrast went, HU", "min"),
    Aim("validation/psnr_window600", "PSNR in -200...400 HU, dB", "max"),
    Aim("validation/texture_distance", "Texture distance", "min"),
)


def default_space(method: str) -> Space:
    """What the paper leaves open or chose without saying how (L1, S5, T1, T2).

    The same for every method, as far as it has the fields.
    """
    space: Space = {}
    for stage in METHODS[method]:
        section = stage.removesuffix("_scratch")
        space |= {
            f"{section}.lr": Range("log", (1e-4, 1e-2)),
            f"{section}.decay": Range("choice", ("step", "cosine", "linear", "none")),
            # lambda of Eq. 5, in Pix2Pix that of its L1
            f"{section}.{'l1' if stage == 'pix2pix' else 'mse'}_weight": Range("log", (1e-3, 1e2)),
            f"{section}.vessel_weight": Range("uniform", (0.0, 12.0)),
        }
        if stage != "unet":  # it has no discriminator
            space[f"{section}.discriminator_lr_factor"] = Range("log", (0.05, 5.0))
    return space


def read_space(path: str) -> Space:
    """A space from a YAML file.

    Raises:
        ConfigError: Not a file of that form.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--space {path}: expected a YAML file, found: {error}") from error
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"--space {path}: expected fields with ranges, found {values!r}")
    return {str(name): _range(str(name), entry) for name, entry in values.items()}


def _range(name: str, entry: Any) -> Range:
    kind: Any
    kind, values = next(iter(entry.items())) if isinstance(entry, dict) and entry else ("", None)
    if kind not in get_args(Kind) or len(entry) != 1 or not isinstance(values, list) or not values:
        raise ConfigError(
            f"space {name}: expected {{log: [low, high]}}, {{uniform: [low, high]}}, "
            f"{{whole: [low, high]}} or {{choice: [...]}}, found {entry!r}"
        )
    if kind == "choice":
        return Range(kind, tuple(values))
    try:  # YAML takes 1e-3 for text
        ends = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"space {name}: expected two numbers, found {values}") from error
    if kind == "whole" and all(end.is_integer() for end in ends):
        ends = tuple(int(end) for end in ends)
    return Range(kind, ends)


def check_space(space: Space, recipe: Recipe, method: str) -> None:
    """Every name is a field that the method's training depends on, with values that it may take.

    Raises:
        ConfigError: Before anything has started.
    """
    if not space:
        raise ConfigError("space: expected fields with ranges, found none")
    for name, one in space.items():
        if one.kind != "choice":
            kind = int if one.kind == "whole" else (int, float)
            if (
                len(one.values) != 2
                or not all(isinstance(end, kind) and math.isfinite(end) for end in one.values)
                or not one.values[0] < one.values[1]
            ):
                what = "two whole numbers" if one.kind == "whole" else "two numbers"
                raise ConfigError(
                    f"space {name}: expected {what}, low < high, found {list(one.values)}"
                )
            if one.kind == "log" and one.values[0] <= 0:
                raise ConfigError(f"space {name}: expected ends above 0, found {one.values[0]}")
        for value in one.values:
            changed = recipes.change(recipe, {name: value})
            if any(_changed(recipe, changed, step) for step in DATA):
                raise ConfigError(
                    f"space {name}: expected a field of training, found one of the data, which "
                    "all trials share"
                )
            if value != _value(recipe, name) and not _affected(recipe, changed, method):
                raise ConfigError(
                    f"space {name}: expected a field that changes {method}, found one that does not"
                )


def starting_point(space: Space, recipe: Recipe) -> dict[str, Any] | None:
    """The recipe's own values, for the first trial; None where one lies outside of its range."""
    values = {name: _value(recipe, name) for name in space}
    return values if all(values[name] in space[name] for name in space) else None


def trained(recipe: Recipe, changed: Recipe, method: str) -> tuple[str, ...]:
    """Stages that a trial trains: the method's own, and what they need that the change touches.

    All others are those of the run, which every trial shares.
    """
    own = METHODS[method]
    steps = {step.name: step for step in steps_of(changed)}
    wanted: dict[str, bool] = {}  # each with whether a trial trains its own

    def visit(name: str) -> bool:
        if name not in wanted:
            again = [visit(need) for need in steps[name].needs if need not in DATA]
            wanted[name] = name in own or any(again) or _changed(recipe, changed, name)
        return wanted[name]

    for name in own:
        visit(name)
    return tuple(name for name in steps if wanted.get(name))


def _affected(recipe: Recipe, changed: Recipe, method: str) -> bool:
    return any(_changed(recipe, changed, name) for name in trained(recipe, changed, method))


def _changed(recipe: Recipe, changed: Recipe, step: str) -> bool:
    """Whether a step is another one than the recipe's; one that the recipe lacks is."""
    was, now = (
        {one.name: one for one in steps_of(each)}.get(step, Step(step, {}))
        for each in (recipe, changed)
    )
    return was != now


def _value(recipe: Recipe, name: str) -> Any:
    value: Any = recipe.model_dump(mode="json")
    for part in name.split("."):
        value = value[part] if isinstance(value, dict) and part in value else None
    return value


# ---- choosing ------------------------------------------------------------------------------------


def pareto(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Positions of the rows that no other beats in every aim at once.

    Args:
        rows: Each with the figures of all ``AIMS``.
    """
    costs = [[_cost(row, aim) for aim in AIMS] for row in rows]
    return [
        place
        for place, mine in enumerate(costs)
        if not any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in costs
        )
    ]


def ranked(rows: Sequence[dict[str, Any]], own: int | None = None) -> list[int]:
    """Positions of the rows, the best first: nearest to the best in all aims together.

    Of each aim, 0 is the best row and 1 the median of the rows that are not; the sum counts. So
    a trial that went wrong altogether does not make all others look alike.

    Args:
        own: Position of the recipe's own settings, if they are there. Rows that are worse than
            those in one of the first two aims come last: a trade is no improvement.
    """
    totals = [0.0] * len(rows)
    for aim in AIMS:
        costs = [_cost(row, aim) for row in rows]
        least = min(costs)
        worse = sorted(cost - least for cost in costs if cost > least)
        unit = worse[len(worse) // 2] if worse else 1.0
        totals = [total + (cost - least) / unit for total, cost in zip(totals, costs, strict=True)]
    traded = [
        own is not None and any(_cost(row, aim) > _cost(rows[own], aim) for aim in AIMS[:2])
        for row in rows
    ]
    return sorted(range(len(rows)), key=lambda place: (traded[place], totals[place]))


def _cost(row: dict[str, Any], aim: Aim) -> float:
    value = float(row[aim.figure])
    return value if aim.mode == "min" else -value
