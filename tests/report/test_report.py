"""Table and page of a made-up run folder: every figure in them was written down beforehand."""

import base64
import csv
import hashlib
import html
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up_run import EVIL, PATIENTS, line, parquet, take_labels, write_panel
from PIL import Image

from dyefreenet.errors import StoreError
from dyefreenet.evaluate.statistics import TARGETS
from dyefreenet.report import table_text, unseen, write_report
from dyefreenet.report.charts import Dots, Line, agreement_chart, box, dot_chart, line_chart, ticks
from dyefreenet.report.page import _tables
from dyefreenet.report.panels import code_table, encode_hu, read_panels
from dyefreenet.report.results import METHODS, Column, read_results
from dyefreenet.store import Folder


def images_of(panel, position):
    return "".join(panel["slices"][position]["images"].values())


def codes_of(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def image_size(panel):
    return codes_of(panel["slices"][0]["images"]["true"]).shape


def page_of(run):
    write_report(run)
    return run.read("report/index.html").decode()


def words_of(page):
    """Text of the page as it is read, without scripts and tags."""
    page = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_page_says_where_it_is(run):
    assert write_report(run) == f"{run}/report/index.html"


def test_the_page_shows_every_figure_of_the_headline(run):
    words = words_of(page_of(run))
    for place, method in enumerate(METHODS):
        assert METHODS[method] in words
        assert f"{27.11 + place:.2f}" in words
        assert f"[{176.3 - 10 * place - 7:.1f}, {185.3 - 10 * place:.1f}]" in words
    assert "33.11 ● [32.61, 33.61]" in words  # the best PSNR
    assert "117.3 ● [109.3, 125.3]" in words  # the least artery error
    assert words.count("●") == 1 + 4  # in the legend, and one for each column


def test_the_verdict_is_told_whichever_way_it_falls(run):
    words = words_of(page_of(run))
    assert (
        "DyeFreeNet (refine) against U-Net: better in PSNR; worse in artery error; "
        "no difference shown in SSIM." in words
    )
    assert "against U-Net + Pix2Pix: no difference shown in PSNR." in words
    assert "PSNR +1.37 dB [+0.97, +1.77]" in words
    assert "8 patients: a bootstrap over so few" in words


def test_the_papers_steps_stand_beside_ours(run):
    words = words_of(page_of(run))
    assert "U-Net PSNR, dB window600/1 +1.37 [+0.97, +1.77] +2.16" in words
    assert "U-Net + Pix2Pix PSNR, dB window600/1 +0.20 [−0.10, +0.50] +1.02" in words


def test_the_origin_of_the_data_is_loud(run):
    page = page_of(run)
    assert "MADE-UP PHANTOM" in page.split("<main>")[0]
    assert "test: 8 made-up patients, 224 slices" in page.split("<main>")[0]
    assert "For research only" in page
    assert "trained on made-up CT" not in page  # no phantom in the training split
    (run / "ingest").write(
        "pairs.parquet",
        parquet(
            [
                {"key": "k", "patient": "p", "split": split, "phase": "arterial", "slices": 90}
                | {"source": "phantom"}
                for split in ("train", "test")
            ]
        ),
    )
    assert "These networks were trained on made-up CT." in page_of(run)
    pair = {"key": "k", "patient": "p", "split": "test", "phase": "arterial", "slices": 90}
    (run / "ingest").write("pairs.parquet", parquet([pair | {"source": "real"}]))
    page = page_of(run)
    assert "MADE-UP PHANTOM" not in page
    assert "Real CT: the figures below were measured on patients" in page


def test_the_page_asks_nothing_of_the_network(run):
    page = page_of(run)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page)
    assert not re.search(r"""<(?:script|img|link|iframe)[^>]*\b(?:src|href)=""", page)
    assert not re.search(r"<[^>]+ (?:style|on\w+)=", page)  # what a strict policy forbids


