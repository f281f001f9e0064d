"""The trained networks as one object: Volume in, Volume out. No Ray.

A folder is a run folder, or a package made from one: ``recipe.json`` and, per trained step,
``manifest.json`` with digests and ``weights/*.safetensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dyefreenet import hu, recipes
from dyefreenet.config import PHASES, BaselineConfig, GridConfig, Phase, Recipe
from dyefreenet.data.volume import AIR_HU, Volume, neighbours
from dyefreenet.errors import InputError, StoreError
from dyefreenet.models.generators import HighResolutionGenerator, UNet
from dyefreenet.stages import STAGES, baselines, primary, refine
from dyefreenet.stages.adversarial import freeze
from dyefreenet.store import Folder
from dyefreenet.train.state import load_weights

PREDICTORS = ("unet", "pix2pix", "primary_scratch", "primary", "refine")
WEIGHTS = "weights/generator.safetensors"  # below a step's folder

PIXELS_AT_ONCE = 16 * 512 * 512  # of a slice times triplets, on a GPU

Precision = Literal["auto", "exact", "bf16"]  # of the networks; HU are float32 whichever it is


@dataclass(frozen=True)
class Method:
    """One row of the final table: full-size triplets in, virtual slices out."""

    name: str
    # [B, 3, H, W] and phases [B] to [B, 1 or 3, H, W], all on the device
    predict: Callable[[Tensor, Tensor], Tensor]
    multiple: int  # of which H and W must be
    weights_sha256: str
    device: str = "cpu"  # that triplets have to be on
    phases: tuple[Phase, ...] = ("arterial",)  # that it can make


class Cascade:
    """Every trained method of a run."""

    def __init__(self, recipe: Recipe, methods: dict[str, Method]) -> None:
        self.recipe = recipe
        self.methods = methods

    @classmethod
    def load(
        cls,
        folder: Folder,
        device: str = "cpu",
        precision: Precision = "auto",
        compiled: bool = False,
        methods: Sequence[str] = PREDICTORS,
    ) -> Cascade:
        """Methods whose steps are finished, ready to predict as fast as the device can.

        Args:
            methods: That are loaded; the others' files are not looked at.
            precision: ``exact`` is float32, the same figures on every CPU but for rounding;
                ``auto`` is bf16 where the device computes in it, else ``exact``.
            compiled: Networks are fused by ``torch.compile`` when they first run, and anew when
                slices of another size come. It needs a C compiler, and moves what is predicted by
                as much as rounding does.

        Raises:
            InputError: The folder holds no recipe or no trained method.
            StoreError: A file was changed since it was saved, has a weight that is not finite, or
                is of another network than the recipe's.
        """
        if not folder.exists("recipe.json"):
            raise InputError(f"{folder}: expected a run with recipe.json, found none")
        recipe = recipes.validate(folder.read_json("recipe.json"))
        found = {}
        for name in methods:
            manifest = (folder / name).manifest()
            if manifest is not None:
                found[name] = _method(name, recipe, folder, manifest, device, precision, compiled)
        if not found:
            raise InputError(
                f"{folder}: expected a trained step ({', '.join(methods)}), found none"
            )
        return cls(recipe, found)

    def method(self, name: str) -> Method:
        if name not in self.methods:
            raise InputError(f"method {name}: expected one of {', '.join(self.methods)}")
        return self.methods[name]

    def require_phase(self, method: str, phase: Phase) -> None:
        """Refuse a phase that the method cannot make.

        Raises:
            InputError: No such method, or it has not learnt this phase.
        """
        recipes.require_learnt(method, self.method(method).phases, phase)

    def predict(
        self,
        volume: Volume,
        method: str = "refine",
        tick: Callable[[int, int], None] = lambda done, total: None,
        phase: Phase | None = None,
        average: bool | None = None,
        breaks: Collection[int] = (),
    ) -> Volume:
        """Virtual contrast on the volume's own voxels.

        The networks see the in-plane pixel size that they were trained at; what comes back onto
        the source's pixels is the change, so the source's own detail and every voxel of air,
        padding and dense bone stay what they were.

        Args:
            volume: Plain CT in HU.
            tick: Told slices done and in all.
            phase: That is wanted; None: the one that the recipe names.
            average: Whether overlapping predictions of a slice are averaged; None: as trained.
            breaks: Slices after which one is missing: no triplet reaches across.

        Raises:
            InputError: No such method, it has not learnt this phase, or what its network makes is
                not finite.
        """
        chosen, phase = self.method(method), phase or self.recipe.ingest.phase
        self.require_phase(method, phase)
        average = self.recipe.grid.average_overlap if average is None else average
        source = torch.from_numpy(volume.hu.copy()).to(chosen.device)
        total = len(source)
        predicted = torch.zeros(source.shape, device=chosen.device)
        votes = torch.zeros(total, 1, 1)
        for first in range(0, total, at_once := _triplets_at_once(source)):
            middles = range(first, min(first + at_once, total))
            places = [neighbours(z, total, breaks) for z in middles]
            given = places + places[-1:] * (at_once - len(places))  # one size is compiled once
            triplets = source[torch.tensor(given)]
            changes = self._changes(triplets, volume.spacing[1:], chosen, phase, average)
            for z, three, change in zip(middles, places, changes, strict=False):
                # G4: a slice is predicted by each triplet that holds it, an end by two places.
                for place in [z] if len(change) == 1 else sorted(set(three)):
                    predicted[place] += change[0 if len(change) == 1 else place - z + 1]
                    votes[place] += 1
            tick(middles[-1] + 1, total)
        predicted /= votes.to(chosen.device)
        predicted += source
        broken = ~torch.isfinite(predicted).flatten(1).all(dim=1)
        if broken.any():  # as whole numbers they would be HU like any other
            raise InputError(
                f"{method}: expected finite HU in every predicted slice, found NaN or infinity in "
                f"{int(broken.sum())} of {total}, first in slice {int(broken.int().argmax())}"
            )
        virtual = predicted.round_().to(torch.int16).cpu().numpy()
        if volume.padding is not None:
            virtual[volume.padding] = volume.hu[volume.padding]
        return volume.with_hu(virtual)

    def predict_grid(self, plain: NDArray[np.int16], method: str) -> NDArray[np.int16]:
        """The same on slices that already lie on the training grid, int16 HU [Z, H, W]."""
        pixel = self.recipe.grid.pixel_mm or 1.0
        return self.predict(Volume(plain, (1.0, pixel, pixel)), method).hu

    def _changes(
        self,
        triplets: Tensor,
        pixel: tuple[float, float],
        method: Method,
        phase: Phase,
        average: bool,
    ) -> Tensor:
        """What the contrast agent would add to triplets in HU, [B, 3, H, W]: HU [B, n, H, W].

        n is 3 where overlapping predictions are averaged, else 1: the middle slice.
        """
        grid = self.recipe.grid
        count, _, height, width = triplets.shape
        size = (height, width)
        if grid.pixel_mm is not None:
            size = (
                max(round(height * pixel[0] / grid.pixel_mm), 1),
                max(round(width * pixel[1] / grid.pixel_mm), 1),
            )
        with torch.inference_mode():
            own = triplets.float()
            seen = resize(own, size)
            padded = pad_to(seen, 2 * method.multiple)
            plain = hu.to_network(padded, grid.window)
            wanted = torch.full((count,), PHASES.index(phase), device=own.device)
            virtual = method.predict(plain, wanted)
            every = slice(1, 2)
            if virtual.shape[1] == 3:
                every = slice(None) if average else every
                virtual = virtual[:, every]
            change = hu.change(virtual, plain[:, every], grid.window)
            change = resize(change[:, :, : size[0], : size[1]], (height, width))
            # Outside the window the input keeps its value: air and dense bone take no contrast.
            low, high = grid.window
            return change * ((own[:, every] > low) & (own[:, every] < high))


def _triplets_at_once(source: Tensor) -> int:
    """One on a CPU, whose caches hold one; as many as fill a GPU."""
    if not source.is_cuda:
        return 1
    return max(PIXELS_AT_ONCE // source[0].numel(), 1)


def spread(
    cascades: Sequence[Cascade],
    volume: Volume,
    method: str = "refine",
    tick: Callable[[int, int], None] = lambda done, total: None,
    phase: Phase | None = None,
    breaks: Collection[int] = (),
) -> Volume:
    """Where the networks guess: how far predictions lie apart that ought to be one, HU.

    Of each voxel the standard deviation over every network, over the scan and its mirror image,
    left for right, and over the triplets that hold its slice. It says nothing of what all get
    wrong alike.

    Args:
        cascades: Trained with other seeds or on other patients; one is enough.
        volume: Plain CT in HU.
        breaks: See ``Cascade.predict``.

    Raises:
        InputError: No such method, or it has not learnt this phase.
    """
    total = len(volume.hu)
    apart = np.zeros_like(volume.hu)
    guesses: dict[int, list[NDArray[np.float32]]] = {}  # of the slices that are being predicted
    for z in range(total):
        places = neighbours(z, total, breaks)
        triplet = volume.hu[places]
        for cascade in cascades:
            chosen, wanted = cascade.method(method), phase or cascade.recipe.ingest.phase
            cascade.require_phase(method, wanted)
            for sense in (1, -1):
                seen = np.ascontiguousarray(triplet[None, :, :, ::sense])
                given = torch.from_numpy(seen).to(chosen.device)
                made = cascade._changes(given, volume.spacing[1:], chosen, wanted, True)
                changes = made[0].cpu().numpy()
                for place in [z] if len(changes) == 1 else sorted(set(places)):
                    change = changes[0 if len(changes) == 1 else place - z + 1][:, ::sense]
                    guesses.setdefault(place, []).append(change)
        for place in [place for place in guesses if place < z or z == total - 1]:
            apart[place] = np.rint(np.std(guesses.pop(place), axis=0))
        tick(z + 1, total)
    if volume.padding is not None:
        apart[volume.padding] = 0
    return volume.with_hu(apart)


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] to another in-plane size: anti-aliased when shrinking, bilinear when growing."""
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False, antialias=True)


