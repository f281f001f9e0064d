"""All that a resumed run must find: networks, optimisers, and the step reached."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dyefreenet.config import OptimiserConfig
from dyefreenet.errors import StoreError
from dyefreenet.store import Folder
from dyefreenet.workers import mean_over_workers, world_size


@dataclass
class TrainState:
    """What a stage trains, and the frozen networks that it only asks.

    The order of the data and every random draw follow from the seed and the step, so no random
    state is kept.
    """

    networks: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    frozen: dict[str, nn.Module] = field(default_factory=dict)  # given by other steps, not saved
    averages: dict[str, nn.Module] = field(default_factory=dict)  # of networks, by the same names
    step: int = 0
    weight: float = 1.0  # of this worker's part of the batch in a mean over the workers
    best: float = -math.inf  # score of an epoch so far
    stale: int = 0  # epochs since then

    def start_averages(self) -> None:
        """Keep an average of every network's weights but the discriminator's, from now on."""
        for name, network in self.networks.items():
            if name != "discriminator":
                self.averages[name] = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update_averages(self, decay: float) -> None:
        """Exponential average; it forgets its start sooner in the first steps than later on."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for name, average in self.averages.items():
            network = self.networks[name]
            torch._foreach_lerp_([*average.parameters()], [*network.parameters()], 1 - decay)
            for kept, new in zip(average.buffers(), network.buffers(), strict=True):
                kept.copy_(new)

    def as_used(self) -> TrainState:
        """With the networks that a finished step gives: the averages, where there are any."""
        return replace(self, networks=self.networks | self.averages)

    def to(self, device: torch.device) -> TrainState:
        """Before ``load``: Adam's moments go where their weights are.

        Channels lie last in the weights' memory, as in the slices'.
        """
        for networks in (self.networks, self.frozen, self.averages):
            for network in networks.values():
                network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda":  # so that a recorded step can be given another learning rate
            for optimiser in self.optimisers.values():
                for group in optimiser.param_groups:
                    rate = torch.tensor(group["lr"], dtype=torch.float32, device=device)
                    group |= {"lr": rate, "capturable": True}
        return self

    def save(self, folder: Path) -> None:
        """Networks and optimisers as safetensors, and their SHA-256 in ``state.json``."""
        contents = {
            f"{name}.safetensors": network.state_dict() for name, network in self.networks.items()
        }
        for name, average in self.averages.items():
            contents[f"average_{name}.safetensors"] = average.state_dict()
        for name, optimiser in self.optimisers.items():
            contents[f"optimiser_{name}.safetensors"] = _flat(optimiser)
        digests = {}
        for file, tensors in contents.items():
            content = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
            (folder / file).write_bytes(content)
            digests[file] = hashlib.sha256(content).hexdigest()
        files = {name: f"{name}.safetensors" for name in self.networks}
        files |= {name: f"average_{name}.safetensors" for name in self.averages}
        facts = {
            "step": self.step,
            "best": None if math.isinf(self.best) else self.best,
            "stale": self.stale,
            "weights": files,  # what a finished step gives
            "sha256": digests,
        }
        (folder / "state.json").write_text(json.dumps(facts))

    def load(self, folder: Path) -> None:
        """The inverse of ``save``.

        Raises:
            StoreError: A file differs from the digest that was saved with it.
        """
        saved = json.loads((folder / "state.json").read_text())

        def read(file: str) -> dict[str, Tensor]:
            return load_tensors((folder / file).read_bytes(), saved["sha256"][file], file)

        for name, network in self.networks.items():
            network.load_state_dict(read(f"{name}.safetensors"))
        for name, average in self.averages.items():
            average.load_state_dict(read(f"average_{name}.safetensors"))
        for name, optimiser in self.optimisers.items():
            _unflatten(optimiser, read(f"optimiser_{name}.safetensors"))
        self.step, self.stale = saved["step"], saved["stale"]
        self.best = -math.inf if saved["best"] is None else saved["best"]


def load_tensors(content: bytes, sha256: str, name: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file whose digest is known; nothing is ever unpickled.

    Raises:
        StoreError: Another digest, or a weight that is not finite.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise StoreError(f"{name}: expected SHA-256 {sha256}, found {found}: the file was changed")
    tensors = safetensors.torch.load(content)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{name}: expected finite weights, found NaN or infinity in {key}")
    return tensors


def load_weights(step: Folder, network: str = "generator") -> dict[str, Tensor]:
    """A finished step's weights, checked against the digest in its manifest.

    Raises:
        StoreError: The step is not finished, or the file was changed since.
    """
    manifest = step.manifest()
    if manifest is None:
        raise StoreError(f"{step}: expected a finished step, found no manifest")
    name = f"weights/{network}.safetensors"
    sha256 = manifest["files"][name]
    return load_tensors(step.read(name, sha256), sha256, f"{step}/{name}")


def adam(network: nn.Module, config: OptimiserConfig, factor: float = 1.0) -> torch.optim.Adam:
    """Adam as the paper has it (T1); fused, which a measurement found 11 times faster.

    Args:
        factor: Of the learning rate, now and wherever the schedule takes it.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return torch.optim.Adam(
        [{"params": weights, "factor": factor}],
        lr=config.lr * factor,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_rate(group: dict[str, Any], rate: float) -> None:
    """The learning rate of an optimiser's group, in place where it lies on a GPU."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def update(state: TrainState, name: str, loss: Tensor) -> Tensor:
    """Backward, mean of the gradients over the workers, one step; the norm of the gradient.

    Args:
        name: Of the optimiser.
        loss: Mean over this worker's part of the batch.
    """
    optimiser = state.optimisers[name]
    optimiser.zero_grad(set_to_none=True)
    (loss * state.weight).backward()  # type: ignore[no-untyped-call]
    gradients = [
        weight.grad
        for group in optimiser.param_groups
        for weight in group["params"]
        if weight.grad is not None
    ]
    if world_size() > 1:
        flat = mean_over_workers(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))
    norm = torch.nn.utils.get_total_norm(gradients)
    optimiser.step()
    return norm


def _flat(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def _unflatten(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        weight = weights[int(index)]
        if value.shape == weight.shape:  # the fused Adam goes through memory, whatever the strides
            value = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
