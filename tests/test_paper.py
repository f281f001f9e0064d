"""The recipe ``paper`` is the paper: one test for each letter of docs/method.md's tables.

Where a letter is a number, the recipe has it; where it is an act, a small network does it.
"""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from dyefreenet import hu, recipes
from dyefreenet.data.shards import Slab, SlabRecord
from dyefreenet.data.slices import in_order, worker_lanes
from dyefreenet.models import losses
from dyefreenet.models.blocks import BatchNorm2d
from dyefreenet.models.classifier import IntensityHead
from dyefreenet.models.discriminators import PatchDiscriminator
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.models.scale import to_full, to_half
from dyefreenet.plan import steps_of
from dyefreenet.stages import STAGES, primary, refine, ssl
from dyefreenet.stages.launch import records_of
from dyefreenet.store import Folder
from dyefreenet.train.loop import learning_rate

PAPER = recipes.load("paper")
SMALL = PAPER.model_copy(
    update={
        "generator": PAPER.generator.model_copy(update={"base": 4, "levels": 2}),
        "grid": PAPER.grid.model_copy(update={"size": 32}),
    }
)
TRIPLET = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)


def small(stage):
    """A stage of the paper with small networks; its parents are fresh ones."""
    spec = STAGES[stage]
    config = spec.config(SMALL).model_copy(update={"lr": 1e-3})
    generator = HighResolutionGenerator(SMALL.generator).state_dict()
    torch.manual_seed(0)
    return spec.code.build(config, SMALL, lambda _: generator), config


# ---- data ----------------------------------------------------------------------------------------


def test_d1_d2_ssl_learns_from_plain_series_and_the_cascade_from_pairs_of_one_phase(tmp_path):
    lines = [
        ("a", "ssl", "plain"),
        ("b", "train", "arterial"),
        ("c", "train", "portal"),
        ("d", "test", "arterial"),
    ]
    records = [SlabRecord(path, split, phase, path, path, 16) for path, split, phase in lines]
    ingest = Folder(str(tmp_path))
    ingest.write_json("slabs.json", [vars(record) for record in records])
    ingest.publish("mark", {}, files={"slabs.json": digest_of(tmp_path / "slabs.json")})

    def read(stage, split):
        return [record.path for record in records_of(ingest, stage, split, PAPER.phases(stage))]

    assert (read("ssl", "train"), read("primary", "train")) == (["a"], ["b"])
    assert read("refine", "test") == ["d"]


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_d3_three_neighbouring_slices_and_the_edge_repeated():
    plain = np.arange(4, dtype=np.int16)[:, None, None] * np.ones((1, 8, 8), np.int16)
    padded = plain[[0, 0, 1, 2, 3, 3]]  # as ``read_slab`` gives a whole series of four
    (batch,) = in_order(iter([Slab("a", "p", "", 0, (1, 1, 1), padded, None, None)]), 4)
    assert batch["plain"][:, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_d5_d6_the_window_is_fixed_and_what_lies_outside_passes_through():
    assert PAPER.grid.window == (-200.0, 600.0) and PAPER.grid.pixel_mm is None
    values = np.array([-1000.0, -200.0, 200.0, 600.0, 1500.0])
    seen = hu.to_network(values, PAPER.grid.window)
    assert seen.tolist() == [-1, -1, 0, 1, 1]
    assert hu.change(seen, seen, PAPER.grid.window).tolist() == [0] * 5


def test_d7_half_size_is_the_mean_of_four_pixels():
    assert PAPER.grid.size == 512
    assert float(to_half(torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]]))) == 2.0


def test_d8_pairs_are_registered_to_the_plain_scan():
    assert PAPER.ingest.registration == "deformable" and PAPER.ingest.phase == "arterial"


# ---- self-supervised pretraining -----------------------------------------------------------------


def test_s1_the_windowed_value_is_scaled_and_clipped():
    assert PAPER.ssl.coefficients == (0.5, 1.0, 1.5, 2.0)
    inputs, classes = ssl.versions(torch.full((1, 3, 2, 2), 0.2), PAPER.ssl.coefficients)  # 0.6
    assert classes.tolist() == [0, 1, 2, 3]
    shares = (inputs[:, 0, 0, 0] + 1) / 2
    assert shares.tolist() == pytest.approx([0.3, 0.6, 0.9, 1.0])


def test_s2_eq1_is_the_mean_over_the_versions_of_minus_log_p():
    logits = torch.tensor([[2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3.0]])
    chances = [math.exp(2) / (math.exp(2) + 3), math.e / (math.e + 3), 0.25]
    chances.append(math.exp(3) / (math.exp(3) + 3))
    expected = -sum(map(math.log, chances)) / 4
    assert float(losses.intensity_loss(logits, torch.arange(4))) == pytest.approx(expected)


