"""A virtual-contrast series as derived DICOM that says so in every place a reader may look.

One CT image for each image of the source, in the same study and at the same place, with the same
Frame of Reference, position, orientation and spacing to the letter. The source's series is opened
for reading alone. What comes out is a pure function of the source, the prediction, the model and
the date that the caller hands in: a second run writes the same bytes.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_data_element
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from dyefreenet import __version__
from dyefreenet.config import Phase
from dyefreenet.data.dicom import Series
from dyefreenet.data.frames import MULTI_FRAME
from dyefreenet.data.volume import neighbours
from dyefreenet.errors import SeriesError

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
SPREAD_WARNING = (
    "NOT A SCAN: how far predictions of virtual contrast lie apart, standard deviation in HU. What "
    "all predictions get wrong alike it does not show. Research use only, not for diagnosis."
)
SPREAD_WINDOW = (50, 100)  # centre and width, HU
BANNER = "VIRTUAL CONTRAST - NOT FOR DIAGNOSTIC USE"
SCHEME = "99DYEFREENET"  # CID 7203 has no code for an image made by a network
IMPLEMENTATION = UID("2.25.191413474129811393016107733425416364231")

PIXEL_DATA = Tag("PixelData")
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
        # of multi-frame images
        "NumberOfFrames",
        "ConcatenationUID",
        "InConcatenationNumber",
        "InConcatenationTotalNumber",
        "ConcatenationFrameOffsetNumber",
        "SOPInstanceUIDOfConcatenationSource",
        "DimensionOrganizationType",
        "DimensionOrganizationSequence",
        "DimensionIndexSequence",
        "DimensionIndexValues",
        "StackID",
        "InStackPositionNumber",
        "TemporalPositionIndex",
        "FrameType",
        "FrameComments",
        "FrameAcquisitionNumber",
        "FrameReferenceDateTime",
        "FrameAcquisitionDateTime",
        "FrameAcquisitionDuration",
        "PixelPresentation",
        "VolumetricProperties",
        "VolumeBasedCalculationTechnique",
        "ConversionSourceAttributesSequence",
        "UnassignedSharedConvertedAttributesSequence",
        "UnassignedPerFrameConvertedAttributesSequence",
    }
)
# Required, if only empty, and missing in many sources: empty says that nobody knows.
EMPTY = ("PatientPosition", "AcquisitionNumber", "KVP")
CONTRAST = re.compile("Contrast(Bolus|Flow|Administration|Agent)")


@dataclass(frozen=True)
class Making:
    """How a derived series was made, as it says of itself.

    Attributes:
        model_id: Name of the network, as the report names it; printable ASCII.
        weights_sha256: Of its weights, 64 hex digits.
        phase: Contrast phase that the prediction shows.
        made_on: Date of the series; one that stays the same makes a second run write the same
            bytes.
        settings: What else was set, if not as usual; it tells series of one source apart.
        stack: Of the source, where one Series Instance UID covers several.
        spread: Values are a standard deviation in HU (``cascade.spread``), not a scan.
        banner: The warning is drawn into the pixels, too.
    """

    model_id: str
    weights_sha256: str
    phase: Phase
    made_on: datetime
    settings: str = ""
    stack: str = ""
    spread: bool = False
    banner: bool = False

    def __post_init__(self) -> None:
        name = self.model_id
        if not (name.isascii() and name.isprintable() and "\\" not in name):
            raise ValueError(f"model_id: expected printable ASCII without a backslash: {name!r}")

    @property
    def identity(self) -> str:
        """What UIDs follow from, besides those of the source."""
        more = [self.settings, self.stack, "spread" * self.spread, "banner" * self.banner]
        return "/".join([self.model_id, self.weights_sha256, self.phase, *filter(None, more)])


def derive(
    series: Series, virtual_hu: NDArray[np.int16], made: Making
) -> Iterator[tuple[str, bytes]]:
    """The derived images one by one: file name, content of a DICOM file.

    A frame of Enhanced CT becomes an image of its own.

    Args:
        series: The source as ``read_series`` gives it.
        virtual_hu: Predicted HU on the voxels of the source, int16 [Z, H, W]. They are clipped to
            -1024..3071; where the source holds padding, its padding is written again.

    Raises:
        SeriesError: The source lacks an identifier that a derived image must name.
        ValueError: Shapes differ.
    """
    volume = series.volume
    if virtual_hu.shape != volume.hu.shape or virtual_hu.dtype != np.int16:
        raise ValueError(
            f"virtual_hu: expected int16 {volume.hu.shape}, found {virtual_hu.dtype} "
            f"{virtual_hu.shape}"
        )
    _require_identifiers(series)
    storage = _Storage.of(series)
    stored = storage.encode(virtual_hu, series)
    if made.banner:
        stored[:, _banner(*volume.hu.shape[1:])] = HIGHEST_HU - storage.intercept

    # What all slices share is encoded once: pydicom takes a millisecond for each sequence.
    first = series.headers[0]
    shared = _carried_over(first, _same_in_all(series.headers))
    shared.SOPClassUID = CTImageStorage
    shared.SeriesInstanceUID = derived_uid(str(first.SeriesInstanceUID), made.identity)
    shared.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "VIRTUAL_CONTRAST"]
    shared.SyntheticData = "YES"
    _describe(shared, series, made)
    _say_who(shared, first, made)
    storage.describe(shared)
    window = SPREAD_WINDOW if made.spread else WINDOWS[made.phase]
    shared.WindowCenter, shared.WindowWidth = map(str, window)
    if "SpecificCharacterSet" not in shared and any(
        header.get("SpecificCharacterSet") for header in series.headers
    ):
        shared.SpecificCharacterSet = "ISO_IR 192"  # slices differ in it; this holds all letters
    letters = shared.get("SpecificCharacterSet", "iso8859")
    _leave_empty(shared, [word for word in EMPTY if all(word not in h for h in series.headers)])
    shared_parts = _encoded(shared, letters)

    about = _References(series, letters)
    for number, header in enumerate(series.headers):
        own = _carried_over(header, [tag for tag in header.keys() if tag not in shared])  # noqa: SIM118
        uid = derived_uid(_image_id(header), made.identity)
        own.SOPInstanceUID = uid
        own.InstanceNumber = header.get("InstanceNumber") or str(number + 1)
        _leave_empty(own, [word for word in EMPTY if word not in shared and word not in own])
        parts = shared_parts | _encoded(own, letters) | about.of(number)
        parts[PIXEL_DATA] = _element(PIXEL_DATA, b"OW", stored[number].tobytes())
        yield (
            f"{number + 1:04d}.dcm",
            _file_meta(uid) + b"".join(parts[tag] for tag in sorted(parts)),
        )


def derived_uid(source_uid: str, identity: str) -> str:
    """A UID of its own under 2.25 (PS3.5 B.2), the same for the same source and model."""
    digest = hashlib.sha256(f"dyefreenet/{source_uid}/{identity}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _image_id(header: Dataset) -> str:
    """SOP Instance UID of a source image; with the frame's number in a multi-frame file."""
    uid = str(header.SOPInstanceUID)
    return f"{uid}/{header.InstanceNumber}" if header.get("SOPClassUID") in MULTI_FRAME else uid


