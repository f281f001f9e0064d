"""The page of a generated archive: what became of every series, and pictures to look at."""

from __future__ import annotations

import base64
import io
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dyefreenet.store import Folder

PICTURES = 200  # on the page, flagged series first: each has some 60 kB
LINES = 2000  # of the table; the ledger has all


def write_generated(target: Folder, path: str) -> None:
    """Write the page of a target that ``generate`` has filled; it needs no other file.

    Args:
        path: Of this machine, or an address.

    Raises:
        InputError: There is no ledger.
    """
    rows = pq.read_table(io.BytesIO(target.read("ledger.parquet"))).to_pylist()
    job = target.read_json("job.json")
    done = [row for row in rows if row["status"] == "done"]
    shown = sorted(done, key=lambda row: (row["check"] != "flag", row["key"]))[:PICTURES]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    content = environment.from_string(
        _asset("generated.html")
    ).render(
        style=Markup(_asset("page.css") + _asset("generated.css")),  # our own: not escaped
        job=job,
        counts=Counter(row["status"] for row in rows),
        codes=Counter((row["status"], row["code"]) for row in rows if row["code"]).most_common(),
        flags=Counter(flag for row in done for flag in row["flags"].split()).most_common(),
        slices=sum(row["slices"] for row in done),
        rows=sorted(rows, key=_most_interesting)[:LINES],
        total=len(rows),
        shown=[row | {"picture": _picture(target, row["key"])} for row in shown],
        left=len(done) - len(shown),
        figure=_figure,
    )
    place = path if "://" in path else str(Path(path).absolute())
    folder, _, name = place.rpartition("/")
    Folder(folder).write(name, content.encode())


def _most_interesting(row: dict[str, Any]) -> tuple[int, str]:
    order = ["failed", "flag", "refused", "pass", ""]
    state = row["check"] if row["status"] == "done" else row["status"]
    return order.index(state), row["key"]


def _picture(target: Folder, key: str) -> str:
    content = base64.b64encode(target.read(f"previews/{key}.jpg")).decode()
    return f"data:image/jpeg;base64,{content}"


def _figure(value: float | None) -> str:
    """Three digits; what there is none of, as a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _asset(name: str) -> str:
    return (files("dyefreenet.report") / name).read_text()
