"""Volumes that lie in one file, NIfTI, NRRD or MetaImage, read and written through SimpleITK."""

from __future__ import annotations

import math
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from dyefreenet.data.dicom import AXIAL, FILL_HU, MAX_VOXELS
from dyefreenet.data.files import IMAGES, fetch, split_packed
from dyefreenet.data.volume import AIR_HU, Volume
from dyefreenet.errors import InputError, SeriesError

NIFTI = (".nii", ".nii.gz")  # what is written
MOST_LABELS = 256


def read_image(path: str | Path) -> Volume:
    """A NIfTI, NRRD or MetaImage file as a volume in HU.

    Its axes are turned and flipped to LPS; no voxel is resampled.

    Raises:
        InputError: The file is not there.
        SeriesError: It is not a three-dimensional image of HU that can be laid out axially.
    """
    image = _open(path)
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f":
        finite = np.isfinite(values).all()
        if not finite or (is_nifti(path) and _not_finite(path, values.size)):
            raise SeriesError("pixels", "voxels that are not finite")
    if _is_label_map(values):
        raise SeriesError(
            "not-ct", f"whole numbers from 0 to {values.max():.0f}: a label map, not HU"
        )
    if values.max() > np.iinfo(np.int16).max:
        raise SeriesError("rescale", f"{values.max():.0f} HU; 16 bits hold up to 32767")
    padding = values < FILL_HU
    hu = np.rint(values).clip(AIR_HU).astype(np.int16)
    hu[padding] = AIR_HU
    direction = np.array(image.GetDirection()).reshape(3, 3).T  # rows: along x, y, z index
    if len(hu) < 3:
        raise SeriesError("short", f"{len(hu)} slices; a triplet needs at least 3")
    if abs(direction[2, 2]) < AXIAL:
        raise SeriesError(
            "not-axial",
            f"the slice normal has |z| = {abs(direction[2, 2]):.2f}; axial CT has at least {AXIAL}",
        )
    x, y, z = image.GetSpacing()
    return Volume(hu, (z, y, x), image.GetOrigin(), direction, padding if padding.any() else None)


def _is_label_map(values: NDArray[Any]) -> bool:
    """A few whole numbers, much of it 0; CT without any air would have few voxels of just 0 HU."""
    return bool(
        values.min() == 0
        and values.max() < MOST_LABELS
        and (values == 0).mean() > 0.05
        and (values == np.rint(values)).all()
    )


def write_nifti(volume: Volume, path: str | Path, axes: str = "LPS") -> None:
    """Write HU and geometry; what was padding is written as -1024 HU.

    Args:
        axes: Order and sense of the file's axes; ``image_axes`` tells those of another file.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = sitk.DICOMOrient(to_image(volume), axes)
    sitk.WriteImage(image, str(path), useCompression=str(path).endswith(".gz"))


def image_axes(path: str | Path) -> str:
    """Where a file's axes point, as in "RAS"; its voxels are not read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    find = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    return str(find(reader.GetDirection()))


def read_labels(path: str | Path, volume: Volume) -> NDArray[np.int32]:
    """A label map as int32 [Z, H, W] on the grid of ``volume``, nearest voxel.

    Raises:
        InputError: The map is not there, has numbers that are not whole, or covers none of the
            volume.
    """
    image = _open(path)
    numbers = sitk.GetArrayViewFromImage(image)
    if numbers.dtype.kind == "f" and not (numbers == np.rint(numbers)).all():
        raise InputError(f"{path}: expected whole numbers of structures, found others")
    on_grid = sitk.Resample(
        image, to_image(volume), sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkInt32
    )
    labels = sitk.GetArrayFromImage(on_grid)
    if not labels.any() and numbers.any():
        raise InputError(
            f"{path}: expected labels on the grid of their series, found them elsewhere"
        )
    return np.asarray(labels, np.int32)


def to_image(volume: Volume) -> sitk.Image:
    """The same volume for SimpleITK."""
    image = sitk.GetImageFromArray(volume.hu)
    z, y, x = volume.spacing
    image.SetSpacing((x, y, z))
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.T.ravel().tolist())
    return image


def _open(path: str | Path) -> sitk.Image:
    """An image with its axes turned to LPS; its size is known before its voxels are read."""
    if not Path(path).is_file():
        raise InputError(f"{path}: expected an image file, found none")
    if Path(path).suffix.lower() in (".nrrd", ".mha"):
        _require_own_voxels(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) != 3 or components != 1:
            raise SeriesError(
                "pixels",
                f"expected one number a voxel in 3 dimensions, found {components} in {len(size)}",
            )
        if math.prod(size) > MAX_VOXELS:
            raise SeriesError("limit", f"{size} voxels; expected {MAX_VOXELS} in all or fewer")
        image = reader.Execute()
    except RuntimeError as error:
        raise SeriesError("unreadable", "SimpleITK cannot read this image file") from error
    return sitk.DICOMOrient(image, "LPS")


def _require_own_voxels(path: str | Path) -> None:
    """Refuse a header that names another file as the place of its voxels."""
    with open(path, "rb") as stream:
        head = stream.read(64 * 1024).split(b"\n\n")[0].lower()
    for line in head.split(b"\n"):
        word, _, value = line.replace(b"=", b":", 1).partition(b":")
        if word.strip() in (b"data file", b"datafile"):
            raise SeriesError("unreadable", "a header alone; its voxels are in another file")
        if word.strip() == b"elementdatafile":
            if value.strip() != b"local":
                raise SeriesError("unreadable", "a header alone; its voxels are in another file")
            return


def _not_finite(path: str | Path, count: int) -> int:
    """Number of NaN and infinite voxels in the file; the NIfTI library reads each as 0, water."""
    content = Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        most = count * 8 + 64 * 1024  # float64 and a header with extensions
        content = zlib.decompressobj(wbits=31).decompress(content, most)
    order = "<" if content[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    if struct.unpack_from(f"{order}i", content)[0] == 540:  # NIfTI-2: datatype, vox_offset
        (kind,) = struct.unpack_from(f"{order}h", content, 12)
        (start,) = struct.unpack_from(f"{order}q", content, 168)
    else:
        (kind,) = struct.unpack_from(f"{order}h", content, 70)
        (start,) = struct.unpack_from(f"{order}f", content, 108)
    size = {16: 4, 64: 8}.get(kind)  # float32, float64; others are whole numbers
    if size is None:
        return 0
    values = np.frombuffer(content, f"{order}f{size}", count, int(start))
    return count - int(np.isfinite(values).sum())


def is_nifti(path: str | Path) -> bool:
    return str(path).lower().endswith(NIFTI)


@contextmanager
def local_image(address: str) -> Iterator[Path]:
    """An image file as one of this machine, for as long as the block lasts."""
    if "://" not in address and not split_packed(address)[1]:
        yield Path(address)
        return
    ending = next(ending for ending in (".nii.gz", *IMAGES) if address.lower().endswith(ending))
    (content,) = fetch([address])
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / f"volume{ending}"
        local.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        yield local


def read_image_at(address: str) -> Volume:
    """``read_image`` for an address that may be remote or within a package."""
    with local_image(address) as local:
        return read_image(local)
