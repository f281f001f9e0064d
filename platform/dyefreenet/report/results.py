"""What a run folder says of itself, gathered for the table and the page."""

from __future__ import annotations

import io
import json
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dyefreenet.errors import StoreError
from dyefreenet.store import Folder

Row = dict[str, Any]

#: Methods in the order in which they are shown.
METHODS = {
    "identity": "Plain CT unchanged",
    "remap": "HU remap",
    "unet": "U-Net",
    "pix2pix": "U-Net + Pix2Pix",
    "primary_scratch": "Primary without SSL",
    "primary": "Primary GAN",
    "refine": "DyeFreeNet (refine)",
}
STEPS = ("ingest", "ssl", "primary", "primary_scratch", "refine", "unet", "pix2pix", "evaluate")

#: What the paper reports for DyeFreeNet minus the comparator (its text has no absolute figures).
PAPER = {"unet": {"psnr": 2.16, "ssim": 0.26}, "pix2pix": {"psnr": 1.02, "ssim": 0.07}}

_METRICS = {
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 3),
    "mae": ("Error", "HU", 1),
    "invented": ("Share that lit up without contrast agent", "", 4),
}
COMPUTED = "computed_vessel"  # where nobody drew labels
_REGIONS = {
    "image": "whole image",
    "body": "body",
    "vessel": "arteries",
    COMPUTED: "vessels found on the true scan",
    "computed_bone": "bone, by HU",
    "computed_air": "lung and air, by HU",
    "outside": "outside the body",
}


class Column(NamedTuple):
    """One figure of the headline table."""

    protocol: str
    metric: str
    region: str

    @property
    def title(self) -> str:
        return "Artery error" if self.metric == "mae" else _METRICS[self.metric][0]

    @property
    def name(self) -> str:
        """The title within a sentence."""
        if self.metric == "invented":  # no abbreviation, as PSNR is
            return self.title[0].lower() + self.title[1:]
        if self.metric != "mae":
            return self.title
        return f"artery error ({self.where})" if self.region == COMPUTED else "artery error"

    @property
    def unit(self) -> str:
        return _METRICS[self.metric][1]

    @property
    def digits(self) -> int:
        return _METRICS[self.metric][2]

    @property
    def where(self) -> str:
        return _REGIONS.get(self.region, self.region)

    @property
    def lower_is_better(self) -> bool:
        return self.metric in ("mae", "invented")


HEADLINE = (
    Column("window600/1", "psnr", "image"),
    Column("window600/1", "ssim", "image"),
    Column("roi/1", "mae", "vessel"),
    Column("roi/1", "mae", COMPUTED),
)
ARTERIES = HEADLINE[2:]  # drawn and found on the scan: shown apart, never pooled
INVENTED = Column("enhancement/1", "invented", "body")


class Stratum(NamedTuple):
    """A column of ``ingest/pairs.parquet`` by which patients may fare differently.

    Attributes:
        digits: After the point; None: the column holds text.
    """

    name: str
    title: str
    unit: str = ""
    digits: int | None = None


STRATA = (
    Stratum("bone_edge_mm", "Bone edges apart after registration", "mm", 2),
    Stratum("body_dice", "Overlap of plain and contrast body (Dice)", "", 3),
    Stratum("mutual_information", "Mutual information of plain and contrast", "nats", 2),
    Stratum("max_shift_mm", "Largest shift by registration", "mm", 1),
    Stratum("landmark_mm", "Landmarks apart", "mm", 2),
    Stratum("gate", "Registration good enough for"),
    Stratum("thickness", "Slice thickness", "mm", 2),
    Stratum("spacing_z", "Distance of slices", "mm", 2),
    Stratum("spacing_x", "Pixel", "mm", 2),
    Stratum("kernel", "Kernel"),
    Stratum("noise_hu", "Noise of the plain scan", "HU", 1),
)
ENOUGH = 4  # patients: two in each half
KERNELS = 5  # groups of text that are shown; the rest is one more


