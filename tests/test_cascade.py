"""Networks made ready to predict, without Ray: what bf16 and folding change, what is refused."""

import shutil
from importlib.resources import files

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dyefreenet.cascade import Cascade, computes_bf16, prepared
from dyefreenet.config import GeneratorConfig
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, StoreError
from dyefreenet.models.generators import HighResolutionGenerator, UNet
from dyefreenet.store import Folder
from dyefreenet.train.state import load_weights

SHIPPED = Folder(str(files("dyefreenet") / "weights"))
WEIGHTS = "weights/generator.safetensors"
KINDS = {"packed": GeneratorConfig(base=4, levels=3, packed=True)}
KINDS["phases"] = GeneratorConfig(base=4, levels=3, target_phase=True)


def shipped_network():
    network = HighResolutionGenerator(Cascade.load(SHIPPED).recipe.generator)
    network.load_state_dict(load_weights(SHIPPED / "refine"))
    return network.eval()


def lived_in(network):
    """As if it had been trained: norms that are no identity, and an output that is not 0."""
    draw = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                values.data.uniform_(0.5, 1.5, generator=draw)
    network.leave.weight.data.normal_(0, 0.02, generator=draw)
    return network.eval()


def slices(height=64, width=96):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def damaged(tmp_path):
    """Puts a changed refine beside the shipped primary, digests and all; where it lies."""

    def put(change, recipe=lambda recipe: None):
        run = Folder(str(tmp_path))
        told = SHIPPED.read_json("recipe.json")
        recipe(told)
        run.write_json("recipe.json", told)
        tensors = load_weights(SHIPPED / "refine")
        change(tensors)
        sha256 = (run / "refine").write(WEIGHTS, safetensors.torch.save(tensors))
        (run / "refine").publish("damaged", {}, files={WEIGHTS: sha256})
        return run

    return put


@pytest.mark.parametrize("make", ["shipped", "unet", *KINDS])
def test_folded_norms_and_channels_last_change_nothing_but_rounding(make):
    if make == "shipped":
        network = shipped_network()
    elif make == "unet":
        network = lived_in(UNet(GeneratorConfig(base=4, levels=3), 3))
    else:
        network = lived_in(HighResolutionGenerator(KINDS[make]))
    phase = torch.tensor([1])
    with torch.inference_mode():
        expected = network(slices(), phase)
        found = prepared(network, "cpu", "exact")(slices(), phase)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert not torch.equal(expected, slices())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # 0.004 HU


@pytest.mark.parametrize("make", ["unet", *KINDS])
def test_bf16_leaves_the_last_convolution_and_the_slices_in_float32(make):
    exact, fast = (
        lived_in(UNet(GeneratorConfig(base=4, levels=3), 3))
        if make == "unet"
        else lived_in(HighResolutionGenerator(KINDS[make]))
        for _ in range(2)
    )
    fast.load_state_dict(exact.state_dict())
    prepared(exact, "cpu", "exact"), prepared(fast, "cpu", "bf16")
    kinds = {name: weight.dtype for name, weight in fast.named_parameters()}
    last = {name for name, kind in kinds.items() if kind == torch.float32}
    assert last == {"leave.weight", "leave.bias"}
    assert {kinds[name] for name in set(kinds) - last} == {torch.bfloat16}
    phase = torch.tensor([1])
    with torch.inference_mode():
        expected, found = exact(slices(), phase), fast(slices(), phase)
    assert found.dtype == torch.float32
    added = (expected - slices()).square().mean().sqrt()
    assert 0 < (found - expected).square().mean().sqrt() < 0.02 * added


def test_bf16_predicts_within_a_few_hu_of_exact():
    """Made-up patients of 256x256 differ by 4 HU at most and 0.2 HU in the mean."""
    draw = np.random.default_rng(0)
    plain = np.full((3, 96, 128), -1000, np.int16)
    plain[:, 16:80, 16:112] = draw.normal(40, 20, (3, 64, 96))
    volume = Volume(plain, (3.0, 1.5, 1.5))
    exact, fast = (Cascade.load(SHIPPED, precision=p).predict(volume).hu for p in ("exact", "bf16"))
    apart = np.abs(exact.astype(np.int32) - fast)
    assert np.abs(exact - plain).max() > 20  # there is something to differ in
    assert 0 < apart.max() <= 6 and apart[plain > -1000].mean() < 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("average", [True, False])
def test_a_gpu_predicts_what_a_cpu_does_and_twice_the_same(average):
    """In parts of several triplets, the last of them short."""
    draw = np.random.default_rng(0)
    plain = np.full((19, 512, 512), -1000, np.int16)
    plain[:, 64:448, 64:448] = draw.normal(40, 20, (19, 384, 384))
    volume = Volume(plain, (3.0, 0.75, 0.75))
    on_cpu = Cascade.load(SHIPPED, precision="bf16").predict(volume, average=average, breaks=(5,))
    on_gpu = Cascade.load(SHIPPED, "cuda")
    made, again = (on_gpu.predict(volume, average=average, breaks=(5,)).hu for _ in range(2))
    apart = np.abs(on_cpu.hu.astype(np.int32) - made)
    assert np.array_equal(made, again)
    if not average:
        compiled = Cascade.load(SHIPPED, "cuda", compiled=True)
        fused = compiled.predict(volume, average=average, breaks=(5,)).hu
        assert np.abs(fused.astype(np.int32) - made).max() <= 8
    assert apart.max() <= 8 and apart[plain > -1000].mean() < 0.5


def test_auto_is_bf16_where_the_device_computes_in_it_and_exact_elsewhere():
    network = prepared(shipped_network(), "cpu", "auto")
    expected = torch.bfloat16 if computes_bf16("cpu") else torch.float32
    assert network.texture.weight.dtype == expected
    assert network.leave.weight.dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_its_file_and_name(damaged, value):
    name = "encoder.2.3.weight"
    run = damaged(lambda tensors: tensors[name][5, 0, 1].fill_(value))
    with pytest.raises(StoreError) as refusal:
        Cascade.load(run)
    assert str(refusal.value) == (
        f"{run}/refine/{WEIGHTS}: expected finite weights, found NaN or infinity in {name}"
    )


def test_weights_of_another_network_are_refused_in_a_line(damaged):
    run = damaged(lambda tensors: None, lambda recipe: recipe["generator"].update(base=8))
    with pytest.raises(StoreError, match=r"recipe's network.*size mismatch") as told:
        Cascade.load(run)
    assert str(told.value).startswith(f"{run}/refine/{WEIGHTS}: ") and "\n" not in str(told.value)


def test_a_missing_tensor_is_refused_by_its_name(damaged):
    run = damaged(lambda tensors: tensors.pop("leave.bias"))
    with pytest.raises(StoreError, match=r"found others: Missing key.*leave\.bias"):
        Cascade.load(run)


def test_a_damaged_method_does_not_keep_another_from_its_work(damaged):
    run = damaged(lambda tensors: tensors.pop("leave.bias"))
    shutil.copytree(f"{SHIPPED}/primary", f"{run}/primary")
    assert list(Cascade.load(run, methods=["primary"]).methods) == ["primary"]
    with pytest.raises(StoreError, match=r"leave\.bias"):
        Cascade.load(run)
    with pytest.raises(InputError, match=r"a trained step \(unet\), found none"):
        Cascade.load(run, methods=["unet"])
