"""One series of an archive from its files to virtual contrast and a record. No Ray.

    target/series/UID/0001.dcm ...    the derived series (UID.zip, UID.nii.gz or UID.png if asked)
    target/spread/UID/...             how far predictions lie apart, if asked for
    target/previews/KEY.jpg           plain above, virtual below
    target/records/KEY.json           what became of the series, written after all of its files

A series whose record is not there, or whose files are not those of the record, is not done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dyefreenet import __version__
from dyefreenet.config import GenerateConfig, Phase, store_patience
from dyefreenet.data.archive import SeriesRow
from dyefreenet.data.guard import Failed, Guard
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, ResourceError, SeriesError, StoreError
from dyefreenet.generation.export import Making
from dyefreenet.generation.work import finish, open_series, read_plain
from dyefreenet.plan import TRAINED
from dyefreenet.store import Folder

DONE, REFUSED, FAILED = "done", "refused", "failed"
SHIPPED = "shipped"  # the run that comes with the package
BYTES_A_VOXEL = 20  # that a prediction takes at its peak: HU twice, the change in fp32, and masks

Record = dict[str, Any]
Device = Literal["auto", "cpu", "cuda"]  # auto: a GPU if there is one


class Network(Protocol):
    """What makes virtual contrast of a volume."""

    def predict(self, volume: Volume, breaks: Sequence[int]) -> NDArray[np.int16]:
        """HU on the volume's voxels, [Z, H, W]."""

    def spread(self, volume: Volume, breaks: Sequence[int]) -> NDArray[np.int16]:
        """How far predictions lie apart, HU, [Z, H, W]."""


@dataclass(frozen=True)
class Model:
    """Which weights make the series, as far as the driver knows without loading them.

    Attributes:
        runs: Run folders or packages; "shipped": what comes with the package. The first makes the
            series, further ones take part in the spread.
        model_id: As the DICOM names it.
        weights_sha256: Of the generator that has the last word.
        phase: That is made.
    """

    runs: tuple[str, ...]
    model_id: str
    weights_sha256: str
    phase: Phase

    def making(self, row: SeriesRow, made_on: datetime, config: GenerateConfig) -> Making:
        """How a series is made, for its DICOM."""
        average = {None: "", True: "overlapping predictions averaged", False: "no averaging"}
        return Making(
            self.model_id,
            self.weights_sha256,
            self.phase,
            made_on,
            settings=average[config.average_overlap],
            stack=row.stack,
            banner=config.banner,
        )


def folder_of(run: str) -> Folder:
    """A run folder by its address; "shipped" is wherever this machine has the package."""
    return Folder(str(files("dyefreenet") / "weights") if run == SHIPPED else run)


def model_of(runs: Sequence[str], config: GenerateConfig) -> Model:
    """What runs say of themselves; no weights are loaded.

    Raises:
        InputError: A run is not there, or lacks the method or the phase.
    """
    from dyefreenet import recipes  # here: workers that only read need no YAML

    described = []
    for run in runs:
        folder = folder_of(run)
        if not folder.exists("recipe.json"):
            raise InputError(f"{folder}: expected a run with recipe.json, found none")
        recipe = recipes.validate(folder.read_json("recipe.json"))
        manifest = (folder / config.method).manifest()
        if manifest is None:
            there = [name for name in TRAINED if name != "ssl" and (folder / name).manifest()]
            raise InputError(
                f"{folder}: expected a finished {config.method}, found "
                f"{', '.join(there) or 'no trained step'}; --method names another"
            )
        phase = config.phase or recipe.ingest.phase
        recipes.require_learnt(config.method, recipe.phases(config.method), phase)
        sha256 = manifest["files"]["weights/generator.safetensors"]
        name = f"DyeFreeNet {__version__} {recipe.name} {config.method}"
        described.append((name, sha256, phase))
    return Model(tuple(runs), *described[0])


