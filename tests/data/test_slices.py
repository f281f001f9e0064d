"""The order of samples: all of them, from the seed alone, the same for any number of workers."""

import numpy as np
import pytest

from dyefreenet.data.shards import Slab, SlabRecord
from dyefreenet.data.slices import batches, in_order, schedule, steps_per_epoch, worker_lanes

SIZES = (5, 3, 8, 8, 1, 6, 7, 2, 8, 4, 8, 5)


@pytest.fixture(scope="module")
def archive():
    """Slabs in which every slice holds a number of its own."""
    slabs, number = {}, 0
    for place, slices in enumerate(SIZES):
        values = np.arange(number, number + slices, dtype=np.int16)
        number += slices
        plain = np.broadcast_to(values[:, None, None], (slices, 8, 8))
        plain = np.concatenate([plain[:1], plain, plain[-1:]])
        name = f"s{place:02d}.parquet"
        slabs[name] = Slab(name, "p", "arterial", 0, (1, 1, 1), plain, plain + 1000, None)
    records = [
        SlabRecord(name, "train", "arterial", name, "p", len(slab.plain) - 2)
        for name, slab in slabs.items()
    ]
    return records, slabs


def seen(archive, workers, start=0, epochs=3, seed=1, batch=4):
    """Middle slices of the global batches, [steps, batch]."""
    records, slabs = archive
    plan = schedule(records, batch, epochs, seed, group=2)
    parts = []
    for rank in range(workers):
        lanes = worker_lanes(batch, rank, workers)
        paths = iter([slabs[path] for path in plan.paths(lanes, start)])
        parts.append([b["plain"][:, 1, 0, 0] for b in batches(plan, paths, lanes, start=start)])
        assert next(paths, None) is None or start == 0  # nothing fetched in vain
    return np.array([np.concatenate(parts_of_step) for parts_of_step in zip(*parts, strict=True)])


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_number_of_workers_sees_the_same_batches(archive, workers):
    assert np.array_equal(seen(archive, workers), seen(archive, 1))


@pytest.mark.parametrize("start", [1, 7, 16, 30, 47])
def test_a_resumed_order_goes_on_where_it_stopped(archive, start):
    assert np.array_equal(seen(archive, 2, start), seen(archive, 2)[start:])


def test_an_epoch_is_every_slice_about_once(archive):
    order = seen(archive, 1, epochs=6)
    assert order.shape == (6 * (sum(SIZES) // 4), 4)
    counts = np.bincount(order.ravel(), minlength=sum(SIZES))
    assert counts.sum() == 6 * (sum(SIZES) // 4) * 4
    assert counts.min() >= 4 and counts.max() <= 8


def test_seed_decides_the_order(archive):
    assert np.array_equal(seen(archive, 1), seen(archive, 1))
    assert not np.array_equal(seen(archive, 1), seen(archive, 1, seed=2))


def test_a_worker_without_an_item_is_refused():
    with pytest.raises(ValueError, match="one item for each of 5, found 4"):
        worker_lanes(4, 0, 5)


def test_crops_cut_plain_and_contrast_alike():
    plain = np.random.default_rng(0).integers(-1000, 1000, (5, 16, 16)).astype(np.int16)
    slab = Slab("s", "p", "arterial", 0, (1, 1, 1), plain, plain + 7, None)
    records = [SlabRecord("s", "train", "arterial", "s", "p", 3)]
    plan = schedule(records, 1, 2, 0)
    slabs = iter([slab] * len(plan.paths(range(1))))
    for batch in batches(plan, slabs, range(1), crop=8):
        assert batch["plain"].shape == (1, 3, 8, 8)
        assert np.array_equal(batch["contrast"], batch["plain"] + 7)


def test_slices_without_partner_mix_with_others_when_partners_are_left_out():
    plain = np.zeros((3, 8, 8), np.int16)
    slabs = {
        "a": Slab("a", "p", "arterial", 0, (1, 1, 1), plain, plain, None),
        "b": Slab("b", "q", "", 0, (1, 1, 1), plain, None, None),
    }
    plan = schedule([SlabRecord(name, "ssl", "plain", name, name, 1) for name in slabs], 2, 3, 0)
    coming = iter([slabs[path] for path in plan.paths(range(2))])
    for batch in batches(plan, coming, range(2), partners=False):
        assert "contrast" not in batch and batch["plain"].shape == (2, 3, 8, 8)


def test_validation_takes_every_slice_once_in_order(archive):
    records, slabs = archive
    middles = [
        value
        for batch in in_order(iter([slabs[record.path] for record in records]), 4)
        for value in batch["plain"][:, 1, 0, 0]
    ]
    assert middles == list(range(sum(SIZES)))
    assert steps_per_epoch(records, 4) == sum(SIZES) // 4
