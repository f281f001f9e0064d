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
BUDGET = 16_000_000  # characters of all pictures together: the page stays below 20 MB
COARSEST = 8  # pixels that become one, at most, so that every pair has a picture
SHOWN = ("plain", "true", "unet", "pix2pix", "primary_scratch", "primary", "refine")
LIT_HU = 100  # where the contrast scan is brighter than the plain one by this, contrast went


def encode_hu(hu: NDArray[Any]) -> NDArray[np.uint8]:
    """HU to codes."""
    return np.interp(hu, KNOTS_HU, KNOTS_CODE).round().astype(np.uint8)


def code_table() -> list[float]:
    """HU of each code, [256]."""
    return np.interp(np.arange(256), KNOTS_CODE, KNOTS_HU).round(1).tolist()


def picture_of(method: str) -> str | None:
    """Name of a method's pictures; None where the viewer shows none of it."""
    name = "plain" if method == "identity" else method
    return name if name in SHOWN else None


def read_panels(run: Folder, budget: int = BUDGET) -> tuple[list[dict[str, Any]], int]:
    """Pictures of every pair, and how many stored slices found no room.

    Where all would be too much for one page, each pair keeps its middle slices; where even one of
    each would be, all pictures are drawn at half the size, a quarter or an eighth.

    Returns:
        [{pair, patient, spacing [z, y, x] mm, slices: [{index, images: {name: PNG in base64}}],
        worst: {name: position in slices where it goes most wrong}}], and the number of slices left
        out.
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
    shrink = 1
    while shrink < COARSEST and not _middles_fit(stored, shrink, budget):
        shrink *= 2
    kept: dict[str, dict[int, dict[str, str]]] = {pair: {} for pair in stored}
    spent, left_out = 0, 0
    for number, (distance, pair, position) in enumerate(order):
        images = _pictures(stored[pair], position, shrink)
        spent += sum(map(len, images.values()))
        if spent > budget and distance:
            left_out = len(order) - number
            break
        kept[pair][position] = images
    return [
        _panel(stored[pair], dict(sorted(kept[pair].items())), shrink) | {"pair": pair}
        for pair in stored
    ], left_out


def _middles_fit(stored: dict[str, dict[str, NDArray[Any]]], shrink: int, budget: int) -> bool:
    """Whether the budget has room for a slice of every pair at this size."""
    spent = 0
    for arrays in stored.values():
        spent += sum(map(len, _pictures(arrays, len(arrays["index"]) // 2, shrink).values()))
        if spent > budget:
            return False
    return True


def _panel(
    arrays: dict[str, NDArray[Any]], slices: dict[int, dict[str, str]], shrink: int
) -> dict[str, Any]:
    positions = list(slices)
    true = arrays["true"][positions].astype(np.float32)
    lit = true - arrays["plain"][positions] > LIT_HU
    worst = {}
    for name in SHOWN:
        if name in arrays and name != "true" and lit.any():
            wrong = (np.abs(arrays[name][positions] - true) * lit).sum(axis=(1, 2))
            worst[name] = int(wrong.argmax())
    z, y, x = (float(step) for step in arrays["spacing"])
    return {
        "patient": str(arrays["patient"]),
        "spacing": [z, y * shrink, x * shrink],
        "slices": [
            {"index": int(arrays["index"][position]), "images": images}
            for position, images in slices.items()
        ],
        "worst": worst,
    }


def _pictures(arrays: dict[str, NDArray[Any]], position: int, shrink: int) -> dict[str, str]:
    return {name: _png(_shrunk(arrays[name][position], shrink)) for name in SHOWN if name in arrays}


def _shrunk(hu: NDArray[np.int16], by: int) -> NDArray[Any]:
    """Means of squares of ``by`` pixels; what is left at the edges goes."""
    rows, columns = hu.shape[0] // by, hu.shape[1] // by
    return hu[: rows * by, : columns * by].reshape(rows, by, columns, by).mean(axis=(1, 3))


def _png(hu: NDArray[Any]) -> str:
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