class Part(NamedTuple):
    """Some of the patients of a stratum.

    Attributes:
        group: "lower" or "upper" half, or the text that these patients share.
        low: Least value of the stratum among them; None for text.
        high: Largest value.
        means: Of each column the mean over these patients, and how many have a figure.
    """

    stratum: Stratum
    group: str
    low: float | None
    high: float | None
    means: dict[Column, tuple[float, int]]


class Agreement(NamedTuple):
    """What Bland and Altman plot, for one method: medians in HU of each patient, and the limits.

    Attributes:
        points: (patient, true, predicted) in HU.
        bias: Mean of predicted minus true, HU.
        low: Lower 95 % limit of agreement, bias - 1.96 SD; None with fewer than three patients.
        high: Upper limit, likewise.
    """

    method: str
    points: list[tuple[str, float, float]]
    bias: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Results:
    """Everything that the page shows, except for the pictures.

    Attributes:
        recipe: The resolved config of the run; empty where it was not stored.
        steps: Manifest of each finished step.
        curves: Lines of ``metrics.jsonl`` of each training step.
        pairs: Rows of ``ingest/pairs.parquet``.
        excluded: Rows of ``ingest/excluded.parquet``.
        rows: One figure of one patient each, as measured.
        summary: Means over patients with their intervals.
        differences: Paired differences between methods.
        levels: Slope and variance ratio of each method and structure over patients.
    """

    run: Folder
    recipe: dict[str, Any]
    steps: dict[str, dict[str, Any]]
    curves: dict[str, list[Row]]
    pairs: list[Row]
    excluded: list[Row]
    rows: list[Row]
    summary: list[Row]
    differences: list[Row]
    levels: list[Row]

    @property
    def name(self) -> str:
        return self.run.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def methods(self) -> list[str]:
        """Methods with figures, in display order; such as are not known come last."""
        found = list(dict.fromkeys(line["method"] for line in self.summary))
        return [m for m in METHODS if m in found] + [m for m in found if m not in METHODS]

    @property
    def missing(self) -> list[str]:
        """Names of methods and steps that a full run would have."""
        methods = [label for name, label in METHODS.items() if name not in self.methods]
        trained = [name for name in STEPS if name not in self.steps and name not in METHODS]
        return methods + [f"step {name}" for name in trained]

    @property
    def final(self) -> str | None:
        """The method that the run is about: the last stage of the cascade that there is."""
        return next((m for m in ("refine", "primary") if m in self.methods), None)

    @property
    def columns(self) -> list[Column]:
        """Columns of the headline table: PSNR and SSIM of every protocol, then artery error."""
        found = dict.fromkeys(
            Column(line["protocol"], line["metric"], line["region"]) for line in self.summary
        )
        shown = [column for column in found if column.metric in ("psnr", "ssim")]
        return shown + [column for column in ARTERIES if column in found]

    def mean(self, method: str, column: Column) -> Row | None:
        """The summary's line {n, mean, low, high} of a method in a column."""
        for line in self.summary:
            key = (line["method"], line["protocol"], line["metric"], line["region"])
            if key == (method, *column):
                return line
        return None

    def best(self, column: Column) -> str | None:
        """The method with the best mean; None where there is nothing to compare or a tie."""
        lines = [line for m in self.methods if (line := self.mean(m, column)) is not None]
        if len(lines) < 2:
            return None
        lines.sort(key=lambda line: line["mean"], reverse=not column.lower_is_better)
        return None if lines[0]["mean"] == lines[1]["mean"] else str(lines[0]["method"])

    @cached_property
    def values(self) -> dict[tuple[str, Column], dict[str, float]]:
        """Of each method and column, a figure a patient: the mean over the patient's scans."""
        scans: dict[tuple[str, Column], dict[str, list[float]]] = {}
        for row in self.rows:
            column = Column(row["protocol"], row["metric"], row["region"])
            patients = scans.setdefault((row["method"], column), defaultdict(list))
            patients[row["patient"]].append(row["value"])
        return {
            key: {patient: sum(found) / len(found) for patient, found in patients.items()}
            for key, patients in scans.items()
        }

    @property
    def worst_columns(self) -> list[Column]:
        """What tells good from bad cases: artery error, or PSNR where no patient has arteries; and
        how much lit up that should not have.

        Artery error twice where some patients have drawn arteries and some have vessels found on
        the true scan.
        """
        found = {column for _, column in self.values}
        arteries = [column for column in ARTERIES if column in found]
        quality = (
            arteries or [column for column in (HEADLINE[0], *self.columns) if column in found][:1]
        )
        return quality + [INVENTED] * (INVENTED in found)

    def worst(
        self, method: str, count: int = 3, column: Column | None = None
    ) -> list[tuple[str, float]]:
        """The patients on whom a method did worst, worst first, with their figure.

        Args:
            column: One of ``worst_columns``; None: the first of them.
        """
        if column is None:
            column = next(iter(self.worst_columns), None)
        if column is None:
            return []
        ranked = sorted(
            self.values.get((method, column), {}).items(),
            key=lambda item: (-item[1] if column.lower_is_better else item[1], item[0]),
        )
        return ranked[:count]

    def worst_scan(self, method: str, patient: str, column: Column) -> str:
        """The pair, of a patient with several, with the worst figure; "" where rows name none."""
        scans = {
            row.get("pair", ""): row["value"]
            for row in self.rows
            if (row["method"], row["patient"]) == (method, patient)
            and (row["protocol"], row["metric"], row["region"]) == column
        }
        choose = max if column.lower_is_better else min
        return str(choose(sorted(scans), key=scans.__getitem__))

    def agreement(self, method: str, region: str = "vessel") -> Agreement | None:
        """Predicted against true median HU of a region; None where the rows hold no medians."""
        predicted = self.values.get((method, Column("roi/1", "median_hu", region)), {})
        true = self.values.get((method, Column("roi/1", "true_median_hu", region)), {})
        points = [(name, true[name], predicted[name]) for name in predicted if name in true]
        if not points:
            return None
        apart = [found - wanted for _, wanted, found in points]
        bias = statistics.fmean(apart)
        if len(apart) < 3:
            return Agreement(method, points, bias, None, None)
        reach = 1.96 * statistics.stdev(apart)
        return Agreement(method, points, bias, bias - reach, bias + reach)

    @cached_property
    def strata(self) -> list[Part]:
        """How the final method fares in each half, or group, of each stratum; by patient.

        A stratum is left out where fewer than four patients have a value, or all the same one.
        """
        columns = [
            column
            for column in (HEADLINE[0], *ARTERIES)
            if (self.final or "", column) in self.values
        ]
        figures = {column: self.values[self.final or "", column] for column in columns}
        scored = {patient for found in figures.values() for patient in found}
        phase = (self.recipe.get("ingest") or {}).get("phase")
        pairs = [
            pair
            for pair in self.pairs
            if pair["patient"] in scored and pair["split"] == "test"
            if phase in (None, pair["phase"])
        ]
        parts = []
        for stratum in STRATA:
            for group, patients in _groups(stratum, pairs).items():
                means = {
                    column: (statistics.fmean(some), len(some))
                    for column, found in figures.items()
                    if (some := [found[patient] for patient in patients if patient in found])
                }
                values = [value for value in patients.values() if isinstance(value, float)]
                low, high = (min(values), max(values)) if values else (None, None)
                parts.append(Part(stratum, group, low, high, means))
        return parts

    def difference(self, method: str, versus: str, column: Column) -> Row | None:
        """The paired difference {n, mean, low, high, verdict} of a method to another."""
        for line in self.differences:
            key = (line["method"], line["versus"], line["protocol"])
            if (*key, line["metric"], line["region"]) == (method, versus, *column):
                return line
        return None

    def patients(self, source: str | None = None, split: str | None = None) -> int:
        """Number of patients with pairs of this source and split; None: of any."""
        return len(
            {
                pair["patient"]
                for pair in self.pairs
                if source in (None, pair["source"]) and split in (None, pair["split"])
            }
        )


