"""A virtual-contrast series as derived DICOM that says so in every place a reader may look.

One CT image for each image of the source, in the same study and at the same place, with the same
Frame of Reference, position, orientation and spacing to the letter. The source's series is opened
for reading alone. What comes out is a pure function of the source, the prediction, the model and
the date that the caller hands in: a second run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_data_element, write_file_meta_info
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from dyefreenet import __version__
from dyefreenet.config import Phase
from dyefreenet.data.dicom import Series
from dyefreenet.errors import InputError, SeriesError
from dyefreenet.store import Folder

LOWEST_HU, HIGHEST_HU = -1024, 3071  # 12 bits, as scanners write
SERIES_OFFSET = 9000  # added to Series Number, so that viewers list it after the scanner's own
WINDOWS: dict[Phase, tuple[int, int]] = {  # centre and width, HU
    "plain": (40, 400),
    "arterial": (200, 600),
    "portal": (80, 400),
    "delayed": (70, 400),
}
SHORT: dict[Phase, str] = {"plain": "PLAIN", "arterial": "ART", "portal": "PV", "delayed": "DEL"}
WARNING = (
    "VIRTUAL CONTRAST IMAGE: made from plain CT by a neural network. No contrast agent was given. "
    "Vessels and organs may be wrong or missing. Research use only, not for diagnosis."
)
SCHEME = "99DYEFREENET"  # CID 7203 has no code for an image made by a network
IMPLEMENTATION = UID("2.25.191413474129811393016107733425416364231")

PAIRED_PARTS = {"BREAST", "SHOULDER", "HIP", "KNEE", "ANKLE", "ELBOW", "WRIST", "HAND", "FOOT"}
LOSSY = {  # transfer syntax: Lossy Image Compression Method (0028,2114)
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}

# Not carried over from the source: what describes its pixels, display, scout or making, what this
# file says anew, and the whole Contrast/Bolus module, for no agent was given (PS3.3 C.7.6.4).
DROPPED = frozenset(
    {
        "SmallestImagePixelValue",
        "LargestImagePixelValue",
        "SmallestPixelValueInSeries",
        "LargestPixelValueInSeries",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "WindowCenterWidthExplanation",
        "VOILUTFunction",
        "VOILUTSequence",
        "ModalityLUTSequence",
        "PresentationLUTShape",
        "IconImageSequence",
        "PixelData",
        "PixelAspectRatio",
        "RedPaletteColorLookupTableDescriptor",
        "ReferencedImageSequence",
        "SourceImageSequence",
        "ReferencedSeriesSequence",
        "ReferencedInstanceSequence",
        "DerivationCodeSequence",
        "LossyImageCompressionRatio",
        "LossyImageCompressionMethod",
        "InstanceCreatorUID",
        "MACParametersSequence",
        "DigitalSignaturesSequence",
        "OriginalAttributesSequence",
        "EncryptedAttributesSequence",
        "ContributingEquipmentSequence",
        "DeviceSerialNumber",
        "StationName",
        "DateOfLastCalibration",
        "TimeOfLastCalibration",
        "CodingSchemeIdentificationSequence",
        "DataSetTrailingPadding",
        "AlternateRepresentationSequence",
        "RealWorldValueMappingSequence",
        "QualityControlImage",
    }
)
CONTRAST = re.compile("Contrast(Bolus|Flow|Administration|Agent)")


def derive(
    series: Series,
    virtual_hu: NDArray[np.int16],
    *,
    model_id: str,
    weights_sha256: str,
    phase: Phase,
    made_on: datetime,
) -> Iterator[tuple[str, bytes]]:
    """The derived images one by one: file name, content of a DICOM file.

    Args:
        series: The source as ``read_series`` gives it.
        virtual_hu: Predicted HU on the voxels of the source, int16 [Z, H, W]. They are clipped to
            -1024..3071; where the source holds padding, its padding is written again.
        model_id: Name of the network, as the report names it.
        weights_sha256: Of its weights file, 64 hex digits.
        phase: Contrast phase that the prediction shows.
        made_on: Date of the new series; one that stays the same makes a second run write the same
            bytes.

    Raises:
        SeriesError: The source lacks an identifier that a derived image must name.
        ValueError: Shapes differ, or the model's name is no DICOM text.
    """
    volume = series.volume
    if virtual_hu.shape != volume.hu.shape or virtual_hu.dtype != np.int16:
        raise ValueError(
            f"virtual_hu: expected int16 {volume.hu.shape}, found {virtual_hu.dtype} "
            f"{virtual_hu.shape}"
        )
    if not (model_id.isascii() and model_id.isprintable() and "\\" not in model_id):
        raise ValueError(f"model_id: expected printable ASCII without a backslash: {model_id!r}")
    _require_identifiers(series)
    identity = f"{model_id}/{weights_sha256}/{phase}"
    storage = _Storage.of(series)
    stored = storage.encode(virtual_hu, series)

    # What all slices share is encoded once: pydicom takes a millisecond for each sequence.
    first = series.headers[0]
    shared = _carried_over(first, _same_in_all(series.headers))
    shared.SOPClassUID = CTImageStorage
    shared.SeriesInstanceUID = derived_uid(str(first.SeriesInstanceUID), identity)
    shared.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "VIRTUAL_CONTRAST"]
    shared.SyntheticData = "YES"
    _describe(shared, series, model_id, weights_sha256, phase, made_on)
    _say_who(shared, first, model_id, made_on)
    storage.describe(shared)
    shared.WindowCenter, shared.WindowWidth = map(str, WINDOWS[phase])
    letters = shared.get("SpecificCharacterSet", "iso8859")
    shared_parts = _encoded(shared, letters)

    for number, header in enumerate(series.headers):
        own = _carried_over(header, [tag for tag in header.keys() if tag not in shared])  # noqa: SIM118
        own.SOPInstanceUID = derived_uid(str(header.SOPInstanceUID), identity)
        own.InstanceNumber = header.get("InstanceNumber") or str(number + 1)
        _say_where_from(own, series, number)
        own.PixelData = stored[number].tobytes()
        own["PixelData"].VR = "OW"
        parts = shared_parts | _encoded(own, letters)
        meta = _file_meta(str(own.SOPInstanceUID))
        yield f"{number + 1:04d}.dcm", meta + b"".join(parts[tag] for tag in sorted(parts))


def write_series(
    series: Series,
    virtual_hu: NDArray[np.int16],
    target: Folder,
    *,
    model_id: str,
    weights_sha256: str,
    phase: Phase,
    made_on: datetime,
) -> list[str]:
    """Write the derived series into a folder; returns the file names, ``0001.dcm`` and so on.

    Raises:
        InputError: The folder is that of the source, or lies in it.
        SeriesError: See ``derive``.
    """
    refuse_source_folder(series.paths, target)
    names = []
    images = derive(
        series,
        virtual_hu,
        model_id=model_id,
        weights_sha256=weights_sha256,
        phase=phase,
        made_on=made_on,
    )
    for name, content in images:
        target.write(name, content)
        names.append(name)
    return names


def derived_uid(source_uid: str, identity: str) -> str:
    """A UID of its own under 2.25 (PS3.5 B.2), the same for the same source and model."""
    digest = hashlib.sha256(f"dyefreenet/{source_uid}/{identity}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


# ---- attributes ----------------------------------------------------------------------------------


def _same_in_all(headers: Sequence[Dataset]) -> list[BaseTag]:
    """Tags that say the same in every slice, to the letter."""

    def content(header: Dataset, tag: BaseTag) -> Any:
        if tag not in header:
            return None
        value = header[tag].value
        # Numbers are compared as written: 1.0 and 1.00 both go back as they came.
        return value if isinstance(value, DicomSequence) else str(value)

    first, *others = headers
    same = []
    for tag in filter(_is_kept, first.keys()):
        expected = content(first, tag)
        if all(content(header, tag) == expected for header in others):
            same.append(tag)
    return same


def _carried_over(header: Dataset, tags: Sequence[BaseTag]) -> Dataset:
    """What the source says of patient, study, acquisition and place, as far as ``tags`` go."""
    image = Dataset()
    for tag in filter(_is_kept, tags):
        element = header[tag]
        if element.VR == "SQ":
            items = [_without_private(item) for item in element.value]
            image.add_new(tag, "SQ", DicomSequence(items))
        else:
            image[tag] = copy(element)  # setting a value must not reach into the source
    return image


def _without_private(item: Dataset) -> Dataset:
    clean = Dataset()
    for tag in item.keys():  # noqa: SIM118
        element = item[tag]
        if tag.is_private:
            continue
        if element.VR == "SQ":
            items = [_without_private(one) for one in element.value]
            clean.add_new(tag, "SQ", DicomSequence(items))
        else:
            clean[tag] = element
    return clean


def _is_kept(tag: BaseTag) -> bool:
    if tag.is_private or tag.group in (0x0002, 0x0004, 0x7FE0):
        return False
    if 0x5000 <= tag.group <= 0x501F or 0x6000 <= tag.group <= 0x601F:  # curves, overlays
        return False
    word = keyword_for_tag(tag)
    return word not in DROPPED and CONTRAST.match(word) is None


def _describe(
    image: Dataset,
    series: Series,
    model_id: str,
    weights_sha256: str,
    phase: Phase,
    moment: datetime,
) -> None:
    header = series.headers[0]
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    image.SeriesDate = image.ContentDate = image.InstanceCreationDate = date
    image.SeriesTime = image.ContentTime = image.InstanceCreationTime = time
    image.SeriesNumber = str(int(header.get("SeriesNumber") or 0) + SERIES_OFFSET)
    image.SeriesDescription = f"VIRTUAL CONTRAST {SHORT[phase]} - NOT FOR DIAGNOSTIC USE"
    image.ImageComments = WARNING
    image.ContentQualification = "RESEARCH"
    image.DerivationDescription = (
        f"Virtual {phase} contrast predicted from plain CT, three slices at a time, by the neural "
        f"network {model_id}, weights sha256 {weights_sha256}, DyeFreeNet {__version__}. "
        "No contrast agent was given."
    )[:1024]
    image.DerivationCodeSequence = [
        _code("VIRTUAL_CONTRAST", SCHEME, "Virtual contrast by a neural network")
    ]
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "DyeFreeNet private codes"
    scheme.CodingSchemeVersion = "1"
    scheme.CodingSchemeResponsibleOrganization = "DyeFreeNet"
    image.CodingSchemeIdentificationSequence = [scheme]
    image.BurnedInAnnotation = header.get("BurnedInAnnotation") or "NO"
    _carry_compression(image, series.headers)
    # Required, if only empty, and missing in many sources: empty says that nobody knows.
    if "PatientPosition" not in image:
        image.PatientPosition = ""
    part = image.get("BodyPartExamined")
    if (
        (not part or part in PAIRED_PARTS)
        and "Laterality" not in image
        and "ImageLaterality" not in image
    ):
        image.Laterality = ""


def _carry_compression(image: Dataset, headers: Sequence[Dataset]) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5); one lossy slice speaks for the series."""
    image.LossyImageCompression = "00"
    for header in headers:
        syntax = str(header.file_meta.TransferSyntaxUID)
        if header.get("LossyImageCompression") != "01" and syntax not in LOSSY:
            continue
        image.LossyImageCompression = "01"
        if header.get("LossyImageCompressionRatio") is not None:
            image["LossyImageCompressionRatio"] = copy(header["LossyImageCompressionRatio"])
        method = header.get("LossyImageCompressionMethod") or LOSSY.get(syntax)
        if method:
            image.LossyImageCompressionMethod = method
        return


