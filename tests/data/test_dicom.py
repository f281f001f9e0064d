"""Reading one series: what is read is known to the bit, and what is refused is told by number."""

from __future__ import annotations

import io
import random
import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from transfer_syntaxes import LOSSLESS, LOSSY, PLAIN, encoded, high_throughput, jpeg, with_frames

from dyefreenet.data.codecs import decode, frames_at, read_frame
from dyefreenet.data.dicom import read_series
from dyefreenet.data.volume import Volume
from dyefreenet.errors import SeriesError


def refusal(files):
    with pytest.raises(SeriesError) as caught:
        read_series(files)
    return caught.value


# ---- what is read --------------------------------------------------------------------------------


def test_hu_and_place_come_back_as_they_were_written(ct, steps):
    volume = read_series(ct(steps)).volume
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, steps)
    assert volume.spacing == (2.5, 0.8, 0.7)
    assert volume.origin == (-10.0, -20.0, 100.0)
    np.testing.assert_array_equal(volume.direction, np.eye(3))
    assert volume.padding is None


def test_shuffled_files_give_the_same_volume(ct, steps):
    files = ct(steps)
    shuffled = random.Random(1).sample(files, len(files))
    assert shuffled != files
    np.testing.assert_array_equal(read_series(shuffled).volume.hu, steps)


def test_position_and_not_instance_number_gives_the_order(ct, steps):
    def backwards(ds, number):
        ds.InstanceNumber = str(10 - number)
        ds.SliceLocation = str(-number)

    np.testing.assert_array_equal(read_series(ct(steps, changes=backwards)).volume.hu, steps)


