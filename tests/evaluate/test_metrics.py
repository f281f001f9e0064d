"""Metrics against answers known beforehand, and SSIM against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dyefreenet.evaluate.metrics import mae, psnr, psnr_per_slice, ssim, ssim_map


def scans(shape=(3, 70, 61), seed=0):
    """A smooth volume from 0 to 600 with air, and a noisier copy, float64."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    real = 300 + 200 * np.sin(rows / 9)[None] * np.cos(columns / 7) + np.zeros((shape[0], 1, 1))
    real += generator.normal(0, 20, shape)
    real[:, :, :10] = 0
    fake = 1.05 * real + generator.normal(0, 30, shape)
    return real.clip(0, 600), fake.clip(0, 600)


def reference_ssim(real, fake, full=False):
    return structural_similarity(
        real,
        fake,
        data_range=600,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=full,
    )


def test_a_constant_shift_is_known():
    real = np.zeros((3, 4, 4), np.int16)
    fake = real + np.int16(10)
    assert psnr(real, fake, 4024) == pytest.approx(20 * np.log10(402.4))
    assert psnr_per_slice(real, fake, 600) == pytest.approx([20 * np.log10(60)] * 3)
    assert mae(real, fake) == 10.0


def test_equal_volumes_have_no_error():
    real, _ = scans()
    assert psnr(real, real, 600) == np.inf
    assert np.all(np.isinf(psnr_per_slice(real, real, 600)))
    assert mae(real, real) == 0.0
    assert ssim(real, real, 600) == pytest.approx(1.0)


def test_int16_errors_do_not_overflow():
    real = np.full((1, 2, 2), -30_000, np.int16)
    fake = np.full((1, 2, 2), 30_000, np.int16)
    assert mae(real, fake) == 60_000.0
    assert psnr(real, fake, 60_000) == pytest.approx(0.0)


def test_psnr_is_that_of_scikit_image():
    real, fake = scans()
    assert psnr(real, fake, 600) == pytest.approx(
        peak_signal_noise_ratio(real, fake, data_range=600), abs=1e-9
    )


@pytest.mark.parametrize("shape", [(2, 11, 11), (1, 12, 43), (3, 70, 61), (2, 106, 42)])
def test_ssim_is_that_of_scikit_image(shape):
    real, fake = scans(shape)
    expected = [reference_ssim(x, y) for x, y in zip(real, fake, strict=True)]
    assert ssim(real, fake, 600) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_flat_slices_keeps_its_digits():
    """In float32 the variance of a flat region is lost in rounding."""
    real, fake = np.full((1, 40, 40), 500.0), np.full((1, 40, 40), 530.0)
    assert ssim(real, fake, 600)[0] == pytest.approx(reference_ssim(real[0], fake[0]), abs=1e-9)
    luminance = (2 * 500 * 530 + 36) / (500**2 + 530**2 + 36)
    assert ssim(real, fake, 600)[0] == pytest.approx(luminance, abs=1e-9)


def pairs_that_lose_digits():
    """Slices [64, 70] on which a variance is a small difference of large numbers, and noise."""
    generator = np.random.default_rng(3)
    black = np.zeros((64, 70))
    noise, more = generator.uniform(0, 600, (2, *black.shape))
    step = np.where(np.arange(70) > 31, 600.0, black)
    return {
        "black": (black, black),
        "black and noise": (black, noise),
        "noise": (noise, more),
        "step": (step, step * (590 / 600)),
        "bright and nearly flat": (590 + generator.normal(0, 0.1, black.shape), black + 600),
    }


@pytest.mark.parametrize("name", pairs_that_lose_digits())
def test_each_pixel_is_that_of_scikit_image_where_digits_are_lost(name):
    """In float32 the step is off by 3e-4, the bright slice by 6e-4."""
    real, fake = pairs_that_lose_digits()[name]
    expected = reference_ssim(real, fake, full=True)[1][5:-5, 5:-5]
    assert ssim_map(real, fake, 600) == pytest.approx(expected, abs=1e-9)


def test_ssim_under_a_mask_is_the_mean_of_its_map():
    real, fake = scans()
    mask = np.zeros(real.shape, bool)
    mask[0, 20:40, 15:50] = True
    mask[1, 33, 30] = True
    means = ssim(real, fake, 600, mask)
    full = [reference_ssim(x, y, full=True)[1] for x, y in zip(real, fake, strict=True)]
    assert means[:2] == pytest.approx([full[z][mask[z]].mean() for z in (0, 1)], abs=1e-9)
    assert np.isnan(means[2])  # the slice has no pixel of the mask


def test_scaling_both_scans_and_the_span_changes_nothing():
    """Why 0...600 HU with span 600 and 0...255 with span 255 are one measurement."""
    real, fake = scans()
    eight = 255 / 600
    assert ssim(real * eight, fake * eight, 255) == pytest.approx(ssim(real, fake, 600))
    assert psnr(real * eight, fake * eight, 255) == pytest.approx(psnr(real, fake, 600))


def test_a_mask_leaves_the_rest_out():
    real = np.zeros((2, 12, 12), np.int16)
    fake = real.copy()
    fake[0, 0, 0], fake[1] = 8, 1000
    mask = np.zeros(real.shape, bool)
    mask[0, 0, :2] = True
    assert mae(real, fake, mask) == 4.0
    assert psnr(real, fake, 600, mask) == pytest.approx(20 * np.log10(600 / np.sqrt(32)))


@pytest.mark.parametrize("measure", [mae, lambda *a: psnr(a[0], a[1], 600, *a[2:])])
def test_what_cannot_be_measured_is_refused(measure):
    real = np.zeros((2, 12, 12))
    holed = real.copy()
    holed[1, 3, 3] = np.nan
    with pytest.raises(ValueError, match="fake: expected finite values"):
        measure(real, holed)
    with pytest.raises(ValueError, match="at least one voxel, found none"):
        measure(real, real, np.zeros(real.shape, bool))
    with pytest.raises(ValueError, match=r"\(2, 12, 12\) and \(1, 12, 12\)"):
        measure(real, real[:1])
    with pytest.raises(ValueError, match=r"found \(0, 12, 12\)"):
        measure(real[:0], real[:0])


def test_a_slice_smaller_than_the_gaussian_is_refused():
    with pytest.raises(ValueError, match=r"11x11 pixels or more, found \(10, 30\)"):
        ssim_map(np.zeros((10, 30)), np.zeros((10, 30)), 600)
