"""The turn of the discriminator and of the generator, shared by every stage that has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dyefreenet import hu
from dyefreenet.config import AdversarialConfig, CascadeStageConfig, GridConfig, Recipe
from dyefreenet.errors import StoreError
from dyefreenet.models import losses
from dyefreenet.models.blocks import DoubleConv
from dyefreenet.models.discriminators import PatchDiscriminator
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.train.state import TrainState, adam, update

# B batch, C channels, H W pixels; all slices in [-1, 1].

Load = Callable[[str], dict[str, Tensor]]  # name of a step to its generator's weights

ENHANCED_HU = 100.0  # true change from which a pixel counts as enhanced, in validation
JUDGED = (-200.0, 400.0)  # HU; one window for trainings of different windows, that of window600/1
HALF_NYQUIST = 0.25  # cycles/pixel: above it, noise and edges


def add_discriminator(state: TrainState, channels: int, config: AdversarialConfig) -> None:
    """A new discriminator of plain and contrast slices, ``channels`` in all, and its Adam."""
    network = PatchDiscriminator(channels, config.discriminator_base, config.discriminator_norm)
    state.networks["discriminator"] = network
    state.optimisers["discriminator"] = adam(network, config, config.discriminator_lr_factor)


def add_judges(state: TrainState, config: CascadeStageConfig, recipe: Recipe, load: Load) -> None:
    """What a cascade stage is judged by: the frozen feature network, and a new discriminator."""
    if config.perceptual_weight:
        eye = HighResolutionGenerator(recipe.generator)  # random unless SSL gives its weights (L3)
        if config.perceptual_features == "ssl":
            take_weights(eye, load("ssl"), "ssl")
        frozen = freeze(eye)
        state.frozen["features"] = frozen.bfloat16() if config.precision == "bf16" else frozen
    if config.adversarial_weight:
        add_discriminator(state, 6, config)


def take_weights(network: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Start from another step's weights (S6, T1, T2).

    Raises:
        StoreError: Under 95 % of the network's tensors have a partner of the same shape.
    """
    own = network.state_dict()
    matched = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    if len(matched) < 0.95 * len(own):
        missing = sorted(set(own) - set(matched))[:3]
        raise StoreError(
            f"{source}: expected weights for {len(own)} tensors, found {len(matched)} that fit; "
            f"missing {', '.join(missing)}, ..."
        )
    network.load_state_dict(matched, strict=False)


def freeze(network: nn.Module) -> nn.Module:
    """Eval mode, no gradient for its own weights (gradients still pass through).

    Batch norm of its blocks becomes part of their convolutions: a pass over the features less.
    """
    network.eval()
    for block in network.modules():
        if isinstance(block, DoubleConv):
            block.fold_batch_norm()
    return network.requires_grad_(False)


def generator_terms(
    score: Tensor | None,
    plain: Tensor,
    fake: Tensor,
    real: Tensor,
    features: tuple[list[Tensor], list[Tensor]] | None,
    config: AdversarialConfig,
) -> dict[str, Tensor]:
    """Terms of Eq. 5, weighted, by name.

    Args:
        score: Logits of the discriminator for the virtual slices; None without one.
        plain: [B, C, H, W], as are ``fake`` (virtual) and ``real`` (true contrast).
        features: Maps of the frozen network for virtual and true slices; None without the term.
    """
    terms = {}
    if score is not None:
        adversarial = losses.adversarial_loss(score, config.d_mse_weight, config.saturating)
        terms["adversarial"] = config.adversarial_weight * adversarial
    enhanced: Tensor | float = 0.0
    if config.vessel_weight or config.vessel_l1_weight:
        enhanced = losses.enhanced(plain, real)
    weights = 1.0 + config.vessel_weight * enhanced if config.vessel_weight else 1.0
    if config.mse_weight:
        terms["mse"] = config.mse_weight * losses.pixel_mse(fake, real, weights)
    if config.l1_weight:
        terms["l1"] = config.l1_weight * losses.pixel_l1(fake, real, weights)
    if config.vessel_l1_weight:
        terms["vessel_l1"] = config.vessel_l1_weight * losses.pixel_l1(fake, real, enhanced)
    if features is not None and isinstance(config, CascadeStageConfig):
        perceptual = losses.perceptual_loss(*features, config.perceptual_blocks)
        terms["perceptual"] = config.perceptual_weight * perceptual
    return terms