def pad_to(values: Tensor, multiple: int) -> Tensor:
    """Air at the lower right, until both sides are multiples."""
    height, width = values.shape[-2:]
    return F.pad(values, (0, -width % multiple, 0, -height % multiple), value=float(AIR_HU))


def prepared(network: nn.Module, device: str, precision: Precision) -> nn.Module:
    """A trained network made ready to predict, in place: norms folded, channels last in memory.

    In bf16 the last convolution stays float32: bf16 has steps of 3 HU near 1.
    """
    freeze(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "bf16" or (precision == "auto" and computes_bf16(device)):
        network.bfloat16()
        network.leave.float()
    return network


def computes_bf16(device: str) -> bool:
    """Whether a device has instructions for bf16: where it is emulated, float32 is faster.

    oneDNN takes bf16 on any CPU with AVX-512, so what torch says of oneDNN is no answer.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def _method(
    name: str,
    recipe: Recipe,
    folder: Folder,
    manifest: dict[str, Any],
    device: str,
    precision: Precision,
    compiled: bool,
) -> Method:
    config = STAGES[name].config(recipe)
    grid: GridConfig = recipe.grid

    def network(step: str, blank: nn.Module) -> nn.Module:
        try:
            blank.load_state_dict(load_weights(folder / step))
        except RuntimeError as error:
            reason = shorten(str(error).partition("\n")[2], 200)
            raise StoreError(
                f"{folder / step}/{WEIGHTS}: expected weights of the recipe's network, found "
                f"others: {reason}"
            ) from error
        prepared(blank, device, precision)
        if compiled:
            blank.compile()
        return blank

    made: nn.Module
    if isinstance(config, BaselineConfig):
        made = UNet(config.generator, config.slices)
        nets = {"generator": network(name, made)}
        predict = partial(baselines.predict, nets, grid=grid, config=config)
    else:
        made = HighResolutionGenerator(recipe.generator)
        nets = {"generator": network(name, made)}
        if name == "refine":
            nets["primary"] = network("primary", HighResolutionGenerator(recipe.generator))
        predict = partial((refine if name == "refine" else primary).predict, nets, grid=grid)

    def virtual(plain: Tensor, phase: Tensor) -> Tensor:
        return predict(plain.to(memory_format=torch.channels_last), phase=phase).contiguous()

    return Method(
        name,
        virtual,
        made.multiple,
        manifest["files"][WEIGHTS],
        device,
        recipe.phases(name),
    )