def test_a_patient_on_the_belly_is_sorted_along_the_normal(ct, steps):
    prone = ["-1", "0", "0", "0", "-1", "0"]  # the normal is still +z
    volume = read_series(ct(steps, ImageOrientationPatient=prone)[::-1]).volume
    np.testing.assert_array_equal(volume.hu, steps)
    np.testing.assert_array_equal(volume.direction, np.diag([-1.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    "syntax",
    [*PLAIN, RLELossless, JPEGLSLossless, JPEG2000Lossless],
)
@pytest.mark.parametrize("signed", [0, 1])
def test_every_lossless_syntax_gives_the_same_hu(ct, steps, syntax, signed):
    hu = np.tile(steps, (1, 6, 5))  # JPEG 2000 wants 32 pixels and more
    files = ct(hu, syntax=syntax, PixelRepresentation=signed)
    np.testing.assert_array_equal(read_series(files).volume.hu, hu)


def test_each_slice_has_its_own_rescale(ct, steps):
    def rescale(ds, number):
        ds.RescaleIntercept = str(-1024 + 100 * number)

    expected = steps + 100 * np.arange(4, dtype=np.int16)[:, None, None]
    np.testing.assert_array_equal(read_series(ct(steps, changes=rescale)).volume.hu, expected)


def test_a_slope_other_than_one_is_rounded_to_whole_hu(ct):
    hu = np.full((3, 4, 4), 251.0)
    files = ct(hu, RescaleSlope="0.5", RescaleIntercept="-1000.25")
    assert np.unique(read_series(files).volume.hu).tolist() == [251]  # 2502 * 0.5 - 1000.25


def test_bits_above_bits_stored_are_cut_and_the_sign_is_carried(ct):
    hu = np.full((3, 4, 4), -100)

    def overlay(ds, number):
        values = np.frombuffer(ds.PixelData, np.uint16) & 0x0FFF
        ds.PixelData = (values | 0x5000).astype(np.uint16).tobytes()
        ds.BitsStored, ds.HighBit = 12, 11

    for signed, intercept in ((1, "0"), (0, "-1024")):
        files = ct(hu, changes=overlay, PixelRepresentation=signed, RescaleIntercept=intercept)
        assert np.unique(read_series(files).volume.hu).tolist() == [-100]


# ---- padding -------------------------------------------------------------------------------------


def padded(steps):
    hu = steps.copy()
    hu[:, 0, :] = -3024  # stored as -2000
    return hu


def test_padding_is_masked_before_rescale_and_its_stored_value_kept(ct, steps):
    files = ct(padded(steps), PixelRepresentation=1, PixelPaddingValue=-2000)
    series = read_series(files)
    expected = steps.copy()
    expected[:, 0, :] = -1024
    np.testing.assert_array_equal(series.volume.hu, expected)
    assert series.volume.padding[:, 0].all() and not series.volume.padding[:, 1:].any()
    assert series.stored_padding.tolist() == [-2000] * (4 * 8)


def test_padding_that_no_attribute_declares_is_found_by_its_value(ct, steps):
    series = read_series(ct(padded(steps), PixelRepresentation=1))
    assert series.volume.padding.sum() == 4 * 8
    assert set(series.stored_padding.tolist()) == {-2000}


def test_padding_written_with_the_wrong_sign_is_still_padding(ct, steps):
    def wrong_sign(ds, number):
        ds.add_new(0x00280120, "US", 65536 - 2000)

    series = read_series(ct(padded(steps), PixelRepresentation=1, changes=wrong_sign))
    assert series.volume.padding.sum() == 4 * 8


def test_a_padding_range_is_inclusive(ct):
    hu = np.tile(np.array([-1024, -1023, -1022, 40]), (3, 2, 1))

    def limit(ds, number):
        ds.add_new(0x00280121, "US", 1)

    padding = read_series(ct(hu, PixelPaddingValue=0, changes=limit)).volume.padding
    assert padding[0, 0].tolist() == [True, True, False, False]


def test_noise_below_air_is_a_measurement_raised_to_air(ct, steps):
    hu = steps.copy()
    hu[1, 2, 3] = -1139  # seen in real low-dose air
    volume = read_series(ct(hu, PixelRepresentation=1)).volume
    assert volume.padding is None
    assert volume.hu[1, 2, 3] == -1024


# ---- compressed ----------------------------------------------------------------------------------


@pytest.fixture
def noise():
    """HU of a body with noise, over all of 12 bits, [3, 48, 40]."""
    hu = np.random.default_rng(3).normal(40, 60, (3, 48, 40)).round().astype(np.int16)
    hu[:, :4], hu[:, -4:] = -1024, 3071
    return hu


def frame_of(content):
    ds = pydicom.dcmread(io.BytesIO(content))
    return next(generate_frames(ds.PixelData, number_of_frames=1))


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("signed", "bits"), [(1, 16), (0, 16), (0, 12)])
def test_a_lossless_codestream_gives_the_hu_that_went_into_it(ct, noise, syntax, signed, bits):
    files = ct(noise, PixelRepresentation=signed, BitsStored=bits, HighBit=bits - 1)
    compressed = encoded(files, syntax, LOSSLESS[syntax])
    np.testing.assert_array_equal(read_series(compressed).volume.hu, noise)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_the_sign_of_12_bits_is_the_headers(ct, noise, syntax):
    twelve = noise.clip(-1024, 1000)
    signed = {"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11, "RescaleIntercept": "0"}
    files = ct(twelve, **signed)

    def unsigned(stored, bits):  # as JPEG and JPEG-LS do, and some encoders of JPEG 2000
        return LOSSLESS[syntax](stored.view(np.uint16) & 0x0FFF, bits)

    np.testing.assert_array_equal(read_series(encoded(files, syntax, unsigned)).volume.hu, twelve)


@pytest.mark.parametrize("syntax", LOSSY)
def test_a_lossy_codestream_gives_what_pydicom_gives(ct, noise, syntax):
    files = ct(noise.clip(-900, 2900), BitsStored=12, HighBit=11)  # loss leads out of no 12 bits
    compressed = encoded(files, syntax, LOSSY[syntax])
    theirs = [pixel_array(pydicom.dcmread(io.BytesIO(c)), raw=True) for c in compressed]
    expected = np.clip(np.stack(theirs).astype(int) - 1024, -1024, None)
    most = {JPEGExtended12Bit: 2, HTJ2K: 1}.get(syntax, 0)  # inverse transforms round otherwise
    assert np.abs(read_series(compressed).volume.hu - expected).max() <= most


def test_8_bit_jpeg_in_a_header_of_16_is_read(ct):
    hu = np.tile(np.arange(0, 160, 4) - 100, (3, 48, 1))
    files = ct(hu, BitsStored=8, HighBit=7, RescaleIntercept="-128")
    compressed = encoded(files, JPEGBaseline8Bit, lambda stored, bits: jpeg8(stored))
    assert np.abs(read_series(compressed).volume.hu - hu).max() <= 2


def jpeg8(stored):
    return imagecodecs.jpeg8_encode(stored.astype(np.uint8), level=98)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, HTJ2KLossless])
