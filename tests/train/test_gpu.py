"""What a GPU is given: batches ahead, and steps that are recorded once; the latter needs a GPU."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from dyefreenet import recipes
from dyefreenet.config import GridConfig, StageConfig
from dyefreenet.stages import STAGES
from dyefreenet.train import gpu, loop
from dyefreenet.train.state import TrainState, adam, set_rate


def batches(count, size=32):
    draw = np.random.default_rng(0)
    for _ in range(count):
        plain = draw.integers(-200, 300, (2, 3, size, size), np.int16)
        yield {"plain": plain, "contrast": plain + np.int16(40), "phase": np.ones(2, np.int64)}


def test_batches_come_in_order_and_one_ahead(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    asked = []

    def told():
        for number, batch in enumerate(batches(5)):
            asked.append(number)
            yield batch

    coming = gpu.ahead(told())
    first = next(coming)
    assert torch.equal(first["plain"], torch.from_numpy(next(batches(1))["plain"]))
    assert asked[:1] == [0] and len(asked) <= 2
    rest = list(coming)
    assert len(rest) == 4 and asked == [0, 1, 2, 3, 4]


def test_an_error_in_reading_comes_out_where_the_batch_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)

    def broken():
        yield from batches(1)
        raise OSError("shard gone")

    coming = gpu.ahead(broken())
    next(coming)
    with pytest.raises(OSError, match="shard gone"):
        next(coming)


def test_a_learning_rate_changes_in_place_where_it_is_a_tensor():
    line = nn.Linear(1, 1)
    state = TrainState({"line": line}, {"line": adam(line, StageConfig(lr=0.5))})
    group = state.optimisers["line"].param_groups[0]
    set_rate(group, 0.25)
    assert group["lr"] == 0.25
    group["lr"] = held = torch.tensor(0.5)
    set_rate(group, 0.125)
    assert group["lr"] is held and float(held) == 0.125


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stage", ["ssl", "primary_scratch", "unet", "pix2pix"])
def test_a_recorded_step_learns_as_the_step_itself(stage, monkeypatch):
    small = [
        f"{name}={value}"
        for name, value in itertools.chain(
            {"generator.base": 4, "grid.size": 32}.items(),
            {
                f"{one}.crop": "null" for one in ("ssl", "primary", "refine", "unet", "pix2pix")
            }.items(),
            {f"{one}.generator.base": 4 for one in ("unet", "pix2pix")}.items(),
        )
    ]
    recipe = recipes.load("demo", small)
    spec = STAGES[stage]
    config = spec.config(recipe).model_copy(update={"batch": 2})
    device, told = torch.device("cuda"), []
    for step in (gpu.Replayed, lambda step: step):
        monkeypatch.setattr(loop, "Replayed", step)
        torch.manual_seed(0)
        state = spec.code.build(config, recipe, {}.__getitem__)
        loop.fit(
            spec.code,
            state.to(device),
            batches(16),
            config,
            GridConfig(size=32),
            steps=16,
            epoch_steps=16,
            device=device,
            validation=lambda: iter(()),
            report=lambda numbers: told.append(numbers),
        )
    recorded, plain = told
    for name, value in plain.items():
        if name.startswith("loss/"):  # sums run in any order on a GPU
            assert recorded[name] == pytest.approx(value, rel=0.03), name
