"""What is made of the rows of several trainings, before and after tuning; nothing trains here."""

from __future__ import annotations

import numpy as np
import pytest

from dyefreenet.evaluate.statistics import mean_of_trainings, summarise
from dyefreenet.report import tuned_text
from dyefreenet.tuned import compare

PSNR = {"protocol": "window600/1", "metric": "psnr", "region": "image"}


def made_up_rows(gain):
    """Eight patients under two seeds; what is tuned is better by ``gain`` in each, give or take."""
    generator = np.random.default_rng(0)
    for name, level in (("unet", 25.0), ("unet tuned", 25.0 + gain), ("refine tuned", 27.0)):
        for patient in range(8):
            for seed in range(2):
                value = level + patient + 0.1 * seed + generator.normal(0.0, 0.01)
                yield PSNR | {
                    "method": name,
                    "patient": f"{patient}",
                    "pair": f"{patient}",
                    "value": value,
                }


def test_a_scans_figure_is_the_mean_of_its_trainings():
    rows = [
        PSNR | {"method": "unet", "patient": "a", "pair": pair, "value": value}
        for pair, value in (("1", 20.0), ("2", 30.0), ("1", 22.0), ("2", 34.0))
    ]
    means = [(row["pair"], row["value"]) for row in mean_of_trainings(rows)]
    assert means == [("1", 21.0), ("2", 32.0)]


def test_seeds_are_no_patients():
    rows = mean_of_trainings(made_up_rows(1.0))
    assert {row["n"] for row in summarise(rows, 200)} == {8}


def test_tuned_is_held_against_itself_as_it_was_and_against_tuned_rivals():
    rows = mean_of_trainings(made_up_rows(1.0))
    compared = list(compare(rows, ("unet", "refine"), 200, 0))
    pairs = {(row["method"], row["versus"]): row for row in compared}
    assert set(pairs) == {("unet tuned", "unet"), ("refine tuned", "unet tuned")}
    assert pairs["unet tuned", "unet"]["mean"] == pytest.approx(1.0, abs=0.05)
    assert pairs["unet tuned", "unet"]["verdict"] == "better"


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "better"), (-1.0, "worse")])
def test_the_table_says_whether_tuning_helped(gain, verdict):
    rows = mean_of_trainings(made_up_rows(gain))
    summary, compared = summarise(rows, 200), list(compare(rows, ("unet", "refine"), 200, 0))
    text = tuned_text(summary, compared, 2, 12, made_up=True)
    assert text.startswith("MADE-UP PATIENTS")
    assert "mean of 2 trainings; 12 trials" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| U-Net tuned − U-Net |")]
    assert line.rstrip(" |").endswith(verdict)
    assert "| DyeFreeNet (refine) | tuned |" in text
    assert "| DyeFreeNet (refine) | recipe's |" not in text, "nobody trained that"


def test_a_table_of_ones_own_patients_does_not_say_made_up():
    rows = mean_of_trainings(made_up_rows(1.0))
    text = tuned_text(summarise(rows, 200), [], 1, 12, made_up=False)
    assert "MADE-UP" not in text and "mean of 1 training;" in text
