"""Every method on every test patient: rows, summary, and slices for the report. RAY at the rim.

Each pair's rows are a file of their own, ``parts/<pair>.json``, written by the worker that scored
it. It says from which shards, weights and protocols it was made, and has a digest: an evaluation
that was broken off, or whose other patients changed, scores only what is not there yet.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dyefreenet.cascade import PREDICTORS, Cascade
from dyefreenet.config import Recipe
from dyefreenet.data.phantom import ARTERIES, LABELS
from dyefreenet.data.shards import Slab, SlabRecord, read_records, read_slab
from dyefreenet.errors import InputError, StorageError, StoreError
from dyefreenet.evaluate import remap
from dyefreenet.evaluate.protocols import PROTOCOLS, Case, protocol, score_volume
from dyefreenet.evaluate.regions import COMPUTED, body_mask, computed_labels
from dyefreenet.evaluate.statistics import differences, levels, missing, summarise
from dyefreenet.store import Folder, fingerprint

ORGANS = {  # whose HU are compared beside the arteries, where they are labelled
    "aorta": ("aorta",),
    "liver": ("liver",),
    "kidney": ("kidney_cortex", "kidney_medulla"),
    "muscle": ("muscle",),
}
PANEL_SLICES = 6  # of each patient, kept for the figure


def evaluate(
    recipe: Recipe,
    run: Folder,
    report: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
    step: str = "evaluate",
    trained: Folder | None = None,
    table: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Score all methods on the test split; fills ``{run}/{step}``.

    Args:
        report: Told pairs done and in all.
        say: Told of each patient, or method of a patient, that is left out, and why. The rest of
            the evaluation goes on: their figures do not depend on it.
        trained: Where the methods lie, if not in the run itself.
        table: From ``fit_remap``, where it is known; it does not depend on what was trained.

    Raises:
        InputError: There is no test patient, or none could be scored.
        ConfigError: A protocol that does not exist.
    """
    import ray

    ingest, target, networks = run / "ingest", run / step, trained or run
    for name in recipe.evaluate.protocols:
        protocol(name)
    records, phase = read_records(ingest), recipe.ingest.phase
    by_pair, lines = pairs_to_score(records, phase)
    if not by_pair:
        raise InputError("; ".join([f"{ingest}: expected patients in the test split", *lines]))
    if table is None:
        table = fit_remap(ingest, records, phase)
    fitted = {"low_hu": remap.LOW, "mapped_hu": table.round(2).tolist()}
    files = {"remap.json": target.write_json("remap.json", fitted)}
    made_from = {
        "weights": _weights(networks),
        "remap": files["remap.json"],
        "grid": recipe.grid.model_dump(mode="json"),
        "protocols": {name: PROTOCOLS[name].definition for name in recipe.evaluate.protocols},
    }

    mark = fingerprint({"weights": made_from["weights"]}, {})

    def score(item: dict[str, Any]) -> dict[str, Any]:
        shards = list(zip(item["paths"], item["sha256"], strict=True))
        part, found = score_pair(
            item["pair"],
            item["patient"],
            ingest,
            target,
            shards,
            made_from,
            lambda: _cascade(networks, mark),
            table,
            recipe,
        )
        return {"path": part, "sha256": found}

    items = [
        {
            "pair": pair,
            "patient": group[0].patient,
            "paths": [r.path for r in group],
            "sha256": [r.sha256 for r in group],
        }
        for pair, group in by_pair.items()
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(score)
    parts: dict[str, str] = {}
    for done, row in enumerate(dataset.iter_rows(), start=1):
        parts[row["path"]] = row["sha256"]
        report(done, len(items))
    rows: list[dict[str, Any]] = []
    for path in sorted(parts):
        part = json.loads(target.read(path, parts[path]))
        rows += part["rows"]
        lines += part["left_out"]
        files |= part["panel"] | {path: parts[path]}
    if not rows:
        raise InputError("; ".join([f"{target}: expected a patient that can be scored", *lines]))
    lines += missing(rows)
    for line in lines:
        say(line)
    files |= write_tables(rows, recipe, target)
    for name in target.names():  # of patients that are no longer in the test split
        if name.startswith(("parts/", "panels/")) and name not in files:
            target.remove(name)
    measured = sorted({row["protocol"] for row in rows})
    return {
        "patients": len({row["patient"] for row in rows}),
        "left_out": lines,
        "definitions": {name: PROTOCOLS[name].definition for name in measured},
        "files": files,
    }


def fit_remap(ingest: Folder, records: Iterable[SlabRecord], phase: str) -> NDArray[np.float64]:
    """The global HU remap of the training split; see ``remap.fit``."""
    return remap.fit(
        (slab.plain[1:-1], slab.contrast[1:-1])
        for slab in (
            read_slab(ingest.read(record.path, record.sha256))
            for record in records
            if record.split == "train" and record.phase == phase
        )
        if slab.contrast is not None
    )


def pairs_to_score(
    records: Iterable[SlabRecord], phase: str
) -> tuple[dict[str, list[SlabRecord]], list[str]]:
    """Shards of each test pair in the order of their paths, and a line for each pair left out.

    A patient of whom another split has a slice was seen in training, or chose the weights: figures
    of that patient would say nothing.

    Args:
        phase: Of the contrast that is scored; no phase of a patient may be in another split.
    """
    by_pair: dict[str, list[SlabRecord]] = defaultdict(list)
    elsewhere: dict[str, SlabRecord] = {}
    for record in sorted(records, key=lambda record: record.path):
        if record.split != "test":
            elsewhere.setdefault(record.patient, record)
        elif record.phase == phase:
            by_pair[record.pair].append(record)
    lines = []
    for pair in sorted(by_pair):
        first = by_pair[pair][0]
        if first.patient in elsewhere:
            other = elsewhere[first.patient]
            lines.append(
                f"patient {first.patient}, {first.path}: expected in the test split alone, found "
                f"in {other.split} too ({other.path}); left out"
            )
            del by_pair[pair]
    return {pair: by_pair[pair] for pair in sorted(by_pair)}, lines


@cache
def _cascade(run: Folder, weights: str) -> Cascade:
    """The networks, loaded once in each worker process; anew where their weights are others."""
    return Cascade.load(run, precision="exact")  # figures of any two machines compare


def _weights(run: Folder) -> dict[str, str]:
    """SHA-256 of the weights of every finished method."""
    manifests = {name: (run / name).manifest() for name in PREDICTORS}
    return {
        name: manifest["files"]["weights/generator.safetensors"]
        for name, manifest in manifests.items()
        if manifest is not None
    }


def score_pair(
    pair: str,
    patient: str,
    ingest: Folder,
    target: Folder,
    shards: Sequence[tuple[str, str]],
    made_from: dict[str, Any],
    cascade: Callable[[], Cascade],
    table: NDArray[np.float64],
    recipe: Recipe,
) -> tuple[str, str]:
    """One pair's rows as a file, unless it is there already from the same inputs. No Ray.

    Args:
        pair: Key of the pair.
        patient: Whose it is.
        ingest: Where the shards lie.
        target: Folder of the evaluation.
        shards: Path and SHA-256 of each.
        made_from: What the rows depend on besides, for the fingerprint.
        cascade: Gives the networks, which are not loaded where nothing is left to score.
        table: The HU remap that was fitted on the training split.

    Returns:
        The file's path below ``target`` and its SHA-256. A pair that cannot be scored has a part
        too, without rows, that says why.
    """
    mark = fingerprint({"shards": [list(shard) for shard in shards]} | made_from, {})
    path = f"parts/{pair}.json"
    if found := _finished(target, path, mark):
        return path, found
    where = f"{ingest}/{shards[0][0]}"
    part: dict[str, Any] = {"patient": patient, "rows": [], "left_out": [], "panel": {}}
    try:
        named = [(name, read_slab(ingest.read(name, sha256))) for name, sha256 in shards]
        rows, left_out, panel = score_patient(named, cascade(), table, recipe)
    except StorageError:  # says nothing of this patient
        raise
    except (ValueError, InputError, StoreError) as error:
        part["left_out"] = [f"patient {patient}, {where}: {error}; left out"]
    else:
        part["rows"] = [row | {"pair": pair} for row in rows]
        part["left_out"] = [f"patient {patient}, {where}: {line}; left out" for line in left_out]
        picture = f"panels/{pair}.npz"
        part["panel"] = {picture: target.write(picture, panel)}
    part |= {"fingerprint": mark, "sha256": _digest(part)}
    return path, target.write_json(path, part)


def _finished(target: Folder, path: str, mark: str) -> str:
    """SHA-256 of a part that is whole and of this fingerprint, with its picture; else ""."""
    if not target.exists(path):
        return ""
    content = target.read(path)
    try:
        part = json.loads(content)
        whole = part.pop("fingerprint") == mark and part.pop("sha256") == _digest(part)
    except (ValueError, KeyError, AttributeError):  # cut short, or not ours: made again
        return ""
    if not whole or not part["rows"]:  # what was left out may be there by now
        return ""
    try:
        for name, sha256 in part["panel"].items():
            if not target.exists(name):
                return ""
            target.read(name, sha256)
    except StoreError:  # of another evaluation that was broken off, or damaged
        return ""
    return hashlib.sha256(content).hexdigest()


def _digest(part: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def score_patient(
    shards: Iterable[tuple[str, Slab]],
    cascade: Cascade,
    table: NDArray[np.float64],
    recipe: Recipe,
) -> tuple[list[dict[str, Any]], list[str], bytes]:
    """Rows of one pair for every method, what was left out, and slices for the figure (npz).

    Args:
        shards: All shards of one pair, each with the name of its file.
        table: The HU remap that was fitted on the training split.
        recipe: Names the protocols.

    Raises:
        ValueError: Slices or contrast are missing, or shapes differ: nothing can be scored.
    """
    named = sorted(shards, key=lambda one: one[1].first)
    expected = 0
    for name, slab in named:
        if slab.contrast is None or slab.contrast.shape != slab.plain.shape:
            found = slab.contrast if slab.contrast is None else slab.contrast.shape
            raise ValueError(f"{name}: expected contrast of {slab.plain.shape}, found {found}")
        if slab.first != expected:
            raise ValueError(f"{name}: expected slice {expected} first, found {slab.first}")
        expected += len(slab.plain) - 2
    slabs = [slab for _, slab in named]
    plain = np.concatenate([slab.plain[1:-1] for slab in slabs])
    true = np.concatenate([slab.contrast[1:-1] for slab in slabs if slab.contrast is not None])
    labels = None
    if slabs[0].labels is not None:
        labels = np.concatenate([slab.labels for slab in slabs if slab.labels is not None])
    structures: dict[str, set[int]] = {"vessel": {LABELS[name] for name in ARTERIES}}
    structures |= {name: {LABELS[part] for part in parts} for name, parts in ORGANS.items()}
    body = body_mask(plain)
    if labels is None:
        labels, structures = computed_labels(plain, true, body, slabs[0].spacing), COMPUTED
    predictions = {"identity": plain, "remap": remap.apply(plain, table)}
    left_out = []
    for method in cascade.methods:
        try:
            predictions[method] = cascade.predict_grid(plain, method)
        except InputError as error:  # a network that diverged: the other methods stand
            left_out.append(str(error))
    patient, rows = slabs[0].patient, []
    for method, predicted in predictions.items():
        case = Case(true, predicted, plain, body, slabs[0].spacing, labels, structures)
        for row in score_volume(case, recipe.evaluate.protocols):
            rows.append({"patient": patient, "method": method} | row)
    chosen = np.unique(np.linspace(0, len(plain) - 1, PANEL_SLICES + 2).round().astype(int)[1:-1])
    arrays = {"plain": plain, "true": true}
    arrays |= {k: v for k, v in predictions.items() if k != "identity"}
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        index=chosen,
        patient=np.array(patient),
        spacing=np.array(slabs[0].spacing),
        **{name: volume[chosen] for name, volume in arrays.items()},
    )
    return rows, left_out, sink.getvalue()


def write_tables(rows: list[dict[str, Any]], recipe: Recipe, target: Folder) -> dict[str, str]:
    """Write the rows as Parquet, and what is computed from them; the digests of the files."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    resamples, seed = recipe.evaluate.resamples, recipe.seed
    compared = differences(rows, resamples=resamples, seed=seed)
    return {
        "rows.parquet": target.write("rows.parquet", sink.getvalue()),
        "summary.json": target.write_json("summary.json", summarise(rows, resamples, seed)),
        "differences.json": target.write_json("differences.json", compared),
        "levels.json": target.write_json("levels.json", levels(rows, resamples, seed)),
    }
