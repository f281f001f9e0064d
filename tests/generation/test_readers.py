"""What others make of derived series: our checker of images, Orthanc, dcm2niix, highdicom."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_check import complaints, disagreements, faults
from made_up_ct import enhanced, make_ct, saved
from object_store import free_ports
from pydicom.dataset import Dataset
from pydicom.uid import UID, RLELossless
from transfer_syntaxes import LOSSLESS, LOSSY, PLAIN, in_syntax

from dyefreenet import recipes
from dyefreenet.data.dicom import Series, read_series
from dyefreenet.data.phantom import write_one
from dyefreenet.generation.export import Making, derive

MADE = Making("tests refine", "ab" * 32, "arterial", datetime(2026, 11, 27))


def hu() -> np.ndarray:
    """HU that tell every voxel from every other along all axes, within 12 bits."""
    return (np.arange(8 * 10 * 12).reshape(8, 10, 12) * 4 - 1000).astype(np.int16)


def derived(series: Series) -> list[Dataset]:
    virtual = series.volume.hu + np.int16(7)
    return [pydicom.dcmread(BytesIO(content)) for _, content in derive(series, virtual, MADE)]


def laid(place: Callable[[int], list[float]], axes: list[float] | None = None) -> Series:
    """A series whose slices lie where ``place`` says, mm."""

    def moved(ds: Dataset, number: int) -> None:
        ds.ImagePositionPatient = [f"{value:.4f}" for value in place(number)]
        if axes is not None:
            ds.ImageOrientationPatient = [f"{value:.6f}" for value in axes]

    return read_series(make_ct(hu(), changes=moved), slice_wise=True)


def leaning(degrees: float) -> Series:
    """The gantry leans about x, and the table moves along z."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return laid(lambda n: [-10, -20, 100 + 2.5 * n], [1, 0, 0, 0, cosine, -sine])


PLACES: dict[str, Callable[[], Series]] = {
    "level": lambda: laid(lambda n: [-10, -20, 100 + 2.5 * n]),
    "tilt 15": lambda: leaning(15),
    "tilt 30": lambda: leaning(30),
    "sheared": lambda: laid(lambda n: [-10, -20 + 0.9 * n, 100 + 2.5 * n]),
    "oblique": lambda: laid(
        lambda n: [-10 + 0.4 * n, -20, 100 + 2.5 * n], [0.9874, 0, -0.1583, 0, 1, 0]
    ),
    "reversed": lambda: laid(lambda n: [-10, -20, 100 - 2.5 * n]),
    "irregular": lambda: laid(lambda n: [-10, -20, 100 + 2.5 * n + 0.4 * (n % 2)]),
    "frames": lambda: read_series([saved(enhanced(hu()))], slice_wise=True),
}


@pytest.mark.parametrize("name", PLACES)
def test_every_image_lies_where_its_source_lies_and_says_what_it_is(name):
    series = PLACES[name]()
    for image, source in zip(derived(series), series.headers, strict=True):
        assert faults(image, source) == []
        assert image.ImagePositionPatient == source.ImagePositionPatient
        assert image.ImageOrientationPatient == source.ImageOrientationPatient


