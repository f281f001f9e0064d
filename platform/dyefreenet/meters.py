"""What monitoring sees of a job: Prometheus figures through Ray, and a line of JSON an event. RAY.

Ray serves the figures of every node, ``ray_`` before their names; ``cluster/grafana.json`` draws
them. Events are lines on a worker's standard output, which Ray keeps beside its other logs. Series
go by hash, as everywhere. Outside of a Ray worker nothing is counted or said.
"""

from __future__ import annotations

import json
import sys
import time
from functools import cache
from typing import Any, Literal

Kind = Literal["counter", "gauge"]
FIGURES: dict[str, tuple[Kind, str, tuple[str, ...]]] = {  # kind, what it is, labels
    "dyefreenet_series": ("counter", "Series that came to an end", ("job", "status", "code")),
    "dyefreenet_slices": ("counter", "Slices of series that are done", ("job",)),
    "dyefreenet_bytes": ("counter", "Bytes written", ("job",)),
    "dyefreenet_seconds": ("counter", "Seconds spent, by part of the work", ("job", "part")),
    "dyefreenet_epoch": ("gauge", "Epochs that a stage has trained", ("run", "stage")),
    "dyefreenet_loss": ("gauge", "Terms of the loss at the last report", ("run", "stage", "term")),
    "dyefreenet_validation": (
        "gauge",
        "Figures of the validation patients",
        ("run", "stage", "figure"),
    ),
    "dyefreenet_rate": ("gauge", "Slices a second of a stage's training", ("run", "stage")),
}


def measure(name: str, value: float, **labels: str) -> None:
    """Add to a counter, or set a gauge of ``FIGURES``."""
    if _is_worker():
        metric = _metric(name)
        change = metric.inc if FIGURES[name][0] == "counter" else metric.set
        if value or FIGURES[name][0] == "gauge":  # Ray refuses to add nothing
            change(value, tags=labels)


def tell(event: str, **facts: Any) -> None:
    """One event as a line of JSON; what it names must be hashes or words of our own."""
    if _is_worker():
        line = json.dumps({"time": round(time.time(), 3), "event": event} | facts)
        sys.stdout.write(f"{line}\n")  # at once: threads of an actor tell side by side
        sys.stdout.flush()


def _is_worker() -> bool:
    """Whether this is a process of Ray's that does work, and not the one that asked for it."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, text, labels = FIGURES[name]
    made = metrics.Counter if kind == "counter" else metrics.Gauge
    return made(name, description=text, tag_keys=labels)