def test_the_policy_admits_just_the_pages_own_script(run):
    page = page_of(run)
    (script,) = re.findall(r"(?s)<script>(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_what_comes_from_the_run_is_escaped(run):
    write_panel(run, "evil<b>")
    run.write_json("recipe.json", {"name": EVIL})
    page = page_of(run)
    assert "<script>alert" not in page
    assert "<img src=x>" not in page
    assert "evil<b>" not in page
    assert EVIL.removeprefix("</script>") in words_of(page)


def test_steps_exclusions_and_recipe_are_listed(run):
    words = words_of(page_of(run))
    assert "2 series were left out" in words
    assert "gap 2" in words
    assert "mark-refine" in words
    assert "lr: 0.00123" in words


def test_a_partial_run_says_what_it_lacks(run):
    evaluate = run / "evaluate"
    summary = [e for e in evaluate.read_json("summary.json") if e["method"] in ("identity", "unet")]
    evaluate.write_json("summary.json", summary)
    evaluate.write_json("differences.json", [])
    words = words_of(page_of(run))
    assert "Not in this run: HU remap, U-Net + Pix2Pix, Primary without SSL, Primary GAN" in words
    assert "There is nothing to compare" in words
    assert "Not in this run: HU remap" in table_text(run)


def test_a_bare_evaluation_still_has_a_page(tmp_path):
    run = Folder(str(tmp_path / "bare"))
    summary = [
        line("unet", "window600/1", "psnr", "image", 30.0, 0.1) | {"low": None, "high": None}
    ]
    run.write_json("evaluate/summary.json", summary)
    (run / "evaluate").publish("mark", {})
    words = words_of(page_of(run))
    assert "Origin of the data unknown" in words
    assert "30.00" in words
    assert "No training curves" in words
    assert "30.00" in table_text(run)


def test_no_evaluation_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(StoreError, match=r"none/evaluate: expected a finished evaluation, found"):
        write_report(Folder(str(tmp_path / "none")))
    run.write_json("evaluate/summary.json", [])
    with pytest.raises(StoreError, match=r"summary.json: expected figures, found none"):
        table_text(run)


def test_files_that_cannot_be_read_are_named(run):
    run.write("evaluate/panels/patient-9.npz", b"not an archive")
    with pytest.raises(StoreError, match=r"patient-9.npz: expected arrays of slices"):
        write_report(run)
    run.write("evaluate/rows.parquet", b"not a table")
    with pytest.raises(StoreError, match=r"rows.parquet: expected a Parquet file"):
        table_text(run)


def test_the_terminals_table_has_the_figures_within_its_width(run):
    text = table_text(run)
    assert "DyeFreeNet (refine) 33.11* [32.61, 33.61]" in text
    assert re.search(r"U-Net {12}PSNR dB  window600/1  \+1\.37 \[\+0\.97, \+1\.77\] +\+2\.16", text)
    table = text.split("\n\nDyeFreeNet (refine) against")[0]
    assert max(map(len, table.splitlines())) <= 88
    assert "MADE-UP PHANTOM" in text


def test_pictures_give_back_hu_to_two_where_vessels_lie(run):
    hu = np.arange(-1024, 1401)
    back = np.array(code_table())[encode_hu(hu)]
    soft = (hu >= -200) & (hu <= 600)
    assert np.abs(back - hu)[soft].max() <= 2.0
    assert np.abs(back - hu)[hu > 600].max() <= 9.0
    stored = np.load(io.BytesIO(run.read(f"evaluate/panels/{PATIENTS[0]}.npz")))
    panels, left_out = read_panels(run)
    image = panels[0]["slices"][1]["images"]["refine"]
    assert np.array_equal(codes_of(image), encode_hu(stored["refine"][1]))
    assert [entry["index"] for entry in panels[0]["slices"]] == [4, 5, 6]
    assert left_out == 0


def test_two_pairs_of_one_patient_are_both_shown(run):
    write_panel(run, PATIENTS[0], pair="second")
    panels, _ = read_panels(run)
    assert [panel["patient"] for panel in panels].count(PATIENTS[0]) == 2


def test_pictures_beyond_the_budget_leave_the_middle_slices(run):
    middle = [len(images_of(panel, 1)) for panel in read_panels(run)[0]]
    panels, left_out = read_panels(run, budget=sum(middle))
    assert [[entry["index"] for entry in panel["slices"]] for panel in panels] == [[5], [5]]
    assert left_out == 4
    assert image_size(panels[0]) == (32, 32)


def test_pictures_shrink_before_a_patient_goes_without(run):
    whole = sum(len(images_of(panel, 1)) for panel in read_panels(run)[0])
    panels, _ = read_panels(run, budget=whole - 1)
    assert [len(panel["slices"]) >= 1 for panel in panels] == [True, True]
    assert image_size(panels[0]) == (16, 16)
    assert panels[0]["spacing"] == [3.0, 3.0, 3.0]
    stored = np.load(io.BytesIO(run.read(f"evaluate/panels/{PATIENTS[0]}.npz")))["refine"]
    place = panels[0]["slices"][0]["index"] - 4
    codes = codes_of(panels[0]["slices"][0]["images"]["refine"])
    means = stored[place].reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.array_equal(codes, encode_hu(means))


def test_fifty_patients_stay_below_20_mb(run):
    for number in range(50):
        write_panel(run, f"many-{number}", slices=5, size=96)
    page = page_of(run)
    assert len(page) <= 20e6
    assert len(page) > 10e6  # as much as there is room for
    data = json.loads(re.search(r'(?s)id="viewer-data">(.*?)</script>', page)[1])
    assert all(panel["slices"] for panel in data["patients"])
    assert len(data["patients"]) == 52


def test_the_slice_to_open_is_the_one_that_goes_most_wrong_where_contrast_went(run):
    plain = np.zeros((3, 8, 8), np.int16)
    true = plain.copy()
    true[:, 2:4, 2:4] = 300  # lit in every slice
    made = true.copy()
    made[2, 2:4, 2:4] = 100  # 200 HU too dark where contrast went
    made[0] += 50
    made[1, 5:] = 900  # far off, but elsewhere
    sink = io.BytesIO()
    names = {"plain": plain, "true": true, "refine": made}
    facts = {"index": np.arange(3), "patient": np.array("x"), "spacing": np.ones(3)}
    np.savez_compressed(sink, **facts, **names)
    run.write("evaluate/panels/x.npz", sink.getvalue())
    (panel,) = (panel for panel in read_panels(run)[0] if panel["patient"] == "x")
    assert panel["worst"]["refine"] == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (27.4, 33.1, [26, 28, 30, 32, 34]), (3, 3, None)],
)
def test_ticks_are_round_and_enclose_the_data(low, high, expected):
    found = ticks(low, high, 4)
    assert found[0] <= low and found[-1] >= high
    assert expected is None or found == expected


