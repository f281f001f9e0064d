"""What the made-up patients are made of: label numbers, and HU by phase."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

PHASES = ("plain", "arterial", "portal", "delayed")

_NAMES = (
    "body_fat muscle bone lung liver spleen kidney_cortex kidney_medulla stomach bowel heart "
    "left_heart right_heart aorta arch_branch iliac coeliac sma renal_artery small_artery ivc "
    "portal_vein hepatic_vein vein plaque pancreas pulmonary_vessel airway oesophagus bladder "
    "gallbladder node thyroid cartilage spinal_canal thrombus skin adrenal genital breast lesion"
)
#: Name of a structure -> its number in the truth; 0 is outside the body. "heart" is myocardium.
LABELS: dict[str, int] = {name: number for number, name in enumerate(_NAMES.split(), start=1)}
#: Arteries that fill in the arterial phase: the "vessels" of the vessel HU error.
ARTERIES: tuple[str, ...] = (
    "aorta",
    "arch_branch",
    "iliac",
    "coeliac",
    "sma",
    "renal_artery",
    "small_artery",
)
#: Structures whose points tell how well registration did: well-bounded, in soft tissue.
LANDMARKS: tuple[str, ...] = (
    *("liver", "spleen", "kidney_cortex", "stomach", "heart", "pancreas", "bladder"),
    *("aorta", "iliac", "renal_artery", "sma", "ivc", "portal_vein"),
)

Span = tuple[float, float]


class Row(NamedTuple):
    """HU of one tissue, as spans to draw from: plain, and what each phase adds."""

    label: str
    plain: Span
    arterial: Span = (0.0, 0.0)
    portal: Span = (0.0, 0.0)
    delayed: Span = (0.0, 0.0)
    texture: Span = (0.0, 3.0)  # HU, sd of the slow texture inside


# Wider than reality on purpose: what the network has not seen, it guesses.
TISSUES: dict[str, Row] = {
    "fat": Row("body_fat", (-118, -82), texture=(2, 12)),
    "strand": Row("body_fat", (-95, -40), texture=(2, 10)),
    "skin": Row("skin", (-25, 40), (0, 8), (0, 15), (0, 12)),
    "muscle": Row("muscle", (24, 68), (0, 9), (5, 18), (5, 15), (1, 6)),
    "cortex": Row("bone", (280, 950), texture=(10, 80)),
    "marrow": Row("bone", (60, 330), (0, 4), (0, 10), (0, 10), (10, 60)),
    "cartilage": Row("cartilage", (60, 140), (0, 3), (0, 5), (0, 5), (2, 12)),
    "canal": Row("spinal_canal", (5, 40), (0, 4), (0, 8), (0, 8)),
    "lung": Row("lung", (-900, -780), texture=(5, 25)),
    "gas": Row("bowel", (-1010, -930)),
    "air": Row("airway", (-1015, -960)),
    "airwall": Row("airway", (0, 60), (0, 10), (0, 20), (0, 15)),
    "liver": Row("liver", (38, 72), (0, 15), (35, 65), (25, 45), (1, 6)),
    "spleen": Row("spleen", (34, 56), (60, 100), (40, 75), (30, 50), (1, 5)),
    "renal_cortex": Row("kidney_cortex", (18, 42), (100, 180), (120, 160), (90, 120), (0, 4)),
    "medulla": Row("kidney_medulla", (16, 38), (8, 45), (115, 155), (90, 125), (0, 4)),
    "urine": Row("bladder", (-4, 18)),
    "bile": Row("gallbladder", (-2, 25)),
    "stomach_wall": Row("stomach", (28, 48), (10, 40), (30, 60), (20, 40)),
    "bowel_wall": Row("bowel", (25, 48), (8, 35), (30, 55), (20, 40)),
    "myocardium": Row("heart", (36, 56), (35, 90), (50, 80), (40, 60), (1, 5)),
    "pancreas": Row("pancreas", (26, 52), (25, 55), (35, 60), (20, 40), (2, 8)),
    "adrenal": Row("adrenal", (5, 40), (15, 45), (30, 50), (20, 30)),
    "oesophagus": Row("oesophagus", (25, 50), (2, 20), (15, 35), (10, 25), (1, 6)),
    "node": Row("node", (15, 58), (0, 14), (15, 45), (10, 35)),
    "lesion": Row("lesion", (-5, 55), (0, 10), (0, 30), (0, 25)),
    "thyroid": Row("thyroid", (65, 125), (60, 120), (50, 80), (30, 60), (2, 10)),
    "thrombus": Row("thrombus", (25, 55), (0, 4), (0, 4), (0, 4)),
    "uterus": Row("genital", (32, 55), (5, 30), (30, 60), (25, 45), (1, 5)),
    "breast": Row("breast", (-20, 45), (0, 10), (5, 20), (5, 15), (5, 20)),
    "plaque": Row("plaque", (320, 1100)),
}

# Blood has one plain HU everywhere in a patient; spans are what the agent adds. The arterial
# aorta is drawn as an absolute value, see Palette.
_BLOOD: dict[str, tuple[str, Span, Span, Span]] = {
    "right_blood": ("right_heart", (40, 330), (90, 140), (40, 70)),
    "lung_blood": ("pulmonary_vessel", (90, 330), (90, 140), (40, 70)),
    "vein": ("vein", (0, 18), (70, 130), (45, 75)),
    "arm_vein": ("vein", (0, 420), (80, 130), (45, 70)),
    "ivc": ("ivc", (0, 12), (50, 120), (45, 75)),
    "ivc_upper": ("ivc", (20, 60), (80, 130), (45, 75)),
    "renal_vein": ("vein", (40, 130), (95, 140), (50, 75)),
    "portal": ("portal_vein", (5, 50), (100, 140), (45, 75)),
    "hepatic": ("hepatic_vein", (0, 12), (85, 130), (45, 75)),
}
_ARTERIAL = {
    "aorta": "aorta",
    "arch_branch": "arch_branch",
    "iliac": "iliac",
    "coeliac": "coeliac",
    "sma": "sma",
    "renal_artery": "renal_artery",
    "small_artery": "small_artery",
    "left_blood": "left_heart",
}


#: Structure that a tissue is part of.
LABEL_OF: dict[str, str] = (
    {name: row.label for name, row in TISSUES.items()}
    | {name: label for name, (label, *_) in _BLOOD.items()}
    | _ARTERIAL
)


class Palette:
    """HU of every tissue of one patient in every phase; index 0 is the air around the patient.

    ``bolus`` in [0, 1] is how late in the arterial phase the scan was made: it moves spleen, portal
    vein and renal vein together, as it does in patients.
    """

    def __init__(self, rng: Generator) -> None:
        self.index: dict[str, int] = {}
        self._hu: list[NDArray[np.float32]] = [np.full(4, -1000.0, np.float32)]
        self._label: list[int] = [0]
        self._texture: list[float] = [0.0]
        self.bolus = float(rng.uniform())
        self.offset = float(rng.uniform(-4, 4))  # HU, how this scanner is calibrated
        self.blood = float(rng.uniform(35, 50))

        for name, row in TISSUES.items():
            late = [float(np.clip(rng.normal(self.bolus, 0.25), 0, 1)) for _ in range(3)]
            added = [
                low + at * (high - low)
                for (low, high), at in zip(
                    (row.arterial, row.portal, row.delayed), late, strict=True
                )
            ]
            self._add(name, row.label, rng.uniform(*row.plain), added, rng.uniform(*row.texture))
        for name, (label, *spans) in _BLOOD.items():
            at = float(np.clip(rng.normal(self.bolus, 0.3), 0, 1))
            self._add(name, label, self.blood, [s[0] + at * (s[1] - s[0]) for s in spans], 1.0)
        self.aorta = float(rng.uniform(215, 445))
        venous = (rng.uniform(135, 185), rng.uniform(80, 120))
        for name, label in _ARTERIAL.items():
            # A bolus is not the same everywhere along its way.
            share = 1.0 if name == "aorta" else rng.uniform(0.88, 1.03)
            reached = [self.blood + share * (hu - self.blood) for hu in (self.aorta, *venous)]
            self._add(name, label, self.blood, [hu - self.blood for hu in reached], 1.0)

    def _add(self, name: str, label: str, plain: float, added: list[float], texture: float) -> None:
        self.index[name] = len(self._hu)
        # Offsets belong to soft tissue: the scale of bone and gas is drawn wide enough as it is.
        level = plain + (self.offset if -200 < plain < 200 and added[0] < 100 else 0.0)
        self._hu.append(np.array([level, *(level + rise for rise in added)], np.float32))
        self._label.append(LABELS[label])
        self._texture.append(texture)

    def variant(
        self, name: str, plain: float, label: str | None = None, texture: float = 2.0
    ) -> int:
        """A tissue of its own: like ``name`` in what it takes up, with another plain HU."""
        source = self.index[name]
        self._hu.append(self._hu[source] - self._hu[source][0] + np.float32(plain))
        self._label.append(LABELS[label] if label else self._label[source])
        self._texture.append(texture)
        return len(self._hu) - 1

    def __getitem__(self, name: str) -> int:
        return self.index[name]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Label number of every tissue index."""
        return np.array(self._label, np.uint8)

    def hu(self, phase: str) -> NDArray[np.float32]:
        """HU of every tissue index in one phase."""
        return np.array([levels[PHASES.index(phase)] for levels in self._hu], np.float32)

    @property
    def texture(self) -> NDArray[np.float32]:
        """HU, sd of the slow texture, of every tissue index."""
        return np.array(self._texture, np.float32)