def test_a_frame_in_several_fragments_is_put_together(ct, noise, syntax):
    def in_three(content):
        frame = frame_of(content)
        return encapsulate([frame], fragments_per_frame=3, has_bot=False)

    compressed = []
    for content in encoded(ct(noise), syntax, LOSSLESS[syntax]):
        ds = pydicom.dcmread(io.BytesIO(content))
        ds.PixelData = in_three(content)
        sink = io.BytesIO()
        ds.save_as(sink)
        compressed.append(sink.getvalue())
    np.testing.assert_array_equal(read_series(compressed).volume.hu, noise)


FRAMES = [b"first-\xff\xd9", b"the second-\xff\xd9", b"a third, longer-\xff\xd9"]


@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_frames_are_told_apart(fragments, table):
    header = pydicom.Dataset()
    content = encapsulate(FRAMES, fragments_per_frame=fragments, has_bot=table == "basic")
    if table == "extended":
        content, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = (
            pydicom.encaps.encapsulate_extended(FRAMES)
        )
    stream = io.BytesIO(b"before" + content + b"\xfe\xff\xdd\xe0\0\0\0\0behind")
    stream.seek(6)
    places = frames_at(stream, header, 3)
    for number in (2, 0, 1):
        assert read_frame(stream, places[number]).rstrip(b"\0") == FRAMES[number]


@pytest.mark.parametrize(
    ("frames", "offsets"), [(2, None), (4, None), (3, [0, 16]), (3, [0, 15, 36]), (3, [0, 16, 99])]
)
def test_frames_that_are_not_as_announced_are_refused(frames, offsets):
    header = pydicom.Dataset()
    if offsets:
        header.ExtendedOffsetTable = np.array(offsets, "<u8").tobytes()
    stream = io.BytesIO(encapsulate(FRAMES, has_bot=False) + b"\xfe\xff\xdd\xe0\0\0\0\0")
    with pytest.raises((ValueError, KeyError)):
        frames_at(stream, header, frames)


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGExtended12Bit])
def test_a_codestream_cut_short_is_refused(ct, noise, syntax):
    encode = LOSSLESS.get(syntax, jpeg)
    files = encoded(ct(noise, BitsStored=12, HighBit=11), syntax, encode)
    for kept in (0.3, 0.9):
        frame = frame_of(files[1])
        cut = with_frames(files[1], syntax, [frame[: int(len(frame) * kept)]])
        assert refusal([files[0], cut, files[2]]).reason == "unreadable"


@pytest.mark.parametrize("syntax", [*LOSSLESS, JPEGExtended12Bit])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(ct, noise, syntax):
    encode = LOSSLESS.get(syntax, jpeg)
    large = np.zeros((3000, 3000), np.uint16)  # 18 MB
    files = encoded(ct(noise, BitsStored=12, HighBit=11), syntax, encode)
    lying = with_frames(files[1], syntax, [encode(large, 12)])
    tracemalloc.start()
    error = refusal([files[0], lying, files[2]])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.reason == "unreadable"
    assert (
        "expected 48 x 40 x 1 numbers of 16 bits or fewer, found a codestream of 3000 x 3000"
        in (error.detail)
    )
    assert peak < 4e6


def test_a_codestream_in_colour_is_refused(ct, noise):
    colours = np.zeros((48, 40, 3), np.uint8)
    files = encoded(ct(noise), JPEGBaseline8Bit, lambda stored, bits: jpeg8(colours))
    assert refusal(files).reason == "unreadable"