@pytest.mark.parametrize("ys", [[1.0], [2.0, 2.0], [0.0, 1e-9], [1e9, 3e9], [float("nan"), 1.0]])
def test_a_chart_of_odd_values_is_still_well_formed(ys):
    drawn = line_chart("a <b>", [Line("x", "m-unet", range(len(ys)), ys)])
    ET.fromstring(drawn)
    assert "nan" not in drawn
    assert line_chart("empty", [Line("x", "m-unet", [], [])]) == ""


def test_the_worst_cases_are_those_with_the_largest_artery_error(run):
    results = read_results(run)
    assert results.worst_columns == [("roi/1", "mae", "vessel")]
    assert [name for name, _ in results.worst("refine")] == PATIENTS[:3]
    assert results.worst("refine")[0][1] == pytest.approx(117.3 + 7)
    page = page_of(run)
    assert "DyeFreeNet (refine) patient-0 124.3 patient-1 122.3 patient-2 120.3" in words_of(page)
    opens = re.findall(r'class="open" data-pair="([^"]*)" data-picture="refine"', page)
    assert opens == [*PATIENTS[:2]] * 2  # of patient 2 no picture is stored
    assert 'data-picture="remap"' not in page  # the viewer shows none of it


def test_of_a_patient_scanned_twice_the_worse_scan_opens(run):
    rows = pq.read_table(io.BytesIO(run.read("evaluate/rows.parquet"))).to_pylist()
    second = [
        row | {"pair": "second", "value": row["value"] + (50 if row["metric"] == "mae" else -5)}
        for row in rows
        if row["patient"] == PATIENTS[0]
    ]
    run.write("evaluate/rows.parquet", parquet(rows + second))
    write_panel(run, PATIENTS[0], pair="second")
    results = read_results(run)
    (column,) = results.worst_columns
    assert results.worst("refine")[0] == (PATIENTS[0], pytest.approx(117.3 + 7 + 25))
    assert results.worst_scan("refine", PATIENTS[0], column) == "second"
    psnr = Column("window600/1", "psnr", "image")
    assert results.worst_scan("refine", PATIENTS[0], psnr) == "second"  # less is worse
    opens = re.findall(r'class="open" data-pair="([^"]*)" data-picture="refine"', page_of(run))
    assert opens == ["second", PATIENTS[1]] * 2


