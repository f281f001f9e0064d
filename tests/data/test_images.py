"""Volumes in one file: the same HU in the same place, and faults refused."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from dyefreenet.data.dicom import read_series
from dyefreenet.data.images import read_image, read_image_at, read_labels, write_nifti
from dyefreenet.data.volume import Volume
from dyefreenet.errors import InputError, SeriesError


def test_nifti_round_trip_is_exact(tmp_path, steps):
    tilted = np.array([[0.995004, 0.099833, 0.0], [-0.099833, 0.995004, 0.0], [0.0, 0.0, 1.0]])
    volume = Volume(steps, (2.5, 0.8, 0.7), (-10.0, -20.0, 100.0), tilted)
    write_nifti(volume, tmp_path / "volume.nii.gz")
    again = read_image(tmp_path / "volume.nii.gz")
    np.testing.assert_array_equal(again.hu, steps)
    np.testing.assert_allclose(again.spacing, volume.spacing, atol=1e-6)
    np.testing.assert_allclose(again.origin, volume.origin, atol=1e-5)
    np.testing.assert_allclose(again.direction, tilted, atol=1e-6)


def test_nifti_of_other_axes_is_turned_and_not_resampled(tmp_path, steps):
    image = sitk.GetImageFromArray(steps)
    image.SetSpacing((0.7, 0.8, 2.5))
    write = sitk.DICOMOrient(image, "PIR")  # axes in another order and direction
    sitk.WriteImage(write, str(tmp_path / "turned.nii"))
    volume = read_image(tmp_path / "turned.nii")
    np.testing.assert_array_equal(volume.hu, steps)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.7), atol=1e-6)


def test_dicom_and_its_nifti_are_the_same_place(ct, steps, tmp_path):
    volume = read_series(ct(steps)).volume
    write_nifti(volume, tmp_path / "same.nii.gz")
    again = read_image(tmp_path / "same.nii.gz")
    np.testing.assert_allclose(again.origin, volume.origin, atol=1e-5)
    np.testing.assert_array_equal(again.hu, volume.hu)


def test_nifti_with_two_slices_or_nonsense_is_refused(tmp_path, steps):
    sitk.WriteImage(sitk.GetImageFromArray(steps[:2]), str(tmp_path / "two.nii"))
    with pytest.raises(SeriesError, match="short"):
        read_image(tmp_path / "two.nii")
    (tmp_path / "none.nii").write_bytes(b"nothing")
    with pytest.raises(SeriesError, match="unreadable"):
        read_image(tmp_path / "none.nii")
    with pytest.raises(InputError, match="found none"):
        read_image(tmp_path / "absent.nii")
    not_finite = steps.astype(np.float32)
    not_finite[1, 1, 1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(not_finite), str(tmp_path / "nan.nii"))
    with pytest.raises(SeriesError, match="not finite"):
        read_image(tmp_path / "nan.nii")  # the NIfTI library would read it as 0 HU, water
    (tmp_path / "nan.nii.gz").write_bytes(gzip.compress((tmp_path / "nan.nii").read_bytes()))
    with pytest.raises(SeriesError, match="not finite"):
        read_image(tmp_path / "nan.nii.gz")


def test_labels_come_onto_the_grid_of_their_volume(tmp_path, steps):
    labels = (np.arange(4 * 6 * 8).reshape(4, 6, 8) % 7).astype(np.uint8)
    volume = Volume(steps, (2.5, 0.8, 0.7), (-10.0, -20.0, 100.0))
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin(volume.origin)
    sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), str(tmp_path / "labels.nii.gz"))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz", volume), labels)
    image.SetOrigin((900, 900, 900))
    sitk.WriteImage(image, str(tmp_path / "away.nii.gz"))
    with pytest.raises(InputError, match="found them elsewhere"):
        read_labels(tmp_path / "away.nii.gz", volume)


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha"])
def test_every_kind_and_address_gives_the_same_volume(tmp_path, steps, ending):
    image = sitk.GetImageFromArray(steps)
    image.SetSpacing((0.7, 0.8, 2.5))
    path = tmp_path / f"volume.{ending}"
    sitk.WriteImage(image, str(path))
    for address in (str(path), f"file://{path}"):
        volume = read_image_at(address)
        np.testing.assert_array_equal(volume.hu, steps)
        np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.7), atol=1e-6)


@pytest.mark.parametrize(
    ("ending", "word"), [("nrrd", "data file: "), ("mha", "ElementDataFile = ")]
)
def test_a_header_that_points_at_another_file_is_refused(tmp_path, steps, ending, word):
    whole = tmp_path / f"whole.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(steps), str(whole))
    (tmp_path / "secret.raw").write_bytes(steps.tobytes())
    lines = [line for line in whole.read_bytes().split(b"\n") if line.isascii()]
    head = [line for line in lines[:12] if line and not line.startswith(b"ElementDataFile")]
    path = tmp_path / f"points.{ending}"
    path.write_bytes(b"\n".join([*head, word.encode() + b"secret.raw", b""]))
    with pytest.raises(SeriesError, match="in another file"):
        read_image(path)


def test_a_size_beyond_any_ct_is_refused_before_it_is_taken(tmp_path, steps):
    path = tmp_path / "huge.nii"
    sitk.WriteImage(sitk.GetImageFromArray(steps), str(path))
    content = bytearray(path.read_bytes())
    content[42:48] = b"\xff\x7f" * 3  # 32767 voxels along each axis
    path.write_bytes(content)
    with pytest.raises(SeriesError) as caught:
        read_image(path)
    assert caught.value.reason in ("limit", "unreadable")


def test_a_label_map_is_no_ct(tmp_path):
    labels = np.zeros((5, 16, 16), np.int16)
    labels[:, 4:12, 4:12] = 52
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "aorta.nii.gz"))
    with pytest.raises(SeriesError, match="from 0 to 52: a label map"):
        read_image(tmp_path / "aorta.nii.gz")
