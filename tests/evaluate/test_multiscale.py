"""MS-SSIM against a plain float64 implementation of its definition, and known answers."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from scipy.signal import fftconvolve

from dyefreenet.evaluate.multiscale import WEIGHTS, ms_ssim


def downsampled(volume, published):
    """Voxel k of the next scale is the mean of voxels 2k - 1 and 2k."""
    if not published:  # the edge repeated; else zeros, as a convolution has them
        volume = np.pad(volume, [(1, 0)] * 3, mode="edge")
    means = fftconvolve(volume, np.full((2, 2, 2), 1 / 8), mode="same")
    return means[::2, ::2, ::2] if published else means[1::2, 1::2, 1::2]


def reference(real, fake, mask, low, high, published=False):
    x, y = (np.where(mask, np.clip(v.astype(float), low, high) - low, 0.0) for v in (real, fake))
    padding = [(max(97 - n, 0) // 2, max(97 - n, 0) - max(97 - n, 0) // 2) for n in mask.shape]
    x, y, mask = (np.pad(v, padding, mode="edge") for v in (x, y, mask))
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    score = 1.0
    for scale, weight in enumerate(WEIGHTS):
        mean_x, mean_y = ndimage.uniform_filter(x, 7), ndimage.uniform_filter(y, 7)
        sample = 343 / 342
        var_x = sample * (ndimage.uniform_filter(x * x, 7) - mean_x**2)
        var_y = sample * (ndimage.uniform_filter(y * y, 7) - mean_y**2)
        cov = sample * (ndimage.uniform_filter(x * y, 7) - mean_x * mean_y)
        sd = np.sqrt(np.maximum(var_x, 0)) * np.sqrt(np.maximum(var_y, 0))
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        contrast = (2 * sd + c2) / (var_x + var_y + c2)
        structure = np.maximum((cov + c2 / 2) / (sd + c2 / 2), 0)
        similarity = contrast**weight * structure**weight
        if published or scale == 4:
            similarity = similarity * luminance**weight
        inner = (slice(3, -3),) * 3
        score *= similarity[inner][mask[inner]].mean()
        x, y = downsampled(x, published), downsampled(y, published)
        mask = mask[::2, ::2, ::2]
    return score


def scans(shape, seed=0):
    """Smooth tissue with air, bone and noise; the second is another take with a fault."""
    rng = np.random.default_rng(seed)
    tissue = 3000 * ndimage.gaussian_filter(rng.normal(size=shape), 3)
    tissue[:, : shape[1] // 6] = -1000
    real = (tissue + rng.normal(0, 30, shape)).clip(-1024, 3500).astype(np.int16)
    tissue[:, shape[1] // 2 :] *= -0.3  # structure of the other sign
    fake = (tissue + rng.normal(0, 60, shape)).clip(-1100, 3500).astype(np.int16)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    disc = np.hypot(rows / shape[1] - 0.5, columns / shape[2] - 0.45) < 0.42
    return real, fake, np.repeat(disc[None], shape[0], axis=0)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("shape", [(97, 97, 97), (20, 110, 131), (101, 104, 99), (5, 24, 40)])
def test_it_is_that_of_its_definition(shape, published):
    real, fake, mask = scans(shape)
    mask[: shape[0] // 4] = False
    high = 3071 if published else 3000
    expected = reference(real, fake, mask, -1024, high, published)
    assert expected < 0.98
    found = ms_ssim(real, fake, mask, -1024, high, published)
    assert found == pytest.approx(expected, abs=1e-9)


def test_equal_volumes_are_alike_and_a_patient_without_body_has_no_figure():
    real, _, mask = scans((30, 60, 60))
    assert ms_ssim(real, real, mask, -1024, 3000) == pytest.approx(1.0, abs=1e-12)
    assert ms_ssim(real, real, np.zeros_like(mask), -1024, 3000) is None


def test_a_shift_of_a_flat_volume_is_the_luminance_of_the_coarsest_scale():
    real = np.full((10, 30, 30), 0, np.int16)
    mask = np.ones(real.shape, bool)
    c1 = (0.01 * 4024) ** 2
    luminance = (2 * 1024 * 1324 + c1) / (1024**2 + 1324**2 + c1)
    found = ms_ssim(real, real + np.int16(300), mask, -1024, 3000)
    assert found == pytest.approx(luminance ** WEIGHTS[-1], abs=1e-12)


def test_what_lies_outside_the_mask_does_not_count():
    real, fake, mask = scans((12, 50, 50))
    changed = np.where(mask, fake, np.int16(700))
    assert ms_ssim(real, changed, mask, -1024, 3000) == ms_ssim(real, fake, mask, -1024, 3000)


def test_memory_stays_below_three_times_the_pair():
    real, fake, mask = scans((120, 128, 128))
    tracemalloc.start()
    ms_ssim(real, fake, mask, -1024, 3000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * (real.nbytes + fake.nbytes)
