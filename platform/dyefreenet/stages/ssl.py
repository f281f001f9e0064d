"""Self-supervised pretraining: how much was this slice's intensity scaled? (section 2.1, Eq. 1)"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dyefreenet.config import GridConfig, Recipe, SslConfig
from dyefreenet.models.classifier import IntensityHead
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.models.losses import intensity_loss
from dyefreenet.models.scale import as_seen
from dyefreenet.stages.adversarial import Load
from dyefreenet.train.state import TrainState, adam, update

SCORE = "accuracy"  # of validation, by which epochs are compared


def build(config: SslConfig, recipe: Recipe, load: Load) -> TrainState:
    """The whole high-resolution generator (S3) and three fully connected layers on top (S4)."""
    generator = HighResolutionGenerator(recipe.generator)
    size = (config.crop or recipe.grid.size) // (1 if generator.packed else 2)
    head = IntensityHead(config.head, size, len(config.coefficients))
    both = nn.ModuleList([generator, head])
    return TrainState({"generator": generator, "head": head}, {"both": adam(both, config)})


def versions(plain: Tensor, coefficients: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Each slice times every coefficient (S1): the windowed [0, 1] value, clipped, never raw HU.

    Args:
        plain: [B, 3, H, W] in [-1, 1].

    Returns:
        The K versions, [B * K, 3, H, W] in [-1, 1], and the class of each, [B * K].
    """
    shares = (plain + 1.0) / 2.0
    scaled = torch.stack([(shares * factor).clamp(0.0, 1.0) for factor in coefficients], dim=1)
    classes = torch.arange(len(coefficients), device=plain.device).repeat(len(plain))
    return scaled.flatten(0, 1) * 2.0 - 1.0, classes


def step(
    state: TrainState, batch: dict[str, Tensor], config: SslConfig, grid: GridConfig
) -> dict[str, Tensor]:
    """One update of generator and head together, on all K versions of every slice (S2)."""
    generator = state.networks["generator"]
    inputs, classes = versions(as_seen(generator, batch["plain"]), config.coefficients)
    logits = state.networks["head"](generator(inputs))
    loss = intensity_loss(logits, classes)
    norm = update(state, "both", loss)
    accuracy = (logits.argmax(1) == classes).float().mean()
    return {"cross_entropy": loss.detach(), "accuracy": accuracy, "gradient/generator": norm}


def validate(
    state: TrainState, batches: Iterator[dict[str, Tensor]], config: SslConfig, grid: GridConfig
) -> dict[str, float]:
    """Accuracy, per class too, beside a control that sees the maximum of the slice alone (S7).

    The control is fitted on the validation slices themselves, which flatters it.
    """
    right, maxima = [], []
    generator = state.networks["generator"]
    for batch in batches:
        inputs, classes = versions(as_seen(generator, batch["plain"]), config.coefficients)
        logits = state.networks["head"](generator(inputs))
        right.append((logits.argmax(1) == classes).float().view(-1, len(config.coefficients)))
        maxima.append(inputs[:, 1].amax((1, 2)).view(-1, len(config.coefficients)))
    if not right:
        return {}
    per_class = torch.cat(right).mean(0)
    figures = {"accuracy": float(per_class.mean())}
    figures |= {f"accuracy_class_{k}": float(value) for k, value in enumerate(per_class)}
    figures["accuracy_max_value"] = max_value_accuracy(torch.cat(maxima))
    return figures


def max_value_accuracy(maxima: Tensor) -> float:
    """Accuracy of the nearest class mean of the maximum, [N, K]: what a shortcut would reach."""
    distance = (maxima[:, :, None] - maxima.mean(0)).abs()  # [N, K, K]
    guessed = distance.argmin(2)
    return float((guessed == torch.arange(maxima.shape[1], device=maxima.device)).float().mean())
