"""No word of a header, no file name and no UID gets into what is written or said."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary

from dyefreenet.cli import main
from dyefreenet.config import GridConfig, IngestConfig
from dyefreenet.data.ingest import ingest
from dyefreenet.errors import DyeFreeNetError
from dyefreenet.report import write_quality
from dyefreenet.store import Folder

MARK = "CANARY"
DATE = "19470213"
UID = "1.2.826.777666555"
NEEDED = {  # what the reader goes by; the rest may say anything
    *("SOPClassUID", "Modality", "SeriesDescription", "SamplesPerPixel"),
    *("PatientID", "ContrastBolusAgent", "FrameOfReferenceUID"),
}
TEXT = {"PN", "LO", "SH", "LT", "ST", "UT"}


def planted(ds: pydicom.Dataset) -> int:
    """Fill every attribute of text, date and UID that a data set can hold; how many there are."""
    count = 0
    for tag, (vr, multiplicity, _, retired, word) in DicomDictionary.items():
        if (
            tag >> 16 in (0, 2)
            or retired
            or not word
            or word in NEEDED
            or word in ds
            or multiplicity != "1"
        ):
            continue
        if vr in TEXT:
            setattr(ds, word, f"{MARK}{count}"[:16])
        elif vr == "DA":
            setattr(ds, word, DATE)
        elif vr == "UI":
            setattr(ds, word, f"{UID}.{count}")
        else:
            continue
        count += 1
    ds.ConvolutionKernel = f"{MARK} kernel"
    block = ds.private_block(0x0009, f"{MARK} maker", create=True)
    block.add_new(1, "LO", f"{MARK} private")
    return count


FAULTS = {
    "none": {},
    "slope": {"RescaleSlope": "0"},
    "modality": {"Modality": f"{MARK}MR"},
    "class": {"SOPClassUID": f"{UID}.5"},
    "bits": {"BitsAllocated": 8},
    "colour": {"PhotometricInterpretation": f"{MARK}RGB"},
    "number": {"InstanceNumber": None},
    "spacing": {"PixelSpacing": ["0", "0"]},
    "unknown": {"SeriesDescription": f"{MARK} what"},
}


def test_no_word_of_a_header_is_written_or_said(ct, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    root = tmp_path / f"{MARK}-archive"
    hu = np.random.default_rng(0).integers(0, 80, (4, 48, 48))
    counts = []
    for number, (name, attributes) in enumerate(FAULTS.items()):
        for phase, words in enumerate(("NATIV", "ART")):
            uid = f"{UID}.{number}.{phase}"
            values = {"PixelRepresentation": 1, "SeriesDescription": f"{words} {MARK}"}
            values |= {"PatientID": f"{MARK}{name}", "StudyInstanceUID": f"{UID}.{number}"}

            def plant(ds, at):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # some of the marks are too long for their tag
                    counts.append(planted(ds))

            files = ct(hu, changes=plant, SeriesInstanceUID=uid, **(values | attributes))
            for at, content in enumerate(files):
                path = root / f"{MARK}^{name}" / f"{words}-{at}-{MARK}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content[:-900] if name == "number" and at == 1 else content)
    (root / f"{MARK}.txt").write_text(MARK)
    assert min(counts) > 400

    out = tmp_path / "out"
    facts = ingest(
        IngestConfig(),
        GridConfig(size=48),
        paired=[Folder(str(root))],
        target=Folder(str(out)),
        salt="pepper",
        train=False,
    )
    assert facts["used"] == 2 and facts["series"] == 2 * len(FAULTS)
    assert write_quality(Folder(str(out))) == str(out / "quality.html")
    assert main(["pairs", "-i", str(root)]) == 0
    with pytest.raises(DyeFreeNetError) as caught:
        ingest(
            IngestConfig(), GridConfig(size=48), paired=[Folder(str(root))], target=Folder(str(out))
        )
    said = capfd.readouterr()
    told = {"log": caplog.text, "output": said.out, "errors": said.err, "facts": repr(facts)}
    told["refusal"] = str(caught.value).replace(str(root), "")  # the user's own word for the place
    told |= {
        path.name: path.read_bytes().decode("latin-1") for path in out.rglob("*") if path.is_file()
    }
    told |= {
        f"name {number}": str(path.relative_to(out)) for number, path in enumerate(out.rglob("*"))
    }
    for where, text in told.items():
        for mark in (MARK, DATE, UID, "777666555"):
            assert mark not in text, (where, text[max(0, text.find(mark) - 80) :][:200])
