"""The QC page of made-up books, whose every count was written down beforehand; and of a phantom."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dyefreenet.config import GridConfig, IngestConfig, PhantomConfig
from dyefreenet.data.align import register
from dyefreenet.data.archive import scan
from dyefreenet.data.cohort import pair
from dyefreenet.data.ingest import ingest
from dyefreenet.data.look import EDGES, add, look
from dyefreenet.data.phantom import write_archive
from dyefreenet.data.prepare import read_row
from dyefreenet.errors import REASONS, InputError, StoreError
from dyefreenet.report import quality
from dyefreenet.report.histograms import bar_chart
from dyefreenet.report.quality import write_quality
from dyefreenet.store import Folder

EVIL = "</script><script>alert('x')</script>&\"<img src=x>"
PAIRS = 40


def put(folder: Folder, name: str, rows: list[dict]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    folder.write(name, sink.getvalue())


def jpeg(value: int, size: int = 8) -> bytes:
    sink = io.BytesIO()
    Image.new("L", (size, size), value).save(sink, "jpeg")
    return sink.getvalue()


def pair_row(number: int) -> dict:
    """Pairs of 20 patients, of two phases each; the higher the number, the worse the fit."""
    patient, phase = divmod(number, 2)
    return {
        "key": f"plain{patient:02d}",
        "patient": f"patient{patient:02d}",
        "slices": 100,
        "spacing_z": 2.5,
        "spacing_y": 0.75,
        "spacing_x": 0.75,
        "thickness": 3.0,
        "kernel": "B30f",
        "source": "real",
        "split": ("train", "validation", "test", "train")[patient % 4],
        "phase": ("arterial", "portal")[phase],
        "phase_told_by": "contrast agent",
        "contrast_key": f"contrast{number:02d}",
        "contrast_thickness": 3.0,
        "contrast_kernel": "B31f",
        "registration": "rigid",
        "gate": "evaluate" if number == 39 else "train",
        "body_dice": 0.99 - number / 1000,
        "bone_edge_mm": 0.5 + number / 100,
        "mutual_information": 0.8,
        "mutual_information_gain": -0.123 if number == 7 else 0.05,
        "min_jacobian": None,
        "max_shift_mm": None,
    }


def plain_row(number: int) -> dict:
    names = ("key", "slices", "spacing_z", "spacing_y", "spacing_x", "thickness", "source")
    kernel = {"kernel": f"J{number:02d}", "patient": f"alone{number:02d}"}
    return {name: pair_row(0)[name] for name in names} | kernel | {"key": f"alone{number:02d}"}


@pytest.fixture
def folder(tmp_path):
    """The books and pictures of 78 used, 9 refused and 2 failed series."""
    made = Folder(str(tmp_path / "trial" / "ingest"))
    put(made, "pairs.parquet", [pair_row(number) for number in range(PAIRS)])
    put(made, "plain.parquet", [plain_row(number) for number in range(18)])
    refused = [("gap", f"step of {n}.00 mm") for n in range(7)] + [("tilt", EVIL)] * 2
    refused += [("failed", "its process ended with -11")] * 2
    put(
        made,
        "excluded.parquet",
        [
            {"key": f"out{n:02d}", "patient": "someone", "reason": reason, "detail": detail}
            for n, (reason, detail) in enumerate(refused)
        ],
    )
    for number in range(PAIRS):
        row = pair_row(number)
        made.write(f"looks/{row['key']}-{row['phase']}.jpg", jpeg(number))
    for number in range(18):
        made.write(f"looks/alone{number:02d}-plain.jpg", jpeg(200 + number))
    counts = [0] * 64
    counts[0], counts[25], counts[63] = 900, 99, 1
    contrast = {"arterial": [1] * 64, "portal": [0] * 63 + [5]}
    made.write_json("histogram.json", {"edges": EDGES, "plain": counts, "contrast": contrast})
    return made


def page_of(folder: Folder) -> str:
    write_quality(folder)
    return folder.read("quality.html").decode()


def words_of(page: str) -> str:
    """Text of the page as it is read, without scripts and tags."""
    page = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def part(page: str, name: str) -> str:
    return page.split(f'<section id="{name}">')[1].split("</section>")[0]


def pictures(text: str) -> list[int]:
    """Grey values of the pictures, in order, as far as JPEG keeps them."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    images = [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]
    return [int(np.asarray(image).mean().round()) for image in images]


