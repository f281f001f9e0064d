"""The books of an ingest folder: what became of every series, and where its slices lie.

    slabs.json          one record a shard: what a training schedule needs, and its SHA-256
    pairs.parquet       one row a pair, with its split and the figures of its registration
    plain.parquet       one row a plain series without partner, for SSL
    excluded.parquet    one row a series that is not used, with reason and detail
    histogram.json      HU of all that is used, by phase

Everything in them names series and patients by hash alone.
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dyefreenet.data.archive import SeriesRow
from dyefreenet.data.look import EDGES, add
from dyefreenet.store import Folder

SSL = "ssl"  # the split of plain series that have no contrast partner
FAILED = "failed"  # in place of a reason: the work broke off, and the next run tries again
ROWS = 10_000  # of a table that are in memory at once

_SERIES_FIELDS = [
    ("key", pa.string()),
    ("patient", pa.string()),
    ("slices", pa.int32()),
    ("spacing_z", pa.float64()),  # mm, of the plain series before it is brought onto the grid
    ("spacing_y", pa.float64()),
    ("spacing_x", pa.float64()),
    ("thickness", pa.float64()),  # mm
    ("kernel", pa.string()),
    ("source", pa.string()),  # "phantom" or "real"
]
PLAIN_SCHEMA = pa.schema(_SERIES_FIELDS)
PAIRS_SCHEMA = pa.schema(
    [
        *_SERIES_FIELDS,
        ("split", pa.string()),
        ("phase", pa.string()),
        ("phase_told_by", pa.string()),
        ("contrast_key", pa.string()),
        ("contrast_thickness", pa.float64()),
        ("contrast_kernel", pa.string()),
        ("registration", pa.string()),
        ("gate", pa.string()),  # "train", or "evaluate": fits too poorly to be learnt from
        ("body_dice", pa.float64()),
        ("bone_edge_mm", pa.float64()),
        ("mutual_information", pa.float64()),  # nats
        ("mutual_information_gain", pa.float64()),
        ("min_jacobian", pa.float64()),
        ("max_shift_mm", pa.float64()),
        ("landmark_mm_before", pa.float64()),  # of a phantom, whose motion is known
        ("landmark_mm", pa.float64()),
    ]
)
EXCLUDED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("patient", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Books:
    """Takes what becomes of jobs as they end, in any order, and writes the same books each time.

    What it takes lies on disk until then, in SQLite's own nameless file.
    """

    def __init__(self) -> None:
        self._base = sqlite3.connect("")
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8000;"
            "CREATE TABLE book (key TEXT, phase TEXT, split TEXT, row TEXT, slabs TEXT);"
        )
        self.excluded: dict[str, dict[str, str]] = {}  # by key
        self.patients: dict[str, str] = {}  # of pairs, with their split
        self.pairs: Counter[str] = Counter()
        self.slices: Counter[str] = Counter()  # by split
        self.used: set[str] = set()
        self.plain = 0
        self._histogram: dict[str, Any] = {"plain": None, "contrast": {}}

    def refuse(self, row: SeriesRow, reason: str, detail: str) -> None:
        """A series that is not used, unless it turns out that another pair uses it."""
        told = {"key": row.key, "patient": row.patient, "reason": reason, "detail": detail}
        there = self.excluded.setdefault(row.key, told)
        self.excluded[row.key] = min(there, told, key=lambda one: (one["reason"], one["detail"]))

    def use(self, outcome: dict[str, Any], split: str) -> None:
        """A job that is done, by its record: ``row``, ``slabs`` and ``look``."""
        row, slabs = outcome["row"], outcome["slabs"]
        self._base.execute(
            "INSERT INTO book VALUES (?, ?, ?, ?, ?)",
            (row["key"], row.get("phase", ""), split, json.dumps(row), json.dumps(slabs)),
        )
        self.slices[split] += sum(slab["slices"] for slab in slabs)
        seen, look = self._histogram, outcome["look"]
        if row["key"] not in self.used:  # a plain scan may be of several pairs
            seen["plain"] = add(seen["plain"], look["plain"])
        self.used.add(row["key"])
        if split == SSL:
            self.plain += 1
            return
        self.used.add(row["contrast_key"])
        self.pairs[row["phase"]] += 1
        self.patients[row["patient"]] = split
        by_phase = seen["contrast"]
        by_phase[row["phase"]] = add(by_phase.get(row["phase"]), look["contrast"])

    def write(self, target: Folder) -> dict[str, str]:
        """Write the books; the SHA-256 of each by its name."""
        excluded = [one for key, one in sorted(self.excluded.items()) if key not in self.used]
        return {
            "pairs.parquet": target.write("pairs.parquet", self._table(False, PAIRS_SCHEMA)),
            "plain.parquet": target.write("plain.parquet", self._table(True, PLAIN_SCHEMA)),
            "excluded.parquet": target.write("excluded.parquet", _table(excluded, EXCLUDED_SCHEMA)),
            "slabs.json": target.write("slabs.json", self._slabs()),
            "histogram.json": target.write_json(
                "histogram.json", {"edges": EDGES} | self._histogram
            ),
        }

    def reasons(self) -> Counter[str]:
        """Series that are not used, by reason."""
        return Counter(one["reason"] for key, one in self.excluded.items() if key not in self.used)

    def shards(self) -> set[str]:
        """Names of all shards."""
        return {slab["path"] for slab in self._all_slabs()}

    def _table(self, ssl: bool, schema: pa.Schema) -> bytes:
        rows = self._base.execute(
            "SELECT row, split FROM book WHERE (split = ?) = ? ORDER BY key, phase", (SSL, ssl)
        )
        return _table((json.loads(row) | {"split": split} for row, split in rows), schema)

    def _all_slabs(self) -> Iterator[dict[str, Any]]:
        rows = self._base.execute("SELECT slabs FROM book ORDER BY key, phase")
        return chain.from_iterable(json.loads(slabs) for (slabs,) in rows)

    def _slabs(self) -> bytes:
        lines = (json.dumps(slab, sort_keys=True) for slab in self._all_slabs())
        return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    waiting = iter(rows)
    with pq.ParquetWriter(sink, schema) as writer:
        while some := list(islice(waiting, ROWS)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    return sink.getvalue()