def _groups(stratum: Stratum, pairs: list[Row]) -> dict[str, dict[str, float | str]]:
    """Patients with their value, by group; empty where there is nothing to tell apart.

    Several scans of a patient count as their mean, or, of text, as all that is said of them.
    """
    scans: dict[str, list[Any]] = defaultdict(list)
    for pair in pairs:
        if (value := pair.get(stratum.name)) not in (None, ""):
            scans[pair["patient"]].append(value)
    if len(scans) < ENOUGH:
        return {}
    return _by_text(scans) if stratum.digits is None else _halves(scans)


def _by_text(scans: dict[str, list[Any]]) -> dict[str, dict[str, float | str]]:
    texts = {p: " + ".join(sorted(set(map(str, found)))) for p, found in scans.items()}
    groups: dict[str, dict[str, float | str]] = {
        text: {} for text, _ in Counter(texts.values()).most_common(KERNELS)
    }
    if len(groups) < 2:
        return {}
    for patient, text in texts.items():
        groups.setdefault(text if text in groups else "others", {})[patient] = text
    return groups


def _halves(scans: dict[str, list[Any]]) -> dict[str, dict[str, float | str]]:
    """Up to the median and above it; equal values stay together, and no half is empty."""
    values = {patient: statistics.fmean(found) for patient, found in scans.items()}
    middle, largest = statistics.median(values.values()), max(values.values())
    if min(values.values()) == largest:
        return {}
    groups: dict[str, dict[str, float | str]] = {"lower": {}, "upper": {}}
    for patient, value in values.items():
        lower = value < middle or value == middle < largest
        groups["lower" if lower else "upper"][patient] = value
    return groups


