"""Intervals over patients: known answers, and what may never be pooled."""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import linregress

from dyefreenet.evaluate.statistics import (
    by_patient,
    differences,
    interval,
    levels,
    missing,
    summarise,
)


def rows(method, values, protocol="window600/1", metric="psnr", region="image"):
    return [
        {"patient": f"p{i}", "method": method, "protocol": protocol, "metric": metric}
        | {"region": region, "value": value, "n": 3}
        for i, value in enumerate(values)
    ]


def test_the_bootstrap_of_a_constant_is_that_constant():
    assert interval(np.full(9, 27.5)) == (27.5, 27.5, 27.5)


def test_the_interval_of_many_patients_is_that_of_the_normal_law():
    values = np.random.default_rng(3).normal(30, 2, 400)
    mean, low, high = interval(values, resamples=4000)
    half = 1.96 * values.std() / 20
    assert (low, high) == (
        pytest.approx(mean - half, abs=0.02),
        pytest.approx(mean + half, abs=0.02),
    )


def test_the_same_seed_gives_the_same_interval():
    values = np.arange(12.0)
    assert interval(values, 500, seed=4) == interval(values, 500, seed=4)
    assert interval(values, 500, seed=4) != interval(values, 500, seed=5)


def test_one_patient_has_no_interval():
    assert interval(np.array([30.0])) == (30.0, None, None)


def test_an_infinite_value_does_not_turn_into_nan():
    mean, low, high = interval(np.array([30.0, math.inf, 31.0, 29.0, 30.0]), 500)
    assert mean == math.inf
    assert low == pytest.approx(30, abs=1)
    assert high == math.inf
    assert interval(np.full(4, math.inf), 200) == (math.inf, math.inf, math.inf)


def test_a_summary_has_a_line_for_each_method_protocol_metric_and_region():
    table = [
        *rows("unet", [30, 32]),
        *rows("unet", [28, 28], protocol="paper8/1"),
        *rows("refine", [31, 33, 35]),
    ]
    lines = summarise(table, resamples=200)
    assert [(line["method"], line["protocol"], line["n"], line["mean"]) for line in lines] == [
        ("unet", "window600/1", 2, 31.0),
        ("unet", "paper8/1", 2, 28.0),
        ("refine", "window600/1", 3, 33.0),
    ]
    assert lines == summarise(pa.Table.from_pylist(table), resamples=200)


def test_no_rows_have_no_summary():
    assert summarise([]) == []
    assert differences([]) == []


def test_two_protocols_are_never_pooled():
    mixed = rows("unet", [30]) + rows("unet", [28], protocol="paper8/1")
    with pytest.raises(ValueError, match=r"expected all of .*window600/1.*paper8/1"):
        by_patient(mixed)


def test_a_patient_counts_once_however_many_scans_there_are():
    table = rows("unet", [30, 40]) + rows("unet", [34])
    assert by_patient(table) == {"p0": 32.0, "p1": 40.0}
    (line,) = summarise(table, resamples=99)
    assert (line["n"], line["mean"]) == (2, 36.0)


def test_a_value_must_be_a_number():
    with pytest.raises(ValueError, match=r"p1: expected a number .* found NaN"):
        by_patient(rows("unet", [30, math.nan]))


def test_differences_are_paired_by_patient():
    unet = rows("unet", [20.0, 30, 40, 25, 35, 28, 33, 27, 31])
    refine = [row | {"method": "refine", "value": row["value"] + 1.5} for row in unet[:8]]
    (line,) = differences(unet + refine[::-1], resamples=300)
    assert (line["method"], line["versus"], line["n"]) == ("refine", "unet", 8)
    assert (line["mean"], line["low"], line["high"]) == (1.5, 1.5, 1.5)
    assert line["verdict"] == "better"
    assert line["p"] == pytest.approx(2 / 2**8)  # all eight of one sign


