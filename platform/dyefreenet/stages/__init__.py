"""The table of stages: what each trains, and from which config."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from dyefreenet.config import Recipe, StageConfig
from dyefreenet.stages import baselines, primary, refine, ssl


@dataclass(frozen=True)
class StageSpec:
    """One line of the table. A variant is a changed config, never a copied file."""

    code: ModuleType  # build, step, validate
    field: str  # of the recipe, whose config it takes
    label: str  # in tables and figures
    changes: tuple[tuple[str, Any], ...] = ()  # to that config

    def config(self, recipe: Recipe) -> StageConfig:
        found: StageConfig = getattr(recipe, self.field)
        return found.model_copy(update=dict(self.changes))


STAGES: dict[str, StageSpec] = {
    "ssl": StageSpec(ssl, "ssl", "SSL pretraining"),
    "unet": StageSpec(baselines, "unet", "U-Net"),
    "pix2pix": StageSpec(baselines, "pix2pix", "U-Net + Pix2Pix"),
    "primary_scratch": StageSpec(
        primary,
        "primary",
        "Primary without SSL",
        changes=(("init", "random"), ("perceptual_features", "random")),
    ),
    "primary": StageSpec(primary, "primary", "Primary GAN"),
    "refine": StageSpec(refine, "refine", "DyeFreeNet (refine)"),
}
