"""The exceptions that a caller catches.

DyeFreeNetError            one line for a person: what, where, expected, found
├── ConfigError            a recipe, a config field or a command-line value
├── InputError             a missing folder, an empty archive, no pairs, no credentials
│   └── StorageError     storage that refuses, or gives no answer in time
├── SeriesError            one series that cannot be used; it has a countable ``reason``
├── StoreError             a run folder that differs from what was asked, or cannot be trusted
└── ResourceError          the machine or cluster lacks what was asked for
"""

from __future__ import annotations

from typing import Literal, get_args


class DyeFreeNetError(Exception):
    """Base of every error that is shown as one line, without a traceback."""


class ConfigError(DyeFreeNetError):
    """A recipe, a config field or a command-line value is wrong."""


class InputError(DyeFreeNetError):
    """What was named as input is not there, empty, or cannot be opened."""


class StorageError(InputError):
    """Storage refuses, or gives no answer in time; what it holds may be all right."""


class StoreError(DyeFreeNetError):
    """A run folder differs from what was asked for, or its files cannot be trusted."""


class ResourceError(DyeFreeNetError):
    """The machine or cluster lacks what was asked for."""


Reason = Literal[
    "unreadable",  # not DICOM or NIfTI, cut short, or its pixels do not decode
    "not-ct",  # modality or SOP class other than CT
    "not-axial",  # orientation is not axial, or differs between slices
    "localizer",  # scout or projection image
    "short",  # fewer slices than a triplet needs
    "gap",  # a slice is missing, or the spacing is irregular
    "duplicate",  # two slices in one place
    "mixed",  # matrix, pixel spacing or frame of reference differ between slices
    "rescale",  # rescale slope or intercept missing, zero or not finite
    "pixels",  # bits, samples or photometric interpretation not those of CT
    "empty",  # nothing as dense as fat anywhere: no body, or pixels that were blanked
    "geometry",  # position, orientation or spacing missing or impossible
    "tilt",  # the gantry leans, or slices are sheared: no block of right angles
    "limit",  # larger than any CT, or packed tighter: not opened
    "has-contrast",  # plain CT was asked for; headers or image show contrast
    "no-contrast",  # headers speak of contrast, and the image shows none, or another phase
    "phase-unknown",  # no rule told the contrast phase
    "phase-ambiguous",  # several series of one study claim the same phase
    "no-partner",  # a pair needs this patient's other phase
    "virtual",  # made by a network, so not a measurement
    "held-out",  # would show training a patient kept for validation or test
    "ignored",  # left out by phases.csv
    "not-selected",  # by the rules of --select, or beyond --limit
    "registration",  # plain and contrast could not be laid over each other
    "mask",  # its label map cannot be read, or lies elsewhere
    "syntax",  # a transfer syntax that no installed decoder reads
]
REASONS: tuple[str, ...] = get_args(Reason)


class SeriesError(DyeFreeNetError):
    """One series cannot be used: ``reason`` is from the closed list, ``detail`` has the numbers."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SeriesError], tuple[str, str]]:
        return SeriesError, (self.reason, self.detail)  # survives the way between Ray workers