def test_half_of_an_rle_frame_is_no_frame(ct, noise):
    files = ct(noise, syntax=RLELossless)
    frame = frame_of(files[1])
    for broken in (frame[: len(frame) // 2], frame[:64], b"", frame[:70] + bytes(len(frame) - 70)):
        files[1] = with_frames(files[1], RLELossless, [broken or b"\0"])
        assert refusal(files).reason == "unreadable"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imagecodecs's
def test_a_broken_htj2k_frame_is_refused(ct, noise):
    files = encoded(ct(noise), HTJ2KLossless, high_throughput)
    frame = bytearray(frame_of(files[1]))
    middle = len(frame) // 2
    frame[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    files[1] = with_frames(files[1], HTJ2KLossless, [bytes(frame)])
    assert refusal(files).reason == "unreadable"


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"level": 1e-5, "reversible": False}])
def test_what_openjph_is_not_trusted_with_goes_to_openjpeg(noise, options):
    """Tiles, and steps of 24 bits: the codestream is sound, and is read."""
    frame = high_throughput(noise[0], 16, **options)
    values = decode(frame, HTJ2K, True, 16, np.empty(noise[0].shape, np.int16))
    assert np.abs(values.astype(int) - noise[0]).max() <= (0 if "tile" in options else 1)


def test_compressed_files_are_not_kept(ct, tmp_path):
    hu = np.random.default_rng(0).integers(-500, 500, (40, 128, 128))  # does not compress
    for number, content in enumerate(ct(hu, syntax=RLELossless)):
        (tmp_path / f"{number:03d}").write_bytes(content)
    files = sorted(tmp_path.iterdir())
    read_series(files[:3])  # what is imported and cached at first
    tracemalloc.start()
    series = read_series(files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(series.volume.hu, hu)
    compressed = sum(path.stat().st_size for path in files)
    assert compressed > 0.9 * series.volume.hu.nbytes
    assert peak < series.volume.hu.nbytes + 0.7 * compressed  # headers are about 0.4 of that


def odd_files(folder):
    """Compressed images of one sample a pixel, up to 16 bits, as others wrote them."""
    for path in sorted(Path(folder).rglob("*")):
        try:
            ds = pydicom.dcmread(path)
            if ds.file_meta.TransferSyntaxUID.is_encapsulated and ds.SamplesPerPixel == 1:
                yield path.name, ds, pixel_array(ds, index=0, raw=True)
        except Exception:
            continue  # not an image, or none that pydicom reads


def same_as_pydicom(folder):
    """Names of the images that were compared."""
    names = []
    for name, ds, expected in odd_files(folder):
        if ds.BitsAllocated > 16:
            continue
        syntax = ds.file_meta.TransferSyntaxUID
        frame = next(generate_frames(ds.PixelData, number_of_frames=ds.get("NumberOfFrames", 1)))
        if syntax == RLELossless and ds.BitsAllocated != 16:
            continue
        room = np.empty((ds.Rows, ds.Columns), np.int16)
        found = decode(frame, syntax, ds.PixelRepresentation == 1, ds.BitsStored, room)
        most = 1 if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) else 0
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= most, name
        names.append(name)
    return names


def test_odd_files_of_pydicom_decode_as_pydicom_decodes_them():
    names = same_as_pydicom(Path(pydicom.__file__).parent / "data" / "test_files")
    assert {"J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm", "MR_small_RLE.dcm"} <= set(names)


# ---- refusals ------------------------------------------------------------------------------------


def test_a_missing_slice_is_named(ct, steps):
    files = ct(np.concatenate([steps, steps]))
    error = refusal(files[:3] + files[4:])
    assert error.reason == "gap"
    assert "5.00 mm between z=105.00 and z=110.00" in error.detail


def test_two_slices_are_too_few(ct, steps):
    assert refusal(ct(steps[:2])).reason == "short"
    assert refusal([]).reason == "short"


def test_the_same_slice_twice_is_left_out_and_said(ct, steps):
    files = ct(steps)
    series = read_series([*files, files[2]])
    np.testing.assert_array_equal(series.volume.hu, steps)
    assert len(series.headers) == 4
    assert series.notes == ("1 slices stored twice, one copy left out",)


