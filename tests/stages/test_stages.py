"""Every stage on one small batch: what learns, what must not, and that a resume changes nothing."""

import json
import math

import numpy as np
import pytest
import torch

from dyefreenet import hu, plan, recipes
from dyefreenet.config import (
    BaselineConfig,
    CascadeStageConfig,
    GeneratorConfig,
    GridConfig,
    PhantomConfig,
    Recipe,
    SslConfig,
)
from dyefreenet.errors import StoreError
from dyefreenet.evaluate import texture
from dyefreenet.models.generators import HighResolutionGenerator
from dyefreenet.stages import STAGES, ssl
from dyefreenet.stages.adversarial import (
    freeze,
    high_frequency_power,
    score_predictions,
    take_weights,
)

SMALL = GeneratorConfig(base=4, levels=2)
FAST = {"lr": 1e-3, "batch": 2, "epochs": 1}
RECIPE = Recipe(
    phantom=PhantomConfig(),
    generator=SMALL,
    grid=GridConfig(size=32),
    ssl=SslConfig(**FAST),
    primary=CascadeStageConfig(**FAST, discriminator_base=4),
    refine=CascadeStageConfig(**FAST, discriminator_base=4),
    unet=BaselineConfig(**FAST, generator=SMALL, adversarial_weight=0.0, mse_weight=1.0),
    pix2pix=BaselineConfig(**FAST, generator=SMALL, l1_weight=100.0, discriminator_base=4),
)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    plain = torch.rand(2, 3, 32, 32) * 2 - 1
    return {"plain": plain, "contrast": (plain + 0.3).clamp(-1, 1)}


def build(name):
    """A stage from the same weights every time; parents are fresh networks of seed 1."""

    def load(step):
        torch.manual_seed(1)
        generator = STAGES["ssl"].code.build(RECIPE.ssl, RECIPE, load).networks["generator"]
        return generator.state_dict()

    spec = STAGES[name]
    config = spec.config(RECIPE)
    weights = {need: load(need) for need in ("ssl", "primary")}
    torch.manual_seed(2)
    return spec.code.build(config, RECIPE, weights.__getitem__), spec.code, config


def copy_of(networks):
    return {
        (name, key): value.clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_step_moves_its_own_networks_and_no_frozen_one(name, batch):
    state, code, config = build(name)
    trained, frozen = copy_of(state.networks), copy_of(state.frozen)
    terms = code.step(state, batch, config, RECIPE.grid)
    assert all(torch.isfinite(term) for term in terms.values())
    weights = {
        (net, key)
        for net, network in state.networks.items()
        for key, _ in network.named_parameters()
    }
    after = copy_of(state.networks)
    still = [key for key in weights if torch.equal(trained[key], after[key])]
    assert not still
    for key, value in copy_of(state.frozen).items():
        assert torch.equal(value, frozen[key])


@pytest.mark.parametrize("name", STAGES)
def test_resuming_equals_never_stopping(name, batch, tmp_path):
    cpu = torch.device("cpu")
    straight, code, config = build(name)
    straight.to(cpu)  # channels last: so must the moments of Adam be that come from a file
    code.step(straight, batch, config, RECIPE.grid)
    straight.save(tmp_path)
    resumed, _, _ = build(name)
    resumed.to(cpu).load(tmp_path)
    for _ in range(2):
        one = code.step(straight, batch, config, RECIPE.grid)
        two = code.step(resumed, batch, config, RECIPE.grid)
        assert {k: float(v) for k, v in one.items()} == {k: float(v) for k, v in two.items()}
    ours, theirs = copy_of(straight.networks), copy_of(resumed.networks)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_averages_lag_behind_and_are_what_a_step_gives(batch, tmp_path):
    state, code, config = build("pix2pix")
    state.start_averages()
    begun = copy_of(state.averages)
    for _ in range(3):
        code.step(state, batch, config, RECIPE.grid)
        state.step += 1
        state.update_averages(0.9)
    assert "discriminator" not in state.averages
    name, key = "generator", "encoder.0.0.weight"
    new, average = copy_of(state.networks), copy_of(state.averages)
    way = (average[name, key] - begun[name, key]) / (new[name, key] - begun[name, key])
    assert 0 < way.median() < 1
    assert torch.equal(copy_of(state.as_used().networks)[name, key], average[name, key])
    state.save(tmp_path)
    other, _, _ = build("pix2pix")
    other.start_averages()
    other.load(tmp_path)
    theirs = copy_of(other.averages)
    assert all(torch.equal(theirs[k], v) for k, v in copy_of(state.averages).items())
    saved = json.loads((tmp_path / "state.json").read_text())
    assert saved["weights"]["generator"] == "average_generator.safetensors"


@pytest.mark.parametrize("name", STAGES)
def test_bf16_convolutions_leave_weights_and_losses_in_fp32(name, batch):
    exact, code, config = build(name)
    rough, _, _ = build(name)
    expected = code.step(exact, batch, config, RECIPE.grid)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found = code.step(rough, batch, config, RECIPE.grid)
    assert all(w.dtype == torch.float32 for n in rough.networks.values() for w in n.parameters())
    for term, value in found.items():
        assert value.dtype == torch.float32, term
        if not term.startswith("gradient") and "accuracy" not in term:
            assert float(value) == pytest.approx(float(expected[term]), rel=0.05), term


@pytest.mark.parametrize("name", ["unet", "primary_scratch"])
def test_one_network_makes_the_phase_that_it_is_told(name, batch):
    """The same plain slice has two phases; a network that is told tells them apart."""
    torch.manual_seed(0)
    told = SMALL.model_copy(update={"target_phase": True})
    recipe = RECIPE.model_copy(
        update={"generator": told, "unet": RECIPE.unet.model_copy(update={"generator": told})}
    )
    assert recipe.phases(name) == ("arterial", "portal", "delayed")
    assert RECIPE.phases(name) == ("arterial",)
    spec = STAGES[name]
    changes = {"mse_weight": 10.0, "adversarial_weight": 0.0, "perceptual_weight": 0.0, "lr": 1e-2}
    changes = {k: v for k, v in changes.items() if k in type(spec.config(recipe)).model_fields}
    config = spec.config(recipe).model_copy(update=changes)
    state = spec.code.build(config, recipe, {}.__getitem__)
    plain = batch["plain"][:1].expand(2, -1, -1, -1) * 0.5
    shifts = torch.tensor([0.3, -0.3])[:, None, None, None]
    both = {"plain": plain, "contrast": plain + shifts, "phase": torch.tensor([1, 2])}
    untold = spec.code.virtual(state, {"plain": plain}, config, recipe.grid)
    first = spec.code.virtual(state, both, config, recipe.grid)
    assert torch.allclose(first, untold, atol=1e-5)
    for _ in range(150):
        spec.code.step(state, both, config, recipe.grid)
    made = spec.code.virtual(state, both, config, recipe.grid)
    assert float((made[0] - made[1]).detach().mean()) == pytest.approx(0.6, abs=0.15)


def test_a_changed_checkpoint_is_refused(tmp_path):
    state, _, _ = build("unet")
    state.save(tmp_path)
    file = tmp_path / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="expected SHA-256"):
        build("unet")[0].load(tmp_path)


