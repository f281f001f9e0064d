"""What people look at while a stage trains: a strip of slices, TensorBoard, and MLflow if set.

TensorBoard gets one file an epoch, named by the step: an epoch that is trained again after a kill
replaces its file, and object storage takes whole files as well as a disk does.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorboardX
import torch
from PIL import Image
from torch import Tensor

from dyefreenet.config import GridConfig
from dyefreenet.data.shards import Slab
from dyefreenet.data.slices import Batch, phase_number
from dyefreenet.hu import from_network
from dyefreenet.store import Folder
from dyefreenet.train.loop import evaluating, to_network
from dyefreenet.train.state import TrainState

SHOWN = 4  # slices of the strip
DIFFERENCE_HU = 200.0  # what is white, or with a minus black, in the view of the difference
MLFLOW = "MLFLOW_TRACKING_URI"
NO_MLFLOW = (
    f"{MLFLOW} is set and MLflow is not installed: pip install mlflow-skinny on the workers, or "
    "unset it"
)


class Sight:
    """Tells of one stage's epochs in the places where people look."""

    def __init__(self, target: Folder, stage: str, mark: str, settings: dict[str, Any]) -> None:
        """``mark``: fingerprint of the training, by which a resumed one finds its MLflow run."""
        self._target = target
        self._mlflow: Any = None
        if os.environ.get(MLFLOW):
            self._mlflow = _mlflow_run(stage, mark, settings)

    def tell(self, numbers: dict[str, float], strip: bytes | None) -> None:
        """One epoch's figures, and a PNG of ``strip_of``."""
        step = int(numbers["step"])
        if strip is not None:
            self._target.write(f"strips/{step:010d}.png", strip)
        events = _events(numbers, strip, step)
        self._target.write(f"tensorboard/events.out.tfevents.{step:010d}", events)
        if self._mlflow is not None:
            client, run = self._mlflow
            for name, value in numbers.items():
                client.log_metric(run, name.replace("/", "."), value, step=step)
            if strip is not None:
                client.log_image(run, Image.open(io.BytesIO(strip)), f"strips/{step:010d}.png")


def lacks_mlflow() -> bool:
    """Whether MLflow is asked for and not installed: found before an epoch is trained."""
    return bool(os.environ.get(MLFLOW)) and _mlflow_client() is None


def shown_slices(slabs: Iterable[Slab]) -> Batch | None:
    """The middle slice of some patients with its neighbours: the same in every epoch."""
    found: dict[str, Slab] = {}
    for slab in slabs:
        if slab.contrast is not None:
            found.setdefault(slab.patient, slab)
        if len(found) == SHOWN:
            break
    size = {slab.plain.shape[1:] for slab in found.values()}
    if len(size) != 1:
        return None
    places = [(slab, len(slab.plain) // 2) for slab in found.values()]
    return {
        "plain": np.stack([slab.plain[z - 1 : z + 2] for slab, z in places]),
        "contrast": np.stack([cast(Any, slab.contrast)[z - 1 : z + 2] for slab, z in places]),
        "phase": np.array([phase_number(slab.phase) for slab, _ in places]),
    }


def strip_of(
    virtual: Callable[[dict[str, Tensor]], Tensor],
    state: TrainState,
    shown: Batch,
    grid: GridConfig,
    device: torch.device,
) -> bytes:
    """Plain, true, virtual and their difference beside each other, one slice under another, PNG.

    Args:
        virtual: A batch, slices in [-1, 1], to virtual slices, [B, 1 or 3, H, W], by ``state``.
        shown: Of ``shown_slices``.
    """
    inputs = to_network(shown, grid, device)
    with evaluating(state):
        made = virtual(inputs)
    low, high = grid.window
    views = [
        from_network(values[:, values.shape[1] // 2].float().cpu().numpy(), grid.window)
        for values in (inputs["plain"], inputs["contrast"], made)
    ]
    shares = [(view - low) / (high - low) for view in views]
    shares.append((views[2] - views[1]) / (2 * DIFFERENCE_HU) + 0.5)
    grey = np.rint(np.concatenate(shares, axis=2).clip(0, 1) * 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.concatenate([*grey])).save(sink, "png")
    return sink.getvalue()


def _events(numbers: dict[str, float], strip: bytes | None, step: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with tensorboardX.SummaryWriter(folder) as writer:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            if strip is not None:
                pixels = np.asarray(Image.open(io.BytesIO(strip)))
                writer.add_image("plain, true, virtual, difference", pixels, step, dataformats="HW")
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _mlflow_client() -> Any:
    """The class of MLflow's client; None where it is not installed."""
    try:
        from mlflow import MlflowClient
    except ImportError:
        return None
    return MlflowClient


def _mlflow_run(stage: str, mark: str, settings: dict[str, Any]) -> tuple[Any, str]:
    """MLflow's client, and the id of the run of this mark: found again, or new."""
    client = _mlflow_client()()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dyefreenet")
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    found = client.search_runs([number], f"tags.dyefreenet_mark = '{mark}'", max_results=1)
    if found:
        return client, found[0].info.run_id
    run = client.create_run(number, run_name=stage, tags={"dyefreenet_mark": mark})
    for key, value in settings.items():
        client.log_param(run.info.run_id, key, str(value)[:500])
    return client, run.info.run_id