def test_who_lit_up_most_without_contrast_agent_is_a_worst_case_too(run):
    rows = pq.read_table(io.BytesIO(run.read("evaluate/rows.parquet"))).to_pylist()
    invented = {"protocol": "enhancement/1", "metric": "invented", "region": "body"}
    rows += [
        row | invented | {"value": 0.001 * (1 + int(row["patient"][-1]))}
        for row in rows
        if row["protocol"] == "roi/1" and (row["metric"], row["region"]) == ("mae", "vessel")
    ]
    run.write("evaluate/rows.parquet", parquet(rows))
    results = read_results(run)
    assert results.worst_columns[1] == ("enhancement/1", "invented", "body")
    assert results.worst("refine", 1, results.worst_columns[1]) == [("patient-7", 0.008)]
    words = words_of(page_of(run))
    assert "with the largest share that lit up without contrast agent, body, enhancement/1" in words
    assert "DyeFreeNet (refine) patient-7 0.0080 patient-6 0.0070 patient-5 0.0060" in words


def test_without_arteries_the_worst_have_the_lowest_psnr(run):
    rows = pq.read_table(io.BytesIO(run.read("evaluate/rows.parquet"))).to_pylist()
    rows = [row for row in rows if row["protocol"] != "roi/1"]
    for row in rows:  # two scans of patient 6: the mean of them is what counts
        row["value"] -= 40 * (row["patient"] == PATIENTS[6])
    rows += [row | {"value": row["value"] + 40} for row in rows if row["patient"] == PATIENTS[6]]
    run.write("evaluate/rows.parquet", parquet(rows))
    results = read_results(run)
    assert results.worst_columns == [("window600/1", "psnr", "image")]
    name, value = results.worst("unet")[0]
    assert (name, value) == (PATIENTS[6], pytest.approx(27.11 + 2 + 0.25 - 20))


FOUND = "vessels found on the true scan"


def test_vessels_found_on_the_scan_take_the_place_of_drawn_ones_and_say_so(run):
    take_labels(run, PATIENTS)
    results = read_results(run)
    assert results.worst_columns == [("roi/1", "mae", "computed_vessel")]
    page = page_of(run)
    words = words_of(page)
    assert f"Artery error, HU {FOUND}" in words
    assert "117.3 ● [109.3, 125.3]" in words
    assert f"worse in artery error ({FOUND}); no difference" in words
    assert f"with the largest artery error ({FOUND}) in HU, roi/1." in words
    assert "DyeFreeNet (refine) patient-0 124.3 patient-1 122.3 patient-2 120.3" in words
    assert f"bias −20.0 HU, limits −41.0 to +1.0 HU, n=8 · {FOUND} · roi/1" in words
    assert "arteries · roi/1" not in words
    assert len(csv_of(page, "patients-mae-computed_vessel.csv")) == 8 * len(METHODS)
    assert f"Slope β {FOUND} target 1 Slope β aorta target 1" in words
    assert f"Overlap with the true vessels (Dice) {FOUND} target 1" in words
    card = run.read("report/MODEL_CARD.md").decode().replace("\\", "")
    assert f"Artery error, HU ({FOUND}, roi/1) 117.3 [109.3, 125.3], n=8" in card
    assert f"Artery error, HU ({FOUND}, roi/1) 124.3, patient patient-0" in card
    text = table_text(run)
    assert re.search(r"Artery error HU\n.*roi/1 computed\n", text)
    assert f"117.3* [109.3, 125.3]\ncomputed: {FOUND}, n=8\n" in text


def test_vessels_drawn_and_found_are_never_pooled(run):
    take_labels(run, PATIENTS[:3])
    page = page_of(run)
    words = words_of(page)
    assert "117.3 ● [109.3, 125.3]" in words and "167.3 ● [159.3, 175.3]" in words
    assert f"worse in artery error and artery error ({FOUND});" in words
    drawn = "DyeFreeNet (refine) patient-3 118.3 patient-4 116.3 patient-5 114.3"
    found = "DyeFreeNet (refine) patient-0 174.3 patient-1 172.3 patient-2 170.3"
    assert words.index(drawn) < words.index(found)
    assert f"Slope β arteries target 1 Slope β {FOUND} target 1 Slope β aorta" in words
    assert "(Dice) arteries target 1" in words and f"(Dice) {FOUND} target 1" in words
    assert "lower: 0.00 to 0.30 mm 32.91 n=4 118.3 n=1 172.3 n=3" in words  # patient 3 was drawn
    assert "n=5 · arteries · roi/1" in words and f"n=3 · {FOUND} · roi/1" in words
    for name, patients in (("vessel", PATIENTS[3:]), ("computed_vessel", PATIENTS[:3])):
        rows = csv_of(page, f"patients-mae-{name}.csv")
        assert [row["patient"] for row in rows if row["method"] == "refine"] == patients
    assert [row["patient"] for row in csv_of(page, "bland-altman-refine-computed.csv")] == (
        PATIENTS[:3]
    )
    card = run.read("report/MODEL_CARD.md").decode().replace("\\", "")
    assert "174.3, patient patient-0" in card and "118.3, patient patient-3" in card
    text = table_text(run)
    assert "117.3*" in text and "167.3*" in text
    assert max(map(len, text.split("\n\nDyeFreeNet (refine) against")[0].splitlines())) <= 88


