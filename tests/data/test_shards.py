"""Shards keep every bit, and every slice keeps its neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dyefreenet.data.shards import decode_slice, encode_slice, read_slab, write_slabs


@settings(max_examples=60, deadline=None)
@given(arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_codec_is_exact_for_any_int16(image):
    assert np.array_equal(decode_slice(encode_slice(image), *image.shape), image)


def test_codec_shrinks_ct_like_noise():
    image = np.random.default_rng(0).normal(40, 15, (256, 256)).astype(np.int16)
    assert len(encode_slice(image)) < 0.6 * image.nbytes


@pytest.mark.parametrize("depth", [1, 3, 7, 8, 9])
def test_slabs_round_trip_with_their_neighbours(depth):
    rng = np.random.default_rng(depth)
    plain = rng.integers(-1024, 3000, (depth, 12, 10), dtype=np.int16)
    contrast = plain + 200
    labels = rng.integers(0, 30, plain.shape, dtype=np.uint8)
    files = write_slabs(
        "n", "p", "q", (2.5, 1, 1), plain, contrast, labels, phase="arterial", slab=4
    )
    assert sum(slices for _, slices, _ in files) == depth
    for _, slices, content in files:
        slab = read_slab(content)
        rows = np.arange(slab.first - 1, slab.first + slices + 1).clip(0, depth - 1)
        assert np.array_equal(slab.plain, plain[rows])  # edges repeat the edge slice
        assert np.array_equal(slab.contrast, contrast[rows])
        assert np.array_equal(slab.labels, labels[slab.first : slab.first + slices])
        assert slab.spacing == (2.5, 1, 1) and slab.phase == "arterial"


def test_the_same_volume_gives_the_same_bytes():
    plain = np.arange(600, dtype=np.int16).reshape(6, 10, 10)
    one, two = (
        write_slabs("n", "p", "q", (1, 1, 1), plain, None, None, phase="arterial", slab=4)
        for _ in range(2)
    )
    assert one == two
    assert read_slab(one[0][2]).contrast is None


def test_a_foreign_file_is_refused():
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), sink)
    with pytest.raises(ValueError, match="expected codec dx-planes-zstd1, found none"):
        read_slab(sink.getvalue())