# ---- counts --------------------------------------------------------------------------------------


def test_the_page_says_where_it_is(folder):
    assert write_quality(folder) == f"{folder}/quality.html"


def test_the_head_counts_every_series_once(folder):
    """20 plain of pairs, 40 contrast, 18 plain alone; a plain one of two pairs counts once."""
    words = words_of(page_of(folder).split("<main>")[0])
    assert "89 series found 78 used 9 refused 2 failed 40 pairs 18 plain alone 38 patients" in words


def test_phases_are_counted_by_split_and_patient(folder):
    words = words_of(part(page_of(folder), "taken"))
    assert "arterial 20 20 10 (10) 5 (5) 5 (5) 0" in words
    assert "portal 20 20 10 (10) 5 (5) 5 (5) 1" in words
    assert "plain alone 18 series 18 for self-supervised pretraining" in words
    assert "contrast agent 40" in words


def test_reasons_come_with_meaning_advice_and_five_examples(folder):
    words = words_of(part(page_of(folder), "refused"))
    assert "9 series were refused, and 2 failed" in words
    assert "7 gap A slice is missing, or the spacing is irregular. Export the series again" in words
    assert words.index("7 gap") < words.index("2 tilt") < words.index("2 failed The work")
    assert len(re.findall(r"out\d\d step of \d\.00 mm", words)) == 5
    assert words.count("… and 2 more") == 1
    assert "out09 its process ended with -11" in words


def test_every_reason_of_the_closed_list_is_explained(folder):
    assert set(REASONS) | {"failed"} <= set(quality.REASONS)


def test_a_reason_that_nobody_explained_is_still_counted(folder):
    put(folder, "excluded.parquet", [{"key": "k", "reason": "brand-new", "detail": "why"}])
    assert "1 brand-new k why" in words_of(part(page_of(folder), "refused"))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("real", "real"), "Real CT: pictures and figures are of patients"),
        (("phantom", "phantom"), "MADE-UP PHANTOM: nothing on this page is of a patient"),
        (("phantom", "real"), "Mixed: made-up phantoms and real patients"),
        (("real", None), "Origin of the data unknown"),
    ],
)
def test_the_origin_of_the_data_is_loud(folder, sources, expected):
    rows = [pair_row(n) | {"source": source} for n, source in enumerate(sources)]
    put(folder, "pairs.parquet", rows)
    put(folder, "plain.parquet", [])
    assert expected in words_of(page_of(folder).split("<main>")[0])


def test_kernels_and_thicknesses_count_series_and_the_rare_ones_together(folder):
    words = words_of(part(page_of(folder), "scanned"))
    assert "B31f 0 40 B30f 20 0" in words
    assert "8 others 8 0" in words  # of 20 kernels, twelve are named
    assert "3.0 mm 38 40" in words
    assert "Slice spacing, mm 2.50 2.50 2.50" in words


# ---- pairs and pictures --------------------------------------------------------------------------


def test_pairs_stand_worst_first_by_the_worse_of_two_ranks(folder):
    rows = [pair_row(number) for number in range(6)]
    figures = [(0.99, 1.0), (0.98, 0.2), (0.97, 0.3), (0.95, 0.4), (0.96, 0.9), (0.94, None)]
    for number, (row, (dice, edge)) in enumerate(zip(rows, figures, strict=True)):
        row |= {"key": f"p{number}", "body_dice": dice, "bone_edge_mm": edge}
    put(folder, "pairs.parquet", rows)
    found = re.findall(
        r'<th scope="row" class="key">(?:<a[^>]*>)?(p\d)', part(page_of(folder), "fit")
    )
    # Ranks by Dice and by bone: p0 5 and 0, p1 4 4, p2 3 3, p3 1 2, p4 2 1, p5 0 and none.
    assert found == ["p0", "p5", "p3", "p4", "p2", "p1"]


def test_figures_are_told_and_what_nobody_measured_has_no_column(folder):
    page = part(page_of(folder), "fit")
    words = words_of(page)
    assert "0.951 0.89 0.80 0.050 100" in words
    assert "−0.123" in words
    assert "Jacobian" not in words and "shift" not in words
    assert "5th to 95th percentile 0.953 to 0.988" in words


