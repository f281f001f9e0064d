"""Protocols on volumes whose figures can be written down."""

import numpy as np
import pytest

from dyefreenet.errors import ConfigError
from dyefreenet.evaluate.protocols import PROTOCOLS, Case, score_volume

SHAPE = (3, 24, 24)


def score(
    true, predicted, body=None, labels=None, protocols=("window600/1", "paper8/1"), structures=None
):
    body = np.ones(true.shape, bool) if body is None else body
    regions = {"vessel": {7, 8}} | (structures or {})
    case = Case(true, predicted, np.zeros_like(true), body, (3.0, 1.0, 1.0), labels, regions)
    rows = score_volume(case, protocols)
    return {
        (row["protocol"], row["metric"], row["region"]): (row["value"], row["n"]) for row in rows
    }


def test_a_constant_shift_is_known_under_each_protocol():
    true = np.full(SHAPE, 40, np.int16)
    figures = score(true, true + np.int16(60))
    assert figures["window600/1", "psnr", "image"] == (pytest.approx(20.0), 3)
    assert figures["window600/1", "psnr", "body"] == (pytest.approx(20.0), 3)
    assert figures["window600/1", "mae", "image"] == (60.0, 3)
    assert figures["paper8/1", "psnr", "image"][0] == pytest.approx(20 * np.log10(800 / 60))
    assert figures["paper8/1", "psnr_sd", "image"][0] == pytest.approx(0.0, abs=1e-9)
    luminance = (2 * 240 * 300 + 36) / (240**2 + 300**2 + 36)  # counted from -200 HU
    assert figures["window600/1", "ssim", "image"][0] == pytest.approx(luminance)


def test_identity_is_perfect():
    true = np.random.default_rng(0).integers(-300, 500, SHAPE).astype(np.int16)
    figures = score(true, true.copy())
    for name in ("window600/1", "paper8/1"):
        assert figures[name, "mae", "image"][0] == 0.0
        assert figures[name, "ssim", "image"][0] == pytest.approx(1.0)
        assert figures[name, "psnr", "image"] == (np.inf, 3)


def test_what_lies_outside_the_window_does_not_count():
    true = np.full(SHAPE, 500, np.int16)
    predicted = np.full(SHAPE, 700, np.int16)
    figures = score(true, predicted)
    assert figures["window600/1", "mae", "image"][0] == 0.0  # both clip to 400
    assert figures["paper8/1", "mae", "image"][0] == 100.0  # 600 - 500


def test_the_body_excludes_what_happens_in_the_air():
    true = np.full(SHAPE, -1000, np.int16)
    body = np.zeros(SHAPE, bool)
    body[:, 6:18, 6:18] = True
    true[body] = 50
    predicted = true.copy()
    predicted[:, :4] = 400
    figures = score(true, predicted, body)
    assert figures["window600/1", "mae", "body"][0] == 0.0
    assert figures["window600/1", "mae", "image"][0] == 600 * 4 / 24


def test_exact_slices_are_left_out_of_a_mean_over_slices():
    true = np.zeros(SHAPE, np.int16)
    predicted = true.copy()
    predicted[0], predicted[1] = 80, 8
    value, n = score(true, predicted)["paper8/1", "psnr", "image"]
    assert (value, n) == (pytest.approx(30.0), 2)  # 20 and 40 dB; the third is infinite


def test_a_single_slice_has_figures():
    true = np.zeros((1, 24, 24), np.int16)
    figures = score(true, true + np.int16(60))
    assert figures["window600/1", "psnr", "image"] == (pytest.approx(20.0), 1)
    assert figures["paper8/1", "psnr_sd", "image"] == (0.0, 1)