def read_results(run: Folder, step: str = "evaluate") -> Results:
    """Gather a run's tables.

    Args:
        step: Folder of the evaluation below the run.

    Raises:
        StoreError: The run has no finished evaluation, or its figures cannot be read or trusted.
    """
    evaluate = run / step
    if evaluate.manifest() is None or not evaluate.exists("summary.json"):
        raise StoreError(
            f"{evaluate}: expected a finished evaluation, found none; run the step evaluate first"
        )
    summary = json.loads(evaluate.read_checked("summary.json"))
    if not summary:
        raise StoreError(f"{evaluate}/summary.json: expected figures, found none")
    manifests = {name: (run / name).manifest() for name in STEPS}
    return Results(
        run=run,
        recipe=run.read_json("recipe.json") if run.exists("recipe.json") else {},
        steps={name: manifest for name, manifest in manifests.items() if manifest is not None},
        curves={name: lines for name in STEPS if (lines := _lines(run / name))},
        pairs=_table(run / "ingest", "pairs.parquet"),
        excluded=_table(run / "ingest", "excluded.parquet"),
        rows=_table(evaluate, "rows.parquet"),
        summary=summary,
        differences=_listed(evaluate, "differences.json"),
        levels=_listed(evaluate, "levels.json"),
    )


def _listed(folder: Folder, name: str) -> list[Row]:
    """Rows of a JSON file; none where an older run lacks it."""
    return list(json.loads(folder.read_checked(name))) if folder.exists(name) else []


def _lines(step: Folder) -> list[Row]:
    if not step.exists("metrics.jsonl"):
        return []
    try:
        return [
            json.loads(line) for line in step.read_checked("metrics.jsonl").splitlines() if line
        ]
    except ValueError as error:
        raise StoreError(f"{step}/metrics.jsonl: expected JSON lines, found {error}") from error


def _table(folder: Folder, name: str) -> list[Row]:
    if not folder.exists(name):
        return []
    try:
        return pq.read_table(io.BytesIO(folder.read_checked(name))).to_pylist()
    except pa.ArrowInvalid as error:
        raise StoreError(f"{folder}/{name}: expected a Parquet file, found {error}") from error