SEEDED: dict[str, Callable[[Dataset], object]] = {
    "type 1 missing": lambda ds: ds.__delattr__("Rows"),
    "type 1 empty": lambda ds: setattr(ds, "FrameOfReferenceUID", ""),
    "type 2 missing": lambda ds: ds.__delattr__("KVP"),
    "not unit": lambda ds: setattr(ds, "ImageOrientationPatient", [2, 0, 0, 0, 1, 0]),
    "not at right angles": lambda ds: setattr(
        ds, "ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]
    ),
    "text too long": lambda ds: ds["ManufacturerModelName"].__setattr__("_value", "x" * 65),
    "UID of 65": lambda ds: ds["SOPInstanceUID"].__setattr__("_value", "1." + "2" * 63),
    "UID with a letter": lambda ds: ds["StudyInstanceUID"].__setattr__("_value", "1.2.x"),
    "pixels cut short": lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]),
    "no date": lambda ds: ds["SeriesDate"].__setattr__("_value", "20261341"),
    "no time": lambda ds: ds["ContentTime"].__setattr__("_value", "256199"),
    "high bit": lambda ds: setattr(ds, "HighBit", 11),
    "half a code": lambda ds: ds.DerivationCodeSequence[0].__delattr__("CodeMeaning"),
    "half a reference": lambda ds: ds.SourceImageSequence[1].__delattr__("ReferencedSOPClassUID"),
    "contrast agent": lambda ds: setattr(ds, "ContrastBolusAgent", "IODINE"),
    "value 3": lambda ds: setattr(ds, "ImageType", ["DERIVED", "SECONDARY", "VIRTUAL"]),
    "original": lambda ds: setattr(ds, "ImageType", ["ORIGINAL", *list(ds.ImageType)[1:]]),
    "not synthetic": lambda ds: ds.__delattr__("SyntheticData"),
    "no warning": lambda ds: setattr(ds, "SeriesDescription", "CHEST ART"),
    "another place": lambda ds: setattr(ds, "ImagePositionPatient", [0, 0, 0]),
    "private": lambda ds: ds.SourceImageSequence[0].add_new(0x00091002, "LO", "x"),
}


@pytest.mark.parametrize("name", SEEDED)
def test_the_checker_finds_a_seeded_fault(name):
    series = PLACES["level"]()
    image = derived(series)[0]
    assert faults(image, series.headers[0]) == []
    SEEDED[name](image)
    assert faults(image, series.headers[0])


# ---- other programs ------------------------------------------------------------------------------


SYNTAXES = [(uid, False) for uid in (*PLAIN, RLELossless, *LOSSLESS)] + [(u, True) for u in LOSSY]


def words(uid_and_loss: tuple[UID, bool]) -> str:
    uid, lossy = uid_and_loss
    return f"{uid.keyword} {'lossy' if lossy else ''}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[Path]:
    """A made-up chest, uncompressed."""
    root = tmp_path_factory.mktemp("drawn")
    recipe = recipes.load("demo", ["phantom.slices=6", "phantom.matrix=[64]"])
    write_one(recipe.phantom, 0, root, "chest")
    return sorted(root.rglob("*.dcm"))


@pytest.fixture(scope="module")
def pairs(drawn, tmp_path_factory) -> dict[tuple[UID, bool], tuple[Path, Path]]:
    """Folders of a plain series in every transfer syntax, and of what was derived from it.

    Each is another patient's, or nobody could keep them apart.
    """
    made = {}
    for number, (syntax, lossy) in enumerate(SYNTAXES):
        root = tmp_path_factory.mktemp("pair")
        plain, virtual = root / "plain", root / "virtual"
        for folder in (plain, virtual):
            folder.mkdir()
        for file in drawn:
            ds = pydicom.dcmread(file)
            ds.PatientID = ds.PatientName = f"SYNTAX-{number}"
            ds.BitsStored, ds.HighBit = 12, 11  # as much as lossy JPEG holds
            for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(ds, word, f"{ds[word].value[:56]}.{number}")
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            (plain / file.name).write_bytes(in_syntax(saved(ds), syntax, lossy))
        series = read_series(sorted(plain.iterdir()))
        for name, content in derive(series, series.volume.hu + np.int16(7), MADE):
            (virtual / name).write_bytes(content)
        made[syntax, lossy] = plain, virtual
    return made


def others(folder: Path, scratch: Path) -> Iterator[tuple[str, np.ndarray]]:
    """HU of a series as other programs read it, foot to head or head to foot."""
    files = sorted(folder.iterdir())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    yield "SimpleITK", sitk.GetArrayFromImage(reader.Execute())
    volume = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in files])
    yield "highdicom", np.asarray(volume.array)
    if shutil.which("dcm2niix"):
        command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "nii", "-o", str(scratch), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        yield "dcm2niix", sitk.GetArrayFromImage(sitk.ReadImage(str(scratch / "nii.nii")))[:, ::-1]