def test_another_slice_in_the_same_place_is_refused(ct, steps):
    error = refusal(ct(steps) + ct(steps + 1)[1:2])
    assert error.reason == "duplicate"
    assert "z=102.50" in error.detail


def test_a_scout_among_the_slices_is_left_out_and_said(ct, steps):
    scout = ct(steps[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], PixelSpacing=None)
    series = read_series(scout + ct(steps))
    np.testing.assert_array_equal(series.volume.hu, steps)
    assert series.notes == ("1 localizer images left out",)
    assert refusal(scout * 3).reason == "localizer"


@pytest.mark.parametrize(
    ("reason", "attributes"),
    [
        ("not-ct", {"Modality": "MR"}),
        ("not-ct", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}),  # MR
        ("pixels", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}),  # Enhanced CT without frames
        ("limit", {"Rows": 5000}),
        ("not-axial", {"ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"]}),
        ("geometry", {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}),
        ("geometry", {"ImageOrientationPatient": ["0", "0", "0", "0", "0", "0"]}),
        ("geometry", {"PixelSpacing": None}),
        ("geometry", {"PixelSpacing": ["0", "0.7"]}),
        ("geometry", {"ImagePositionPatient": None}),
        ("duplicate", {"ImagePositionPatient": ["0", "0", "0"]}),
        ("rescale", {"RescaleSlope": None}),
        ("rescale", {"RescaleIntercept": None}),
        ("pixels", {"PhotometricInterpretation": "RGB"}),
        ("pixels", {"SamplesPerPixel": 3}),
        ("pixels", {"BitsAllocated": 8}),
        ("pixels", {"HighBit": 11}),
    ],
)
def test_a_fault_in_every_slice_has_its_reason(ct, steps, reason, attributes):
    assert refusal(ct(steps, **attributes)).reason == reason


@pytest.mark.parametrize(
    ("reason", "word", "value"),
    [
        ("mixed", "SeriesInstanceUID", "1.2.7"),
        ("mixed", "FrameOfReferenceUID", "1.2.7"),
        ("mixed", "PixelSpacing", ["0.9", "0.7"]),
        ("mixed", "Rows", 7),
        ("not-axial", "ImageOrientationPatient", ["0.9998", "0.02", "0", "-0.02", "0.9998", "0"]),
        ("rescale", "RescaleSlope", "0"),
        ("not-ct", "Modality", "PT"),
        ("geometry", "ImagePositionPatient", ["-10", "-20"]),
    ],
)
def test_a_fault_in_one_slice_has_its_reason(ct, steps, reason, word, value):
    def fault(ds, number):
        if number == 2:
            setattr(ds, word, value)

    assert refusal(ct(steps, changes=fault)).reason == reason


@pytest.mark.parametrize(
    ("reason", "word"),
    [("geometry", "PixelSpacing"), ("rescale", "RescaleSlope"), ("not-ct", "Modality")],
)
@pytest.mark.parametrize("at", [0, 2, 3])
def test_an_attribute_that_one_slice_lacks_is_missed(ct, steps, reason, word, at):
    def lack(ds, number):
        if number == at:
            delattr(ds, word)

    assert refusal(ct(steps, changes=lack)).reason == reason


def test_a_tilted_gantry_is_refused_with_its_angle(ct, steps):
    def shear(ds, number):
        ds.ImagePositionPatient = ["-10", str(-20 - number * 2.5), str(100 + number * 2.5)]

    error = refusal(ct(steps, changes=shear))
    assert error.reason == "tilt"
    assert "shear 45.0 degrees" in error.detail  # the images themselves are upright


def test_slices_that_drift_from_a_line_are_no_tilt(ct, steps):
    def drift(ds, number):
        ds.ImagePositionPatient = ["-10", str(-20 - 0.4 * (number % 2)), str(100 + number * 2.5)]

    error = refusal(ct(steps, changes=drift))
    assert error.reason == "geometry"
    assert "leave a straight line by 0.27 mm" in error.detail


def test_a_file_that_is_not_dicom_is_refused_by_number(ct, steps):
    error = refusal([*ct(steps), b"no DICOM at all"])
    assert (error.reason, error.detail) == ("unreadable", "file 5 of 5: not a DICOM file")