def test_s3_s4_the_whole_generator_and_three_layers_on_its_output():
    state, _ = small("ssl")
    assert isinstance(state.networks["generator"], HighResolutionGenerator)
    trained = {id(w) for group in state.optimisers["both"].param_groups for w in group["params"]}
    assert {id(w) for w in state.networks["generator"].parameters()} <= trained
    assert PAPER.ssl.head == "paper"
    layers = [m for m in IntensityHead("paper", 256, 4).layers if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in layers] == [256, 64, 4]
    assert layers[0].in_features == 3 * 256 * 256


def rates(config):
    return [learning_rate(config, epoch) for epoch in range(config.epochs)]


def test_s5_adam_falls_tenfold_after_five_of_ten_epochs():
    assert rates(PAPER.ssl) == pytest.approx([1e-6] * 5 + [1e-7] * 5)
    assert (PAPER.ssl.batch, PAPER.ssl.weight_decay, PAPER.ssl.betas) == (8, 0.0, (0.5, 0.999))


def test_s6_primary_starts_from_all_of_ssl_but_the_head():
    assert PAPER.needs("primary") == ("ssl",) and PAPER.primary.init == "previous"
    torch.manual_seed(9)
    weights = HighResolutionGenerator(SMALL.generator).state_dict()
    state = primary.build(SMALL.primary, SMALL, lambda _: weights)
    own = state.networks["generator"].state_dict()
    assert all(torch.equal(own[key], value) for key, value in weights.items())


def test_s7_a_control_sees_the_maximum_alone():
    state, config = small("ssl")
    for network in state.networks.values():
        network.eval()
    figures = ssl.validate(state, iter([{"plain": TRIPLET}]), config, SMALL.grid)
    assert figures["accuracy_max_value"] == 1.0 and "accuracy_class_3" in figures


# ---- networks ------------------------------------------------------------------------------------


def test_g1_five_levels_from_32_features_each_fed_by_all_before():
    generator = HighResolutionGenerator(PAPER.generator)
    convolutions = [block[0] for block in generator.encoder]
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 256, 512]
    assert [layer.in_channels for layer in convolutions] == [3, 32, 96, 224, 480]


def test_g2_the_decoder_joins_a_level_with_the_one_below():
    generator = HighResolutionGenerator(PAPER.generator)
    joined = [block[0].in_channels for block in generator.decoder]
    assert joined == [512 + 256, 256 + 128, 128 + 64, 64 + 32]


def test_g3_g4_the_last_map_with_the_input_to_ten_and_to_three():
    generator = HighResolutionGenerator(PAPER.generator)
    assert (generator.texture.in_channels, generator.texture.out_channels) == (32 + 3, 10)
    assert (generator.leave.in_channels, generator.leave.out_channels) == (10, 3)
    assert generator.texture.kernel_size == generator.leave.kernel_size == (1, 1)
    assert not PAPER.grid.average_overlap


def test_g5_refine_works_at_half_size_and_its_critic_at_full():
    assert PAPER.grid.upsample == "image"
    sizes = []
    state, _ = small("refine")
    state.networks["generator"].register_forward_hook(
        lambda module, given, made: sizes.append(tuple(made.shape[-2:]))
    )
    state.networks["discriminator"].register_forward_hook(
        lambda module, given, made: sizes.append(tuple(given[0].shape[-2:]))
    )
    batch = {"plain": TRIPLET, "contrast": TRIPLET}
    refine.step(state, batch, SMALL.refine, SMALL.grid)
    assert sizes == [(16, 16), (32, 32), (32, 32), (32, 32)]
    low = torch.rand(1, 3, 16, 16)
    assert torch.equal(
        to_full(low, TRIPLET, "image"), nn.functional.interpolate(low, (32, 32), mode="bilinear")
    )


def test_g6_no_activation_bounds_the_output():
    assert not PAPER.generator.residual
    generator = HighResolutionGenerator(SMALL.generator)
    nn.init.constant_(generator.leave.bias, 7.0)
    assert float(generator(TRIPLET).max().detach()) > 5


def test_g7_batch_norm_over_all_workers():
    assert PAPER.generator.norm == PAPER.primary.discriminator_norm == "batch"
    norms = [m for m in HighResolutionGenerator(PAPER.generator).modules() if "Norm" in str(m)]
    assert any(isinstance(norm, BatchNorm2d) for norm in norms)  # see test_workers.py


# ---- discriminator and losses --------------------------------------------------------------------


def test_a1_a2_six_channels_and_three_layers_of_stride_two():
    critic = PatchDiscriminator(6, PAPER.primary.discriminator_base, "batch")
    convolutions = [layer for layer in critic.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.in_channels for layer in convolutions] == [6, 64, 128, 256]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    slopes = [m.negative_slope for m in critic.layers if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 3


def test_a3_eq4_is_half_of_bce_and_mse_of_both():
    real, virtual = torch.tensor([0.5]), torch.tensor([-0.25])
    bce = math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-0.25))
    mse = (0.5 - 1) ** 2 + 0.25**2
    weight = PAPER.primary.d_mse_weight
    found = losses.discriminator_loss(real, virtual, weight)
    assert weight == 1.0 and float(found) == pytest.approx(0.5 * (bce + mse))


