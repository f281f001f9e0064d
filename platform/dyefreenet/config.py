"""Every config of a run: frozen, typed, validated. No torch, no ray, no I/O in this file.

And how long storage may fail, which is the environment's to say and no part of a run.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dyefreenet.errors import ConfigError

Phase = Literal["plain", "arterial", "portal", "delayed"]
PHASES: tuple[Phase, ...] = get_args(Phase)  # by whose places networks and samples name them
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PATIENCE = "DYEFREENET_STORE_PATIENCE"  # seconds for which a store may fail before it is given up
DEFAULT_PATIENCE = 40.0


def store_patience() -> float:
    """Seconds for which object storage may fail before it is given up.

    Raises:
        ConfigError: The environment says something else.
    """
    text = os.environ.get(PATIENCE, str(DEFAULT_PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{PATIENCE}: expected seconds above 0, found {text!r}")
    return seconds


class Frozen(BaseModel):
    """Base of every config: immutable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PhantomConfig(Frozen):
    """A made-up archive: paired multi-phase CT and NLST-like chest series, as real DICOM."""

    patients: PositiveInt = 24  # paired patients
    chests: PositiveInt = 6  # low-dose chest series without a partner, for SSL
    phases: tuple[Phase, ...] = ("plain", "arterial")
    matrix: tuple[PositiveInt, ...] = (256,)  # drawn per patient, pixels
    slices: PositiveInt = 32  # per series; the part of the body that they cover is drawn
    # Where middle slices lie, mm above the hips (the neck is at 600); None: anywhere.
    middle_mm: tuple[float, float] | None = None
    slice_mm: tuple[PositiveFloat, PositiveFloat] = (1.5, 6.0)  # spacing, drawn per patient
    noise_hu: tuple[PositiveFloat, PositiveFloat] = (6.0, 35.0)  # sd, drawn per patient
    chest_noise_hu: tuple[PositiveFloat, PositiveFloat] = (22.0, 50.0)  # sd, low dose
    motion_mm: tuple[float, float] = (0.0, 4.0)  # peak displacement between phases
    jpegls: Share = 0.25  # share of series compressed as JPEG-LS lossless
    label_maps: tuple[str, ...] = ()  # of real CT: files, or folders of *.nii.gz
    label_map_share: Share = 0.5  # of patients, where label maps are given
    seed: int = 20


class GridConfig(Frozen):
    """How HU and pixels reach the networks and come back; shared by all methods."""

    window: tuple[float, float] = (-200.0, 600.0)  # HU mapped to [-1, 1] (paper.md D6)
    pixel_mm: PositiveFloat | None = (
        None  # in-plane pixel at full size; None: as the scanner made it
    )
    size: PositiveInt = 512  # matrix of a training slice: centred crop or pad, pixels
    upsample: Literal["image", "enhancement"] = "image"  # what goes from half to full size (G5)
    average_overlap: bool = False  # mean of the three predictions of a slice (G4)

    @model_validator(mode="after")
    def _check(self) -> GridConfig:
        low, high = self.window
        if not low < high:
            raise ValueError(f"window: expected low < high in HU, found {low} and {high}")
        if self.size % 2:
            raise ValueError(f"size: expected an even matrix, found {self.size}")
        return self


class IngestConfig(Frozen):
    """Archive to shards: which series, how paired, how split."""

    paired: tuple[str, ...] = ()  # archives with plain and contrast series; empty: the phantom
    plain: tuple[str, ...] = ()  # further archives of plain series for SSL, NLST for instance
    phases_csv: str | None = None  # what headers do not say; None: phases.csv of each archive
    phase: Phase = "arterial"  # the contrast phase that is learnt
    keep: tuple[Phase, ...] = ("arterial", "portal", "delayed")  # phases that become shards
    image_check: bool = True  # look at the blood: for a phase, and whether headers tell the truth
    registration: Literal["off", "rigid", "deformable"] = "off"  # contrast onto plain (D8)
    # Label maps of plain series: a folder of KEY.nii.gz or SERIES-UID.nii.gz, or totalsegmentator.
    masks: str | None = None
    # Their numbers by structure, as in {aorta: [52]}; none: those of TotalSegmentator's "total".
    structures: dict[str, tuple[int, ...]] = {}
    validation: Share = 0.15  # of patients
    test: Share = 0.2  # of patients
    slab: PositiveInt = 16  # slices in a shard file, its neighbours not counted
    seconds: PositiveFloat = 900.0  # that a pair may take, else it has failed
    memory_gib: PositiveFloat = 12.0  # that a pair may take; 512 x 512 x 800 voxels need 4