def require_readable(plain: list[Path], virtual: Path, scratch: Path) -> None:
    """That nobody finds a fault with a derived series, and all read the HU that we do."""
    series, ours = read_series(plain), read_series(sorted(virtual.iterdir()))
    expected = np.clip(series.volume.hu + np.int16(7), -1024, 3071)
    measured = np.ones(expected.shape, bool)
    if series.volume.padding is not None:
        measured = ~series.volume.padding
    assert np.array_equal(ours.volume.hu[measured], expected[measured])
    images = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, virtual.iterdir())}
    for header, source in zip(ours.headers, series.headers, strict=True):
        assert faults(images[header.SOPInstanceUID], source) == []
    if shutil.which("dciodvfy"):
        assert complaints(virtual.iterdir()) == set()
    if shutil.which("dcentvfy"):
        syntax = pydicom.dcmread(plain[0]).file_meta.TransferSyntaxUID
        knows = not syntax.is_deflated and "HTJ2K" not in syntax.keyword  # and it is older
        sources = plain if knows else []
        assert disagreements([*sources, *virtual.iterdir()]) == ""
    for name, found in others(virtual, scratch):
        same = [
            np.array_equal(turned[measured], expected[measured]) for turned in (found, found[::-1])
        ]
        assert any(same), name


@pytest.mark.parametrize("syntax", SYNTAXES, ids=words)
def test_what_comes_from_any_transfer_syntax_is_read_alike_by_all(pairs, syntax, tmp_path):
    plain, virtual = pairs[syntax]
    assert pydicom.dcmread(next(plain.iterdir())).file_meta.TransferSyntaxUID == syntax[0]
    require_readable(sorted(plain.iterdir()), virtual, tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", ["acrin_flt001_abdpelvis_nc", "nlst_101287_lowdose_nc"])
def test_what_comes_from_real_series_is_read_alike_by_all(real_data, tmp_path, name):
    plain = sorted((real_data / name).glob("*.dcm"))[40:64]
    series = read_series(plain)
    (tmp_path / "virtual").mkdir()
    for file, content in derive(series, series.volume.hu + np.int16(7), MADE):
        (tmp_path / "virtual" / file).write_bytes(content)
    require_readable(plain, tmp_path / "virtual", tmp_path)


@pytest.mark.program("Orthanc")
@pytest.mark.program("storescu")
def test_orthanc_takes_both_as_one_study_and_a_repeat_as_stored(pairs, tmp_path):
    http, dicom = free_ports(2)
    settings = {
        "Name": "tests",
        "StorageDirectory": str(tmp_path / "db"),
        "IndexDirectory": str(tmp_path / "db"),
        "HttpPort": http,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))

    def ask(path: str, content: bytes | None = None) -> object:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/{path}", content, 30) as answer:
            return json.load(answer)

    server = subprocess.Popen(
        ["Orthanc", str(tmp_path / "orthanc.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"no_proxy": "127.0.0.1"},
    )
    try:
        for _ in range(120):
            try:
                ask("system")
                break
            except (URLError, ConnectionError):
                time.sleep(0.25)
        for file in (file for pair in pairs.values() for one in pair for file in one.iterdir()):
            assert ask("instances", file.read_bytes())["Status"] == "Success"
        studies = ask("studies")
        assert len(studies) == len(pairs)
        assert all(len(ask(f"studies/{study}")["Series"]) == 2 for study in studies)
        stored = len(ask("instances"))
        for _, virtual in pairs.values():
            again = next(virtual.iterdir()).read_bytes()
            assert ask("instances", again)["Status"] == "AlreadyStored"
            files = [str(file) for file in virtual.iterdir()]
            sent = subprocess.run(
                ["storescu", "127.0.0.1", str(dicom), *files], capture_output=True, text=True
            )
            assert sent.returncode == 0, sent.stderr
        assert len(ask("instances")) == stored
    finally:
        server.terminate()
        server.wait(30)