def test_lower_is_better_for_an_error_and_worse_for_psnr():
    unet, refine = rows("unet", [9.0] * 8, metric="mae"), rows("refine", [4.0] * 8, metric="mae")
    assert differences(unet + refine, resamples=100)[0]["verdict"] == "better"
    unet, refine = rows("unet", [9.0] * 8), rows("refine", [4.0] * 8)
    assert differences(unet + refine, resamples=100)[0]["verdict"] == "worse"


def test_an_interval_beside_zero_is_not_enough_where_the_paired_test_has_none_of_it():
    unet = rows("unet", [30.0] * 6)
    refine = rows("refine", [31.0, 31.1, 31.2, 30.9, 30.8, 29.8])
    (line,) = differences(unet + refine, resamples=500)
    assert line["low"] > 0 and line["p_holm"] > 0.05
    assert line["verdict"] == "no difference shown"


def test_differences_are_of_the_same_scans():
    def scan(method, name, values):
        return [row | {"pair": f"{row['patient']}-{name}"} for row in rows(method, values)]

    unet = scan("unet", "first", [30.0] * 6) + scan("unet", "second", [10.0] * 6)
    (line,) = differences(unet + scan("refine", "first", [31.0] * 6), resamples=100)
    assert line["mean"] == 1.0  # not 31 against the mean of 30 and 10


def test_an_interval_that_spans_zero_shows_no_difference():
    unet = rows("unet", [30.0] * 10)
    refine = rows("refine", [29.0, 31, 28, 32, 30.5, 29.5, 30, 30, 33, 27])
    assert differences(unet + refine, resamples=500)[0]["verdict"] == "no difference shown"
    equal = differences(unet + rows("refine", [30.0] * 10), resamples=100)[0]
    assert (equal["p"], equal["verdict"]) == (1.0, "no difference shown")
    alone = differences(rows("unet", [30.0]) + rows("refine", [39.0]))[0]
    assert (alone["low"], alone["verdict"]) == (None, "no difference shown")


def test_a_handful_of_patients_settles_nothing():
    unet, refine = rows("unet", [30.0] * 5), rows("refine", [31.0] * 5)
    assert differences(unet + refine, resamples=99)[0]["verdict"] == "too few patients"


def test_two_exact_scans_do_not_differ():
    lines = differences(rows("unet", [math.inf, 30]) + rows("refine", [math.inf, 31]), resamples=99)
    assert lines[0]["mean"] == 0.5


def test_a_bias_has_no_better_side_and_no_verdict():
    assert (
        differences(
            rows("unet", [1.0] * 3, metric="bias") * 1 + rows("refine", [0.0] * 3, metric="bias")
        )
        == []
    )


def test_holm_multiplies_the_smallest_p_by_the_number_of_methods():
    unet = rows("unet", [30.0] * 8)
    sure = rows("refine", [31.0, 32, 33, 34, 35, 36, 37, 38])
    unsure = rows("primary", [31.0, 29.5, 32, 28.5, 33, 27.5, 34, 26.7])
    by_method = {line["method"]: line for line in differences(unet + sure + unsure, resamples=99)}
    assert by_method["refine"]["p_holm"] == pytest.approx(2 * by_method["refine"]["p"])
    assert by_method["primary"]["p_holm"] == by_method["primary"]["p"]


def test_a_metric_with_a_target_is_compared_by_its_distance_from_it():
    """Too much grain is as wrong as too little; 1.1 beats 0.7, and 1.5 does not."""
    unet = rows("unet", [0.7] * 8, "texture/1", "high_frequency")
    near = rows("refine", [1.1] * 8, "texture/1", "high_frequency")
    far = rows("primary", [1.5] * 8, "texture/1", "high_frequency")
    lines = {line["method"]: line for line in differences(unet + near + far, resamples=99)}
    assert lines["refine"]["target"] == 1.0
    assert lines["refine"]["mean"] == pytest.approx(-0.2)
    assert lines["refine"]["verdict"] == "better"
    assert lines["primary"]["mean"] == pytest.approx(0.2)
    assert lines["primary"]["verdict"] == "worse"
    plain = differences(rows("unet", [30.0] * 8) + rows("refine", [31.0] * 8), resamples=99)
    assert plain[0]["target"] is None


