#!/usr/bin/env python3
"""`dyefreenet plan` over the real NLST catalogue: seconds, peak memory, what is selected.

    pip install "dyefreenet[nlst]"
    PYTHONPATH=platform python benchmarks/nlst_plan.py

What a user would do by hand, pandas on the whole table, takes turns with it, each in a process of
its own.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 3


def plan() -> None:
    from dyefreenet.data import nlst
    from dyefreenet.store import Folder

    with tempfile.TemporaryDirectory() as folder:
        made = nlst.select(nlst.read_catalogue(nlst.IDC), nlst.NlstRules())
        nlst.write_plan(made, Folder(folder))
    summary = made.summary()
    summary.pop("odd")
    print(json.dumps(summary | {"odd": {kind: len(texts) for kind, texts in made.odd.items()}}))


def by_hand() -> None:
    import pandas
    from idc_index_data import IDC_INDEX_PARQUET_FILEPATH

    table = pandas.read_parquet(IDC_INDEX_PARQUET_FILEPATH)
    table = table[table.collection_id == "nlst"]
    soft = table[table.SeriesDescription.str.contains("STANDARD|B30f|FC10", na=False)]
    chosen = soft.sort_values("instanceCount").groupby("StudyInstanceUID").tail(1)
    print(json.dumps({"selected": len(chosen)}))


def measured(name: str) -> tuple[float, float, dict[str, object]]:
    """Seconds and peak MiB of one of the two in a new process, and what it printed."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - began
    *_, line, peak = done.stdout.splitlines()
    return seconds, float(peak), json.loads(line)


def main() -> None:
    if importlib.util.find_spec("idc_index_data") is None:
        print('skipped: expected idc-index-data, found none; pip install "dyefreenet[nlst]"')
        return
    runs: dict[str, list[tuple[float, float, dict[str, object]]]] = {"plan": [], "by_hand": []}
    for _ in range(ROUNDS):
        for name, found in runs.items():
            found.append(measured(name))
    for name, found in runs.items():
        seconds, peak = (statistics.median(run[i] for run in found) for i in (0, 1))
        print(f"{name:8} {seconds:6.1f} s, peak {peak:5.0f} MiB")
    print(json.dumps(runs["plan"][-1][2], indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"plan": plan, "by_hand": by_hand}[sys.argv[1]]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main()
