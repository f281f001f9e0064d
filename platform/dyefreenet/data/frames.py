"""Enhanced and Legacy Converted multi-frame CT as if each frame were a slice of its own.

What differs between frames stands in functional groups (PS3.3 C.7.6.16). It is lifted to the top,
where classic CT has it, so that nobody else needs to know of frames.
"""

from __future__ import annotations

import pydicom
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from dyefreenet.errors import SeriesError

MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
MAX_FRAMES = 20_000


def frames_of(header: pydicom.Dataset) -> list[pydicom.Dataset]:
    """One data set a frame, with classic CT's attributes at the top; a classic one as it is.

    Raises:
        SeriesError: The number of frames is impossible, or not that of the functional groups.
    """
    try:
        if header.get("SOPClassUID") not in MULTI_FRAME:
            return [header]
        return _frames_of(header)
    except SeriesError:
        raise
    except Exception as error:  # any element of a damaged file may be one that does not convert
        raise SeriesError("unreadable", f"{type(error).__name__} in its header") from error


def _frames_of(header: pydicom.Dataset) -> list[pydicom.Dataset]:
    try:
        count = int(header.get("NumberOfFrames") or 0)
    except (TypeError, ValueError) as error:
        raise SeriesError("pixels", "Number of Frames is no number") from error
    groups = header.get(GROUPS[1]) or []
    if not 0 < count <= MAX_FRAMES or count != len(groups):
        raise SeriesError(
            "pixels",
            f"{count} frames, {len(groups)} of them described; at most {MAX_FRAMES} are read",
        )
    shared = next(iter(header.get(GROUPS[0]) or []), pydicom.Dataset())
    top = [element for element in header if element.keyword not in (*GROUPS, "NumberOfFrames")]
    made = []
    for number, own in enumerate(groups, start=1):
        frame = pydicom.Dataset()
        frame.update({element.tag: element for element in top})
        for group in (shared, own):
            for sequence in group:
                if sequence.VR == "SQ" and sequence.value:
                    frame.update({element.tag: element for element in sequence.value[0]})
        # Elements are shared between frames, so these are replaced, never changed.
        if "FrameType" in frame:
            frame.add_new("ImageType", "CS", frame.FrameType)
        if "FrameAcquisitionNumber" in frame:
            frame.add_new("AcquisitionNumber", "IS", frame.FrameAcquisitionNumber)
        frame.add_new("InstanceNumber", "IS", number)
        frame.file_meta = header.file_meta
        frame.set_original_encoding(*header.original_encoding)
        made.append(frame)
    return made
