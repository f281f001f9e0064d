"""Whole runs by name: ``--recipe demo``, ``--set primary.lr=1e-4``, or from a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dyefreenet.config import (
    BaselineConfig,
    CascadeStageConfig,
    GeneratorConfig,
    GridConfig,
    IngestConfig,
    PhantomConfig,
    Phase,
    Recipe,
    SslConfig,
)
from dyefreenet.errors import ConfigError, InputError

Config = TypeVar("Config", bound=BaseModel)


def paper() -> Recipe:
    """Every value of the paper, and of our reading where it is silent (the field defaults).

    It takes paired CT of your own: ``--set ingest.paired='[FOLDER]'``, and NLST series for SSL:
    ``--set ingest.plain='[FOLDER]'``.
    """
    return Recipe(name="paper", ingest=IngestConfig(registration="deformable"))


def demo() -> Recipe:
    """The whole cascade on a made-up archive, in minutes on 2 CPU cores.

    Small networks that predict what the contrast agent adds, and learning rates a hundred times the
    paper's, make up for having minutes where the paper had days. L1 keeps edges, and vessels weigh
    more than the noise that no method can predict. The archive shows the abdomen, where the
    aorta is, with moderate noise and motion: twenty patients are too few to learn every part of
    the body from, or scans that are both noisy and shifted.
    """
    generator = GeneratorConfig(base=8, levels=4, residual=True)
    common: dict[str, Any] = {
        "lr": 2e-3,
        "weight_decay": 0.0,
        "decay": "cosine",
        "epochs": 2,
        "batch": 4,
        "crop": 192,
    }
    pixel = common | {"mse_weight": 10.0, "l1_weight": 5.0, "vessel_weight": 8.0}
    gan = pixel | {"adversarial_weight": 0.02, "discriminator_base": 16}
    gan["discriminator_lr_factor"] = 0.1
    fair = {"generator": generator, "slices": 3, "half": True}
    return Recipe(
        name="demo",
        phantom=PhantomConfig(
            patients=30,
            chests=8,
            matrix=(256,),
            slices=28,
            middle_mm=(170.0, 360.0),
            noise_hu=(10.0, 22.0),
            motion_mm=(0.0, 3.0),
        ),
        generator=generator,
        grid=GridConfig(pixel_mm=1.5, size=256, upsample="enhancement"),
        ingest=IngestConfig(validation=0.12, test=0.2),
        ssl=SslConfig(**(common | {"batch": 2, "lr": 1e-3, "epochs": 1}), head="pooled"),
        primary=CascadeStageConfig(**(gan | {"epochs": 3}), perceptual_weight=0.05),
        refine=CascadeStageConfig(**(gan | {"lr": 1e-3, "epochs": 1}), perceptual_weight=0.05),
        # As many epochs as primary and refine together.
        unet=BaselineConfig(**(pixel | {"epochs": 4}), **fair, adversarial_weight=0.0),
        pix2pix=BaselineConfig(
            **(gan | {"epochs": 4, "mse_weight": 0.0, "l1_weight": 10.0}), **fair
        ),
    )


def best() -> Recipe:
    """``demo`` with what further made-up patients liked better, at about the cost of its cascade.

    Neither the discriminator, nor the perceptual term, nor SSL paid for its time there
    (docs/results.md): without them there are more steps, of slices turned, scaled, shifted and
    made brighter or noisier a little. Networks see full size, 2x2 pixels as channels, and their
    encoder is a U-Net's. The square error and the error where contrast went are the two figures
    that count. Weights are averaged, and so are the three predictions of a slice. No flips: left
    and right tell the aorta from the vein beside it. Refine starts from a change of 0.
    """
    values = demo().model_dump()
    values |= {"name": "best", "baselines": False, "ablation": False}
    values["grid"] |= {"average_overlap": True}
    values["generator"] |= {"levels": 5, "dense": False, "packed": True}
    change = {
        "adversarial_weight": 0.0,
        "perceptual_weight": 0.0,
        "l1_weight": 0.0,
        "vessel_weight": 2.0,
        "vessel_l1_weight": 10.0,
        "ema": 0.99,
        "init": "random",
        "augment": {
            "rotate_degrees": 10.0,
            "scale": 0.12,
            "shift": 0.06,
            "gain": 0.05,
            "offset": 0.01,
            "noise_hu": 10.0,
        },
    }
    values["primary"] |= change | {"judged_at": "full", "epochs": 8}
    values["refine"] |= change | {"epochs": 1}
    return Recipe.model_validate(values)


def real() -> Recipe:
    """``best`` for generation over real CT: larger networks, and many more made-up patients.

    Minutes on a GPU, some hours on 2 CPU cores. They show every part of the body; a quarter of them
    have the anatomy of real label maps, and phases move little, because an unaligned pair teaches
    blur (docs/phantom.md). No real CT is seen in training.
    """
    values = best().model_dump()
    values |= {"name": "real"}
    values["phantom"] |= {
        "patients": 800,
        "chests": 1,  # nothing here learns from them
        "slices": 8,
        "middle_mm": None,
        "noise_hu": (5.0, 30.0),
        "motion_mm": (0.0, 1.5),
        "label_maps": (
            "../shared/data/ts_native_ct/example_seg.nii.gz",
            "../shared/data/ts_portal_dicom20/seg_totalsegmentator.nii.gz",
        ),
        "label_map_share": 0.25,
    }
    values["ingest"] |= {"validation": 0.06, "test": 0.06}
    values["generator"] |= {"base": 16, "levels": 4}
    # Vessels weigh less: more patients tell more of what is none.
    large = {"batch": 16, "vessel_weight": 4.0, "vessel_l1_weight": 8.0}
    values["primary"] |= large | {"lr": 3e-3, "epochs": 40}
    values["refine"] |= large | {"epochs": 4}
    return Recipe.model_validate(values)


def c4kc_kits() -> Recipe:
    """The paper's settings on public pairs: C4KC-KiTS, 108 studies with plain and arterial CT.

    The collection (CC BY 3.0, doi:10.7937/tcia.2019.ix49e8nx) is expected in the folder
    ``c4kc_kits``; docs/data.md says how to fetch it. It is abdominal CT of patients with kidney
    tumours. Without NLST beside, SSL learns from the plain side of the training pairs.
    """
    ingest = IngestConfig(paired=("c4kc_kits",), registration="deformable")
    return paper().model_copy(update={"name": "c4kc_kits", "ingest": ingest})


RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "best": best,
    "paper": paper,
    "real": real,
    "c4kc_kits": c4kc_kits,
}


def load(name: str, changes: Iterable[str] = ()) -> Recipe:
    """A recipe by name or from a YAML file, with ``key=value`` changes on top.

    A file holds the fields that differ from the recipe it names as ``base`` (``paper`` if none).

    Raises:
        ConfigError: No such recipe, field or value; the nearest right name is told.
    """
    if name in RECIPES:
        values = RECIPES[name]().model_dump()
    elif name.endswith((".yaml", ".yml", ".json")):
        values = _read_file(name)
    else:
        raise ConfigError(
            f"--recipe: expected {', '.join(RECIPES)} or a .yaml file, found {name!r}"
            + _nearest(name, RECIPES)
        )
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"--set: expected field=value, found {change!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: expected a YAML value, found {text!r}") from error
        _put(values, key.strip().split("."), value)
    return validate(values)


def change(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with fields changed, named as in ``--set``.

    Raises:
        ConfigError: No such field or value.
    """
    values = recipe.model_dump()
    for name, value in changes.items():
        _put(values, name.split("."), value)
    return validate(values)


