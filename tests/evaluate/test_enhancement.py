"""What was invented, missed, changed outside: blocks of known size in a known body."""

import numpy as np
import pytest

from dyefreenet.evaluate.protocols import Case, protocol


@pytest.fixture
def scan():
    """Plain noise and its body, 4 x 20 x 20 voxels inside: 1600 of them."""
    plain = np.random.default_rng(0).integers(-60, 120, (4, 40, 40)).astype(np.int16)
    body = np.zeros(plain.shape, bool)
    body[:, 10:30, 10:30] = True
    return plain, body


def enhancement(true, predicted, plain, body):
    case = Case(true, predicted, plain, body, (3.0, 1.0, 1.0))
    return {row["metric"]: row["value"] for row in protocol("enhancement/1").measure(case)}


def lit(plain, block, hu):
    changed = plain.copy()
    changed[block] += np.int16(hu)
    return changed


def test_the_true_scan_itself_invents_and_misses_nothing(scan):
    plain, body = scan
    true = lit(plain, np.s_[1:3, 12:20, 12:20], 250)
    assert enhancement(true, true, plain, body) == {
        "invented": 0.0,
        "missed": 0.0,
        "outside_change": 0.0,
        "change_flicker": 1.0,
    }


def test_the_plain_scan_unchanged_misses_all_that_lit_up(scan):
    plain, body = scan
    true = lit(plain, np.s_[1:3, 12:20, 12:20], 250)
    figures = enhancement(true, plain, plain, body)
    assert figures["missed"] == 2 * 64 / 1600  # even a corner holds 4 of 9: 111 HU
    assert figures["invented"] == figures["change_flicker"] == 0.0


def test_a_vessel_that_nobody_has_is_counted_as_invented(scan):
    plain, body = scan
    true = lit(plain, np.s_[:, 12:20, 12:20], 250)
    predicted = lit(true, np.s_[2, 22:28, 22:28], 150)
    figures = enhancement(true, predicted, plain, body)
    assert figures["invented"] == 16 / 1600  # the rim of the block has 100 HU at most
    assert figures["missed"] == 0.0


def test_a_change_of_exactly_the_threshold_has_not_lit_up(scan):
    plain, body = scan
    for hu, invented in ((100, 0.0), (101, 1.0)):
        predicted = lit(plain, np.s_[:], hu)
        assert enhancement(plain, predicted, plain, body)["invented"] == invented


def test_what_changes_in_the_air_is_told(scan):
    plain, body = scan
    predicted = lit(plain, np.s_[:, :, :5], -20)
    figures = enhancement(plain, predicted, plain, body)
    assert figures["outside_change"] == 20 * 4 * 40 * 5 / (4 * 1200)
    assert figures["invented"] == 0.0


def test_flicker_is_that_of_the_change_and_not_of_the_plain_scan(scan):
    plain, body = scan
    true = lit(plain, np.s_[2:, :, :], 100)  # one step of 100 HU
    predicted = lit(lit(plain, np.s_[1], 60), np.s_[2:], 120)  # two of 60
    assert enhancement(true, predicted, plain, body)["change_flicker"] == pytest.approx(1.2)


def test_nothing_to_measure_has_no_row(scan):
    plain, body = scan
    assert "change_flicker" not in enhancement(plain, plain, plain, body)
    assert set(enhancement(plain, plain, plain, ~body | body)) == {"invented", "missed"}
    assert set(enhancement(plain, plain, plain, body & ~body)) == {"outside_change"}