class Selection(Frozen):
    """Which series of an archive get virtual contrast; what is not said does not matter."""

    series: tuple[str, ...] = ()  # Series Instance UIDs, or keys of a ledger
    description: str | None = None  # regular expression, found anywhere in Series Description
    kernels: tuple[str, ...] = ()  # as the header names them
    slices: tuple[int, int] | None = None  # least and most
    thickness_mm: tuple[float, float] | None = None  # least and most, both included
    one_per_study: bool = False  # the thinnest of what is left, then the one with most slices

    @model_validator(mode="after")
    def _check(self) -> Selection:
        try:
            re.compile(self.description or "")
        except re.error as error:
            raise ValueError(f"description: expected a regular expression: {error}") from None
        return self


class GenerateConfig(Frozen):
    """What is made of each series of an archive, and what is refused."""

    method: str = "refine"  # row of the final table
    phase: Phase | None = None  # None: the one that the run's recipe names
    average_overlap: bool | None = (
        None  # predictions of one slice by three triplets; None: as trained
    )
    uncertainty: bool = False  # also how far predictions lie apart, as a series of its own
    banner: bool = False  # the warning is drawn into the pixels, too
    output: Literal["dicom", "zip", "nifti", "png"] = "dicom"
    any_phase: bool = False  # take a series that shows contrast agent, or that a network made
    compiled: bool = False  # networks fused by torch.compile, which pays on a GPU
    check: bool = True  # look at blood, soft tissue and flicker of each series
    seconds: PositiveFloat = 900.0  # that reading or writing a series may take
    memory_gib: PositiveFloat = 12.0  # the same


class GeneratorConfig(Frozen):
    """High-resolution generator (paper.md G1-G7)."""

    base: PositiveInt = 32  # features of the first level; doubled at each level
    levels: Annotated[int, Field(ge=2, le=6)] = 5
    norm: Literal["batch", "group", "none"] = "batch"
    residual: bool = False  # predict what the contrast agent adds to the slice
    dense: bool = True  # an encoder block sees all earlier ones (G1); else the one before it
    packed: bool = False  # 2x2 pixels are channels: full size at the cost of half
    target_phase: bool = False  # told which phase to make; it then learns all of ingest.keep


class OptimiserConfig(Frozen):
    """Adam and the decay of its learning rate, for G and D alike (S5, T1, T2)."""

    lr: PositiveFloat = 1e-5
    betas: tuple[Share, Share] = (0.5, 0.999)
    weight_decay: NonNegativeFloat = 5e-4
    decay: Literal["step", "cosine", "linear", "none"] = "step"
    decay_epoch: PositiveInt = 20  # step: epoch after which the rate falls
    gamma: PositiveFloat = 0.1  # step: factor of the fall


class AugmentConfig(Frozen):
    """Random changes of a training sample, plain and contrast alike; the paper has none."""

    flip: Share = 0.0  # chance of left becoming right
    rotate_degrees: NonNegativeFloat = 0.0  # at most, to either side; so are the next four
    scale: Share = 0.0  # of the size
    shift: Share = 0.0  # of the side
    gain: Share = 0.0  # of the intensity within the window
    offset: Share = 0.0  # of the window's width
    noise_hu: NonNegativeFloat = 0.0  # standard deviation at most, on the plain slices alone


class StageConfig(OptimiserConfig):
    """What every stage shares; one epoch shows every training slice once."""

    epochs: PositiveInt = 25
    batch: PositiveInt = 4  # over all workers together (T3)
    crop: PositiveInt | None = None  # random full-size crop, pixels; None: the whole slice
    augment: AugmentConfig = AugmentConfig()
    precision: Literal["fp32", "bf16"] = "fp32"  # of convolutions; weights and losses stay fp32
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # decay of the averaged weights; 0: none
    patience: PositiveInt | None = None  # epochs without a better validation; None: all epochs
    keep: Literal["last", "best"] = "last"  # epoch by validation, whose weights the step gives


class SslConfig(StageConfig):
    """Intensity classification (Eq. 1, S1-S7)."""

    lr: PositiveFloat = 1e-6
    decay_epoch: PositiveInt = 5
    epochs: PositiveInt = 10
    batch: PositiveInt = 8
    weight_decay: NonNegativeFloat = 0.0
    coefficients: tuple[PositiveFloat, ...] = (0.5, 1.0, 1.5, 2.0)
    head: Literal["paper", "pooled"] = "paper"


class AdversarialConfig(StageConfig):
    """Weights of the terms of Eqs 2-5, and the discriminator (A1-A4, L1-L2)."""

    adversarial_weight: NonNegativeFloat = 1.0
    saturating: bool = False  # Eq. 2 to the letter; else the non-saturating form (A4)
    d_mse_weight: NonNegativeFloat = 1.0  # MSE beside BCE in Eq. 4 (A3)
    mse_weight: NonNegativeFloat = 0.01  # lambda of Eq. 5
    l1_weight: NonNegativeFloat = 0.0  # Pix2Pix: 100
    vessel_weight: NonNegativeFloat = 0.0  # extra weight of pixels by their true enhancement
    vessel_l1_weight: NonNegativeFloat = 0.0  # of L1 where the true scan enhances, and only there
    discriminator_lr_factor: PositiveFloat = 1.0  # rate of D as a share of ``lr`` (T1: the same)
    discriminator_base: PositiveInt = 64
    discriminator_norm: Literal["batch", "group", "none"] = "batch"


