"""Shards: the contract between ingest and training.

A shard is one Parquet file with a slab of neighbouring slices of one patient, one row a slice, so
that a training worker can read any slab alone. The slices just below and above the slab ride along
(``core`` false), so that every core slice finds its neighbours; at the ends of a series there are
none, and readers repeat the edge slice (paper.md D3).

Cells are compressed one by one and the file is not: they stay small on their way through Ray's
object store and are decoded once, in the consumer. The codec's name is in the file's metadata.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dyefreenet.config import Phase
from dyefreenet.store import Folder

CODEC = "dx-planes-zstd1"
_ZSTD = pa.Codec("zstd", compression_level=1)

SCHEMA = pa.schema(
    [
        ("pair", pa.string()),  # key of the pair: hash of the plain series' UID
        ("patient", pa.string()),  # hash of the patient's ID
        ("phase", pa.string()),  # of ``contrast``; "" where there is none
        ("index", pa.int32()),  # of the slice in its series, along the normal
        ("core", pa.bool_()),  # false: only a neighbour of the slab
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("spacing_z", pa.float64()),  # mm
        ("spacing_y", pa.float64()),
        ("spacing_x", pa.float64()),
        ("plain", pa.binary()),  # int16 HU, encoded by ``encode_slice``
        ("contrast", pa.binary()),  # the same on the plain grid; null for plain-only series
        ("labels", pa.binary()),  # uint8 structures of a phantom, zstd; null on real CT
    ],
    metadata={"codec": CODEC},
)


@dataclass(frozen=True)
class SlabRecord:
    """A line of the index of shards: all that a schedule needs, without opening a file."""

    path: str  # below the ingest folder
    split: str  # train, validation, test, or ssl (plain-only)
    phase: str  # of the contrast; "plain" where there is none
    pair: str
    patient: str
    slices: int  # core slices
    sha256: str = ""  # of the file; "": written before digests were kept


@dataclass(frozen=True)
class Slab:
    """A decoded shard: core slices with the neighbour below and above, edges repeated.

    Attributes:
        plain: int16 HU, [n + 2, H, W].
        contrast: The same on the same grid, or None.
        labels: uint8 structures of the core slices, [n, H, W], or None.
        first: Index of the first core slice in its series.
        spacing: mm, (z, y, x).
    """

    pair: str
    patient: str
    phase: str
    first: int
    spacing: tuple[float, float, float]
    plain: NDArray[np.int16]
    contrast: NDArray[np.int16] | None
    labels: NDArray[np.uint8] | None


def encode_slice(hu: NDArray[np.int16]) -> bytes:
    """Difference along x, low bytes before high bytes, zstd-1 (int16 [H, W] to bytes)."""
    values = np.ascontiguousarray(hu).view(np.uint16)
    steps = np.empty_like(values)
    steps[:, 0] = values[:, 0]
    np.subtract(values[:, 1:], values[:, :-1], out=steps[:, 1:])
    steps += 128  # keeps the high plane almost all zero, for steps of both signs
    planes = np.stack([steps.astype(np.uint8), (steps >> 8).astype(np.uint8)])
    return bytes(_ZSTD.compress(planes.tobytes(), asbytes=True))


def decode_slice(cell: bytes, height: int, width: int) -> NDArray[np.int16]:
    """Inverse of ``encode_slice``, to the bit."""
    raw = _ZSTD.decompress(cell, decompressed_size=height * width * 2)
    planes = np.frombuffer(raw, np.uint8).reshape(2, height, width)
    steps = planes[1].astype(np.uint16)
    steps <<= 8
    steps |= planes[0]
    steps -= 128
    imagecodecs.delta_decode(steps, out=steps)  # NumPy's cumsum takes six times as long
    return steps.view(np.int16)


def write_slabs(
    name: str,
    pair: str,
    patient: str,
    spacing: tuple[float, float, float],
    plain: NDArray[np.int16],
    contrast: NDArray[np.int16] | None,
    labels: NDArray[np.uint8] | None,
    *,
    phase: Phase,
    slab: int,
) -> list[tuple[str, int, bytes]]:
    """The shards of one pair as (file name, core slices, bytes of a Parquet file).

    Args:
        name: How the names of the files begin.
        plain: HU, int16 [Z, H, W]; ``contrast`` and ``labels`` lie on the same grid or are None.
        spacing: mm, (z, y, x).
        slab: Core slices in a shard.
    """
    depth, height, width = plain.shape
    cells_plain = [encode_slice(image) for image in plain]
    cells_contrast = None if contrast is None else [encode_slice(image) for image in contrast]
    cells_labels = None
    if labels is not None:
        cells_labels = [_ZSTD.compress(image.tobytes(), asbytes=True) for image in labels]
    files = []
    for number, start in enumerate(range(0, depth, slab)):
        stop = min(start + slab, depth)
        rows = range(max(start - 1, 0), min(stop + 1, depth))
        table = pa.table(
            {
                "pair": [pair] * len(rows),
                "patient": [patient] * len(rows),
                "phase": [phase if contrast is not None else ""] * len(rows),
                "index": list(rows),
                "core": [start <= z < stop for z in rows],
                "height": [height] * len(rows),
                "width": [width] * len(rows),
                "spacing_z": [spacing[0]] * len(rows),
                "spacing_y": [spacing[1]] * len(rows),
                "spacing_x": [spacing[2]] * len(rows),
                "plain": [cells_plain[z] for z in rows],
                "contrast": [cells_contrast[z] if cells_contrast else None for z in rows],
                "labels": [cells_labels[z] if cells_labels else None for z in rows],
            },
            schema=SCHEMA,
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="none", row_group_size=slab + 2)
        files.append((f"{name}-{number:04d}.parquet", stop - start, sink.getvalue()))
    return files


def read_records(ingest: Folder) -> list[SlabRecord]:
    """The index of all shards of an ingest folder."""
    return [SlabRecord(**line) for line in json.loads(ingest.read_checked("slabs.json"))]


def read_slab(content: bytes | pa.Buffer) -> Slab:
    """A shard file's bytes to arrays.

    Raises:
        ValueError: The file was written by another codec.
    """
    table = pq.read_table(pa.BufferReader(content))
    codec = (table.schema.metadata or {}).get(b"codec", b"").decode()
    if codec != CODEC:
        raise ValueError(f"shard: expected codec {CODEC}, found {codec or 'none'}")
    rows = table.to_pylist()
    core = [position for position, row in enumerate(rows) if row["core"]]
    wanted = range(core[0] - 1, core[-1] + 2)
    neighbours = [min(max(position, 0), len(rows) - 1) for position in wanted]
    first = rows[core[0]]
    height, width = first["height"], first["width"]

    def stack(column: str) -> NDArray[np.int16] | None:
        if first[column] is None:
            return None
        decoded = {p: decode_slice(rows[p][column], height, width) for p in set(neighbours)}
        return np.stack([decoded[position] for position in neighbours])

    plain = stack("plain")
    assert plain is not None  # every slice has a plain image; the schema's writer saw to it
    labels = None
    if first["labels"] is not None:
        raw = [_ZSTD.decompress(rows[p]["labels"], height * width) for p in core]
        labels = np.stack([np.frombuffer(cell, np.uint8).reshape(height, width) for cell in raw])
    return Slab(
        pair=first["pair"],
        patient=first["patient"],
        phase=first["phase"],
        first=first["index"],
        spacing=(first["spacing_z"], first["spacing_y"], first["spacing_x"]),
        plain=plain,
        contrast=stack("contrast"),
        labels=labels,
    )