def parts_of(run):
    """(stratum, group) to what it spans and the mean of each column, as n patients have it."""
    results = read_results(run)
    return {
        (part.stratum.name, part.group): (
            *(part.low, part.high),
            {column.metric: value for column, value in part.means.items()},
        )
        for part in results.strata
    }


def means(psnr, mae):
    return {"psnr": (pytest.approx(psnr[0]), psnr[1]), "mae": (pytest.approx(mae[0]), mae[1])}


def test_halves_of_the_patients_have_known_means(run):
    # Patient i of the final method: PSNR 33.11 + (i - 3.5) / 10, artery error 117.3 - 2 (i - 3.5).
    assert parts_of(run) == {
        ("bone_edge_mm", "lower"): (0.0, pytest.approx(0.3), means((32.91, 4), (121.3, 4))),
        ("bone_edge_mm", "upper"): (0.4, pytest.approx(0.7), means((33.31, 4), (113.3, 4))),
        ("thickness", "lower"): (1.0, 1.0, means((33.06, 4), (118.3, 4))),
        ("thickness", "upper"): (5.0, 5.0, means((33.16, 4), (116.3, 4))),
        ("kernel", "soft"): (None, None, means((33.01, 6), (119.3, 6))),
        ("kernel", "sharp"): (None, None, means((33.41, 2), (111.3, 2))),
    }
    page = page_of(run)
    words = words_of(page)
    assert "Bone edges apart after registration lower: 0.00 to 0.30 mm 32.91 n=4 121.3 n=4" in words
    assert "Slice thickness lower: 1.00 mm 33.06 n=4 118.3 n=4 upper: 5.00 mm" in words
    assert "Kernel soft 33.01 n=6 119.3 n=6 sharp 33.41 n=2 111.3 n=2" in words
    saved = [row for row in csv_of(page, "strata.csv") if row["stratum"] == "bone_edge_mm"]
    assert [(row["group"], row["metric"], row["n"]) for row in saved] == [
        (group, metric, "4") for group in ("lower", "upper") for metric in ("psnr", "mae")
    ]
    assert float(saved[0]["mean"]) == pytest.approx(32.91)


def repaired(run, change):
    """Write the table of pairs anew, each row with what ``change`` gives for its number."""
    pairs = pq.read_table(io.BytesIO(run.read("ingest/pairs.parquet"))).to_pylist()
    pairs = [pair | change(number) for number, pair in enumerate(pairs)]
    (run / "ingest").write("pairs.parquet", parquet(pairs))
    return pairs


@pytest.mark.parametrize(
    ("values", "lower", "upper"),
    [
        ([1, 1, 1, 1, 1, 1, 1, 9], 7, 1),  # nobody is torn from their equals
        ([1, 9, 9, 9, 9, 9, 9, 9], 1, 7),
        ([1, 2, 3, 3, 3, 3, 8, 9], 6, 2),
        ([1, 2, 3, 9, None, None, None, None], 2, 2),
    ],
)
def test_no_half_is_empty_and_equal_values_stay_together(run, values, lower, upper):
    repaired(run, lambda i: {"bone_edge_mm": None if values[i] is None else float(values[i])})
    found = {key: value[2]["psnr"][1] for key, value in parts_of(run).items()}
    assert (found["bone_edge_mm", "lower"], found["bone_edge_mm", "upper"]) == (lower, upper)


def test_strata_count_patients_that_were_scored_and_not_pairs(run):
    pairs = repaired(run, lambda i: {"bone_edge_mm": float(i)})
    pairs += [
        pairs[0] | {"key": "k8", "bone_edge_mm": 14.0, "kernel": "sharp"},  # mean 7: upper half
        pairs[1] | {"key": "k9", "split": "train", "bone_edge_mm": 99.0},
        pairs[2] | {"key": "k10", "patient": "not scored", "bone_edge_mm": 99.0},
        pairs[3] | {"key": "k3", "phase": "portal", "bone_edge_mm": 99.0},
    ]
    (run / "ingest").write("pairs.parquet", parquet(pairs))
    run.write_json("recipe.json", {"ingest": {"phase": "arterial"}})
    found = parts_of(run)
    assert found["bone_edge_mm", "upper"][:2] == (5.0, 7.0)
    assert found["bone_edge_mm", "upper"][2]["mae"] == (
        pytest.approx(117.3 - 2 * (np.mean([0, 5, 6, 7]) - 3.5)),
        4,
    )
    assert found["kernel", "sharp + soft"][2]["psnr"][1] == 1