def _say_where_from(image: Dataset, series: Series, number: int) -> None:
    """The three source images, and the source series (PS3.3 C.7.6.1.4, C.12.2)."""
    purpose = _code("121322", "DCM", "Source image for image processing operation")
    sources = []
    for neighbour in (number, number - 1, number + 1):  # the slice itself comes first
        if 0 <= neighbour < len(series.headers):
            item = _reference(series.headers[neighbour])
            item.PurposeOfReferenceCodeSequence = [purpose]
            sources.append(item)
    image.SourceImageSequence = sources
    whole = Dataset()
    whole.SeriesInstanceUID = series.headers[number].SeriesInstanceUID
    whole.ReferencedInstanceSequence = [
        _reference(series.headers[neighbour])
        for neighbour in (number - 1, number, number + 1)
        if 0 <= neighbour < len(series.headers)
    ]
    image.ReferencedSeriesSequence = [whole]


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = CTImageStorage
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def _say_who(image: Dataset, header: Dataset, model_id: str, moment: datetime) -> None:
    """This tool made the image; the scanner that made its source becomes a contributor."""
    items = []
    if header.get("Manufacturer"):
        scanner = Dataset()
        for word in (
            "Manufacturer",
            "InstitutionName",
            "StationName",
            "ManufacturerModelName",
            "DeviceSerialNumber",
            "SoftwareVersions",
        ):
            if header.get(word):
                scanner[word] = copy(header[word])
        scanner.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", "Acquisition Equipment")]
        items.append(scanner)
    tool = Dataset()
    tool.Manufacturer = "DyeFreeNet"
    tool.ManufacturerModelName = model_id[:64]
    tool.SoftwareVersions = __version__
    tool.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S")
    tool.ContributionDescription = "Virtual contrast CT by a neural network; research use only"
    tool.PurposeOfReferenceCodeSequence = [_code("109102", "DCM", "Processing Equipment")]
    image.ContributingEquipmentSequence = [*items, tool]
    image.Manufacturer = "DyeFreeNet"
    image.ManufacturerModelName = model_id[:64]
    image.SoftwareVersions = __version__


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = scheme
    code.CodeMeaning = meaning
    return code


