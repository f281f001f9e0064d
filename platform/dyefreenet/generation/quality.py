"""Whether a virtual series is fit to be looked at: measured from plain and virtual alone.

Nobody knows the truth here, so a passed check says that nothing is plainly wrong, not that the
enhancement is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dyefreenet.config import Phase
from dyefreenet.data.blood import CONTRAST_HU, BloodPool, Spine, lit_before_spine
from dyefreenet.data.morphology import square
from dyefreenet.data.volume import Volume
from dyefreenet.evaluate.regions import body_mask

Flag = Literal[
    "contrast-before",  # the plain scan's blood is brighter than blood without iodine
    "no-spine",  # a head, a limb, a picture upside down, or no HU: not what the network learnt
    "no-trunk",  # too little of lungs and liver for an aorta to be there
    "no-aorta",  # a trunk, and nothing lit up before its spine
    "aorta-level",  # it lit up, and not to what this phase shows
    "soft-tissue",  # muscle, fat and organs changed as no contrast agent changes them
    "flicker",  # neighbouring slices were enhanced unlike
    "outside",  # something changed outside of the body
]

PIXEL_MM = 1.4  # of the copy in which a body is looked for
EVERY = 2  # pixels at which soft tissue and flicker are measured
SOFT_HU = (0, 90)  # plain muscle, organs and blood
LEAST_SHARE = 0.5  # of the spine's slices in which something must have lit up before it
MOST_SOFT_HU = 40.0  # median change of them: a liver takes up 10 to 60, muscle less
MOST_FLICKER_HU = 4.0  # see ``Quality.flicker_hu``
AORTA_HU: dict[Phase, tuple[float, float]] = {  # that a phase may show
    "plain": (20.0, 80.0),
    "arterial": (150.0, 550.0),
    "portal": (90.0, 300.0),
    "delayed": (70.0, 220.0),
}


@dataclass(frozen=True)
class Quality:
    """Figures of one series, HU and ml, and what speaks against it.

    Attributes:
        aorta_plain_hu: Median of the blood pool before the spine; None where none was found.
        aorta_hu: Median of what lit up before the spine; None where nothing did.
        aorta_share: Of the spine's slices, those in which it did.
        soft_hu: Median change of what has 0 to 90 HU in the body.
        flicker_hu: 95th percentile over slices of how far the mean change of soft tissue lies from
            the mean of its two neighbours'.
        outside_hu: Largest change outside of the body.
        enhanced_ml: Volume that rose by more than 80 HU.
        flags: What to look at; none: passed.
    """

    aorta_plain_hu: float | None
    aorta_hu: float | None
    aorta_share: float
    soft_hu: float
    flicker_hu: float
    outside_hu: int
    enhanced_ml: float
    flags: tuple[Flag, ...]


def body_of(volume: Volume) -> NDArray[np.bool_]:
    """Where a prediction may change the scan, [Z, H, W]: the patient without the table.

    Looked for in pixels of about 1.4 mm and grown by one of them, so it takes in all skin.
    """
    down, across = (max(1, round(PIXEL_MM / step)) for step in volume.spacing[1:])
    coarse = body_mask(volume.hu[:, ::down, ::across])
    grown = square(coarse, grow=True, side=3)
    body = np.empty(volume.hu.shape, bool)
    for row in range(down):
        for column in range(across):  # a third of the time of repeat
            part = body[:, row::down, column::across]
            part[:] = grown[:, : part.shape[1], : part.shape[2]]
    return body


def judge(
    plain: Volume,
    virtual: Volume,
    body: NDArray[np.bool_],
    phase: Phase,
    before: BloodPool,
    spine: Spine,
) -> Quality:
    """Measure a virtual series against its plain one.

    Args:
        body: True inside the patient, [Z, H, W].
        phase: That was to be made.
        before: What ``blood_pool`` found in the plain scan.
        spine: Of the plain scan.
    """
    level_hu, share = lit_before_spine(spine, virtual)
    changes, lit, outside = [], 0, 0
    soft = np.zeros(len(plain.hu))
    for z, inside in enumerate(body):
        change = np.subtract(virtual.hu[z], plain.hu[z], dtype=np.int32)
        lit += int((change > 80).sum())
        beyond = np.where(inside, 0, change)  # a tenth of the time of picking them out
        outside = max(outside, int(beyond.max()), -int(beyond.min()))
        hu, few = plain.hu[z, ::EVERY, ::EVERY], change[::EVERY, ::EVERY]
        tissue = few[inside[::EVERY, ::EVERY] & (hu >= SOFT_HU[0]) & (hu <= SOFT_HU[1])]
        changes.append(tissue)
        soft[z] = tissue.mean() if tissue.size else math.nan
    all_soft = np.concatenate(changes)
    beside = np.abs(soft[1:-1] - (soft[:-2] + soft[2:]) / 2)
    beside = beside[np.isfinite(beside)]
    found = Quality(
        aorta_plain_hu=_known(before.level_hu),
        aorta_hu=_known(level_hu),
        aorta_share=round(share, 3),
        soft_hu=float(np.median(all_soft)) if all_soft.size else 0.0,
        flicker_hu=round(float(np.percentile(beside, 95)), 3) if beside.size else 0.0,
        outside_hu=outside,
        enhanced_ml=round(lit * float(np.prod(plain.spacing)) / 1000.0, 1),
        flags=(),
    )
    flags = tuple(_flags(found, before, phase))
    return Quality(**(vars(found) | {"flags": flags}))


def _flags(found: Quality, before: BloodPool, phase: Phase) -> list[Flag]:
    flags: list[Flag] = []
    low, high = AORTA_HU[phase]
    if before.level_hu >= CONTRAST_HU:
        flags.append("contrast-before")
    if not before.spine_mm:
        flags.append("no-spine")
    elif not before.trunk_mm:
        flags.append("no-trunk")
    elif found.aorta_share < LEAST_SHARE or found.aorta_hu is None:
        flags.append("no-aorta")
    elif not low <= found.aorta_hu <= high:
        flags.append("aorta-level")
    if abs(found.soft_hu) > MOST_SOFT_HU:
        flags.append("soft-tissue")
    if found.flicker_hu > MOST_FLICKER_HU:
        flags.append("flicker")
    if found.outside_hu:
        flags.append("outside")
    return flags


def _known(level_hu: float) -> float | None:
    return None if math.isnan(level_hu) else round(level_hu, 1)