def test_strata_that_tell_nothing_apart_are_left_out(run):
    repaired(run, lambda i: {"thickness": 3.0, "kernel": "soft", "bone_edge_mm": None})
    assert parts_of(run) == {}
    page = page_of(run)
    assert "By fit, slices and kernel" not in words_of(page)
    assert "strata.csv" not in page


def test_rare_kernels_are_one_group(run):
    repaired(run, lambda i: {"kernel": f"k{i}" if i else "k1"})
    found = [group for stratum, group in parts_of(run) if stratum == "kernel"]
    assert found == ["k1", "k2", "k3", "k4", "k5", "others"]
    assert parts_of(run)["kernel", "others"][2]["psnr"][1] == 2


def test_limits_of_agreement_are_known(run):
    found = read_results(run).agreement("refine")
    assert found.bias == pytest.approx(-20)  # of -30 and -10, four times each
    reach = 1.96 * np.std([-30, -10] * 4, ddof=1)
    assert (found.low, found.high) == pytest.approx((-20 - reach, -20 + reach))
    assert found.points[1] == (PATIENTS[1], 310.0, 300.0)
    assert read_results(run).agreement("unet") is None
    page = page_of(run)
    assert "bias −20.0 HU, limits −41.0 to +1.0 HU, n=8" in words_of(page)
    drawn = re.search(r'(?s)data-name="bland-altman-refine">.*?(<svg.*?</svg>)', page)[1]
    assert drawn.count('class="one"') == 8
    assert drawn.count('class="limit"') == 2


def test_two_patients_have_a_bias_and_no_limits(run):
    rows = pq.read_table(io.BytesIO(run.read("evaluate/rows.parquet"))).to_pylist()
    rows = [row for row in rows if row["patient"] in PATIENTS[:2]]
    run.write("evaluate/rows.parquet", parquet(rows))
    words = words_of(page_of(run))
    assert "bias −20.0 HU, no limits with fewer than three patients, n=2" in words


def test_a_run_without_medians_or_arteries_has_no_agreement(run):
    (run / "evaluate").remove("rows.parquet")
    page = page_of(run)
    assert "Bland and Altman" not in page
    assert "Where it fails" not in page


def test_agreement_charts_share_their_axes_and_keep_labels_apart():
    span = ([200.0, 400.0], [-50.0, 10.0])
    drawn = agreement_chart("t", "m-unet", [(200, -50), (400, 10)], [-20, -20.4, -19.6], span)
    ET.fromstring(drawn)
    (left, low), (right, high) = (
        (float(x), float(y)) for x, y in re.findall(r'class="one" cx="(.*?)" cy="(.*?)"', drawn)
    )
    assert left < right and low > high
    labels = sorted(float(y) for y in re.findall(r'class="strong" x="[^"]*" y="([^"]*)"', drawn))
    assert np.diff(labels).min() >= 13


