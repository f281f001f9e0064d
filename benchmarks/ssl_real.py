#!/usr/bin/env python3
"""SSL on a real low-dose series: accuracy of each class on slices that it has not seen.

    python benchmarks/ssl_real.py --real ../shared/data [--epochs 20] [--head paper]

Trains on the lower 100 slices of the NLST series and asks for the class of those from 105 on,
beside a control that knows the maximum of each slice alone and was fitted on those very slices
(S7). One patient, so this tells whether the task is learnt on real noise, not how well it carries
over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dyefreenet import recipes
from dyefreenet.data.dicom import read_series
from dyefreenet.data.prepare import fit as fit_square
from dyefreenet.data.prepare import in_plane, window_start
from dyefreenet.data.shards import Slab, SlabRecord
from dyefreenet.data.slices import batches, in_order, schedule
from dyefreenet.stages import ssl
from dyefreenet.train.loop import fit

SERIES = "nlst_101287_lowdose_nc"
LAST, FIRST = 100, 105  # slices: learnt below the one, asked from the other on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", default="../shared/data", type=Path)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--head", choices=("paper", "pooled"), default="pooled")
    options = parser.parse_args()
    recipe = recipes.load(options.recipe, [f"ssl.epochs={options.epochs}"])
    recipe = recipes.change(recipe, {"ssl.head": options.head})
    files = sorted(path for path in (options.real / SERIES).iterdir() if path.suffix == ".dcm")
    volume = read_series(files).volume
    hu, grid = volume.hu, recipe.grid
    if grid.pixel_mm is not None:
        hu = in_plane(hu, volume.spacing[1:], grid.pixel_mm)
    hu = fit_square(hu, grid.size, window_start(hu, grid.size))
    learnt = {str(z): slab(hu, z, min(z + 10, LAST)) for z in range(0, LAST, 10)}
    asked = slab(hu, FIRST, len(hu))
    records = [
        SlabRecord(name, "ssl", "plain", "nlst", "nlst", len(one.plain) - 2)
        for name, one in learnt.items()
    ]
    config = recipe.ssl
    plan = schedule(records, config.batch, config.epochs, recipe.seed)
    lanes = range(config.batch)
    torch.manual_seed(recipe.seed)
    state = ssl.build(config, recipe, lambda step: {}).to(torch.device("cpu"))
    fit(
        ssl,  # type: ignore[arg-type]  # a module with the functions of the protocol
        state,
        batches(
            plan,
            (learnt[path] for path in plan.paths(lanes)),
            lanes,
            config.crop,
            partners=False,
        ),
        config,
        grid,
        steps=plan.steps,
        epoch_steps=plan.steps // config.epochs,
        device=torch.device("cpu"),
        validation=lambda: in_order(iter([asked]), config.batch),
        report=show,
    )


def slab(hu: np.ndarray, first: int, end: int) -> Slab:
    """Slices ``first`` to ``end`` with a neighbour on either side, edges repeated."""
    around = np.clip(np.arange(first - 1, end + 1), 0, len(hu) - 1)
    return Slab("nlst", "nlst", "plain", first, (1.0, 1.0, 1.0), hu[around], None, None)


def show(numbers: dict[str, float]) -> None:
    classes = [numbers[f"validation/accuracy_class_{k}"] for k in range(4)]
    print(
        f"epoch {numbers['epoch']:3.0f}: accuracy {numbers['validation/accuracy']:.3f}, by class "
        + " ".join(f"{one:.3f}" for one in classes)
        + f"; control {numbers['validation/accuracy_max_value']:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
