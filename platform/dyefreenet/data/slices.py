"""Shards to batches of 3-slice samples, in an order that follows from the seed alone.

The global batch has one *lane* per item. Slabs are shuffled anew each epoch and dealt to the lanes,
and each lane shuffles the slices of a few slabs at a time. A worker serves a run of lanes, so one
worker or four see the same global batches, each slab is read and decoded by one worker only, and a
resumed run takes up the order where it stopped. No Ray here: ``launch.py`` fetches the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dyefreenet.config import PHASES, AugmentConfig, Phase
from dyefreenet.data.shards import Slab, SlabRecord

GROUP = 4  # slabs whose slices a lane shuffles together

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Group:
    """Slabs that a lane shuffles together."""

    lane: int
    number: int  # in its lane
    first_step: int  # at which its first sample is due
    slabs: tuple[int, ...]  # places in the list of records


@dataclass(frozen=True)
class Schedule:
    """Which sample stands where in which batch, for a whole training run."""

    records: tuple[SlabRecord, ...]
    batch: int
    steps: int
    seed: int
    lanes: tuple[tuple[Group, ...], ...]

    def groups(self, lanes: range, start: int = 0) -> list[Group]:
        """Groups that these lanes still need from step ``start`` on, in the order of need."""
        wanted = []
        for lane in lanes:
            groups = self.lanes[lane]
            for group, following in zip(groups, (*groups[1:], None), strict=True):
                if following is None or following.first_step > start:
                    wanted.append(group)
        return sorted(wanted, key=lambda group: (max(group.first_step, start), group.lane))

    def paths(self, lanes: range, start: int = 0) -> list[str]:
        """Shard files in the order in which ``batches`` will want them."""
        return [
            self.records[slab].path for group in self.groups(lanes, start) for slab in group.slabs
        ]

    def samples(self, step: int) -> list[str]:
        """Shard file and core slice of every sample of a global batch, for errors."""
        named = []
        for lane in range(self.batch):
            group = self.groups(range(lane, lane + 1), step)[0]
            inside = [(slab, z) for slab in group.slabs for z in range(self.records[slab].slices)]
            slab, z = inside[_order(self, group, len(inside))[step - group.first_step]]
            named.append(f"{self.records[slab].path} slice {z}")
        return named


def schedule(
    records: Sequence[SlabRecord], batch: int, epochs: int, seed: int, group: int = GROUP
) -> Schedule:
    """Deal all epochs at once; every lane gets a sample for every step.

    An epoch is as many steps as there are slices, divided by the batch, rounded down (at least 1).

    Raises:
        ValueError: There are no records.
    """
    if not records:
        raise ValueError("schedule: expected at least one slab of slices, found none")
    records = tuple(sorted(records, key=lambda record: record.path))
    steps = epochs * steps_per_epoch(records, batch)
    dealt: list[list[int]] = [[] for _ in range(batch)]
    length = [0] * batch
    epoch = 0
    while min(length) < steps:
        order = np.random.default_rng([seed, epoch]).permutation(len(records))
        for slab in order.tolist():
            lane = length.index(min(length))
            dealt[lane].append(slab)
            length[lane] += records[slab].slices
        epoch += 1
    lanes = []
    for lane, slabs in enumerate(dealt):
        groups, step = [], 0
        for number, place in enumerate(range(0, len(slabs), group)):
            if step >= steps:
                break
            members = tuple(slabs[place : place + group])
            groups.append(Group(lane, number, step, members))
            step += sum(records[slab].slices for slab in members)
        lanes.append(tuple(groups))
    return Schedule(records, batch, steps, seed, tuple(lanes))


def steps_per_epoch(records: Sequence[SlabRecord], batch: int) -> int:
    """Full global batches in one pass over the slices."""
    return max(sum(record.slices for record in records) // batch, 1)


def worker_lanes(batch: int, rank: int, workers: int) -> range:
    """The lanes that one worker serves: as many as any other, or one more.

    Raises:
        ValueError: The global batch has fewer items than there are workers.
    """
    if batch < workers:
        raise ValueError(f"batch: expected at least one item for each of {workers}, found {batch}")
    return range(rank * batch // workers, (rank + 1) * batch // workers)


def batches(
    plan: Schedule,
    slabs: Iterator[Slab],
    lanes: range,
    crop: int | None = None,
    start: int = 0,
    partners: bool = True,
    augment: AugmentConfig | None = None,
) -> Iterator[Batch]:
    """One worker's part of each global batch, from step ``start`` on.

    Args:
        slabs: Decoded shards in the order of ``plan.paths(lanes, start)``.
        crop: Side of a random square, pixels; None: whole slices.
        partners: False leaves every contrast slice out, where some slices have none.
        augment: Draws how each sample is to be changed; ``train/augment.py`` changes it.

    Yields:
        ``plain`` and ``contrast``, int16 HU [lanes, 3, H, W]; ``phase`` of the contrast by its
        place in ``PHASES``, int64 [lanes]; and ``augment``, float32 [lanes, 8], where it is asked.
    """
    queues: dict[int, Iterator[tuple[Slab, int]]] = {lane: iter(()) for lane in lanes}
    coming = iter(plan.groups(lanes, start))
    for step in range(start, plan.steps):
        items = []
        for lane in lanes:
            sample = next(queues[lane], None)
            if sample is None:
                group = next(coming)
                assert group.lane == lane, "the order of need is broken"
                members = [next(slabs) for _ in group.slabs]
                queues[lane] = _shuffled(plan, group, members, skip=max(step - group.first_step, 0))
                sample = next(queues[lane])
            slab, z = sample
            draw = np.random.default_rng([plan.seed, step, lane])
            item = _windows(slab, z, crop, draw)
            if not partners:
                item.pop("contrast", None)
            if augment is not None:
                item["augment"] = drawn(augment, draw)
            items.append(item)
        yield _stack(items)


def in_order(slabs: Iterator[Slab], batch: int) -> Iterator[Batch]:
    """Every core slice once, slab after slab, for validation; the last batch may be smaller."""
    items: list[Batch] = []
    for slab in slabs:
        for z in range(len(slab.plain) - 2):
            if items and items[-1]["plain"].shape != slab.plain[z : z + 3].shape:
                yield _stack(items)
                items = []
            items.append(_windows(slab, z, None, None))
            if len(items) == batch:
                yield _stack(items)
                items = []
    if items:
        yield _stack(items)


def _stack(items: list[Batch]) -> Batch:
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def _shuffled(
    plan: Schedule, group: Group, members: list[Slab], skip: int
) -> Iterator[tuple[Slab, int]]:
    samples = [(slab, z) for slab in members for z in range(len(slab.plain) - 2)]
    for place in _order(plan, group, len(samples))[skip:]:
        yield samples[place]


def _order(plan: Schedule, group: Group, count: int) -> list[int]:
    rng = np.random.default_rng([plan.seed, group.lane, group.number])
    places: list[int] = rng.permutation(count).tolist()
    return places


def phase_number(phase: str) -> int:
    """A slab's phase by its place in ``PHASES``; that of a series without a partner is plain."""
    return PHASES.index(cast(Phase, phase or "plain"))