def test_what_psnr_does_not_see_stands_beside_its_target(run):
    page = page_of(run)
    words = words_of(page.split('id="unseen"')[1].split("</section>")[0])
    for head, unet, refine in (
        ("Fine grain, predicted / true whole image target 1", "0.42 [0.32, 0.52]", "0.46"),
        ("distance from true, HU/pixel body target 0", "2.52 [2.32, 2.72]", "2.56"),
        ("Flicker between slices, predicted / true body target 1", "0.92 [0.82, 1.02]", "0.96"),
        ("Lit up without contrast agent, % of the body target 0", "2.50 [2.30, 2.70]", "6.50"),
        ("contrast agent went, % of the body target 0", "5.00 [4.00, 6.00]", "9.00"),
        ("Change in the air, HU outside the body target 0", "0.32 [0.22, 0.42]", "0.36"),
        ("Flicker of what was added, predicted / true body target 1", "0.82 [0.72, 0.92]", "0.86"),
        ("Overlap with the true vessels (Dice) arteries target 1", "0.520 [0.470, 0.570]", "0.560"),
        ("Distance between outlines (HD95), mm arteries target 0", "12.0 [10.0, 14.0]", "12.1"),
        ("Contrast to muscle (CNR) arteries target 6.1", "3.0 [2.5, 3.5]", "3.1"),
        ("Slope β arteries target 1 Slope β aorta target 1", "0.05 [−0.02, 0.20]", "0.09"),
        ("Variance ratio arteries target 1", "0.15 [0.05, 0.30]", "0.19"),
    ):
        assert head in words, head
        table = words[words.index(head) :]
        one, other = table.index(" U-Net "), table.index(" DyeFreeNet (refine) ")
        assert unet in table[one : table.index(" U-Net + Pix2Pix")], head
        assert f" {refine} " in table[other : other + 160], head
    assert "Near 0, every patient gets the average level" in words
    (row,) = (
        row
        for row in csv_of(page, "enhancement.csv")
        if (row["method"], row["metric"]) == ("unet", "invented")
    )
    assert (float(row["mean"]), row["n"], row["target"]) == (pytest.approx(0.025), "8", "0")
    saved = csv_of(page, "levels-slope.csv")
    assert [float(r["mean"]) for r in saved if r["region"] == "vessel"] == pytest.approx(
        [0.03 + place / 100 for place in range(len(METHODS))]
    )


def test_targets_are_those_by_which_methods_are_compared():
    shown = unseen._TEXTURE | unseen._ENHANCEMENT
    found = {column.metric: float(measure.target) for column, measure in shown.items()}
    assert found == TARGETS | {"invented": 0.0, "missed": 0.0}


def test_levels_of_too_few_patients_are_no_figure(run):
    levels = run.read_json("evaluate/levels.json")
    few = {key: None for key in levels[0] if key.startswith(("slope", "variance"))}
    some = [row | few if row["region"] == "aorta" else row for row in levels]
    run.write_json("evaluate/levels.json", some)
    words = words_of(page_of(run))
    assert "U-Net 0.05 [−0.02, 0.20] – 8" in words
    run.write_json("evaluate/levels.json", [row | few for row in levels])
    page = page_of(run)
    assert "No figure: it takes three patients" in words_of(page)
    assert "levels-slope.csv" not in page


def test_an_older_run_has_no_section_of_what_psnr_does_not_see(run):
    (run / "evaluate").remove("levels.json")
    summary = run.read_json("evaluate/summary.json")
    known = ("psnr", "ssim", "mae")
    run.write_json("evaluate/summary.json", [row for row in summary if row["metric"] in known])
    assert "What PSNR does not see" not in words_of(page_of(run))


def test_a_box_is_what_numpy_and_tukey_say():
    values = [float(v) for v in np.random.default_rng(3).normal(30, 2, 40)] + [80.0, float("inf")]
    found = box(values)
    assert [found.first, found.median, found.third] == pytest.approx(
        list(np.percentile(values[:-1], (25, 50, 75)))
    )
    reach = 1.5 * (found.third - found.first)
    near = [v for v in values if found.first - reach <= v <= found.third + reach]
    assert (found.low, found.high) == (min(near), max(near))
    assert found.beyond == [v for v in values if v not in near]
    assert 80.0 in found.beyond and float("inf") in found.beyond


@pytest.mark.parametrize(("patients", "boxes"), [(12, 0), (13, 1)])
def test_more_than_twelve_patients_are_a_box(patients, boxes):
    row = Dots("U-Net", "m-unet", [float(v) for v in range(patients)], 6.0, 4.0, 8.0)
    drawn = dot_chart("t", [row], 1)
    ET.fromstring(drawn)
    assert drawn.count('class="box"') == boxes
    assert drawn.count('class="one"') == (0 if boxes else patients)


def files_of(page):
    return json.loads(re.search(r'(?s)id="files">(.*?)</script>', page)[1])


def csv_of(page, name):
    return list(csv.DictReader(io.StringIO(files_of(page)[name])))


def test_every_drawing_has_its_numbers_beside_it(run):
    page = page_of(run)
    drawn = re.findall(r'<figure class="chart" data-name="([^"]*)">', page)
    assert len(set(drawn)) == len(drawn) >= 10
    for name in drawn:
        assert re.search(rf'data-take="{re.escape(name)}.csv"', page), name
        assert csv_of(page, f"{name}.csv")
        assert f'data-take="{name}.svg"' in page and f'data-take="{name}.png"' in page
    for name in re.findall(r'data-take="([^"]*\.(?:csv|md))"', page):
        assert name in files_of(page)


