"""Spaces of sweeps: what is refused before compute starts, what a trial trains, what is chosen."""

import pytest

from dyefreenet import recipes
from dyefreenet.errors import ConfigError
from dyefreenet.space import (
    AIMS,
    METHODS,
    Range,
    check_space,
    default_space,
    pareto,
    ranked,
    read_space,
    starting_point,
    trained,
)

DEMO = recipes.load("demo")


@pytest.mark.parametrize("method", METHODS)
def test_the_default_space_holds_for_every_method_and_starts_at_the_recipe(method):
    space = default_space(method)
    check_space(space, DEMO, method)
    section = METHODS[method][0].removesuffix("_scratch")
    assert starting_point(space, DEMO)[f"{section}.lr"] == getattr(DEMO, section).lr
    assert starting_point({f"{section}.lr": Range("log", (1e-9, 1e-8))}, DEMO) is None


def test_what_the_paper_leaves_open_can_be_searched():
    space = {
        "primary.mse_weight": Range("log", (1e-3, 1e2)),
        "primary.perceptual_weight": Range("uniform", (0.0, 1.0)),
        "primary.d_mse_weight": Range("uniform", (0.0, 2.0)),
        "refine.lr": Range("log", (1e-5, 1e-2)),
        "primary.decay_epoch": Range("whole", (1, 3)),
        "primary.gamma": Range("uniform", (0.05, 0.5)),
        "primary.discriminator_lr_factor": Range("log", (0.1, 10.0)),
        "generator.norm": Range("choice", ("batch", "group")),
        "grid.window": Range("choice", ([-1000, 1000], [-200, 600])),
    }
    check_space(space, DEMO, "cascade")


@pytest.mark.parametrize(
    ("name", "one", "told"),
    [
        ("primary.lamda", Range("log", (1e-3, 1.0)), "no such field; did you mean"),
        ("primary.lr", Range("log", (1.0, 0.1)), "low < high"),
        ("primary.lr", Range("log", (0.0, 0.1)), "above 0"),
        ("primary.lr", Range("log", ("a", "b")), "two numbers"),
        ("primary.lr", Range("uniform", (float("nan"), 1.0)), "two numbers"),
        ("primary.lr", Range("uniform", (-1.0, 1.0)), "greater than 0"),
        ("primary.epochs", Range("whole", (1.5, 3.0)), "two whole numbers"),
        ("primary.decay", Range("choice", ("step", "steep")), "primary.decay"),
        ("primary", Range("choice", (1,)), "primary"),
        ("ingest.test", Range("uniform", (0.1, 0.3)), "of the data"),
        ("phantom.patients", Range("whole", (10, 20)), "of the data"),
        ("unet.lr", Range("log", (1e-4, 1e-2)), "a field that changes primary"),
        ("evaluate.resamples", Range("whole", (10, 20)), "a field that changes primary"),
    ],
)
def test_what_cannot_be_searched_is_one_line_before_anything_starts(name, one, told):
    with pytest.raises(ConfigError) as caught:
        check_space({name: one}, DEMO, "primary")
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "primary.lr: 3", "primary.lr: {log: 3}", "primary.lr: {lag: [1, 2]}",
     "primary.lr: {log: [1, 2], choice: [3]}", "primary.lr: {choice: []}", "a: [", "\x00",
     "primary.lr: {log: [a, b]}"],
)  # fmt: skip
def test_a_file_that_is_no_space_is_one_line(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^(--space|space)"):
        read_space(str(path))
    with pytest.raises(ConfigError, match="expected a YAML file"):
        read_space(str(tmp_path / "none.yaml"))


def test_a_space_is_read_as_written(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "primary.lr: {log: [1e-4, 1e-2]}\n"  # which YAML takes for text
        "primary.epochs: {whole: [2, 4]}\n"
        "grid.window: {choice: [[-200, 600], [-160, 440]]}\n"
    )
    assert read_space(str(path)) == {
        "primary.lr": Range("log", (1e-4, 1e-2)),
        "primary.epochs": Range("whole", (2, 4)),
        "grid.window": Range("choice", ([-200, 600], [-160, 440])),
    }


@pytest.mark.parametrize(
    ("changes", "method", "stages"),
    [
        ({"primary.lr": 0.01}, "primary", ("primary",)),
        ({"primary.lr": 0.01}, "cascade", ("primary", "refine")),
        ({"refine.lr": 0.01}, "cascade", ("primary", "refine")),
        ({"ssl.lr": 0.01}, "primary", ("ssl", "primary")),
        ({"generator.base": 4}, "cascade", ("ssl", "primary", "refine")),
        ({"unet.lr": 0.01}, "unet", ("unet",)),
        ({"generator.base": 4}, "unet", ("unet",)),
        ({"grid.window": [-100, 500]}, "primary_scratch", ("primary_scratch",)),
    ],
)
def test_a_trial_trains_what_it_changes_and_shares_the_rest(changes, method, stages):
    assert trained(DEMO, recipes.change(DEMO, changes), method) == stages


def row(mae, psnr, texture):
    return dict(zip((aim.figure for aim in AIMS), (mae, psnr, texture), strict=True))


def test_the_front_holds_those_that_none_beats_in_all():
    rows = [row(90, 26, 0.1), row(80, 25, 0.2), row(95, 25, 0.3), row(90, 26, 0.1)]
    assert pareto(rows) == [0, 1, 3]  # 2 is worse than 0 in all; equals do not beat each other
    assert pareto([row(90, 26, 0.1)]) == [0]


def test_the_best_is_near_the_best_in_all_and_no_wreck_changes_that():
    blurred = row(120, 27.0, 2.0)
    balanced = row(92, 26.8, 0.2)
    rows = [blurred, balanced, row(90, 24.0, 0.1), row(110, 26.5, 0.3)]
    assert ranked(rows)[0] == 1
    assert ranked([*rows, row(5000, -30.0, 50.0)])[0] == 1
    assert ranked([blurred]) == [0]


def test_what_trades_one_figure_for_another_is_no_better_than_the_recipe():
    own = row(90, 26.0, 0.10)
    trades = [row(60, 25.9, 0.05), row(91, 27.0, 0.05)]
    slightly_better = row(89, 26.1, 0.10)
    assert ranked([own, *trades])[0] != 0
    assert ranked([own, *trades], own=0)[0] == 0
    assert ranked([own, *trades, slightly_better], own=0)[0] == 3
