"""Reading weight files: every way in which Caffe and its forks have stored blobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from golden_cases import SHARED, load
from wire_bytes import field, floats, layer, shape, tag, traced_memory, unpacked, varint

from fcnproto.errors import WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.blobs import StoredBlob
from fcnproto.schema.weights import open_weights, read_blob, write_blob

VALUES = [1.5, -2.0, 0.25, 3.0, 2.0**-30, 7.0]
DATA = field(5, floats(VALUES))


def _write(tmp_path: Path, content: bytes, name: str = "net.caffemodel") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def _arrays(path: Path) -> dict[str, list[np.ndarray[Any, Any] | None]]:
    with open_weights(path) as weights:
        return {layer.name: [blob and blob.array() for blob in layer.blobs] for layer in weights.layers}


def _blob(tmp_path: Path, content: bytes) -> tuple[StoredBlob, Any]:
    """The single blob of a file, with the open file that it must not outlive."""
    weights = open_weights(_write(tmp_path, layer(content)))
    (found,) = weights.layers[0].blobs
    assert found is not None
    return found, weights


FORMATS = [
    "caffemodel_double_data",
    "caffemodel_extra_layer_and_diff",
    "caffemodel_missing_layer",
    "caffemodel_v0",
    "caffemodel_v1",
    "caffemodel_v1_input_only",
    "caffemodel_v2_legacy_shape",
]


@pytest.mark.parametrize("file", ["weights.caffemodel", "resaved.caffemodel", "resaved.h5"])
@pytest.mark.parametrize("name", FORMATS)
def test_caffes_files(name: str, file: str) -> None:
    case = load("formats", name)
    expected = case.keys("param")
    seen = 0
    with open_weights(case.folder / file) as weights:
        assert weights.kind == ("hdf5" if file.endswith(".h5") else "binary")
        for stored in weights.layers:
            for index, blob in enumerate(stored.blobs):
                value = expected.get(f"{stored.name}.{index}")
                if value is None:
                    assert stored.name == "not_in_net"
                    continue
                assert blob is not None and blob.matches(value.shape)
                target = np.full(value.shape, np.nan, np.float32)
                blob.read_into(target)
                np.testing.assert_array_equal(target, value)
                seen += 1
    assert seen == (2 if "missing" in name and file == "weights.caffemodel" else 4)


def test_types_in_all_formats() -> None:
    for name in FORMATS:
        with open_weights(load("formats", name).folder / "weights.caffemodel") as weights:
            assert (weights.layers[0].name, weights.layers[0].type) == ("conv", "Convolution"), name


@pytest.mark.parametrize(
    "content",
    [
        shape(2, 3) + DATA,
        DATA + shape(2, 3),
        shape(2, 3) + unpacked(5, VALUES),
        shape(2, 3)
        + field(5, floats(VALUES[:2]))
        + unpacked(5, VALUES[2:3])
        + field(5, b"")
        + field(5, floats(VALUES[3:])),
        field(6, floats([9] * 6)) + shape(2, 3) + DATA + unpacked(6, [9] * 6) + field(9, floats([9] * 6, "d")),
        shape(2, 3) + field(8, floats(VALUES, "d")) + field(5, floats([9] * 6)),
        shape(2, 3) + unpacked(8, VALUES, "d"),
        field(7, field(1, 2)) + DATA + field(7, field(1, 3)),
        field(7, field(1, 2) + field(1, 3) + field(2, "x")) + DATA,
        # Unknown fields of every wire type, groups within groups among them, and tags longer than they need be.
        field(99, 5)
        + field(99, "text")
        + (tag(98, 5) + bytes(4))
        + (tag(98, 1) + bytes(8))
        + (tag(97, 3) + field(1, 1) + tag(96, 3) + field(2, "x") + tag(96, 4) + tag(97, 4))
        + shape(2, 3)
        + b"".join(b"\xad\x00" + floats([value]) for value in VALUES),
    ],
    ids=[
        "usual",
        "shape_last",
        "unpacked",
        "chunks",
        "diffs",
        "doubles_first",
        "unpacked_doubles",
        "split_shape",
        "dims",
        "unknown",
    ],
)
def test_layouts_of_one_blob(tmp_path: Path, content: bytes) -> None:
    blob, weights = _blob(tmp_path, content)
    with weights:
        assert blob.shape == (2, 3) and not blob.legacy
        expected = np.array(VALUES).reshape(2, 3)
        np.testing.assert_array_equal(blob.array(), expected.astype(blob.dtype))
        for dtype in (np.float32, np.float64, np.float16):
            target = np.empty(6, dtype)
            blob.read_into(target)
            np.testing.assert_array_equal(target, expected.ravel().astype(np.float32).astype(dtype))


def test_long_runs_of_unpacked_floats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(700_000).astype(np.float32)
    records = np.zeros(values.size, np.dtype([("tag", "u1"), ("value", "<f4")]))
    records["tag"], records["value"] = 0x2D, values
    blob, weights = _blob(tmp_path, records.tobytes() + shape(values.size) + unpacked(6, [1.0] * 1000))
    with weights:
        np.testing.assert_array_equal(blob.array(), values)


@pytest.mark.parametrize(
    ("stored", "wanted", "fits"),
    [
        (field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3), (2, 3), True),
        (field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3), (1, 1, 2, 3), True),
        (field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3), (1, 2, 3), True),
        (field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3), (3, 2), False),
        (field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3), (1, 1, 1, 2, 3), False),
        (field(1, 1) + field(2, 1) + field(3, 1) + field(4, 6), (6,), True),
        (field(1, 2) + field(2, 3) + field(3, 1) + field(4, 1), (2, 3), False),
        (field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3) + shape(9, 9), (2, 3), True),
        (shape(1, 1, 2, 3), (2, 3), False),
        (shape(2, 3), (2, 3), True),
        (shape(2, 3), (1, 1, 2, 3), False),
        (b"", (), True),
    ],
)
def test_shape_rule(tmp_path: Path, stored: bytes, wanted: Sequence[int], fits: bool) -> None:
    blob, weights = _blob(tmp_path, stored + DATA)
    with weights:
        assert blob.matches(wanted) is fits


def test_scalars_and_empty_blobs(tmp_path: Path) -> None:
    path = _write(tmp_path, layer(field(5, floats([4.5])), shape(0, 3), shape(1) + field(5, floats([1]))))
    scalar, empty, one = _arrays(path)["conv"]
    assert scalar is not None and scalar.shape == () and scalar == 4.5
    assert empty is not None and empty.shape == (0, 3)
    assert one is not None and one.tolist() == [1]


def test_old_formats_by_hand(tmp_path: Path) -> None:
    old = field(1, 1) + field(2, 1) + field(3, 2) + field(4, 3) + DATA
    v1 = field(2, field(6, old) + field(4, "one") + field(5, 4))
    v0 = field(2, field(1, field(1, "zero") + field(50, old)) + field(1, field(2, "innerproduct")) + field(6, b""))
    with open_weights(_write(tmp_path, field(1, "net") + v1 + v0)) as weights:
        assert [(stored.name, stored.type) for stored in weights.layers] == [
            ("one", "Convolution"),
            ("zero", "InnerProduct"),
        ]
        for stored in weights.layers:
            (blob,) = stored.blobs
            assert blob is not None and blob.legacy and blob.matches((2, 3))
            assert blob.array().ravel().tolist() == [np.float32(value) for value in VALUES]


def test_wrong_targets(tmp_path: Path) -> None:
    blob, weights = _blob(tmp_path, shape(2, 3) + DATA)
    with weights:
        with pytest.raises(ValueError, match="has 6 values"):
            blob.read_into(np.empty(5, np.float32))
        with pytest.raises(ValueError, match="C-contiguous"):
            blob.read_into(np.empty((2, 6), np.float32)[:, ::2])
        with pytest.raises(ValueError, match="float type"):
            blob.read_into(np.empty(6, np.int32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (shape(2, 4) + DATA, "shape 2 x 4, so 8 values, but 6 are stored"),
        (shape(2, 3), "so 6 values, but 0 are stored"),
        (DATA, "so 1 values, but 6 are stored"),
        (shape(-2, -3) + DATA, "impossible shape"),
        (field(1, -1) + DATA, "impossible shape"),
        (shape(2, 3) + field(12, bytes(24)), "Caffe does not know: 12"),
        (shape(1 << 40, 1 << 40), "but 0 are stored"),
    ],
)
def test_contradictions_are_told_when_the_blob_is_read(tmp_path: Path, content: bytes, words: str) -> None:
    blob, weights = _blob(tmp_path, content)
    with weights:
        for read in (blob.array, lambda: blob.read_into(np.empty(6, np.float32))):
            with pytest.raises(WeightsError) as caught:
                read()
            assert words in str(caught.value) and "net.caffemodel: blob 0 of layer" in str(caught.value)


def test_files_beyond_two_gibibytes(tmp_path: Path) -> None:
    """A sparse file: 600 million floats that are all zero but the last ones."""
    count, path = 600_000_000, tmp_path / "big.caffemodel"
    small = layer(shape(6) + DATA, name="small")
    blob = tag(5, 2) + varint(4 * count)
    content_size = len(blob) + 4 * count + len(shape(count))
    inner = field(1, "big") + tag(7, 2) + varint(content_size) + blob
    with path.open("wb") as file:
        file.write(tag(100, 2) + varint(len(inner) + 4 * count + len(shape(count))) + inner)
        file.seek(4 * count - 8, 1)
        file.write(floats([1.0, 2.0]) + shape(count) + small)
    with traced_memory() as peak, open_weights(path) as weights:
        big, last = (stored.blobs[0] for stored in weights.layers)
        assert big is not None and big.shape == (count,) and last is not None
        assert last.array().tolist() == [np.float32(value) for value in VALUES]
        big.check()
        assert peak() < 5_000_000


def test_reading_makes_no_second_copy(tmp_path: Path) -> None:
    values = np.random.default_rng(1).random(2_000_000, dtype=np.float32)
    blob, weights = _blob(tmp_path, shape(values.size) + field(5, values.tobytes()))
    target = np.empty_like(values)
    with weights, traced_memory() as peak:
        blob.read_into(target)
        assert peak() < 200_000
    np.testing.assert_array_equal(target, values)


def test_hdf5_layers(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        file["data/a/0"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file["data/a/1"] = np.float32(2.5)
        file["data/shared/1"] = np.arange(3, dtype=np.float64)
        file.create_dataset("data/a/2", data=np.zeros((5, 5), np.float32), compression="gzip")
        file.create_group("data/none")
    with open_weights(path) as weights:
        assert weights.kind == "hdf5"
        layers = {stored.name: stored.blobs for stored in weights.layers}
        assert layers["none"] == [] and layers["shared"][0] is None
        assert [blob and blob.shape for blob in layers["a"]] == [(2, 3), (), (5, 5)]
        first, scalar, _ = layers["a"]
        assert first is not None and first.matches((2, 3)) and not first.matches((1, 1, 2, 3))
        assert first.array().tolist() == [[0, 1, 2], [3, 4, 5]]
        assert scalar is not None and scalar.array() == 2.5
        target = np.empty(3, np.float32)
        assert layers["shared"][1] is not None
        layers["shared"][1].read_into(target)
        assert target.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["lenet", "mtcnn-onet", "mtcnn-pnet", "mtcnn-rnet"])
def test_published_models(name: str) -> None:
    path = SHARED / "golden" / "realmodels" / name / "net.caffemodel"
    if not path.exists():
        pytest.skip("the published models (../shared/golden/realmodels) are not here")
    reference = caffe_pb2.NetParameter()
    reference.ParseFromString(path.read_bytes())
    layers = list(reference.layer) or list(reference.layers)
    with open_weights(path) as weights:
        assert [stored.name for stored in weights.layers] == [entry.name for entry in layers]
        for stored, entry in zip(weights.layers, layers, strict=True):
            assert len(stored.blobs) == len(entry.blobs)
            for blob, message in zip(stored.blobs, entry.blobs, strict=True):
                assert blob is not None
                np.testing.assert_array_equal(blob.array().ravel(), np.array(message.data, np.float32))


@pytest.mark.parametrize("extents", [(), (4,), (2, 3), (3, 4, 5), (1, 3, 4, 5), (2, 1, 3, 2, 2)])
def test_blob_files(tmp_path: Path, extents: tuple[int, ...]) -> None:
    values = np.random.default_rng(2).random(extents).astype(np.float32)
    write_blob(tmp_path / "mean.binaryproto", values)
    back = read_blob(tmp_path / "mean.binaryproto")
    assert back.shape == ((1, *extents) if len(extents) == 3 else extents) and back.dtype == np.float32
    np.testing.assert_array_equal(back.reshape(extents), values)
    message = caffe_pb2.BlobProto()
    message.ParseFromString((tmp_path / "mean.binaryproto").read_bytes())
    assert list(message.data) == values.ravel().tolist()
    assert message.HasField("num") is (len(extents) in (3, 4))


def test_caffes_mean_file() -> None:
    case = load("layers", "data_lmdb_mean_file_crop")
    mean = read_blob(next(case.folder.glob("*.binaryproto")))
    assert mean.shape == (1, 3, 9, 6) and np.isfinite(mean).all()


def _c3d_blob(extents: Sequence[int], values: np.ndarray[Any, Any]) -> bytes:
    """A blob as C3D 1.0 writes it: five extents, data under 6, diff under 7."""
    numbered = b"".join(field(number, int(extent)) for number, extent in enumerate(extents, start=1))
    return numbered + field(6, values.astype("<f4").tobytes()) + field(7, np.full(values.size, 9, "<f4").tobytes())


def test_blobs_of_c3d(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32)
    content = _c3d_blob((2, 3, 4, 5, 6), values)
    net = b"".join(
        field(2, field(4, name) + field(6, blob))
        for name, blob in (
            ("c", content),
            ("ip", _c3d_blob((1, 1, 1, 4, 6), values[:24])),
            ("image", _c3d_blob((2, 3, 1, 2, 2), values[:24])),
        )
    )
    assert _arrays(_write(tmp_path, net))["c"][0].tolist() == values.reshape(2, 3, 4, 5, 6).tolist()  # type: ignore[union-attr]
    with open_weights(tmp_path / "net.caffemodel") as stored:
        blobs = {one.name: one.blobs[0] for one in stored.layers}
        fits = {
            ("c", (2, 3, 4, 5, 6)): True,
            ("c", (2, 3, 20, 6)): False,
            ("ip", (4, 6)): True,
            ("ip", (6, 4)): False,
            ("image", (2, 3, 2, 2)): True,
        }
        assert {key: blobs[key[0]].matches(key[1]) for key in fits} == fits  # type: ignore[union-attr]
    (tmp_path / "mean.binaryproto").write_bytes(content)
    assert read_blob(tmp_path / "mean.binaryproto").shape == (2, 3, 4, 5, 6)