def load(
    model: Model,
    config: GenerateConfig,
    device: Device = "auto",
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Network:
    """The trained networks, on a device; ``tick`` is told slices done and in all of a series.

    Raises:
        ResourceError: "cuda" was asked for, and torch finds no GPU.
    """
    import torch  # here: a run with nothing to do loads no torch

    from dyefreenet import cascade as networks

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ResourceError(
            "--gpu: expected a GPU that torch can use, found none; leave it out, or ask dyefreenet "
            "doctor why"
        )
    device = "cuda" if there and device != "cpu" else "cpu"
    cascades = [
        networks.Cascade.load(
            folder_of(run), device, compiled=config.compiled, methods=[config.method]
        )
        for run in model.runs
    ]
    name, phase = config.method, model.phase

    class Trained:
        def predict(self, volume: Volume, breaks: Sequence[int]) -> NDArray[np.int16]:
            average = config.average_overlap
            return cascades[0].predict(volume, name, tick, phase, average, breaks).hu

        def spread(self, volume: Volume, breaks: Sequence[int]) -> NDArray[np.int16]:
            return networks.spread(cascades, volume, name, tick, phase, breaks).hu

    return Trained()


def make_series(
    row: SeriesRow,
    mark: str,
    target: Folder,
    config: GenerateConfig,
    making: Making,
    guard: Guard,
    predict: Callable[[Volume, Sequence[int]], tuple[NDArray[np.int16], NDArray[np.int16] | None]],
) -> Record:
    """Do one series, and write what became of it; its record.

    Args:
        mark: What the outcome follows from as the driver sees it.
        predict: The networks: HU, and how far predictions lie apart if that is asked for.

    Raises:
        StorageError: The target cannot be written: no fault of the series.
    """
    record = blank(row, mark)
    began = time.monotonic()
    try:
        told, (voxels,) = guard.run(open_series, row, config)
        read = time.monotonic()
        hu = np.frombuffer(voxels, np.int16).reshape(told["shape"])
        _require_memory(hu.size)
        virtual, apart = predict(Volume(hu, tuple(told["spacing"])), told["breaks"])
        predicted = time.monotonic()
        answer, _ = guard.run(
            finish,
            row.key,
            virtual.tobytes(),
            b"" if apart is None else apart.tobytes(),
            config,
            making,
            target,
            more_s=2 * store_patience(),  # or a store that is gone would be the series' fault
        )
    except SeriesError as refusal:
        record |= {"status": REFUSED, "code": refusal.reason, "detail": refusal.detail}
    except (Failed, MemoryError, RuntimeError) as failure:  # torch's own are RuntimeErrors
        detail = str(failure) if isinstance(failure, Failed) else type(failure).__name__
        record |= {"status": FAILED, "code": _code(failure), "detail": detail}
    else:
        now = time.monotonic()
        record |= {
            "status": DONE,
            "files": answer["files"],
            "slices": len(hu),
            "bytes": answer["bytes"],
            "source_sha256": told["sha256"],
            "notes": list(told["notes"]),
            "breaks": len(told["breaks"]),
            "quality": answer["quality"],
            "seconds": {
                "read": round(read - began, 3),
                "predict": round(predicted - read, 3),
                "write": round(now - predicted, 3),
            },
        }
    target.write_json(f"records/{row.key}.json", record)
    return record


def blank(row: SeriesRow, mark: str) -> Record:
    """A record of which nothing is known yet."""
    return {
        "key": row.key,
        "patient": row.patient,
        "mark": mark,
        "status": FAILED,
        "code": "",
        "detail": "",
        "slices": row.slices,
        "files": {},
        "bytes": 0,
        "notes": [],
        "breaks": 0,
        "quality": None,
        "source_sha256": "",
        "seconds": {},
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def is_whole(target: Folder, record: Record) -> bool:
    """Whether every file of a finished series is what was written, by its digest."""

    def same(entry: tuple[str, str]) -> bool:
        try:
            target.read(*entry)
        except (InputError, StoreError):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        return all(pool.map(same, record["files"].items()))


def virtual_of(source: Volume | str | Path, runs: Sequence[str], config: GenerateConfig) -> Volume:
    """Virtual contrast of a volume, or of the one series that a folder or an image file holds.

    Raises:
        InputError: No such place, more than one series there, or no such method or phase.
        SeriesError: The series cannot be used.
    """
    from dyefreenet.data.archive import scan
    from dyefreenet.data.cohort import plain_only
    from dyefreenet.generation.quality import body_of

    network = load(model_of(runs, config), config)
    breaks: Sequence[int] = ()
    if isinstance(source, Volume):
        plain = source
    else:
        rows = [row for row in scan(str(source)) if row.modality == "CT" and not row.localizer]
        if len(rows) != 1:
            raise InputError(
                f"{source}: expected one CT series, found {len(rows)}; dyefreenet generate takes "
                "archives"
            )
        _, refused = plain_only(rows)
        if refused and not config.any_phase:
            raise SeriesError(refused[0].reason, refused[0].detail)
        plain, series, _ = read_plain(rows[0], slice_wise=True)
        breaks = series.breaks if series else ()
    body = body_of(plain)
    return plain.with_hu(np.where(body, network.predict(plain, breaks), plain.hu))


def _code(failure: BaseException) -> str:
    if not isinstance(failure, Failed):
        return "network"
    text = str(failure)
    return "time" if "took more than" in text else "memory" if "memory" in text else "crash"


def _require_memory(voxels: int) -> None:
    """Stop before the kernel would end this process, and every other series with it."""
    needed = voxels * BYTES_A_VOXEL
    with open("/proc/meminfo") as lines:
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    if needed > free:
        raise Failed(f"needs {needed >> 20} MiB of memory, and {free >> 20} are free")
