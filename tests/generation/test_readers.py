"""What others make of derived series: our checker of images, Orthanc, dcm2niix, highdicom."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_check import faults
from made_up_ct import enhanced, make_ct, saved
from object_store import free_ports
from pydicom.dataset import Dataset

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


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, Path]:
    """A made-up patient's plain series and what was derived from it, in folders."""
    root = tmp_path_factory.mktemp("readers")
    recipe = recipes.load("demo", ["phantom.slices=8", "phantom.matrix=[64]"])
    write_one(recipe.phantom, 0, root / "drawn", "chest")
    (root / "virtual").mkdir()
    (root / "plain").mkdir()
    files = sorted((root / "drawn").rglob("*.dcm"))
    for file in files:
        (root / "plain" / file.name).write_bytes(file.read_bytes())
    series = read_series(sorted((root / "plain").iterdir()))
    for name, content in derive(series, series.volume.hu + np.int16(7), MADE):
        (root / "virtual" / name).write_bytes(content)
    return {name: root / name for name in ("plain", "virtual")}


def test_highdicom_reads_the_same_hu(pair):
    import highdicom

    images = [pydicom.dcmread(file) for file in sorted(pair["virtual"].iterdir())]
    volume = highdicom.get_volume_from_series(images)
    ours = read_series(sorted(pair["virtual"].iterdir())).volume
    found = np.asarray(volume.array)
    assert np.array_equal(found, ours.hu) or np.array_equal(found[::-1], ours.hu)
    assert np.allclose(volume.spacing, ours.spacing, atol=1e-4)


@pytest.mark.program("dcm2niix")
def test_dcm2niix_reads_the_same_hu(pair, tmp_path):
    for name, folder in pair.items():
        words = ["dcm2niix", "-b", "n", "-z", "n", "-f", name, "-o", str(tmp_path), str(folder)]
        subprocess.run(words, check=True, capture_output=True)
    plain, virtual = (sitk.ReadImage(str(tmp_path / f"{name}.nii")) for name in pair)
    assert plain.GetSize() == virtual.GetSize() and plain.GetOrigin() == virtual.GetOrigin()
    assert plain.GetDirection() == virtual.GetDirection()
    before, after = (sitk.GetArrayFromImage(image).astype(int) for image in (plain, virtual))
    measured = before > -1024  # what is padding stays
    assert np.median((after - before)[measured]) == 7


@pytest.mark.program("Orthanc")
@pytest.mark.program("storescu")
def test_orthanc_takes_both_as_one_study_and_a_repeat_as_stored(pair, tmp_path):
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
        for folder in pair.values():
            for file in folder.iterdir():
                assert ask("instances", file.read_bytes())["Status"] == "Success"
        (study,) = ask("studies")
        assert len(ask(f"studies/{study}")["Series"]) == 2
        again = next(pair["virtual"].iterdir()).read_bytes()
        assert ask("instances", again)["Status"] == "AlreadyStored"
        files = [str(file) for file in pair["virtual"].iterdir()]
        sent = subprocess.run(
            ["storescu", "127.0.0.1", str(dicom), *files], capture_output=True, text=True
        )
        assert sent.returncode == 0, sent.stderr
        assert len(ask("instances")) == 2 * len(files)
    finally:
        server.terminate()
        server.wait(30)
