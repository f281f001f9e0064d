"""DyeFreeNet: virtual contrast CT from plain CT, as a platform on Ray (Liu et al., DyeFreeNet)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dyefreenet.config import Phase
    from dyefreenet.data.volume import Volume

__version__ = "0.1.0"


def generate(
    source: Volume | str | Path,
    run: str = "shipped",
    method: str = "refine",
    phase: Phase | None = None,
    any_phase: bool = False,
) -> Volume:
    """Virtual contrast of a plain scan, on its own voxels; for research only.

    Args:
        source: A volume in HU, or where one series lies: a DICOM folder, an image file, ``s3://``.
        run: Run folder or package; "shipped": the weights that come along, which learnt contrast
            from made-up CT alone.
        method: Row of the final table.
        phase: Contrast phase to make; None: the one that the run's recipe names.
        any_phase: Take a series whose headers show contrast agent, or that a network made.

    Returns:
        HU in int16, with the source's geometry and padding.

    Raises:
        InputError: No such place, run, method or phase, or more than one series.
        SeriesError: The series cannot be used.
    """
    from dyefreenet.config import GenerateConfig  # here: importing the package loads no torch
    from dyefreenet.generation.series import virtual_of

    config = GenerateConfig(method=method, phase=phase, any_phase=any_phase)
    return virtual_of(source, (run,), config)
