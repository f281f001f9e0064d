"""Augmentation: the same for plain and contrast, for any number of workers, and off by default."""

import numpy as np
import pytest
import torch

from dyefreenet.config import AugmentConfig, StageConfig
from dyefreenet.data.slices import drawn
from dyefreenet.train.augment import augmented

STILL = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def change(**figures):
    """A batch of one changed by these figures; a bright square left of the middle, 40 x 40."""
    names = ["flip", "angle", "scale", "x", "y", "gain", "offset", "noise"]
    row = [figures.get(name, still) for name, still in zip(names, STILL, strict=True)]
    plain = torch.full((1, 3, 40, 40), -0.5)
    plain[:, :, 15:25, 5:15] = 0.5
    return augmented({"plain": plain, "contrast": plain + 0.25}, torch.tensor([row]), 800.0)


def middle(slices):
    """Where the bright square lies, (row, column)."""
    rows, columns = torch.nonzero(slices[0, 1] > 0.2, as_tuple=True)
    return float(rows.float().mean()), float(columns.float().mean())


def test_nothing_drawn_is_nothing_changed():
    found = change()
    assert set(found) == {"plain", "contrast"}
    assert middle(found["plain"]) == (19.5, 9.5)
    assert drawn(AugmentConfig(), np.random.default_rng(0)).tolist() == STILL
    assert StageConfig().augment == AugmentConfig()


@pytest.mark.parametrize(
    ("figures", "where"),
    [
        ({"flip": -1.0}, (19.5, 29.5)),
        ({"angle": np.pi / 2}, (29.5, 19.5)),
        ({"x": 0.5}, (19.5, -0.5 + 2.5)),
        ({"y": -0.25}, (24.5, 9.5)),
    ],
)
def test_places_move_together(figures, where):
    found = change(**figures)
    assert middle(found["plain"]) == pytest.approx(where, abs=0.6)
    assert middle(found["contrast"]) == pytest.approx(where, abs=0.6)


def test_what_comes_in_from_beyond_the_edge_is_air():
    assert float(change(x=1.0)["plain"][0, 1, 20, 39]) == -1.0


def test_intensity_changes_in_both_and_noise_in_the_plain_one_alone():
    found = change(gain=1.2, offset=0.1)
    assert float(found["plain"][0, 1, 20, 10]) == pytest.approx(1.5 * 1.2 - 1 + 0.1)
    assert float(found["contrast"][0, 1, 0, 0]) == pytest.approx(0.0, abs=1e-6)
    noisy = change(noise=20.0)
    assert torch.equal(noisy["contrast"], change()["contrast"])
    assert float((noisy["plain"] - change()["plain"]).std()) == pytest.approx(0.05, rel=0.1)
    assert torch.equal(noisy["plain"], change(noise=20.0)["plain"])


def test_figures_stay_within_what_was_asked():
    asked = AugmentConfig(
        flip=0.5, rotate_degrees=10, scale=0.1, shift=0.05, gain=0.2, offset=0.1, noise_hu=15
    )
    rows = np.stack([drawn(asked, np.random.default_rng(seed)) for seed in range(500)])
    assert 0.4 < (rows[:, 0] < 0).mean() < 0.6
    most = [np.radians(10), 0.1, 0.1, 0.1, 0.2, 0.2]
    for column, (still, limit) in enumerate(zip(STILL[1:7], most, strict=True), start=1):
        off = np.abs(rows[:, column] - still)
        assert 0.9 * limit < off.max() <= limit
    assert 13 < rows[:, 7].max() <= 15 and rows[:, 7].min() >= 0