def test_a_file_cut_short_is_refused_with_the_bytes_it_has(ct, steps):
    files = ct(steps)
    error = refusal([*files[:3], files[3][:-10]])
    assert error.reason == "unreadable"
    assert "expected 96 bytes of Pixel Data, found 86" in error.detail


def test_a_broken_compressed_slice_is_refused(ct, steps):
    files = ct(steps, syntax=JPEGLSLossless)
    broken = bytearray(files[1])
    start = broken.rindex(b"\xff\xd8")  # start of the JPEG-LS image
    broken[start + 2 : start + 40] = b"\0" * 38
    assert refusal([files[0], bytes(broken), *files[2:]]).reason == "unreadable"


def test_a_syntax_that_is_none_of_dicoms_is_refused(ct, steps):
    known, unknown = b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.99"  # of the same length
    files = [content.replace(known, unknown) for content in ct(steps, syntax=JPEGLSLossless)]
    error = refusal(files)
    assert error.reason == "syntax"
    assert "none of DICOM's" in error.detail


def test_a_detail_names_no_patient(ct, steps):
    def canary(ds, number):
        ds.PatientName, ds.PatientID, ds.SeriesDescription = "CANARY^A", "CANARY-B", "CANARY C"
        if number == 1:
            ds.RescaleSlope = "0"

    assert "CANARY" not in str(refusal(ct(steps, changes=canary, SeriesInstanceUID="1.2.777")))


# ---- real CT -------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "shape", "spacing", "padding", "highest"),
    [
        ("acrin_flt001_abdpelvis_nc", (99, 512, 512), (4.25, 0.976562, 0.976562), -2000, 1288),
        ("nlst_101287_lowdose_nc", (143, 512, 512), (2.0, 0.54, 0.54), -2048, 2695),
    ],
)
def test_real_series(real_data, name, shape, spacing, padding, highest):
    series = read_series(sorted((real_data / name).glob("*.dcm")))
    volume = series.volume
    assert volume.hu.shape == shape
    np.testing.assert_allclose(volume.spacing, spacing)
    assert (volume.hu.min(), volume.hu.max()) == (-1024, highest)
    assert np.unique(series.stored_padding).tolist() == [padding]
    assert 0.20 < volume.padding.mean() < 0.22  # all but the inscribed circle: 1 - pi / 4


@pytest.mark.real
def test_real_syntaxes_decode_as_pydicom_decodes_them(real_data):
    folder = real_data / "robustness" / "cornerstone_transfer_syntaxes"
    assert len(same_as_pydicom(folder)) >= 12


@pytest.mark.real
def test_real_lossless_syntaxes_hold_the_same_pixels(real_data):
    folder = real_data / "robustness" / "cornerstone_transfer_syntaxes"
    lossless = (
        "1.2.840.10008.1.2",
        "4.57",
        "4.70",
        "4.80",
        "4.90",
        "1.2.5",
        "2.1.99",
        "2.1",
        "2.2",
    )
    files = [
        path
        for path in sorted(folder.glob("CTImage.dcm_*"))
        if path.stem.endswith(lossless) and "Lossy" not in path.name
    ]
    assert len(files) >= 8
    volumes = [three_of(path.read_bytes()) for path in files]
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume.hu, volumes[0].hu)


def three_of(content: bytes) -> Volume:
    """A slice at three heights, so that it passes as a series."""
    files = []
    for number in range(3):
        ds = pydicom.dcmread(io.BytesIO(content))
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + number]
        sink = io.BytesIO()
        ds.save_as(sink)
        files.append(sink.getvalue())
    return read_series(files).volume


@pytest.mark.real
@pytest.mark.parametrize(("name", "reason"), [("gantrytilting", "tilt"), ("sliceincrement", "gap")])
def test_real_faults_are_refused(real_data, name, reason):
    with pytest.raises(SeriesError) as caught:
        read_series(sorted((real_data / "robustness/dicom2nifti_failing" / name / "001").iterdir()))
    assert caught.value.reason == reason
