"""The loop: epochs, rates, reports, and what it does with a loss that is no number."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from dyefreenet.config import GridConfig, StageConfig
from dyefreenet.train import loop
from dyefreenet.train.loop import fit, learning_rate
from dyefreenet.train.state import TrainState, adam, update

CONFIG = StageConfig(epochs=3, batch=2, lr=0.1, decay_epoch=2, weight_decay=0.0)


class Line:
    """A stage of one weight that learns the mean of what it sees."""

    SCORE = "quality"
    loss_factor = 1.0

    def step(self, state, batch, config, grid):
        loss = ((state.networks["line"](batch["plain"].mean((1, 2, 3))[:, None])) ** 2).mean()
        loss = loss * self.loss_factor
        update(state, "line", loss)
        return {"square": loss}

    def validate(self, state, batches, config, grid):
        return {"slices": float(sum(len(batch["plain"]) for batch in batches))}


def run(stage=None, start=0, config=CONFIG, batches=None):
    torch.manual_seed(0)
    line = nn.Linear(1, 1)
    state = TrainState({"line": line}, {"line": adam(line, config)}, step=start)
    batch = {"plain": np.full((2, 3, 4, 4), 100, np.int16)}
    reports = []
    fit(
        stage or Line(),
        state,
        batches or iter([batch] * 20),
        config,
        GridConfig(size=32),
        steps=12,
        epoch_steps=4,
        device=torch.device("cpu"),
        validation=lambda: iter([batch] * 3),
        report=reports.append,
        identify=lambda step: f"sample {step}",
    )
    return state, reports


def test_a_part_of_the_batch_weighs_as_many_items_as_it_has(monkeypatch):
    monkeypatch.setattr(loop, "world_size", lambda: 3)
    monkeypatch.setattr(loop, "of_first_worker", lambda value, device: value)
    seen = []

    class Weighed(Line):
        def step(self, state, batch, config, grid):
            seen.append(state.weight)
            return super().step(state, batch, config, grid)

    parts = [{"plain": np.zeros((n, 3, 4, 4), np.int16)} for n in (1, 1, 2)] * 4
    run(Weighed(), config=CONFIG.model_copy(update={"batch": 4}), batches=iter(parts))
    assert seen == [0.75, 0.75, 1.5] * 4  # a mean over the three is that over the four items


def test_one_report_an_epoch_with_means_rates_and_validation():
    state, reports = run()
    assert state.step == 12
    assert [report["epoch"] for report in reports] == [1.0, 2.0, 3.0]
    assert [report["lr"] for report in reports] == pytest.approx([0.1, 0.1, 0.01])
    assert [report["validation/slices"] for report in reports] == [6.0, 6.0, 6.0]
    assert reports[0]["loss/square"] > reports[-1]["loss/square"]


def test_a_resumed_loop_stops_at_the_same_step():
    state, reports = run(start=8)
    assert state.step == 12 and len(reports) == 1


def test_nan_stops_the_run_and_nothing_is_saved():
    stage = Line()
    stage.loss_factor = math.nan
    reports = []
    with pytest.raises(
        FloatingPointError, match=r"step 0: expected finite .* square=nan.* batch was sample 0"
    ):
        reports += run(stage)[1]
    assert not reports


class Worse(Line):
    """Best in its second epoch."""

    def validate(self, state, batches, config, grid):
        return {"quality": -abs(state.step - 8.0)}


def test_patience_ends_a_run_that_gets_no_better_and_its_resume_too():
    config = CONFIG.model_copy(update={"patience": 1})
    state, reports = run(Worse(), config=config)
    assert [report["score"] for report in reports] == [-4.0, 0.0, -4.0] and state.stale == 1
    assert state.best == 0.0
    resumed = TrainState(state.networks, state.optimisers, step=8, best=0.0, stale=1)
    fit(
        Worse(),
        resumed,
        iter([]),
        config,
        GridConfig(size=32),
        steps=12,
        epoch_steps=4,
        device=torch.device("cpu"),
        validation=lambda: iter([]),
        report=lambda numbers: None,
    )
    assert resumed.step == 8


def test_waiting_for_batches_is_told():
    def slow():
        while True:
            time.sleep(0.02)
            yield {"plain": np.full((2, 3, 4, 4), 100, np.int16)}

    _, reports = run(batches=slow())
    assert reports[0]["waiting_share"] > 0.5


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("step", [1, 1, 0.1]),
        ("none", [1, 1, 1]),
        ("linear", [1, 2 / 3, 1 / 3]),
        ("cosine", [1, 0.75, 0.25]),
    ],
)
def test_decay_schedules(decay, rates):
    config = CONFIG.model_copy(update={"decay": decay, "lr": 1.0})
    assert [learning_rate(config, epoch) for epoch in (0, 1, 2)] == pytest.approx(rates)