def test_saved_numbers_are_those_that_were_measured(run):
    page = page_of(run)
    found = [row for row in csv_of(page, "patients-mae-vessel.csv") if row["method"] == "refine"]
    assert [row["patient"] for row in found] == PATIENTS
    assert float(found[0]["value"]) == pytest.approx(117.3 + 7, abs=1e-12)
    worst = [row for row in csv_of(page, "worst-cases.csv") if row["method"] == "refine"]
    assert [row["patient"] for row in worst] == PATIENTS
    (line,) = (
        row
        for row in csv_of(page, "summary.csv")
        if (row["method"], row["protocol"], row["metric"]) == ("unet", "window600/1", "psnr")
    )
    assert (float(line["mean"]), line["n"]) == (29.11, "8")
    assert csv_of(page, "differences.csv")[2]["verdict"] == "worse"
    assert csv_of(page, "beside-the-paper.csv")[0]["paper"] == "2.16"
    assert float(csv_of(page, "bland-altman-refine.csv")[1]["difference_hu"]) == -10
    curve = [row for row in csv_of(page, "validation-psnr.csv") if row["curve"] == "U-Net"]
    assert [float(row["value"]) for row in curve] == pytest.approx([0.2, 0.4, 0.6])


def test_a_saved_table_runs_no_formula(run):
    rows = [{"key": "k", "patient": "p", "reason": "gap", "detail": '=HYPERLINK("x")', "n": -1}]
    (run / "ingest").write("excluded.parquet", parquet(rows))
    (row,) = csv_of(page_of(run), "exclusions.csv")
    assert row["detail"] == '\'=HYPERLINK("x")'
    assert row["n"] == "-1"


def test_the_model_card_says_what_the_run_is(run):
    words = words_of(page_of(run))
    card = run.read("report/MODEL_CARD.md").decode()
    assert files_of(page_of(run))["MODEL_CARD.md"] == card
    assert card.startswith("# Model card: run trial\n\n**For research only. Not for diagnosis")
    for said in (
        "MADE-UP PHANTOM: no figure below was measured on a patient",
        "test: 8 made-up patients, 224 slices",
        "2 series: gap 2",
        f"SHA-256 {7:064x}",  # of primary's weights
        f"SHA-256 {6:064x}",  # of refine's
        "PSNR, dB (whole image, window600/1) 33.11 [32.61, 33.61], n=8",
        "Artery error, HU (arteries, roi/1) 124.3, patient patient-0",
        "fingerprint mark-refine",
        "no medical device",
    ):
        assert said in words, said
        assert said in card.replace("\\", ""), said
    assert "remap.json" not in card  # weights alone
    assert "\n    primary:\n      lr: 0.00123\n" in card


def test_the_card_of_a_hostile_run_is_no_markup(run):
    run.write_json("recipe.json", {"name": EVIL + "\n# *x* [y](z)"})
    page_of(run)
    card = run.read("report/MODEL_CARD.md").decode()
    before = card.split("## Recipe")[0]
    assert "<script>" not in before.replace("\\<script\\>", "")
    assert "\n# " not in before[2:]
    assert r"[y\](z)" in before and "33.11 [32.61, 33.61]" in before


def test_a_table_has_at_most_seven_columns_and_whole_protocols():
    columns = [
        Column(protocol, metric, region)
        for protocol in ("synth/1", "window600/1", "paper8/1", "nine/1")
        for region in ("image", "body")
        for metric in ("psnr", "ssim")
    ] + [Column("roi/1", "mae", "vessel")]
    tables = _tables(columns)
    assert [sorted({c.protocol for c in table}) for table in tables] == [
        ["roi/1", "window600/1"],
        ["synth/1"],
        ["paper8/1"],
        ["nine/1"],
    ]
    assert tables[0][-1] == ("roi/1", "mae", "vessel")
    assert sorted(column for table in tables for column in table) == sorted(columns)


def test_a_method_without_a_finite_value_is_drawn_beside_the_others():
    exact = Dots("same", "m-remap", [float("inf")] * 13, float("inf"), None, None)
    other = Dots("U-Net", "m-unet", [float(v) for v in range(13)], 6.0, 4.0, 8.0)
    undecided = Dots("both", "m-unet", [float("inf"), float("-inf")], float("nan"), None, None)
    drawn = dot_chart("t", [exact, other, undecided], 1)
    assert drawn.count('class="box"') == 1 and "∞" in drawn and "nan" not in drawn.lower()