def _require_identifiers(series: Series) -> None:
    for word in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        lacking = sum(not header.get(word) for header in series.headers)
        if lacking:
            raise SeriesError(
                "unreadable",
                f"{lacking} of {len(series.headers)} slices have no {word}, which a derived image "
                "must name",
            )
    frames = len(series.headers) - len({header.SOPInstanceUID for header in series.headers})
    if frames:
        raise SeriesError(
            "pixels",
            f"{frames + 1} slices share a file: multi-frame CT is read, not yet derived from",
        )


def refuse_source_folder(files: Sequence[str], target: Folder) -> None:
    """Stop before anything is written where the source lies.

    Raises:
        InputError: The target is a folder of one of the files, or lies in it.
    """
    sources = {path.rpartition("/")[0] for path in files if path}
    place = _resolved(target.uri)
    for source in sources:
        if (place + "/").startswith(_resolved(source) + "/"):
            raise InputError(
                f"{target}: expected a folder outside the source series, which is never written to"
            )


def _resolved(uri: str) -> str:
    """An address without links and dots, to be compared."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).resolve())


# ---- bytes ---------------------------------------------------------------------------------------


def _encoded(image: Dataset, letters: Any) -> dict[BaseTag, bytes]:
    """Every element as Explicit VR Little Endian bytes; ``letters`` is the character set."""
    image = correct_ambiguous_vr(image, True)  # sources in implicit VR leave US or SS open
    parts = {}
    for tag in image.keys():  # noqa: SIM118
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, image[tag], letters)
        parts[tag] = buffer.getvalue()
    return parts


def _file_meta(sop_uid: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = f"DYEFREENET {__version__}"[:16]
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta)
    return buffer.getvalue()


# ---- pixels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    """How HU become stored 16-bit values.

    The source's own sign and intercept are kept where they are whole numbers that hold all HU:
    then its padding can be written back bit for bit. Otherwise values are signed HU, and padding
    is -1024 like air.
    """

    signed: bool = True
    intercept: int = 0
    padding: tuple[int, ...] = ()  # Pixel Padding Value, and its Range Limit if there is one
    is_source_s: bool = False

    @classmethod
    def of(cls, series: Series) -> _Storage:
        forms = set()
        for header in series.headers:
            padding = tuple(
                int(header[word].value) & 0xFFFF
                for word in ("PixelPaddingValue", "PixelPaddingRangeLimit")
                if header.get(word) is not None
            )
            rescale = float(header.RescaleSlope), float(header.RescaleIntercept)
            forms.add((header.PixelRepresentation == 1, *rescale, padding))
        if len(forms) > 1:
            return cls()
        signed, slope, intercept, padding = forms.pop()
        own = np.array(padding, np.uint16).view(np.int16 if signed else np.uint16)
        limits = np.iinfo(own.dtype)
        fits = limits.min <= LOWEST_HU - intercept and HIGHEST_HU - intercept <= limits.max
        if slope != 1 or not intercept.is_integer() or not fits:
            return cls()
        return cls(signed, int(intercept), tuple(int(value) for value in own), is_source_s=True)

    def encode(self, hu: NDArray[np.int16], series: Series) -> NDArray[Any]:
        """HU [Z, H, W] to stored values, with the source's padding in its place."""
        dtype = np.int16 if self.signed else np.uint16
        stored = (hu.clip(LOWEST_HU, HIGHEST_HU).astype(np.int32) - self.intercept).astype(dtype)
        mask = series.volume.padding
        if mask is not None:
            air = LOWEST_HU - self.intercept
            stored[mask] = series.stored_padding.astype(dtype) if self.is_source_s else air
        return stored

    def describe(self, image: Dataset) -> None:
        """Write the attributes that say how to read the values back."""
        image.SamplesPerPixel = 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation = int(self.signed)
        image.RescaleIntercept, image.RescaleSlope = str(self.intercept), "1"
        image.RescaleType = "HU"
        tags = (0x00280120, 0x00280121)  # Pixel Padding Value, Pixel Padding Range Limit
        for tag, value in zip(tags, self.padding, strict=False):
            image.add_new(tag, "SS" if self.signed else "US", value)
