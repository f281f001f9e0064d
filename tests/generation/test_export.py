"""Derived DICOM: in the source's place to the letter, and never to be taken for a real scan."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_check import complaints, disagreements, faults
from made_up_ct import enhanced, saved
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from transfer_syntaxes import in_syntax

from dyefreenet.data.dicom import Series, read_series
from dyefreenet.errors import SeriesError
from dyefreenet.generation.export import Making, derive, derived_uid

MADE = Making("demo refine", "ab" * 32, "arterial", datetime(2026, 11, 23, 18, 20))
PLACE = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)
KEPT = (
    "PatientName",
    "PatientID",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "AccessionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "KVP",
    "ConvolutionKernel",
    "PatientPosition",
    "InstanceNumber",
)
STEP = 2.5


def source(
    folder: Path | None = None,
    hu: np.ndarray | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **attributes,
) -> Series:
    """A source with odd number strings, private tags, overlays and contrast attributes."""
    hu = np.arange(4 * 6 * 8).reshape(4, 6, 8) * 5 - 500 if hu is None else hu
    intercept = int(attributes.get("RescaleIntercept", "-1024"))
    files = []
    for number, image in enumerate(hu):
        ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = f"1.2.3.4.{number + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.9"
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.PatientName, ds.PatientID, ds.PatientSex = "Müller^Ä", "P1", "F"
        ds.PatientBirthDate, ds.StudyDate, ds.StudyTime = "", "20200102", "101500"
        ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "A1", "S1", ""
        ds.AcquisitionDate, ds.AcquisitionTime = "20200102", "101530"
        ds.Modality, ds.KVP, ds.ConvolutionKernel = "CT", "90", "Bv36d"
        ds.Manufacturer, ds.ManufacturerModelName = "SCANMAKER", "MODEL X"
        ds.SoftwareVersions, ds.DeviceSerialNumber, ds.StationName = "VA50", "S123", "CT1"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5"]
        ds.SeriesDescription, ds.SeriesNumber = "NATIV 2.5", "3"
        ds.InstanceNumber, ds.AcquisitionNumber = str(70 - number), "2"
        ds.ImagePositionPatient = ["-10.50", "-20.000", f"{100 + number * STEP:.4f}"]
        ds.ImageOrientationPatient = ["1.0", "0", "-0.0", "0", "1.00", "0"]
        ds.PixelSpacing, ds.SliceThickness = ["8.0e-01", "0.700"], "2.50"
        ds.PositionReferenceIndicator, ds.PatientPosition = "XY", "HFS"
        ds.ContrastBolusAgent, ds.ContrastBolusVolume, ds.ContrastFlowRate = "NONE", "0", "0"
        ds.ContrastBolusStartTime = "101500"
        ds.add_new(0x00091001, "LO", "PRIVATE CANARY")
        ds.add_new(0x00090010, "LO", "SOMEBODY")
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Profile"
        code.add_new(0x00090010, "LO", "SOMEBODY")
        code.add_new(0x00091002, "LO", "NESTED CANARY")
        ds.DeidentificationMethodCodeSequence = [code]
        ds.add_new(0x60000010, "US", 6)  # overlay
        ds.SmallestImagePixelValue, ds.LargestImagePixelValue = 0, 4000
        ds.WindowCenter, ds.WindowWidth = ["40", "300"], ["300", "1500"]
        ds.Rows, ds.Columns = image.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
        for word, value in attributes.items():
            if value is None:
                delattr(ds, word)
            else:
                setattr(ds, word, value)
        dtype = np.int16 if ds.PixelRepresentation else np.uint16
        ds.PixelData = (image - intercept).astype(dtype).tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID or "1.1"
        ds.file_meta.TransferSyntaxUID = syntax
        sink = io.BytesIO()
        pydicom.dcmwrite(sink, ds, enforce_file_format=True)
        files.append(sink.getvalue())
    if folder is None:
        return read_series(files)
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.dcm" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return read_series(paths)


def derived(series: Series, hu: np.ndarray | None = None, **changes) -> list[FileDataset]:
    hu = series.volume.hu if hu is None else hu
    files = derive(series, hu, replace(MADE, **changes))
    images = [pydicom.dcmread(io.BytesIO(content)) for _, content in files]
    for image, header in zip(images, series.headers, strict=True):
        assert faults(image, header, drawn=changes.get("banner", False)) == []
    return images


def write_series(series: Series, hu: np.ndarray, folder: Path) -> list[str]:
    """Names of the files, which lie in the folder then."""
    folder.mkdir(exist_ok=True)
    made = dict(derive(series, hu, MADE))
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return list(made)


def lit(series: Series) -> np.ndarray:
    """The source with 200 HU more in a small square."""
    hu = series.volume.hu.copy()
    hu[:, 2:4, 3:6] += 200
    return hu


# ---- pixels and place ----------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("signed", [0, 1])
def test_hu_come_back_to_the_bit(syntax, signed):
    series = source(syntax=syntax, PixelRepresentation=signed)
    again = read_series([content for _, content in derive(series, lit(series), MADE)])
    np.testing.assert_array_equal(again.volume.hu, lit(series))
    assert again.volume.spacing == series.volume.spacing
    assert again.volume.origin == series.volume.origin


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_place_is_the_source_s_own_bytes(syntax):
    series = source(syntax=syntax)

    def raw(content: bytes, word: str) -> bytes:
        return pydicom.dcmread(io.BytesIO(content)).get_item(word).value

    sources = [io.BytesIO() for _ in series.headers]
    for sink, header in zip(sources, series.headers, strict=True):
        pydicom.dcmwrite(sink, header, enforce_file_format=True)
    files = [content for _, content in derive(series, series.volume.hu, MADE)]
    for sink, content in zip(sources, files, strict=True):
        for word in PLACE:
            assert raw(content, word) == raw(sink.getvalue(), word), word
    assert b"8.0e-01\\0.700" in files[0]


def test_hu_are_clipped_to_what_scanners_write():
    series = source()
    hu = series.volume.hu.copy()
    hu[0, 0, 0], hu[0, 0, 1] = -3000, 9000
    first = derived(series, hu)[0]
    stored = first.pixel_array[0, :2] + int(first.RescaleIntercept)
    assert stored.tolist() == [-1024, 3071]


def test_padding_is_the_source_s_own_whatever_was_predicted():
    hu = np.arange(4 * 6 * 8).reshape(4, 6, 8) * 5 - 500
    hu[:, 0] = -3024
    series = source(hu=hu)
    for ds in derived(series, np.full(series.volume.hu.shape, 300, np.int16)):
        assert (ds.pixel_array[0] == -2000).all()
        assert (ds.pixel_array[1:] == 1324).all()
        assert "PixelPaddingValue" not in ds  # the source declares none


def test_declared_padding_is_declared_again():
    hu = np.full((4, 6, 8), 10)
    hu[:, 0] = -3024
    series = source(hu=hu)
    for header in series.headers:
        header.add_new(0x00280120, "SS", -2000)
    ds = derived(series)[0]
    assert (ds["PixelPaddingValue"].VR, ds.PixelPaddingValue) == ("SS", -2000)


def test_an_odd_rescale_is_written_as_plain_hu():
    series = source()
    for header in series.headers:
        header.RescaleSlope = "0.5"
    ds = derived(series)[0]
    assert (ds.RescaleSlope, ds.RescaleIntercept, ds.PixelRepresentation) == (1, 0, 1)
    np.testing.assert_array_equal(ds.pixel_array, series.volume.hu[0])


# ---- what it says --------------------------------------------------------------------------------


def test_nobody_can_take_it_for_a_real_scan():
    for ds in derived(source()):
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "VIRTUAL_CONTRAST"]
        assert ds.SyntheticData == "YES"
        assert ds.SeriesDescription == "VIRTUAL CONTRAST ART - NOT FOR DIAGNOSTIC USE"
        assert "not for diagnosis" in ds.ImageComments
        assert "No contrast agent was given" in ds.DerivationDescription
        assert "ab" * 32 in ds.DerivationDescription
        assert ds.ContentQualification == "RESEARCH"
        assert ds.BurnedInAnnotation == "NO"
        code = ds.DerivationCodeSequence[0]
        assert code.CodingSchemeDesignator == "99DYEFREENET"
        assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99DYEFREENET"


def test_it_tells_of_no_contrast_agent():
    for ds in derived(source()):
        assert not [element.keyword for element in ds if element.keyword.startswith("Contrast")]


def test_private_tags_overlays_and_stale_values_are_gone():
    series = source()
    for _, content in derive(series, series.volume.hu, MADE):
        assert b"CANARY" not in content and b"SOMEBODY" not in content
        ds = pydicom.dcmread(io.BytesIO(content))
        assert not [element for element in ds.iterall() if element.tag.is_private]
        assert 0x60000010 not in ds
        assert "LargestImagePixelValue" not in ds and "SmallestImagePixelValue" not in ds
        assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert (ds.WindowCenter, ds.WindowWidth) == (200, 600)


def test_patient_study_and_acquisition_are_kept_and_the_series_is_new():
    series = source()
    for ds, header in zip(derived(series), series.headers, strict=True):
        for word in KEPT:
            assert ds[word].value == header[word].value, word
        assert ds.SeriesInstanceUID != header.SeriesInstanceUID
        assert ds.SOPInstanceUID != header.SOPInstanceUID
        assert ds.SeriesNumber == 9003
        assert (ds.SeriesDate, ds.SeriesTime) == ("20261123", "182000")
        assert ds.ContentDate == ds.InstanceCreationDate == "20261123"


def test_scanner_and_tool_are_told_apart():
    ds = derived(source())[0]
    scanner, tool = ds.ContributingEquipmentSequence
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (scanner.Manufacturer, scanner.DeviceSerialNumber) == ("SCANMAKER", "S123")
    assert tool.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert tool.Manufacturer == ds.Manufacturer == "DyeFreeNet"
    assert "DeviceSerialNumber" not in ds and "StationName" not in ds


def test_the_slice_and_its_neighbours_are_the_source():
    series = source()
    uids = [str(header.SOPInstanceUID) for header in series.headers]
    images = derived(series)
    found = [[item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence] for ds in images]
    assert found == [
        [uids[0], uids[1]],
        [uids[1], uids[0], uids[2]],
        [uids[2], uids[1], uids[3]],
        [uids[3], uids[2]],
    ]
    purpose = images[0].SourceImageSequence[0].PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")
    assert images[0].ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.4"


def test_once_lossy_always_lossy():
    assert {ds.LossyImageCompression for ds in derived(source())} == {"00"}
    series = source(
        LossyImageCompression="01",
        LossyImageCompressionRatio="8.5",
        LossyImageCompressionMethod="ISO_10918_1",
    )
    for ds in derived(series):
        assert ds.LossyImageCompression == "01"
        assert ds.LossyImageCompressionRatio == 8.5
        assert ds.LossyImageCompressionMethod == "ISO_10918_1"


# ---- identity ------------------------------------------------------------------------------------


def test_a_second_run_writes_the_same_bytes_and_leaves_the_source_alone(tmp_path):
    series = source(tmp_path / "source")
    before = {path: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    described = [str(header.SeriesDescription) for header in series.headers]
    written = []
    for name in ("one", "two"):
        names = write_series(series, lit(series), tmp_path / name)
        assert names == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm"]
        written.append([(tmp_path / name / file).read_bytes() for file in names])
    assert written[0] == written[1]
    assert before == {path: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    assert described == [str(header.SeriesDescription) for header in series.headers]


def test_uids_follow_source_and_model():
    one = derived_uid("1.2.3", "model/hash/arterial")
    assert one == derived_uid("1.2.3", "model/hash/arterial")
    assert one.startswith("2.25.") and len(one) <= 64
    assert one != derived_uid("1.2.3", "model/other/arterial")
    assert one != derived_uid("1.2.4", "model/hash/arterial")
    images = derived(source())
    assert len({ds.SOPInstanceUID for ds in images}) == 4
    assert len({ds.SeriesInstanceUID for ds in images}) == 1


# ---- refusals ------------------------------------------------------------------------------------


def test_a_source_without_identifiers_is_refused():
    series = source()
    del series.headers[2].SOPInstanceUID
    with pytest.raises(SeriesError, match="1 of 4 slices have no SOPInstanceUID"):
        derived(series)


def test_wrong_shapes_and_names_are_refused():
    series = source()
    with pytest.raises(ValueError, match="expected int16"):
        derived(series, series.volume.hu[:2])
    with pytest.raises(ValueError, match="expected int16"):
        derived(series, series.volume.hu.astype(np.float32))
    with pytest.raises(ValueError, match="model_id"):
        derived(series, model_id="a\\b")


def test_a_frame_of_enhanced_ct_becomes_an_image_of_its_own(steps):
    series = read_series([saved(enhanced(steps))])
    images = derived(series)
    assert {ds.SOPClassUID for ds in images} == {CTImageStorage}
    assert len({ds.SOPInstanceUID for ds in images}) == len(steps)
    assert not any("NumberOfFrames" in ds or "DimensionIndexValues" in ds for ds in images)
    first, second = images[0].SourceImageSequence
    assert (first.ReferencedFrameNumber, second.ReferencedFrameNumber) == (1, 2)
    assert {item.ReferencedSOPClassUID for item in (first, second)} == {EnhancedCTImageStorage}
    assert len(images[0].ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    again = read_series([content for _, content in derive(series, lit(series), MADE)])
    np.testing.assert_array_equal(again.volume.hu, lit(series))
    assert again.volume.spacing == series.volume.spacing


def test_the_warning_is_drawn_where_asked():
    series = source(hu=np.full((4, 96, 400), 40))
    plain, drawn = derived(series), derived(series, banner=True)
    assert {ds.BurnedInAnnotation for ds in plain} == {"NO"}
    assert {ds.BurnedInAnnotation for ds in drawn} == {"YES"}
    changed = drawn[0].pixel_array != plain[0].pixel_array
    assert 300 < changed.sum() < 3000 and not changed[20:].any()  # letters along the upper edge
    assert plain[0].SOPInstanceUID != drawn[0].SOPInstanceUID


def test_a_spread_is_no_scan():
    ds = derived(source(), spread=True)[0]
    assert "SPREAD - NOT FOR DIAGNOSTIC USE" in ds.SeriesDescription
    assert ds.ImageComments.startswith("NOT A SCAN") and ds.SeriesNumber == 9004


WORDS = ("KVP", "PatientPosition", "AcquisitionNumber", "PatientName", "ConvolutionKernel")


def laid_out(ct, changes=None, **attributes):
    told = {"KVP": "90", "PatientPosition": "HFS", "AcquisitionNumber": "2", "PatientName": "A^B"}
    return ct(np.zeros((4, 32, 32)), changes=changes, ConvolutionKernel="B31f", **told | attributes)


def said(series):
    return [{word: str(ds.get(word, "-")) for word in WORDS} for ds in derived(series)]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_slices_of_two_syntaxes_say_what_they_say_in_one(ct, syntax):
    files = laid_out(ct)
    mixed = [in_syntax(content, syntax) if n % 2 else content for n, content in enumerate(files)]
    assert said(read_series(mixed)) == said(read_series(files))
    assert said(read_series(files))[0]["KVP"] == "90"


def test_what_differs_from_slice_to_slice_stays_with_its_slice(ct):
    def number(ds, at):
        ds.AcquisitionNumber = str(at)
        if at == 2:
            del ds.KVP

    told = said(read_series(laid_out(ct, changes=number)))
    assert [one["AcquisitionNumber"] for one in told] == ["0", "1", "2", "3"]
    assert [one["KVP"] for one in told] == ["90", "90", "None", "90"]


def test_slices_of_two_character_sets_keep_their_letters(ct):
    def letters(ds, at):
        ds.SpecificCharacterSet = "ISO_IR 192" if at % 2 else "ISO_IR 100"
        ds.PatientName = "Müller^Ä"

    images = derived(read_series(laid_out(ct, changes=letters)))
    assert {str(ds.PatientName) for ds in images} == {"Müller^Ä"}
    assert {ds.SpecificCharacterSet for ds in images} == {"ISO_IR 192"}


# ---- other programs ------------------------------------------------------------------------------


@pytest.mark.program("dciodvfy")
def test_dciodvfy_finds_no_error(tmp_path):
    series = source(tmp_path / "source")
    write_series(series, lit(series), tmp_path / "out")
    assert complaints(sorted((tmp_path / "out").iterdir())) == set()


@pytest.mark.program("dcentvfy")
def test_dcentvfy_finds_one_patient_and_study(tmp_path):
    series = source(tmp_path / "source")
    write_series(series, lit(series), tmp_path / "out")
    paths = [*(tmp_path / "source").iterdir(), *(tmp_path / "out").iterdir()]
    assert disagreements(paths) == ""


def test_simpleitk_sees_the_same_geometry(tmp_path):
    series = source(tmp_path / "source")
    write_series(series, lit(series), tmp_path / "out")
    images = []
    for name in ("source", "out"):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / name)))
        images.append(reader.Execute())
    one, other = images
    assert one.GetSize() == other.GetSize()
    assert one.GetOrigin() == other.GetOrigin()
    assert one.GetSpacing() == other.GetSpacing()
    assert one.GetDirection() == other.GetDirection()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(other), lit(series))


@pytest.mark.real
@pytest.mark.program("dciodvfy")
@pytest.mark.parametrize("name", ["acrin_flt001_abdpelvis_nc", "nlst_101287_lowdose_nc"])
def test_real_series_become_clean_virtual_ones(real_data, tmp_path, name):
    paths = sorted((real_data / name).glob("*.dcm"))[40:60]
    series = read_series(paths)
    hu = series.volume.hu.copy()
    y, x = np.ogrid[:512, :512]
    disc = (y - 256) ** 2 + (x - 256) ** 2 < 40**2
    hu[:, disc] += 200
    names = write_series(series, hu, tmp_path)
    again = read_series([tmp_path / file for file in names])
    np.testing.assert_array_equal(again.volume.hu, hu.clip(-1024, 3071))
    np.testing.assert_array_equal(again.volume.padding, series.volume.padding)
    np.testing.assert_array_equal(again.stored_padding, series.stored_padding)
    assert again.volume.spacing == series.volume.spacing
    assert again.volume.origin == series.volume.origin
    assert complaints([tmp_path / file for file in (names[0], names[9], names[-1])]) == set()
    if shutil.which("dcentvfy"):
        assert disagreements([*paths, *(tmp_path / file for file in names)]) == ""