# ---- attributes ----------------------------------------------------------------------------------


def _same_in_all(headers: Sequence[Dataset]) -> list[BaseTag]:
    """Tags that say the same in every slice, to the letter."""

    def content(header: Dataset, tag: BaseTag) -> Any:
        if tag not in header:
            return None
        value = header[tag].value
        # Numbers are compared as written: 1.0 and 1.00 both go back as they came.
        return value if isinstance(value, DicomSequence) else str(value)

    def alike(one: Dataset, other: Dataset, tag: BaseTag) -> bool:
        raw = one.get_item(tag), other.get_item(tag)
        if raw[0] is raw[1]:
            return True
        # As bytes first, where nobody asked for them yet: understanding all of them takes longer
        # than all the rest of an image.
        as_bytes = one.original_character_set == other.original_character_set and all(
            isinstance(element, RawDataElement) and element.value is not None for element in raw
        )
        if as_bytes and _spelled(raw[0]) == _spelled(raw[1]):
            return True
        return bool(content(one, tag) == content(other, tag))

    first, *others = headers
    return [
        tag
        for tag in filter(_is_kept, first.keys())
        if all(alike(first, header, tag) for header in others)
    ]


def _spelled(element: Any) -> tuple[Any, ...]:
    return element.VR, element.value, element.is_implicit_VR, element.is_little_endian


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


