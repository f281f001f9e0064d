"""N workers compute what one computes at the same global batch, in double precision.

Real processes and real all-reduces, without Ray. In double precision nothing but the order of sums
may differ, so a gradient or a batch norm that is not shared shows at once; in single precision Adam
would amplify rounding until only a wide tolerance passed.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dyefreenet.config import (
    BaselineConfig,
    CascadeStageConfig,
    GeneratorConfig,
    GridConfig,
    PhantomConfig,
    Recipe,
    SslConfig,
)
from dyefreenet.stages import STAGES

STEPS, BATCH = 3, 4
SMALL = GeneratorConfig(base=4, levels=2)
FAST = {"lr": 1e-3, "batch": BATCH, "epochs": 1}
RECIPE = Recipe(
    phantom=PhantomConfig(),
    generator=SMALL,
    grid=GridConfig(size=32),
    ssl=SslConfig(**FAST),
    primary=CascadeStageConfig(**FAST, discriminator_base=4, discriminator_norm="batch"),
    refine=CascadeStageConfig(**FAST, discriminator_base=4),
    unet=BaselineConfig(**FAST, generator=SMALL, adversarial_weight=0.0, mse_weight=1.0),
    pix2pix=BaselineConfig(**FAST, generator=SMALL, l1_weight=100.0, discriminator_base=4),
)


def take_steps(stage, rank, workers, folder):
    """Train on this worker's lanes of each global batch; the first worker saves."""
    torch.set_num_threads(1)
    spec = STAGES[stage]
    config = spec.config(RECIPE)

    ssl = STAGES["ssl"].code
    torch.manual_seed(1)
    weights = ssl.build(RECIPE.ssl, RECIPE, dict).networks["generator"].state_dict()
    torch.manual_seed(2)
    state = spec.code.build(config, RECIPE, lambda _: weights)
    for network in (*state.networks.values(), *state.frozen.values()):
        network.double()
    draw = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        plain = torch.rand(BATCH, 3, 32, 32, generator=draw, dtype=torch.float64) * 2 - 1
        contrast = (plain + 0.3 * plain.roll(1, -1)).clamp(-1, 1)
        mine = slice(rank * BATCH // workers, (rank + 1) * BATCH // workers)
        batch = {"plain": plain[mine], "contrast": contrast[mine]}
        state.weight = len(batch["plain"]) * workers / BATCH
        spec.code.step(state, batch, config, RECIPE.grid)
        state.step += 1
    if rank == 0:
        state.save(folder)


def join(stage, rank, workers, folder):
    """What each process does."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=60),
    )
    take_steps(stage, rank, workers, folder)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("stage", "workers"),
    [*((stage, workers) for stage in STAGES for workers in (2, 4)), ("primary", 3), ("ssl", 3)],
)
def test_n_workers_equal_one(stage, workers, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    take_steps(stage, 0, 1, alone)
    processes = [
        subprocess.Popen([sys.executable, __file__, stage, str(rank), str(workers), together])
        for rank in range(workers)
    ]
    assert [process.wait(120) for process in processes] == [0] * workers
    files = sorted(file.name for file in alone.glob("*.safetensors"))
    assert files == sorted(file.name for file in together.glob("*.safetensors"))
    for file in files:
        expected, found = load_file(alone / file), load_file(together / file)
        for key, value in expected.items():
            assert torch.allclose(found[key], value, rtol=1e-7, atol=1e-9), f"{file}: {key}"


if __name__ == "__main__":
    join(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