def update_both(
    state: TrainState,
    plain: Tensor,
    fake: Tensor,
    real: Tensor,
    config: AdversarialConfig,
    seen: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One update of the discriminator, then one of the generator, on the same virtual slices.

    Args:
        seen: Virtual and true slices as the feature network is to see them; None without it.
    """
    terms: dict[str, Tensor] = {}
    critic = state.networks.get("discriminator")
    score = None
    if critic is not None:
        judged_real, judged_fake = critic(plain, real), critic(plain, fake.detach())
        loss = losses.discriminator_loss(judged_real, judged_fake, config.d_mse_weight)
        terms["gradient/discriminator"] = update(state, "discriminator", loss)
        terms["discriminator"] = loss.detach()
        right = ((judged_real > 0).float().mean() + (judged_fake < 0).float().mean()) / 2
        terms["discriminator_accuracy"] = right.detach()
        critic.requires_grad_(False)  # the generator's turn: the critic only judges
        score = critic(plain, fake)
    features = None
    if seen is not None:
        eye = state.frozen["features"]
        assert isinstance(eye, HighResolutionGenerator)
        with torch.no_grad():
            of_real = eye.features(seen[1])
        features = eye.features(seen[0]), of_real
    generator = generator_terms(score, plain, fake, real, features, config)
    loss = torch.stack(list(generator.values())).sum()
    terms["gradient/generator"] = update(state, "generator", loss)
    if critic is not None:
        critic.requires_grad_(True)
    return terms | {name: term.detach() for name, term in generator.items()}


def score_predictions(
    batches: Iterator[dict[str, Tensor]],
    predict: Callable[[dict[str, Tensor]], Tensor],
    grid: GridConfig,
) -> dict[str, float]:
    """Figures of all validation slices, the centre one of each triplet.

    Args:
        batches: ``plain`` and ``contrast`` triplets, [B, 3, H, W] in [-1, 1].
        predict: Batches to virtual slices, [B, 1 or 3, H, W].

    Returns:
        ``psnr`` in the recipe's window; ``psnr_window600`` in -200...400 HU, whatever the window;
        ``enhanced_mae_hu``, the error where the true scan enhances; ``texture_distance``, |ln| of
        the power above half of Nyquist, predicted over true. Each where there is something to
        measure it by.
    """
    span = grid.window[1] - grid.window[0]
    squares = judged = count = missed = enhanced = made_power = true_power = 0.0
    for batch in batches:
        plain, fake, real = map(centre, (batch["plain"], predict(batch), batch["contrast"]))
        fake = fake.float().clamp(-1, 1)
        error = (fake - real) * span / 2  # HU
        where = (real - plain).abs() * span / 2 > ENHANCED_HU
        squares += float((error * error).sum())
        made, true = (
            hu.from_network(slices, grid.window).clamp(*JUDGED) for slices in (fake, real)
        )
        judged += float(((made - true) ** 2).sum())
        made_power += high_frequency_power(made)
        true_power += high_frequency_power(true)
        count += error.numel()
        missed += float(error.abs()[where].sum())
        enhanced += float(where.sum())
    if not count:
        return {}
    figures = {
        "psnr": _psnr(squares / count, span),
        "psnr_window600": _psnr(judged / count, JUDGED[1] - JUDGED[0]),
    }
    if enhanced:
        figures["enhanced_mae_hu"] = missed / enhanced
    if made_power > 0 and true_power > 0:
        figures["texture_distance"] = abs(math.log(made_power / true_power))
    return figures


def _psnr(mean_square: float, span: float) -> float:
    return 10 * math.log10(span**2 / max(mean_square, 1e-12))


def high_frequency_power(slices: Tensor) -> float:
    """Power above half of Nyquist, HU^2, of slices [B, H, W], under a Hann window.

    The measure of ``texture/1``, in torch, since a stage knows nothing of the evaluation.
    """
    height, width = slices.shape[1:]
    device = slices.device
    tall, wide = (
        torch.hann_window(size, periodic=False, device=device) for size in (height, width)
    )
    rows, columns = (
        torch.fft.fftfreq(size, dtype=torch.float64, device=device) for size in (height, width)
    )
    level = slices.mean(dim=(1, 2), keepdim=True)
    spectrum = torch.fft.fft2((slices - level) * tall[:, None] * wide)
    above = torch.hypot(rows[:, None], columns) > HALF_NYQUIST
    return float(spectrum.abs().square()[:, above].sum())


def centre(slices: Tensor) -> Tensor:
    """The slice in question of [B, 3, H, W] (or of [B, 1, H, W]): [B, H, W]."""
    return slices[:, slices.shape[1] // 2]