def test_a_region_that_the_patient_lacks_has_no_row():
    true = np.zeros(SHAPE, np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    figures = score(true, true, np.zeros(SHAPE, bool), labels)
    assert {region for _, _, region in figures} == {"image"}


def test_vessels_are_scored_in_hu_and_unclipped():
    true, predicted = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 3:5, 3:8], labels[2, 3:5, 3:8], labels[0, 0, 0] = 7, 8, 3
    true[labels == 7], true[labels == 8] = 700, 800
    predicted[labels == 7], predicted[labels == 8] = 690, 500
    figures = score(true, predicted, labels=labels, structures={"aorta": {7}, "liver": {3}})
    assert figures["roi/1", "mae", "vessel"] == (155.0, 20)
    assert figures["roi/1", "bias", "vessel"][0] == -155.0
    assert figures["roi/1", "median_error", "aorta"] == (10.0, 10)
    assert figures["roi/1", "mae", "liver"] == (0.0, 1)


def test_an_unknown_protocol_is_named():
    true = np.zeros(SHAPE, np.int16)
    with pytest.raises(ConfigError, match=r"window600/1, paper8/1, full12/1, .*found 'window/9'"):
        score(true, true, protocols=["window/9"])


def test_shapes_that_differ_are_refused():
    true = np.zeros(SHAPE, np.int16)
    with pytest.raises(ValueError, match="predicted: expected the shape"):
        score(true, true[:2])


def test_every_protocol_is_listed_under_its_own_versioned_id():
    for name, entry in PROTOCOLS.items():
        assert name == entry.id
        assert name.split("/")[1].isdigit()
        assert entry.definition


def test_a_constant_shift_is_known_over_the_whole_range():
    true = np.full(SHAPE, 76, np.int16)
    body = np.zeros(SHAPE, bool)
    body[:2, 4:20, 4:20] = True
    predicted = np.where(body, np.int16(176), np.int16(-500))
    predicted[0, 10:14] += 100
    figures = score(true, predicted, body, protocols=["full12/1"])
    assert {key[2] for key in figures} == {"body"}
    errors = np.array([[12 * 100 + 4 * 200, 12 * 100**2 + 4 * 200**2], [1600, 160000]]) / 16
    shares, squares = errors[0, 0] / 4095, errors[0, 1]
    decibels = 20 * np.log10(4095 / np.array([np.sqrt(squares), 100]))
    assert figures["full12/1", "psnr", "body"] == (pytest.approx(decibels.mean()), 2)
    assert figures["full12/1", "nmae", "body"] == (pytest.approx((shares + 100 / 4095) / 2), 2)
    assert figures["full12/1", "psnr_sd", "body"][0] == pytest.approx(decibels.std())


def test_synthrad_measures_the_body_and_ten_millimetres_around_it():
    true = np.full(SHAPE, 76, np.int16)
    body = np.zeros(SHAPE, bool)
    body[:, :, :2] = True  # with what is within 10 mm: columns 0 to 11
    predicted = np.full(SHAPE, -1024, np.int16)
    predicted[:, :, :6], predicted[:, :, 6:12] = 76, 376
    figures = score(true, predicted, body, protocols=["synthrad/1", "synthrad-published/1"])
    for name, span in (("synthrad/1", 4024), ("synthrad-published/1", 4095)):
        assert figures[name, "mae", "around"] == (150.0, 3)
        assert figures[name, "psnr", "around"][0] == pytest.approx(
            20 * np.log10(span / np.sqrt(300**2 / 2))
        )
        assert (name, "ms_ssim", "around") not in figures  # its coarsest voxel is outside
    identity = score(true, true.copy(), protocols=["synthrad/1"])
    assert identity["synthrad/1", "ms_ssim", "around"][0] == pytest.approx(1.0)
    assert identity["synthrad/1", "psnr", "around"][0] == np.inf


def test_synthrads_error_is_not_clipped_and_its_psnr_is():
    true, predicted = np.full(SHAPE, 3000, np.int16), np.full(SHAPE, 3050, np.int16)
    figures = score(true, predicted, protocols=["synthrad/1", "synthrad-published/1"])
    assert figures["synthrad/1", "mae", "around"][0] == 50.0
    assert figures["synthrad/1", "psnr", "around"][0] == np.inf
    assert figures["synthrad-published/1", "psnr", "around"][0] == pytest.approx(
        20 * np.log10(4095 / 50)
    )
    assert score(true, predicted, np.zeros(SHAPE, bool), protocols=["synthrad/1"]) == {}