def as_yaml(recipe: Recipe, origin: str) -> bytes:
    """A recipe file, for ``--recipe``, that says where its values come from."""
    body = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return f"# {origin}; use it with --recipe.\n{body}".encode()


def validate(values: dict[str, Any]) -> Recipe:
    """Plain values to a recipe; what is wrong is told in one line."""
    return checked(values, Recipe)


def require_learnt(method: str, learnt: Sequence[Phase], phase: Phase) -> None:
    """Refuse a phase that a method cannot make.

    Raises:
        InputError: It is not among those that the method has learnt.
    """
    if phase not in learnt:
        raise InputError(
            f"phase {phase}: {method} has learnt {', '.join(learnt)}; train with "
            "generator.target_phase=true for several"
        )


def checked(values: dict[str, Any], model: type[Config]) -> Config:
    """Plain values to a config of any kind; what is wrong is told in one line.

    Raises:
        ConfigError: No such field or value; the nearest right name is told.
    """
    _check_names(values, model, "", model)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or model.__name__
        if first["type"] == "value_error":
            raise ConfigError(str(first["ctx"]["error"])) from error
        raise ConfigError(f"{where}: {first['msg']}, found {first['input']!r}") from error


def read_rules(option: str, path: str, model: type[Config]) -> Config:
    """A config from a YAML or JSON file that holds the fields to change.

    Args:
        option: That names the file, for messages.

    Raises:
        ConfigError: No such field or value; the nearest right name is told.
        InputError: There is no such file, or it is no YAML.
    """
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{option} {path}: expected a YAML file, found: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{option} {path}: expected fields with values, found {values!r}")
    return checked(values, model)


def _read_file(name: str) -> dict[str, Any]:
    try:
        changes = yaml.safe_load(Path(name).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"--recipe {name}: expected a file, found none") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--recipe {name}: expected YAML, found: {error}") from error
    if not isinstance(changes, dict):
        raise ConfigError(f"--recipe {name}: expected fields of a recipe, found {changes!r}")
    base = changes.pop("base", "paper")
    if base not in RECIPES:
        raise ConfigError(
            f"--recipe {name}: base: expected {', '.join(RECIPES)}, found {base!r}"
            + _nearest(str(base), RECIPES)
        )
    values = RECIPES[base]().model_dump()
    _check_names(changes, Recipe, "", Recipe)
    _merge(values, changes)
    return values


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    model: type[BaseModel] | None = Recipe
    for depth, name in enumerate(path):
        if model is None or name not in model.model_fields:
            known = _fields(Recipe)
            full = ".".join(path)
            raise ConfigError(f"--set {full}: no such field{_nearest(full, known)}")
        if depth == len(path) - 1:
            values[name] = value
            return
        model = _submodel(model, name)
        if values.get(name) is None and model is not None:
            values[name] = model().model_dump()
        values = values[name]


def _check_names(
    values: dict[str, Any], model: type[BaseModel], prefix: str, root: type[BaseModel]
) -> None:
    for name, value in values.items():
        if name not in model.model_fields:
            full = f"{prefix}{name}"
            raise ConfigError(f"{full}: no such field{_nearest(full, _fields(root))}")
        inner = _submodel(model, name)
        if inner is not None and isinstance(value, dict):
            _check_names(value, inner, f"{prefix}{name}.", root)


def _submodel(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    annotation = model.model_fields[field].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for field in model.model_fields:
        names.append(f"{prefix}{field}")
        inner = _submodel(model, field)
        if inner is not None:
            names += _fields(inner, f"{prefix}{field}.")
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