def _windows(slab: Slab, z: int, crop: int | None, rng: np.random.Generator | None) -> Batch:
    """The 3-slice windows around core slice ``z``, cut to the same square."""
    where: tuple[slice, ...] = (slice(z, z + 3),)
    if crop is not None and rng is not None:
        for side in slab.plain.shape[1:]:
            first = int(rng.integers(0, max(side - crop, 0) + 1))
            where = (*where, slice(first, first + crop))
    window: Batch = {
        "plain": slab.plain[where],
        "phase": np.array(phase_number(slab.phase)),
    }
    if slab.contrast is not None:
        window["contrast"] = slab.contrast[where]
    return window


def drawn(augment: AugmentConfig, draw: np.random.Generator) -> NDArray[np.float32]:
    """How one sample is to be changed, [8]: flip (-1 or 1), angle in radians, scale, shift along x
    and y in half sides, gain, offset in the units of the network, and noise in HU."""
    within = draw.uniform(-1, 1, 7)
    return np.array(
        [
            -1.0 if draw.random() < augment.flip else 1.0,
            np.radians(augment.rotate_degrees) * within[0],
            1.0 + augment.scale * within[1],
            2.0 * augment.shift * within[2],
            2.0 * augment.shift * within[3],
            1.0 + augment.gain * within[4],
            2.0 * augment.offset * within[5],
            augment.noise_hu * abs(within[6]),
        ],
        np.float32,
    )