def test_primary_starts_from_ssl_and_its_ablation_does_not():
    state, _, _ = build("primary")
    torch.manual_seed(1)
    expected = STAGES["ssl"].code.build(RECIPE.ssl, RECIPE, None).networks["generator"]
    first = "encoder.0.0.weight"
    assert torch.equal(
        state.networks["generator"].state_dict()[first], expected.state_dict()[first]
    )
    values = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(state.frozen["features"](values), expected.eval()(values))
    scratch, _, config = build("primary_scratch")
    assert (config.init, config.perceptual_features) == ("random", "random")
    assert not torch.equal(
        scratch.networks["generator"].state_dict()[first], expected.state_dict()[first]
    )


def test_a_frozen_network_says_what_it_said():
    torch.manual_seed(0)
    network = HighResolutionGenerator(SMALL)
    for _ in range(3):  # running statistics that are not those of the start
        network(torch.randn(4, 3, 16, 16) * 2 + 1)
    values = torch.randn(2, 3, 16, 16)
    expected = [feature.detach() for feature in network.eval().features(values)]
    found = freeze(network).features(values.requires_grad_())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    sum(feature.sum() for feature in found).backward()
    assert values.grad is not None and not any(w.requires_grad for w in network.parameters())


def test_weights_of_another_network_are_refused():
    state, _, _ = build("unet")
    with pytest.raises(StoreError, match=r"ssl: expected weights for \d+ tensors, found \d+"):
        take_weights(
            build("primary")[0].networks["generator"],
            state.networks["generator"].state_dict(),
            "ssl",
        )


def test_unet_has_no_discriminator_and_pix2pix_has():
    assert set(build("unet")[0].networks) == {"generator"}
    assert set(build("pix2pix")[0].networks) == {"generator", "discriminator"}


def test_every_stage_learns_a_constant_enhancement(batch):
    """Loss falls by half in 150 steps on one batch."""
    for name in ("unet", "primary_scratch"):
        state, code, config = build(name)
        config = config.model_copy(
            update={"mse_weight": 10.0, "adversarial_weight": 0.0, "perceptual_weight": 0.0}
        )
        state.networks.pop("discriminator", None)
        state.frozen.pop("features", None)
        losses = [float(code.step(state, batch, config, RECIPE.grid)["mse"]) for _ in range(150)]
        assert losses[-1] < 0.5 * losses[0], name


