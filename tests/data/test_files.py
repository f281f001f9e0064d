"""How files are packed makes no difference to what is read, and a file that lies costs little."""

from __future__ import annotations

import io
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from made_up_ct import enhanced, saved
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dyefreenet.data.archive import scan, survey
from dyefreenet.data.dicom import read_series
from dyefreenet.data.files import Known, fetch, read_header, unpacked
from dyefreenet.errors import SeriesError


def refusal(files):
    with pytest.raises(SeriesError) as caught:
        read_series(files)
    return caught.value


# ---- packages ------------------------------------------------------------------------------------


def pack(path, files):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
            for number, content in enumerate(files):
                package.writestr(f"a/{number}", content)
        return
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as package:
        for number, content in enumerate(files):
            member = tarfile.TarInfo(f"a/{number}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["p.zip", "p.tar", "p.tar.gz", "p.tgz"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_packed_series_is_read_like_a_folder(ct, steps, tmp_path, name, scheme):
    pack(tmp_path / name, ct(steps))
    (row,) = scan(f"{scheme}{tmp_path}/{name}")
    assert row.slices == 4 and all("!/a/" in file for file in row.files)
    np.testing.assert_array_equal(read_series(fetch(row.files)).volume.hu, steps)
    (inside,) = scan(f"{scheme}{tmp_path}")  # among other files of a folder
    assert inside.key == row.key


def test_a_package_that_leads_out_or_unpacks_to_a_flood_is_not_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as package:
        package.writestr("../../etc/cron.d/x", b"x")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        package.writestr(link, "/etc/passwd")
    assert [type(content) for _, content in unpacked(str(tmp_path / "out.zip"))] == [
        SeriesError,
        SeriesError,
    ]
    with zipfile.ZipFile(tmp_path / "flood.zip", "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("zeros", bytes(300 << 20))
    with tarfile.open(tmp_path / "flood.tar.gz", "w:gz") as package:
        member = tarfile.TarInfo("zeros")
        member.size = 300 << 20
        package.addfile(member, io.BytesIO(bytes(member.size)))
    for name in ("flood.zip", "flood.tar.gz"):
        began = time.monotonic()
        ((_, told),) = unpacked(str(tmp_path / name))
        assert (
            "times as many" in told.detail
            and told.reason == "limit"
            and time.monotonic() - began < 5
        )
    (tmp_path / "cut.zip").write_bytes((tmp_path / "flood.zip").read_bytes()[:1000])
    ((_, told),) = unpacked(str(tmp_path / "cut.zip"))
    assert "cannot be read" in told.detail and told.reason == "unreadable"


def test_a_dicomdir_stands_for_its_folder_and_tells_what_is_gone(ct, steps, tmp_path):
    for number, content in enumerate(ct(steps)):
        (tmp_path / f"IM{number}").write_bytes(content)
    directory = Dataset()
    directory.DirectoryRecordSequence = Sequence()
    for name in (["IM0"], ["IM9"], ["..", "..", "etc", "passwd"]):
        record = Dataset()
        record.ReferencedFileID = name
        directory.DirectoryRecordSequence.append(record)
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    found = survey(str(tmp_path / "DICOMDIR"))
    assert [row.slices for row in found.rows] == [4]
    assert found.skipped == {"listed in DICOMDIR and not there": 2}


# ---- DICOM ---------------------------------------------------------------------------------------


def test_a_file_without_preamble_is_read(ct, steps):
    bare = []
    for content in ct(steps):
        ds = pydicom.dcmread(io.BytesIO(content))
        sink = io.BytesIO()
        pydicom.dcmwrite(sink, ds, enforce_file_format=False)
        whole = sink.getvalue()
        bare.append(whole[132:] if whole[128:132] == b"DICM" else whole)
    np.testing.assert_array_equal(read_series(bare).volume.hu, steps)
    without_meta = []
    for content in ct(steps):
        ds = pydicom.dcmread(io.BytesIO(content))
        sink = io.BytesIO()
        stream = pydicom.filebase.DicomFileLike(sink)
        stream.is_implicit_VR, stream.is_little_endian = True, True
        pydicom.filewriter.write_dataset(stream, ds)
        without_meta.append(sink.getvalue())
    np.testing.assert_array_equal(read_series(without_meta).volume.hu, steps)


@pytest.mark.parametrize("compressed", [False, True])
def test_enhanced_ct_is_read_frame_by_frame(steps, tmp_path, compressed):
    ds = enhanced(steps, order=[2, 0, 3, 1])
    if compressed:
        ds.compress(pydicom.uid.RLELossless)
    content = saved(ds)
    series = read_series([content])
    np.testing.assert_array_equal(series.volume.hu, steps)
    assert series.volume.spacing == (2.5, 0.8, 0.7)
    assert [int(header.InstanceNumber) for header in series.headers] == [2, 4, 1, 3]
    (tmp_path / "one").write_bytes(content)
    (row,) = scan(str(tmp_path))
    assert (row.slices, row.spacing) == (4, (2.5, 0.8, 0.7))


def test_frames_that_are_not_described_are_refused(steps):
    ds = enhanced(steps)
    ds.NumberOfFrames = 2**31 - 1
    assert refusal([saved(ds)]).reason == "pixels"


def test_two_acquisitions_of_one_place_are_two_series(ct, steps, tmp_path):
    for number in (1, 2):
        files = ct(steps + number, AcquisitionNumber=number)
        for at, content in enumerate(files):
            ds = pydicom.dcmread(io.BytesIO(content))
            ds.SOPInstanceUID = f"1.2.{number}.{at}"
            ds.save_as(tmp_path / f"{number}-{at}")
    first, second = scan(str(tmp_path))
    assert first.key != second.key and first.series_uid == second.series_uid
    found = [read_series(fetch(row.files)).volume.hu for row in (first, second)]
    assert {int((hu - steps).max()) for hu in found} == {1, 2}


def test_stacks_of_other_grids_are_told_apart(ct, steps, tmp_path):
    for at, content in enumerate([*ct(steps), *ct(steps[:3], PixelSpacing=["0.5", "0.5"])]):
        (tmp_path / str(at)).write_bytes(content)
    assert sorted(row.slices for row in scan(str(tmp_path))) == [3, 4]
    assert refusal(sorted(tmp_path.iterdir())).reason == "mixed"


# ---- files that lie ------------------------------------------------------------------------------


def deflated(content, more=b""):
    """The file with its data set deflated, and more behind its end."""
    ds = pydicom.dcmread(io.BytesIO(content))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = saved(ds)
    end = 144 + int.from_bytes(whole[140:144], "little")  # preamble, group length, its group
    data = zlib.decompress(whole[end:], -15) + more
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return whole[:end] + squeeze.compress(data) + squeeze.flush()


def test_deflated_files_are_read_and_bombs_are_not(ct, steps):
    np.testing.assert_array_equal(read_series([deflated(f) for f in ct(steps)]).volume.hu, steps)
    bomb = deflated(ct(steps)[0], bytes(600 << 20))
    assert len(bomb) < 1 << 20
    began = time.monotonic()
    assert refusal([bomb]).reason == "limit"
    assert time.monotonic() - began < 5


# The test files of pydicom and of pydicom-data: old, cut, of other kinds, wrong on purpose.
ODD = [
    Path(pydicom.__file__).parent / "data" / "test_files",
    Path(data_store.__file__).parent / "data",
]


def test_every_odd_file_is_read_or_refused_with_a_reason():
    reasons = {}
    for path in [path for folder in ODD for path in folder.iterdir() if path.is_file()]:
        with pytest.raises(SeriesError) as caught:  # all are single images, so "short" at the least
            read_series([path])
        reasons[path.name] = caught.value.reason
    assert len(reasons) > 145
    assert reasons["CT_small.dcm"] == "short" and reasons["MR_small.dcm"] == "not-ct"


@pytest.mark.parametrize("folder", ODD, ids=["pydicom", "pydicom-data"])
def test_an_archive_of_odd_files_is_accounted_for(folder):
    found = survey(folder)
    files = sum(len(row.files) for row in found.rows) + found.skipped.total()
    assert files == sum(p.is_file() and p.name != "DICOMDIR" for p in folder.rglob("*"))


def test_the_same_bytes_in_two_character_sets_are_two_texts(ct, steps, tmp_path):
    greek, latin = (pydicom.dcmread(io.BytesIO(file)) for file in ct(steps)[:2])
    greek.SpecificCharacterSet, latin.SpecificCharacterSet = "ISO_IR 126", "ISO_IR 100"
    greek.SeriesDescription, latin.SeriesDescription = (
        "\u0398\u03ce\u03c1\u03b1\u03ba\u03b1\u03c2",
        "\xc8\xfe\xf1\xe1\xea\xe1\xf2",
    )
    latin.SeriesInstanceUID += ".1"
    for name, header in (("a", greek), ("b", latin)):
        header.save_as(tmp_path / name)
    said = {row.description for row in scan(tmp_path)}
    assert said == {greek.SeriesDescription, latin.SeriesDescription}


def test_a_header_compared_with_one_before_it_is_what_it_is_alone(ct, steps):
    """``Layout``: whatever byte differs, and wherever, the shortcut gives pydicom's answer."""
    draw = np.random.default_rng(0)
    first, other = ct(steps)[:2]
    end = first.index(b"\xe0\x7f\x10\x00OW")

    def read(content, known):
        stream = io.BytesIO(content)
        try:
            header, plain_at, _ = read_header(stream, known=known)
            raw = [
                one
                for part in (header.file_meta, header)
                for one in map(part.get_item, part.keys())
            ]
            return [(one.tag, one.VR, one.value) for one in raw], plain_at, stream.tell()
        except SeriesError as error:
            return error.reason, error.detail

    changed = [other.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0")]
    for _ in range(600):
        content = bytearray(other)
        for at in draw.integers(132, end + 4, draw.integers(0, 3)):
            content[at] = draw.choice([0, 32, 49, 255, content[at] ^ 1])
        changed.append(bytes(content))
    shortcuts = 0
    for content in changed:
        known = Known()
        read(first, known)
        found = read(content, known)
        assert found == read(content, Known())
        shortcuts += len(known.layouts) == 1 and len(found) > 2
    assert shortcuts > 100