def _describe(image: Dataset, series: Series, made: Making) -> None:
    header = series.headers[0]
    date, time = made.made_on.strftime("%Y%m%d"), made.made_on.strftime("%H%M%S")
    image.SeriesDate = image.ContentDate = image.InstanceCreationDate = date
    image.SeriesTime = image.ContentTime = image.InstanceCreationTime = time
    offset = SERIES_OFFSET + made.spread
    image.SeriesNumber = str(int(header.get("SeriesNumber") or 0) + offset)
    kind = f"{SHORT[made.phase]} SPREAD" if made.spread else SHORT[made.phase]
    image.SeriesDescription = f"VIRTUAL CONTRAST {kind} - NOT FOR DIAGNOSTIC USE"
    image.ImageComments = SPREAD_WARNING if made.spread else WARNING
    image.ContentQualification = "RESEARCH"
    what = (
        "Standard deviation in HU of several predictions of virtual" if made.spread else "Virtual"
    )
    image.DerivationDescription = (
        f"{what} {made.phase} contrast predicted from plain CT, three slices at a time, by the "
        f"neural network {made.model_id}, weights sha256 {made.weights_sha256}, DyeFreeNet "
        f"{__version__}{made.settings and ', '}{made.settings}. No contrast agent was given."
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
    own = "YES" if made.banner else "NO"
    image.BurnedInAnnotation = "YES" if header.get("BurnedInAnnotation") == "YES" else own
    _carry_compression(image, series.headers)
    part = image.get("BodyPartExamined")
    if (
        (not part or part in PAIRED_PARTS)
        and "Laterality" not in image
        and "ImageLaterality" not in image
    ):
        image.Laterality = ""


def _leave_empty(image: Dataset, words: Sequence[str]) -> None:
    for word in words:
        image[word] = DataElement(word, dictionary_VR(word), "")


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


class _References:
    """The three source images of each slice, and the source series (PS3.3 C.7.6.1.4, C.12.2).

    Each image's reference is encoded once, though three slices name it.
    """

    def __init__(self, series: Series, letters: Any) -> None:
        self._series = series
        purpose = Dataset()
        purpose.PurposeOfReferenceCodeSequence = [
            _code("121322", "DCM", "Source image for image processing operation")
        ]
        purpose_parts = _encoded(purpose, letters)
        own = [_encoded(_reference(header), letters) for header in series.headers]
        self._images = [_item(parts | purpose_parts) for parts in own]
        frame = Tag("ReferencedFrameNumber")  # the series names a file once, whatever its frames
        self._files = [_item({t: part for t, part in parts.items() if t != frame}) for parts in own]
        whole = Dataset()
        whole.SeriesInstanceUID = series.headers[0].SeriesInstanceUID
        self._whole = _encoded(whole, letters)

    def of(self, number: int) -> dict[BaseTag, bytes]:
        """Source Image and Referenced Series Sequence of a slice; the slice itself comes first."""
        triplet = neighbours(number, len(self._images), self._series.breaks)
        images = [self._images[place] for place in dict.fromkeys([number, *triplet])]
        files = dict.fromkeys(self._files[place] for place in triplet)
        inside = Tag("ReferencedInstanceSequence")
        whole = self._whole | {inside: _element(inside, b"SQ", b"".join(files))}
        of_images, of_series = Tag("SourceImageSequence"), Tag("ReferencedSeriesSequence")
        return {
            of_images: _element(of_images, b"SQ", b"".join(images)),
            of_series: _element(of_series, b"SQ", _item(whole)),
        }


def _reference(header: Dataset) -> Dataset:
    item, multi = Dataset(), header.get("SOPClassUID") in MULTI_FRAME
    item.ReferencedSOPClassUID = header.SOPClassUID if multi else CTImageStorage
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if multi:
        item.ReferencedFrameNumber = str(header.InstanceNumber)
    return item


def _say_who(image: Dataset, header: Dataset, made: Making) -> None:
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
    tool.ManufacturerModelName = made.model_id[:64]
    tool.SoftwareVersions = __version__
    tool.ContributionDateTime = made.made_on.strftime("%Y%m%d%H%M%S")
    tool.ContributionDescription = "Virtual contrast CT by a neural network; research use only"
    tool.PurposeOfReferenceCodeSequence = [_code("109102", "DCM", "Processing Equipment")]
    image.ContributingEquipmentSequence = [*items, tool]
    image.Manufacturer = "DyeFreeNet"
    image.ManufacturerModelName = made.model_id[:64]
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
    distinct = len({_image_id(header) for header in series.headers})
    if distinct < len(series.headers):
        raise SeriesError(
            "duplicate",
            f"{len(series.headers)} slices have {distinct} SOP Instance UIDs; expected one each",
        )


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


def _element(tag: BaseTag, vr: bytes, value: bytes) -> bytes:
    """An element with a length of four bytes, Explicit VR Little Endian (PS3.5 7.1.2)."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2s2xI", tag.group, tag.element, vr, len(value)) + value


def _item(parts: dict[BaseTag, bytes]) -> bytes:
    """A sequence item of defined length (PS3.5 7.5)."""
    content = b"".join(parts[tag] for tag in sorted(parts))
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _file_meta(sop_uid: str) -> bytes:
    """Preamble and File Meta Information (PS3.10 7.1)."""
    before, after = _meta_around()
    uid = sop_uid.encode() + b"\0" * (len(sop_uid) % 2)
    own = before + struct.pack("<HH2sH", 0x0002, 0x0003, b"UI", len(uid)) + uid + after
    group_length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(own))
    return b"\0" * 128 + b"DICM" + group_length + own


@cache
def _meta_around() -> tuple[bytes, bytes]:
    """Elements of the File Meta Information before and behind the SOP Instance UID."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    meta.ImplementationVersionName = f"DYEFREENET {__version__}"[:16]
    parts = _encoded(meta, "iso8859")
    uid = Tag("MediaStorageSOPInstanceUID")
    before, after = (
        b"".join(parts[tag] for tag in sorted(parts) if (tag < uid) == first)
        for first in (True, False)
    )
    return before, after


# ---- pixels --------------------------------------------------------------------------------------


def _banner(height: int, width: int) -> NDArray[np.bool_]:
    """Where the warning's letters are in a slice, [H, W]: a line along the upper edge."""
    size = max(8, height // 24)
    while size > 8 and ImageFont.load_default(size).getlength(BANNER) > 0.96 * width:
        size -= 1
    picture = Image.new("1", (width, height))
    ImageDraw.Draw(picture).text((width * 0.02, 1), BANNER, 1, ImageFont.load_default(size))
    return np.asarray(picture)


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
        bits = hu.clip(LOWEST_HU, HIGHEST_HU).view(np.uint16)
        bits -= np.uint16(self.intercept & 0xFFFF)  # round and round, as 16 bits do: it fits them
        stored = bits.view(dtype)
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