def test_scans_of_a_patient_on_both_sides_of_a_target_do_not_cancel():
    unet = rows("unet", [1.0], "texture/1", "flicker") * 2
    refine = rows("refine", [0.5], "texture/1", "flicker")
    refine += rows("refine", [1.5], "texture/1", "flicker")
    assert differences(unet + refine)[0]["mean"] == 0.5


def level_rows(method, predicted, true):
    return [
        *rows(method, predicted, "roi/1", "median_hu", "vessel"),
        *rows(method, true, "roi/1", "true_median_hu", "vessel"),
    ]


def test_a_method_that_halves_every_difference_has_half_the_slope_and_a_quarter_of_the_variance():
    true = np.array([200.0, 250, 300, 380, 410, 240])
    line, average = levels(
        level_rows("unet", 150 + 0.5 * true, true) + level_rows("refine", [290.0] * 6, true), 500
    )
    assert (line["method"], line["region"], line["n"]) == ("unet", "vessel", 6)
    for end in ("", "_low", "_high"):
        assert line[f"slope{end}"] == pytest.approx(0.5)
        assert line[f"variance_ratio{end}"] == pytest.approx(0.25)
        assert average[f"slope{end}"] == average[f"variance_ratio{end}"] == 0.0


def test_the_slope_is_that_of_least_squares_and_its_interval_that_of_the_normal_law():
    rng = np.random.default_rng(1)
    true = rng.normal(300, 50, 300)
    predicted = 200 + 0.4 * true + rng.normal(0, 20, 300)
    (line,) = levels(level_rows("unet", predicted, true), 2000)
    fitted = linregress(true, predicted)
    assert line["slope"] == pytest.approx(fitted.slope)
    assert line["variance_ratio"] == pytest.approx(predicted.var() / true.var())
    assert line["slope_low"] == pytest.approx(fitted.slope - 1.96 * fitted.stderr, abs=0.01)
    assert line["slope_high"] == pytest.approx(fitted.slope + 1.96 * fitted.stderr, abs=0.01)


def test_levels_of_few_or_equal_patients_have_no_slope():
    (few,) = levels(level_rows("unet", [200.0, 300], [250.0, 350]))
    (equal,) = levels(level_rows("unet", [200.0, 300, 250], [300.0] * 3))
    assert few["n"] == 2 and few["slope"] is None
    assert equal["variance_ratio_low"] is None
    assert levels(rows("unet", [30.0])) == []


def test_two_rows_of_one_scan_are_refused():
    table = [row | {"pair": "scan1"} for row in rows("unet", [30.0, 31])]
    assert len(by_patient(table)) == 2
    with pytest.raises(ValueError, match=r"patient p1, pair scan1: expected one row .* found two"):
        by_patient([*table, table[1]])
    other = table[1] | {"pair": "scan2", "value": 33.0}
    assert by_patient([*table, other])["p1"] == 32.0


def test_a_patient_whom_a_method_lacks_is_named():
    table = rows("unet", [30.0, 31, 32]) + rows("refine", [30.0, 31])
    assert missing(table) == [
        "patient p2: expected rows of every method, found none of refine; its mean is over other "
        "patients than theirs"
    ]
    assert missing(table[:2] + table[3:]) == []


def test_infinities_of_both_signs_decide_nothing():
    unet = rows("unet", [math.inf, 30.0, 30, 30, 30, 30, 30, 30])
    refine = rows("refine", [30.0, math.inf, 31, 31, 31, 31, 31, 31])
    with np.errstate(invalid="ignore"):
        assert differences(unet + refine, resamples=99)[0]["verdict"] == "no difference shown"
