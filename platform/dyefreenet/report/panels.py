"""Slices of the evaluated patients as 8-bit PNG for the page's viewer.

A code of 0...255 stands for HU by a bent line: steps of 4 HU between -200 and 600, where soft
tissue and vessels lie, coarser steps for lung and dense bone. The viewer turns codes back into HU,
so window and difference are set in the browser; no figure of the table comes from these pictures.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dyefreenet.errors import StoreError
from dyefreenet.store import Folder

KNOTS_HU = (-1024.0, -200.0, 600.0, 1400.0)
KNOTS_CODE = (0.0, 10.0, 210.0, 255.0)
BUDGET = 9_000_000  # characters of all pictures together: a page that opens from a mail
SHOWN = ("plain", "true", "unet", "pix2pix", "primary_scratch", "primary", "refine")


def encode_hu(hu: NDArray[Any]) -> NDArray[np.uint8]:
    """HU to codes."""
    return np.interp(hu, KNOTS_HU, KNOTS_CODE).round().astype(np.uint8)


def code_table() -> list[float]:
    """HU of each code, [256]."""
    return np.interp(np.arange(256), KNOTS_CODE, KNOTS_HU).round(1).tolist()


def read_panels(run: Folder, budget: int = BUDGET) -> tuple[list[dict[str, Any]], int]:
    """Pictures of every pair, and how many stored slices found no room.

    Where all would be too much for one page, each pair keeps its middle slices.

    Returns:
        [{patient, spacing [z, y, x] mm, slices: [{index, images: {name: PNG in base64}}]}], and the
        number of slices left out.
    """
    evaluate = run / "evaluate"
    digests = (evaluate.manifest() or {}).get("files") or {}
    stored = {
        name.removeprefix("panels/").removesuffix(".npz"): _read(
            evaluate, name, digests.get(name, "")
        )
        for name in evaluate.names()
        if name.startswith("panels/") and name.endswith(".npz")
    }
    # The middle slice of every pair first, then its neighbours: what is cut is the ends.
    order = sorted(
        (abs(position - len(arrays["index"]) // 2), pair, position)
        for pair, arrays in stored.items()
        for position in range(len(arrays["index"]))
    )
    kept: dict[str, list[dict[str, Any]]] = {pair: [] for pair in stored}
    spent, left_out = 0, 0
    for _, pair, position in order:
        arrays = stored[pair]
        images = {name: _png(arrays[name][position]) for name in SHOWN if name in arrays}
        size = sum(map(len, images.values()))
        if spent and spent + size > budget:
            left_out += 1
            continue
        spent += size
        kept[pair].append({"index": int(arrays["index"][position]), "images": images})
    return [
        {
            "patient": str(stored[pair]["patient"]),
            "spacing": [float(step) for step in stored[pair]["spacing"]],
            "slices": sorted(slices, key=lambda entry: entry["index"]),
        }
        for pair, slices in kept.items()
        if slices
    ], left_out


def _png(hu: NDArray[np.int16]) -> str:
    sink = io.BytesIO()
    Image.fromarray(encode_hu(hu)).save(sink, "png")
    return base64.b64encode(sink.getvalue()).decode()


def _read(folder: Folder, name: str, sha256: str) -> dict[str, NDArray[Any]]:
    content = folder.read(name, sha256)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
    except (ValueError, OSError) as error:
        raise StoreError(f"{folder}/{name}: expected arrays of slices, found {error}") from error
    for wanted in ("plain", "true", "index", "patient", "spacing"):
        if wanted not in arrays:
            raise StoreError(f"{folder}/{name}: expected an array {wanted!r}, found {list(arrays)}")
    return arrays
