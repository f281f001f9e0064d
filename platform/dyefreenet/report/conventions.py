"""One result under every convention: as text for a terminal, and as one object for a program."""

from __future__ import annotations

import json
import math
from typing import Any

from dyefreenet.report.results import read_results
from dyefreenet.report.words import data_source
from dyefreenet.store import Folder

SHORT = {"primary_scratch": "no SSL"}  # a column is nine characters wide
_LABEL, _CELL = 26, 9


def protocols_text(run: Folder, step: str = "evaluate") -> str:
    """Means over patients, a line for each protocol, metric and region, a column for each method.

    Args:
        step: Folder of the evaluation below the run.

    Raises:
        StoreError: It is not finished.
    """
    results = read_results(run, step)
    manifest = (run / step).manifest() or {}
    loud, _ = data_source(results)
    n = max(line["n"] for line in results.summary)
    patients = f"{n} test patient{'s' * (n != 1)}"
    lines = [loud, f"Mean over {patients}; figures of two protocols are never compared"]
    means = {
        (line["protocol"], line["metric"], line["region"], line["method"]): line["mean"]
        for line in results.summary
    }
    header = "".join(SHORT.get(name, name)[: _CELL - 1].rjust(_CELL) for name in results.methods)
    for protocol, definition in manifest.get("definitions", {}).items():
        lines += ["", protocol.ljust(_LABEL) + header, f"  {definition}"]
        figures = dict.fromkeys(key[1:3] for key in means if key[0] == protocol)
        for metric, region in figures:
            cells = [means.get((protocol, metric, region, name)) for name in results.methods]
            label = f"  {metric} {region}"
            lines.append(label.ljust(_LABEL - 1) + " " + "".join(_cell(value) for value in cells))
    lines += ["", *manifest.get("left_out", [])]
    return "\n".join(lines).rstrip()


def summary_object(run: Folder, step: str = "evaluate") -> dict[str, Any]:
    """What an evaluation found, fit for strict JSON: what is infinite is the string "Infinity".

    Returns:
        run, protocols (their definitions), left_out (whom, and why), summary, differences and
        levels, as ``evaluate/`` has them.

    Raises:
        StoreError: The evaluation is not finished.
    """
    results, folder = read_results(run, step), run / step
    manifest = folder.manifest() or {}
    levels = json.loads(folder.read_checked("levels.json")) if folder.exists("levels.json") else []
    found: dict[str, Any] = _strict(
        {
            "run": results.name,
            "data": data_source(results)[0],
            "protocols": manifest.get("definitions", {}),
            "left_out": manifest.get("left_out", []),
            "summary": results.summary,
            "differences": results.differences,
            "levels": levels,
        }
    )
    return found


def _cell(value: float | None) -> str:
    if value is None:
        return "-".rjust(_CELL)
    text = "∞" if math.isinf(value) else f"{value:.4g}"
    return (text if len(text) < _CELL else f"{value:.1e}").rjust(_CELL)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