class CascadeStageConfig(AdversarialConfig):
    """Primary or refine GAN."""

    perceptual_weight: NonNegativeFloat = 1.0  # third term of Eq. 5
    perceptual_features: Literal["ssl", "random"] = "ssl"  # whose blocks are compared (L2, L3)
    perceptual_blocks: tuple[NonNegativeFloat, ...] | None = None  # weight of each; None: all 1
    init: Literal["previous", "random"] = "previous"  # SSL for primary, primary for refine
    judged_at: Literal["half", "full"] = "half"  # of primary; refine is judged at full size always


class BaselineConfig(AdversarialConfig):
    """U-Net (all adversarial weights 0) and U-Net+Pix2Pix (E2)."""

    generator: GeneratorConfig = GeneratorConfig()  # the U-Net's size
    slices: Literal[1, 3] = 1  # the fair variant takes 3
    half: bool = False  # work at half size, as DyeFreeNet does


class EvaluateConfig(Frozen):
    """Protocols and statistics of the final table."""

    protocols: tuple[str, ...] = ("window600/1", "paper8/1", "texture/1", "enhancement/1")
    resamples: PositiveInt = 10_000  # of patients, for the bootstrap intervals


class Recipe(Frozen):
    """One whole run. Workers, GPUs and paths of the store are no part of it."""

    name: str = "paper"
    seed: int = 0
    phantom: PhantomConfig | None = None  # made-up archive; None: ingest.paired names a real one
    grid: GridConfig = GridConfig()
    ingest: IngestConfig = IngestConfig()
    generator: GeneratorConfig = GeneratorConfig()  # of SSL, primary and refine alike (S3, S6, T2)
    ssl: SslConfig = SslConfig()
    primary: CascadeStageConfig = CascadeStageConfig()
    refine: CascadeStageConfig = CascadeStageConfig(lr=5e-5, decay_epoch=17, epochs=20)
    unet: BaselineConfig = BaselineConfig(adversarial_weight=0.0, mse_weight=1.0)
    pix2pix: BaselineConfig = BaselineConfig(mse_weight=0.0, l1_weight=100.0)
    baselines: bool = True  # also train U-Net and U-Net+Pix2Pix (E2)
    ablation: bool = True  # also train the primary without SSL (E4)
    evaluate: EvaluateConfig = EvaluateConfig()

    def phases(self, stage: str) -> tuple[Phase, ...]:
        """Contrast phases that a stage learns."""
        own = getattr(getattr(self, stage.removesuffix("_scratch")), "generator", self.generator)
        return self.ingest.keep if own.target_phase else (self.ingest.phase,)

    def needs(self, stage: str) -> tuple[str, ...]:
        """Stages whose weights a stage reads."""
        if stage not in ("primary", "refine"):
            return ()
        own: CascadeStageConfig = getattr(self, stage)
        starts = stage == "primary" and own.init == "previous"
        compares = own.perceptual_weight > 0 and own.perceptual_features == "ssl"
        return ("ssl",) * (starts or compares) + ("primary",) * (stage == "refine")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.generator.packed and self.primary.judged_at == "half":
            raise ValueError(
                "primary.judged_at: expected full where generator.packed is true, since such a "
                "network makes full size, found half"
            )
        blocks = 2 * self.generator.levels - 1  # encoder, then decoder
        for name in ("primary", "refine"):
            weights = getattr(self, name).perceptual_blocks
            if weights is not None and len(weights) != blocks:
                raise ValueError(
                    f"{name}.perceptual_blocks: expected {blocks} weights for the blocks of "
                    f"generator.levels={self.generator.levels}, found {len(weights)}"
                )
        for name in ("ssl", "primary", "refine", "unet", "pix2pix"):
            stage: StageConfig = getattr(self, name)
            own = getattr(stage, "generator", self.generator)
            multiple = 2**own.levels  # halved once, then once per further level
            if (stage.crop or self.grid.size) % multiple:
                raise ValueError(
                    f"{name}.crop (or grid.size): expected a multiple of {multiple} pixels for "
                    f"{own.levels} levels, found {stage.crop or self.grid.size}"
                )
            if (stage.crop or 0) > self.grid.size:
                raise ValueError(
                    f"{name}.crop: expected at most grid.size={self.grid.size}, found {stage.crop}"
                )
        return self
