"""Shapes, wiring and sizes of the networks."""

import pytest
import torch
import torch.nn.functional as F

from dyefreenet.config import GeneratorConfig
from dyefreenet.models.classifier import IntensityHead
from dyefreenet.models.discriminators import PatchDiscriminator
from dyefreenet.models.generators import HighResolutionGenerator, UNet
from dyefreenet.models.scale import to_full, to_half

SMALL = GeneratorConfig(base=4, levels=3)


def test_each_encoder_block_takes_all_earlier_blocks():
    generator = HighResolutionGenerator(GeneratorConfig(base=4, levels=4))
    incoming = [block[0].in_channels for block in generator.encoder]
    assert incoming == [3, 4, 4 + 8, 4 + 8 + 16]  # G1


def test_without_dense_links_a_block_takes_the_one_before_alone():
    generator = HighResolutionGenerator(GeneratorConfig(base=4, levels=4, dense=False))
    assert [block[0].in_channels for block in generator.encoder] == [3, 4, 8, 16]
    assert generator(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_halving_again_is_the_maximum_over_the_whole_window():
    generator = HighResolutionGenerator(GeneratorConfig(base=4, levels=4, norm="none"))
    taken = []
    generator.encoder[3].register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    encoded = generator.features(torch.rand(1, 3, 32, 32))
    whole = [F.max_pool2d(maps, 2 ** (3 - level)) for level, maps in enumerate(encoded[:3])]
    assert torch.equal(taken[0], torch.cat(whole, dim=1))


@pytest.mark.parametrize("make", [HighResolutionGenerator, lambda config: UNet(config, 3)])
def test_a_packed_network_makes_full_size_from_every_pixel(make):
    packed = make(GeneratorConfig(base=4, levels=3, packed=True))
    halved = make(GeneratorConfig(base=4, levels=3))
    slices = torch.rand(1, 3, 32, 32)
    sizes = []
    for network in (packed, halved):
        network.encoder[0].register_forward_hook(lambda *given: sizes.append(given[2].shape[-1]))
    assert packed(slices).shape == slices.shape
    halved(to_half(slices))
    assert sizes == [16, 16]  # the same work
    finer = slices.clone()
    finer[:, :, ::2, ::2] += 0.1  # which the mean of 2x2 pixels cannot tell from the next line
    finer[:, :, 1::2, 1::2] -= 0.1
    assert torch.allclose(to_half(finer), to_half(slices))
    assert not torch.allclose(packed(finer), packed(slices))


def test_first_block_feeds_the_deepest_one_directly():
    generator = HighResolutionGenerator(GeneratorConfig(base=4, levels=3, norm="none"))
    triplet = torch.rand(1, 3, 16, 16, requires_grad=True)
    encoded = generator.features(triplet)
    deepest = generator.encoder[-1]
    with torch.no_grad():  # cut the way through the block in between
        deepest[0].weight[:, 4:] = 0
    generator.features(triplet)[2].sum().backward()
    assert encoded[2].shape == (1, 16, 4, 4)
    assert triplet.grad.abs().sum() > 0


def test_texture_path_brings_the_input_to_the_output():
    generator = HighResolutionGenerator(SMALL)
    assert generator.texture.in_channels == 4 + 3  # G3: last map and the input
    assert (generator.texture.out_channels, generator.leave.out_channels) == (10, 3)


@pytest.mark.parametrize("network", [HighResolutionGenerator(SMALL), UNet(SMALL, 3)])
def test_output_has_the_input_shape_and_every_weight_learns(network):
    triplet = torch.randn(2, 3, 32, 48)
    out = network(triplet)
    assert out.shape == triplet.shape
    out.square().mean().backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not silent


def test_a_residual_network_begins_as_the_identity():
    for network in (
        HighResolutionGenerator(GeneratorConfig(base=4, levels=3, residual=True)),
        UNet(GeneratorConfig(base=4, levels=3, residual=True), 3),
    ):
        triplet = torch.randn(1, 3, 16, 16)
        assert torch.equal(network(triplet), triplet)


def test_the_discriminator_answers_patch_by_patch():
    logits = PatchDiscriminator(6, 64, "batch")(
        torch.rand(1, 3, 256, 256), torch.rand(1, 3, 256, 256)
    )
    assert logits.shape == (1, 1, 31, 31)


def test_paper_head_has_fifty_million_parameters():
    with torch.device("meta"):
        head = IntensityHead("paper", 256, 4)
    assert sum(weight.numel() for weight in head.parameters()) == pytest.approx(50.3e6, rel=0.01)


def test_pooled_head_takes_any_size():
    head = IntensityHead("pooled", 96, 4)
    assert head(torch.rand(2, 3, 96, 96)).shape == head(torch.rand(2, 3, 64, 80)).shape == (2, 4)


def test_enhancement_keeps_detail_that_the_image_form_loses():
    plain = torch.rand(1, 3, 16, 16)
    unchanged = to_half(plain)  # a generator that predicts no enhancement
    assert torch.allclose(to_full(unchanged, plain, "enhancement"), plain)
    assert (to_full(unchanged, plain, "image") - plain).abs().max() > 0.1


def test_forward_and_backward_at_the_papers_size():
    generator = HighResolutionGenerator(GeneratorConfig())  # 5 levels, base 32
    triplet = torch.randn(1, 3, 256, 256)
    generator(triplet).mean().backward()
    assert sum(weight.numel() for weight in generator.parameters()) == 9_140_201
    assert generator.encoder[0][0].weight.grad.abs().sum() > 0
