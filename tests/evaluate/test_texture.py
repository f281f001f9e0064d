"""Grain, edges and flicker against plain formulas and volumes whose figures are known."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from dyefreenet.evaluate.protocols import Case, protocol
from dyefreenet.evaluate.texture import (
    gradient_distance,
    high_frequency_power,
    step_between_slices,
)


def scans(shape=(4, 40, 33), seed=0):
    generator = np.random.default_rng(seed)
    real = generator.normal(60, 80, shape).clip(-200, 400).astype(np.int16)
    fake = (0.5 * real + generator.normal(20, 15, shape)).clip(-200, 400).astype(np.int16)
    return real, fake


def texture(true, predicted, body=None):
    body = np.ones(true.shape, bool) if body is None else body
    rows = protocol("texture/1").measure(Case(true, predicted, true, body, (3.0, 1.0, 1.0)))
    return {row["metric"]: (row["value"], row["region"], row["n"]) for row in rows}


@pytest.mark.parametrize("shape", [(2, 32, 32), (3, 31, 33), (1, 48, 20)])
def test_power_is_that_of_the_whole_spectrum(shape):
    volume, _ = scans(shape)
    expected = 0.0
    for image in volume.astype(np.float64):
        window = np.hanning(shape[1])[:, None] * np.hanning(shape[2])[None, :]
        spectrum = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
        rows, columns = np.fft.fftfreq(shape[1])[:, None], np.fft.fftfreq(shape[2])[None, :]
        expected += spectrum[np.sqrt(rows**2 + columns**2) > 0.25].sum()
    assert high_frequency_power(volume) == pytest.approx(expected, rel=1e-6)


def test_a_wave_counts_above_half_of_nyquist_only():
    columns = np.arange(64)
    slow = np.rint(100 * np.sin(2 * np.pi * columns / 8)) * np.ones((1, 64, 1))
    fast = np.rint(100 * np.sin(2 * np.pi * columns / 3)) * np.ones((1, 64, 1))
    powers = [high_frequency_power(wave.astype(np.int16)) for wave in (slow, fast)]
    assert powers[0] < 1e-3 * powers[1]


def test_the_distance_of_gradients_is_that_of_scipy():
    real, fake = scans()
    mask = np.random.default_rng(5).random(real.shape) < 0.6
    samples = []
    for volume in (real, fake):
        down, across = np.gradient(volume.astype(np.float64), axis=(1, 2))
        inner = (slice(None), slice(1, -1), slice(1, -1))
        samples.append(np.hypot(down, across)[inner][mask[inner]])
    assert gradient_distance(real, fake, mask) == pytest.approx(
        wasserstein_distance(*samples), abs=1e-9
    )


def test_ramps_of_two_slopes_are_as_far_apart_as_their_slopes():
    columns = np.arange(30, dtype=np.int16) * np.ones((9, 20, 1), np.int16)
    mask = np.ones(columns.shape, bool)
    assert gradient_distance(7 * columns, 4 * columns, mask) == pytest.approx(3.0)
    assert gradient_distance(4 * columns, 7 * columns, mask) == pytest.approx(3.0)


def test_the_step_between_slices_is_known():
    volume = np.zeros((3, 4, 4), np.int16)
    volume[1], volume[2] = 10, 4
    mask = np.ones(volume.shape, bool)
    assert step_between_slices(volume, mask) == 8.0
    mask[2, 1:] = False  # of the second step only a row is left
    assert step_between_slices(volume, mask) == (16 * 10 + 4 * 6) / 20
    assert step_between_slices(volume[:1], mask[:1]) is None


def test_identity_meets_every_target():
    true, _ = scans()
    assert texture(true, true.copy()) == {
        "high_frequency": (1.0, "image", 4),
        "gradient_w1": (0.0, "body", 4),
        "flicker": (1.0, "body", 3),
    }


def test_half_the_contrast_has_a_quarter_of_the_power_and_half_the_flicker():
    true = 2 * np.random.default_rng(1).integers(-90, 190, (4, 32, 32)).astype(np.int16)
    figures = texture(true, true // 2)
    assert figures["high_frequency"][0] == pytest.approx(0.25, rel=1e-6)
    assert figures["flicker"][0] == 0.5
    down, across = np.gradient(true.astype(np.float64), axis=(1, 2))
    mean = np.hypot(down, across)[:, 1:-1, 1:-1].mean()  # every gradient is halved
    assert figures["gradient_w1"][0] == pytest.approx(mean / 2)


def test_a_blurred_prediction_lacks_grain_and_a_noisy_one_has_too_much():
    true, _ = scans()
    rng = np.random.default_rng(2)
    noisy = (true + rng.normal(0, 60, true.shape)).clip(-200, 400).astype(np.int16)
    blurred = np.stack([(s + np.roll(s, 1, 0) + np.roll(s, 1, 1)) // 3 for s in true])
    assert texture(true, blurred)["high_frequency"][0] < 0.5
    assert texture(true, noisy)["high_frequency"][0] > 1.2


def test_what_lies_outside_the_window_does_not_count():
    true = np.random.default_rng(3).integers(-200, 401, (2, 16, 16)).astype(np.int16)
    beyond = np.where(true == 400, np.int16(3000), true)
    beyond = np.where(true == -200, np.int16(-1024), beyond)
    assert texture(true, beyond)["gradient_w1"][0] == 0.0


def test_nothing_to_compare_with_has_no_row():
    true = np.full((1, 16, 16), 40, np.int16)
    assert texture(true, true)["gradient_w1"][0] == 0.0
    assert set(texture(true, true)) == {"gradient_w1"}  # no power, and one slice has no step
    true, predicted = scans()
    assert set(texture(true, predicted, np.zeros(true.shape, bool))) == {"high_frequency"}