@pytest.mark.parametrize("name", ["ssl", "primary", "refine"])
def test_packed_networks_of_the_cascade_work_at_full_size(name, batch):
    values = RECIPE.model_dump()
    values["generator"]["packed"] = True
    values["primary"]["judged_at"] = "full"
    recipe = Recipe.model_validate(values)
    fresh = STAGES["ssl"].code.build(recipe.ssl, recipe, {}.__getitem__).networks["generator"]
    spec, config = STAGES[name], STAGES[name].config(recipe)
    state = spec.code.build(config, recipe, lambda _: fresh.state_dict())
    terms = spec.code.step(state, batch, config, recipe.grid)
    assert all(torch.isfinite(value) for value in terms.values())
    if name != "ssl":
        made = spec.code.virtual(state, batch, config, recipe.grid)
        assert made.shape == batch["plain"].shape


def test_versions_scale_the_windowed_value_and_clip():
    plain = torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    scaled, classes = ssl.versions(plain, (0.5, 1.0, 1.5, 2.0))
    shares = (scaled[:, 0].flatten(1) + 1) / 2
    assert classes.tolist() == [0, 1, 2, 3]
    assert torch.allclose(
        shares,
        torch.tensor(
            [[0, 0.125, 0.25, 0.5], [0, 0.25, 0.5, 1], [0, 0.375, 0.75, 1], [0, 0.5, 1, 1]]
        ),
    )


def test_the_shortcut_control_knows_separate_maxima_and_not_equal_ones():
    separate = torch.tensor([[0.25, 0.5, 0.75, 1.0]] * 5)
    assert ssl.max_value_accuracy(separate) == 1.0
    assert ssl.max_value_accuracy(torch.ones(5, 4)) == 0.25


def test_validation_of_identity_is_perfect_and_of_a_shift_is_known():
    grid = GridConfig(window=(-200.0, 600.0))
    real = torch.zeros(2, 3, 8, 8)
    batch = {"plain": real - 0.5, "contrast": real}  # 200 HU below: every pixel enhances
    exact = score_predictions(iter([batch]), lambda batch: batch["plain"] + 0.5, grid)
    assert exact["enhanced_mae_hu"] == 0.0 and exact["psnr"] > 100 and exact["psnr_window600"] > 100
    shifted = score_predictions(
        iter([batch]), lambda batch: batch["plain"] + 0.6, grid
    )  # 40 HU off
    assert shifted["enhanced_mae_hu"] == pytest.approx(40.0, rel=1e-4)
    assert shifted["psnr"] == pytest.approx(
        20 * torch.log10(torch.tensor(800 / 40.0)).item(), rel=1e-4
    )
    assert shifted["psnr_window600"] == pytest.approx(
        20 * torch.log10(torch.tensor(600 / 40.0)).item(), rel=1e-4
    )
    assert score_predictions(iter([]), lambda batch: batch["plain"], grid) == {}


def test_validation_figures_of_trainings_with_other_windows_compare():
    """In -200...400 HU, whatever range the network sees."""
    generator = torch.Generator().manual_seed(0)
    values = -100 + 400 * torch.rand(2, 2, 3, 16, 16, generator=generator)  # HU, within both
    figures = []
    for window in ((-200.0, 600.0), (-1000.0, 1000.0)):
        plain, real = (hu.to_network(volume, window) for volume in values)
        batch = {"plain": plain, "contrast": real}
        figures.append(
            score_predictions(
                iter([batch]), lambda batch: batch["plain"], GridConfig(window=window)
            )
        )
    assert figures[0]["psnr_window600"] == pytest.approx(figures[1]["psnr_window600"], rel=1e-5)
    assert figures[0]["psnr"] != pytest.approx(figures[1]["psnr"], rel=1e-2)


def test_validation_tells_blur_from_grain_as_the_texture_protocol_does():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 32, 32, generator=generator) * 0.1
    batch = {"plain": noise, "contrast": noise}

    def distance(made):
        return score_predictions(iter([batch]), lambda batch: made, GridConfig())[
            "texture_distance"
        ]

    assert distance(noise) == 0.0
    assert distance(noise / 2) == pytest.approx(2 * math.log(2), rel=1e-4)  # a quarter of the power
    assert distance(noise * 2) == pytest.approx(2 * math.log(2), rel=0.05)
    taken = torch.randint(-100, 300, (2, 20, 30), generator=generator)
    assert high_frequency_power(taken.float()) == pytest.approx(
        texture.high_frequency_power(taken.numpy().astype(np.int16)), rel=1e-4
    )


def test_a_stage_needs_those_whose_weights_it_reads():
    assert RECIPE.needs("primary") == ("ssl",) and RECIPE.needs("refine") == ("ssl", "primary")
    assert RECIPE.needs("primary_scratch") == RECIPE.needs("unet") == RECIPE.needs("ssl") == ()
    changes = {"primary.init": "random", "primary.perceptual_weight": 0.0}
    alone = recipes.change(RECIPE, changes | {"refine.perceptual_weight": 0.0})
    assert alone.needs("primary") == () and alone.needs("refine") == ("primary",)
    assert "ssl" not in {step.name for step in plan.steps_of(alone)}
    compared = recipes.change(alone, {"refine.perceptual_weight": 1.0})
    assert compared.needs("refine") == ("ssl", "primary")
    assert "ssl" in {step.name for step in plan.steps_of(compared)}
