"""Scanning an archive: one row a series, from headers, wherever and under whatever names."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
import SimpleITK as sitk

from dyefreenet.data.archive import scan, short_hash, survey
from dyefreenet.data.dicom import read_series
from dyefreenet.data.files import fetch
from dyefreenet.data.images import write_nifti
from dyefreenet.errors import InputError


def test_a_series_is_one_row_however_its_files_lie(ct, steps, tmp_path):
    files = ct(steps, SeriesDescription="ART 2.5", ConvolutionKernel="B30f")
    for number, content in enumerate(files):
        folder = tmp_path / f"deep/{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"no-extension-{9 - number}").write_bytes(content)
    (row,) = scan(str(tmp_path))
    assert row.key == hashlib.sha256(b"1.2.3.4").hexdigest()[:16]
    assert row.patient == hashlib.sha256(b"P1").hexdigest()[:16]
    assert (row.slices, row.rows, row.columns) == (4, 6, 8)
    assert row.spacing == (2.5, 0.8, 0.7)
    assert (row.description, row.kernel, row.thickness) == ("ART 2.5", "B30f", 2.5)
    assert len(row.files) == 4


def test_series_of_one_folder_are_told_apart(write_ct, steps, tmp_path):
    write_ct(tmp_path, steps, SeriesInstanceUID="1.2.5")
    for number, content in enumerate(sorted(tmp_path.glob("*.dcm"))):
        content.rename(tmp_path / f"a{number}.dcm")
    write_ct(tmp_path, steps[:3], SeriesInstanceUID="1.2.6")
    rows = scan(str(tmp_path))
    assert {row.series_uid: row.slices for row in rows} == {"1.2.5": 4, "1.2.6": 3}
    assert [row.key for row in rows] == sorted(row.key for row in rows)


def test_what_is_no_dicom_is_counted_and_not_fatal(write_ct, steps, tmp_path):
    write_ct(tmp_path / "series", steps)
    (tmp_path / "notes.txt").write_text("read me")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"system")
    found = survey(str(tmp_path))
    assert len(found.rows) == 1
    assert found.skipped == {"not a DICOM file": 2}


def test_odd_names_and_links_stop_nothing(ct, write_ct, steps, tmp_path):
    """Folders named in Latin-1, or like the inside of a package; links that lead nowhere."""
    root = tmp_path / "archive"
    for number, folder in enumerate((b"M\xfcller", b"neu!")):
        place = os.path.join(os.fsencode(root), folder)
        os.makedirs(place)
        for at, content in enumerate(ct(steps, SeriesInstanceUID=f"1.2.{number}")):
            with open(os.path.join(place, b"%d.dcm" % at), "wb") as stream:
                stream.write(content)
    for name in ("x.nii", "x.zip", "x.dcm"):
        (root / name).symlink_to("nowhere")
    found = survey(str(root))
    assert [row.slices for row in found.rows] == [4, 4]
    for row in found.rows:
        np.testing.assert_array_equal(read_series(fetch(row.files)).volume.hu, steps)
    assert found.skipped == {"gone since it was listed": 2, "cannot be opened": 1}


def test_a_value_that_does_not_convert_costs_its_file(ct, write_ct, steps, tmp_path):
    write_ct(tmp_path, steps)
    (bad,) = ct(steps[:1], SeriesInstanceUID="1.9")
    at = bad.index(b"\x08\x00\x16\x00UI")  # SOP Class UID
    (tmp_path / "bad.dcm").write_bytes(bad[: at + 4] + b"FD" + bad[at + 6 :])
    found = survey(str(tmp_path))
    assert len(found.rows) == 1 and found.skipped.total() == 1
    assert all("in its header" in why for why in found.skipped)


def test_scouts_do_not_count_as_slices(ct, write_ct, steps, tmp_path):
    write_ct(tmp_path, steps)
    scout = ct(steps[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0]
    (tmp_path / "scout.dcm").write_bytes(scout)
    (row,) = scan(str(tmp_path))
    assert (row.slices, row.localizer, len(row.files)) == (4, False, 5)
    (only,) = scan(str(write_ct(tmp_path / "s", steps, ImageType=["O", "P", "LOCALIZER"])))
    assert only.localizer


def test_a_virtual_series_is_known_as_such(write_ct, steps, tmp_path):
    kind = ["DERIVED", "SECONDARY", "AXIAL", "VIRTUAL_CONTRAST"]
    (row,) = scan(str(write_ct(tmp_path, steps, ImageType=kind)))
    assert row.virtual


def test_a_row_shows_nobody(write_ct, steps, tmp_path):
    folder = write_ct(
        tmp_path / "CANARY1", steps, PatientID="CANARY2", SeriesDescription="CANARY3 ART"
    )
    (row,) = scan(str(folder))
    assert row.patient_id == "CANARY2"
    assert "CANARY" not in repr(row)


def test_nifti_files_are_series(write_ct, steps, tmp_path):
    write_ct(tmp_path / "dicom", steps)
    volume = read_series(sorted((tmp_path / "dicom").iterdir())).volume
    for name in ("case1/plain.nii.gz", "case1/art.nii", "alone.nii.gz"):
        write_nifti(volume, tmp_path / "nifti" / name)
    (tmp_path / "nifti" / "broken.nii").write_bytes(b"broken")
    found = survey(str(tmp_path / "nifti"))
    by_name = {row.series_uid: row for row in found.rows}
    assert set(by_name) == {"case1/plain.nii.gz", "case1/art.nii", "alone.nii.gz"}
    row = by_name["case1/art.nii"]
    assert (row.slices, row.rows, row.columns) == (4, 6, 8)
    assert row.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert row.patient == by_name["case1/plain.nii.gz"].patient == short_hash("case1")
    assert found.skipped == {"not NIfTI-1": 1}
    (single,) = scan(str(tmp_path / "nifti/alone.nii.gz"))
    assert single.is_image


def test_phases_csv_says_what_headers_do_not(write_ct, steps, tmp_path):
    write_ct(tmp_path / "a", steps, SeriesInstanceUID="1.2.5")
    sitk.WriteImage(sitk.GetImageFromArray(steps), str(tmp_path / "n.nii.gz"))
    table = tmp_path / "phases.csv"
    table.write_text("series,phase,patient\n1.2.5,plain,\nn.nii.gz,Arterial,P1\n")
    rows = {row.series_uid: row for row in scan(str(tmp_path))}
    assert rows["1.2.5"].declared == "plain"
    assert rows["n.nii.gz"].declared == "arterial"
    assert rows["n.nii.gz"].patient == rows["1.2.5"].patient == short_hash("P1")
    for text, message in [
        ("series,phase\n1.2.5,early\n", "line 2: expected a phase of plain, arterial"),
        ("series,phase\n1.2.99,plain\n", "line 2: expected a series of this archive"),
        ("uid,phase\n1.2.5,plain\n", "expected columns series, phase"),
    ]:
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            scan(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found nothing"),
        ({}, "found an empty folder"),
        ({"a.txt": b"text", "b.txt": b"text"}, "found 2 files: not a DICOM file"),
    ],
)
def test_an_archive_without_series_is_refused_in_one_line(tmp_path, content, message):
    folder = tmp_path / "archive"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        scan(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="expected a file, found none"):
        scan(str(tmp_path / "absent.nii.gz"))


def test_a_remote_archive_gives_the_same_rows(ct, steps, tmp_path):
    def long_header(ds, number):
        ds.add_new(0x00091001, "OB", b"\0" * 100_000)  # reaches past the first read
        ds.add_new(0x00090010, "LO", "SOMEBODY")

    for number, content in enumerate(ct(steps, changes=long_header)):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    (local,) = scan(str(tmp_path))
    (remote,) = scan(f"file://{tmp_path}")
    assert (remote.key, remote.slices, remote.spacing) == (local.key, 4, (2.5, 0.8, 0.7))
    assert remote.files[0].startswith("file://")
    np.testing.assert_array_equal(read_series(fetch(remote.files)).volume.hu, steps)


@pytest.mark.real
def test_real_headers(real_data):
    (row,) = scan(str(real_data / "nlst_101287_lowdose_nc"))
    assert (row.slices, row.spacing, row.kernel) == (143, (2.0, 0.54, 0.54), "FC51")