def test_a_long_table_is_cut_and_says_so(folder):
    rows = [pair_row(number % PAIRS) | {"key": f"k{number:04d}"} for number in range(1234)]
    put(folder, "pairs.parquet", rows)
    page = part(page_of(folder), "fit")
    assert page.count('<tr><th scope="row"') == 200
    assert "Shown are 200 of 1,234 pairs; 1,034 more are in pairs.parquet" in words_of(page)


def test_pictures_show_the_worst_then_others_from_all_along_the_rest(folder):
    shown = pictures(part(page_of(folder), "pictures"))
    assert shown[:12] == list(range(39, 27, -1))
    rest = list(range(27, -1, -1))
    assert shown[12:24] == [rest[28 * n // 12] for n in range(12)]
    assert shown[24:] == [200 + 18 * n // 12 for n in range(12)]


def test_a_picture_has_its_pairs_figures_below_it(folder):
    (worst, *_) = re.findall(r"(?s)<figure id=.*?</figure>", page_of(folder))
    words = words_of(worst)
    assert "plain19 portal train evaluate only" in words
    assert "before registration after Dice 0.951 · bone edges 0.89 mm · MI 0.80 nats" in words
    assert 'href="#look-plain19-portal"' in page_of(folder)


def test_a_picture_that_is_missing_is_told(folder):
    folder.remove("looks/plain19-portal.jpg")
    page = part(page_of(folder), "pictures")
    assert words_of(page).count("No picture was stored.") == 1
    assert len(pictures(page)) == 35


def test_pictures_too_large_for_a_page_are_left_out(folder):
    for number in range(PAIRS):
        row = pair_row(number)
        name = f"looks/{row['key']}-{row['phase']}.jpg"
        folder.write(name, jpeg(number) + bytes(300_000))
    page = page_of(folder)
    assert len(page) < 6_000_000
    # Twelve of 400,000 characters fit, and so do all of the small ones.
    assert len(pictures(page)) == 12 + 12
    assert "12 more pictures found no room on this page." in words_of(page)


# ---- HU ------------------------------------------------------------------------------------------


def test_the_histogram_has_a_curve_for_each_phase_on_a_logarithmic_scale(folder):
    drawn = re.findall(r"(?s)<svg.*?</svg>", part(page_of(folder), "hu"))
    svg = ET.fromstring(drawn[0])
    curves = {group.get("class"): group for group in svg.iter("g")}
    assert list(curves) == ["ph-plain", "ph-arterial", "ph-portal"]
    air, tissue, bone = (
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in curves["ph-plain"]
    )
    assert air[0][0] < tissue[0][0] < bone[0][0]
    grid = [float(line.get("y1")) for line in svg.iter("line")]
    assert grid == sorted(grid, reverse=True) and len(grid) == 4  # 0.1 % to 100 %
    decade = (grid[0] - grid[3]) / 3
    assert bone[1][1] == pytest.approx(grid[0], abs=0.11)  # 1 of 1000
    assert grid[0] - tissue[1][1] == pytest.approx(np.log10(99) * decade, abs=0.11)
    assert grid[0] - air[1][1] == pytest.approx(np.log10(900) * decade, abs=0.11)


@pytest.mark.parametrize("content", [{}, [], {"edges": [0, 1], "plain": [1, 2], "contrast": {}}])
def test_a_histogram_that_makes_no_sense_is_refused(folder, content):
    folder.write_json("histogram.json", content)
    with pytest.raises(StoreError, match=r"histogram.json: expected edges and counts, found"):
        write_quality(folder)


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [-3.0, 1e6], [0.0, 1e-9], [0.97] * 99])
def test_bars_hold_every_value(values):
    svg = ET.fromstring(bar_chart("a <b>", np.array(values)))
    bars = list(svg.iter("rect"))
    assert 1 <= len(bars) <= len(set(values))
    assert all(float(bar.get("width")) > 0 and 0 < float(bar.get("height")) < 150 for bar in bars)


# ---- the page itself -----------------------------------------------------------------------------


def test_books_of_an_older_version_have_a_page_too(tmp_path):
    old = Folder(str(tmp_path / "old"))
    put(old, "pairs.parquet", [{"key": "k1", "patient": "p1", "slices": 28}])
    put(old, "plain.parquet", [])
    put(old, "excluded.parquet", [])
    words = words_of(page_of(old))
    assert "1 series found 1 used 0 refused 0 failed 1 pairs" in words
    assert "The folder holds no pictures." in words
    assert "The folder holds no histogram." in words
    assert "No series was refused." in words
    assert "nan" not in words and "None" not in words


def test_a_folder_of_plain_series_alone_has_a_page(folder):
    put(folder, "pairs.parquet", [])
    words = words_of(page_of(folder))
    assert "There are no pairs." in words and "before registration" not in words
    assert len(pictures(page_of(folder))) == 12


def test_what_comes_from_the_archive_is_escaped(folder):
    rows = [pair_row(n) | {"kernel": EVIL, "phase": EVIL, "split": EVIL} for n in range(3)]
    put(folder, "pairs.parquet", rows)
    folder.write_json(
        "histogram.json", {"edges": EDGES, "plain": [1] * 64, "contrast": {EVIL: [1] * 64}}
    )
    page = page_of(folder)
    assert "<script>alert" not in page and "<img src=x>" not in page
    assert EVIL.removeprefix("</script>") in words_of(page)


def test_the_page_asks_nothing_of_the_network(folder):
    page = page_of(folder)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", page)
    assert not re.search(r"""<(?:script|link|iframe)[^>]*\b(?:src|href)=""", page)
    assert set(re.findall(r'\bsrc="([^"]{5})', page)) == {"data:"}
    assert not re.search(r"<[^>]+ (?:style|on\w+)=", page)  # what a strict policy forbids


def test_the_policy_admits_just_the_pages_own_script(folder):
    page = page_of(folder)
    (script,) = re.findall(r"(?s)<script>(.*?)</script>", page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'; img-src data:" in page


class Outline(HTMLParser):
    """Open tags, and what the page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: set[str] = set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.add(attributes["href"])
        if tag == "img":
            assert attributes["alt"]
        if "scroll" in (attributes.get("class") or "").split():
            assert attributes["tabindex"] == "0" and attributes["aria-label"]  # scrolled by key
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_links_lead_somewhere(folder):
    outline = Outline()
    outline.feed(page_of(folder))
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.links and {link.removeprefix("#") for link in outline.links} <= set(outline.ids)


def test_the_same_books_give_the_same_page(folder):
    assert page_of(folder) == page_of(folder)


def test_books_that_cannot_be_read_are_named(folder):
    folder.write("looks/plain19-portal.jpg", b"not a picture")
    with pytest.raises(StoreError, match=r"plain19-portal.jpg: expected a JPEG, found other bytes"):
        write_quality(folder)
    folder.write("plain.parquet", b"not a table")
    with pytest.raises(StoreError, match=r"plain.parquet: expected a book of ingest, found"):
        write_quality(folder)
    folder.remove("pairs.parquet")
    with pytest.raises(InputError, match=r"pairs.parquet: expected a file, found none"):
        write_quality(folder)


# ---- a phantom, from its files on ----------------------------------------------------------------


@pytest.mark.slow
def test_the_page_of_a_phantom_that_was_ingested(tmp_path):
    config = PhantomConfig(patients=3, chests=1, matrix=(128,), slices=16)
    write_archive(config, tmp_path / "archive")
    target = Folder(str(tmp_path / "ingest"))
    facts = ingest(
        IngestConfig(registration="rigid"),
        GridConfig(size=128),
        paired=[Folder(str(tmp_path / "archive"))],
        target=target,
        train=False,
    )
    pairs, _ = pair(scan(str(tmp_path / "archive")), ["arterial"])
    plain, contrast = None, None
    for one in pairs:
        fixed, moving = read_row(one.plain), read_row(one.contrast)
        picture, counts = look(fixed, moving, register(moving, fixed, "rigid")[0])
        target.write(f"looks/{one.key}-arterial.jpg", picture)
        plain, contrast = add(plain, counts["plain"]), add(contrast, counts["contrast"])
    histogram = {"edges": EDGES, "plain": plain, "contrast": {"arterial": contrast}}
    target.write_json("histogram.json", histogram)

    page = page_of(target)
    words = words_of(page)
    assert "MADE-UP PHANTOM" in page.split("<main>")[0]
    assert f"{facts['series']} series found {facts['used']} used" in words
    for reason, count in facts["refused"].items():
        assert f"{count} {reason} {quality.REASONS[reason][0]}" in words
    rows = pq.read_table(tmp_path / "ingest" / "pairs.parquet").to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert f"Dice {row['body_dice']:.3f} · bone edges {row['bone_edge_mm']:.2f} mm" in words
    assert len(pictures(page)) >= 3
    assert len(page) < 1_000_000