def test_a4_eq2_is_the_form_with_a_gradient_and_the_letter_can_be_chosen():
    assert not PAPER.primary.saturating and not PAPER.refine.saturating
    score = torch.tensor([-0.25])
    bce, mse = math.log1p(math.exp(0.25)), 1.25**2
    assert float(losses.adversarial_loss(score, 1.0, False)) == pytest.approx(0.5 * (bce + mse))
    letter = math.log(1 - 1 / (1 + math.exp(0.25)))
    assert float(losses.adversarial_loss(score, 1.0, True)) == pytest.approx(letter)


@pytest.mark.parametrize("stage", ["primary", "refine"])
def test_l1_l2_eq5_has_three_terms(stage):
    config = getattr(PAPER, stage)
    assert (config.adversarial_weight, config.mse_weight, config.perceptual_weight) == (1, 0.01, 1)
    assert config.l1_weight == config.vessel_weight == config.vessel_l1_weight == 0.0
    state, small_config = small(stage)
    batch = {"plain": TRIPLET, "contrast": TRIPLET.flip(-1)}
    terms = STAGES[stage].code.step(state, batch, small_config, SMALL.grid)
    assert {"adversarial", "mse", "perceptual", "discriminator"} <= set(terms)
    assert "l1" not in terms


def test_l2_phi_is_the_frozen_ssl_generator_over_all_blocks():
    assert PAPER.primary.perceptual_features == PAPER.refine.perceptual_features == "ssl"
    state, _ = small("primary")
    eye = state.frozen["features"]
    assert not eye.training and not any(w.requires_grad for w in eye.parameters())
    maps = HighResolutionGenerator(PAPER.generator).features(torch.zeros(1, 3, 32, 32))
    assert len(maps) == 5 + 4  # encoder and decoder
    one = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 2, 2)]
    other = [torch.full_like(one[0], 2.0), torch.full_like(one[1], 3.0)]
    assert float(losses.perceptual_loss(one, other)) == pytest.approx(4.0 + 9.0)


def test_l3_without_ssl_phi_is_random():
    ablation = STAGES["primary_scratch"].config(PAPER)
    assert (ablation.init, ablation.perceptual_features) == ("random", "random")


# ---- training ------------------------------------------------------------------------------------


def test_t1_primary():
    assert rates(PAPER.primary) == pytest.approx([1e-5] * 20 + [1e-6] * 5)
    assert PAPER.primary.weight_decay == 5e-4 and PAPER.primary.discriminator_lr_factor == 1.0
    state, _ = small("primary")
    for optimiser in state.optimisers.values():
        assert isinstance(optimiser, torch.optim.Adam)
        assert optimiser.param_groups[0]["weight_decay"] == 5e-4
        assert optimiser.param_groups[0]["betas"] == (0.5, 0.999)
    assert set(state.optimisers) == {"generator", "discriminator"}


def test_t2_refine():
    assert rates(PAPER.refine) == pytest.approx([5e-5] * 17 + [5e-6] * 3)
    assert PAPER.refine.weight_decay == 5e-4 and PAPER.refine.init == "previous"
    assert PAPER.needs("refine") == ("ssl", "primary")
    state, _ = small("refine")
    frozen, own = state.frozen["primary"], state.networks["generator"]
    assert not any(w.requires_grad for w in frozen.parameters())
    torch.testing.assert_close(frozen(TRIPLET), own.eval()(TRIPLET))


def test_t3_the_global_batch_is_shared_by_the_workers():
    assert (PAPER.primary.batch, PAPER.refine.batch, PAPER.ssl.batch) == (4, 4, 8)
    for workers in (1, 2, 4):
        lanes = [lane for rank in range(workers) for lane in worker_lanes(4, rank, workers)]
        assert lanes == [0, 1, 2, 3]


def test_what_the_paper_does_not_have_is_off():
    for stage in (PAPER.ssl, PAPER.primary, PAPER.refine, PAPER.unet, PAPER.pix2pix):
        assert (stage.precision, stage.ema, stage.patience) == ("fp32", 0.0, None)
        assert (stage.keep, stage.crop) == ("last", None)
        assert set(stage.augment.model_dump().values()) == {0.0}


# ---- evaluation ----------------------------------------------------------------------------------


def test_e2_e4_baselines_and_ablations_are_rows_of_the_table():
    assert {"unet", "pix2pix", "primary_scratch", "primary", "refine"} <= {
        step.name for step in steps_of(PAPER)
    }
    assert PAPER.unet.adversarial_weight == 0 and PAPER.pix2pix.l1_weight == 100.0
    assert PAPER.unet.slices == PAPER.pix2pix.slices == 1
