"""Writing weight files: byte for byte what the original Caffe wrote, and readable by protobuf and HDF5 themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from golden_cases import load

from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.schema import caffe_pb2, saving
from fcnproto.schema.definition import net_definition
from fcnproto.schema.saving import write_caffemodel, write_hdf5_weights
from fcnproto.schema.weights import open_weights

Array = np.ndarray[Any, Any]
MODELS = [
    ("formats", "caffemodel_v1", "resaved.caffemodel"),
    ("formats", "caffemodel_double_data", "resaved.caffemodel"),
    ("snapshots", "sgd_binary", "snap_iter_3.caffemodel"),
    ("snapshots", "adam_binary", "snap_iter_3.caffemodel"),
]


def _net(*names: str) -> caffe_pb2.NetParameter:
    net = caffe_pb2.NetParameter(name="net")
    for name in names:
        net.layer.add(name=name, type="Convolution", phase=caffe_pb2.TEST, bottom=["x"], top=["y"])
    return net


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("group", "case", "file"), MODELS)
def test_byte_for_byte_as_caffe(tmp_path: Path, group: str, case: str, file: str) -> None:
    path = load(group, case).folder / file
    with open_weights(path) as weights:
        blobs = [[blob.array() for blob in stored.blobs if blob] for stored in weights.layers]
    write_caffemodel(tmp_path / "out.caffemodel", net_definition(path), blobs)
    assert (tmp_path / "out.caffemodel").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("case", "file"), [("formats/caffemodel_v1", "resaved.h5"), ("snapshots/adam_hdf5", "")])
def test_hdf5_has_caffes_layout(tmp_path: Path, case: str, file: str) -> None:
    folder = load(*case.split("/")).folder
    path = folder / file if file else next(folder.glob("*.caffemodel.h5"))
    with open_weights(path) as weights:
        names = [stored.name for stored in weights.layers]
        blobs = [[blob and blob.array() for blob in stored.blobs] for stored in weights.layers]
    write_hdf5_weights(tmp_path / "out.caffemodel.h5", names, blobs)
    assert _content(tmp_path / "out.caffemodel.h5") == _content(path)


def _content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        found[name] = (
            (item.shape, item.dtype.str, item.chunks, item[()].tobytes()) if isinstance(item, h5py.Dataset) else 0
        )

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def test_protobuf_reads_what_is_written(tmp_path: Path) -> None:
    net = _net("a", "b", "none")
    net.layer[0].convolution_param.num_output = 3
    values = {
        "a": [_random(3, 2), _random(3).astype(np.float64)],
        "b": [np.float32(7), np.zeros((0, 4)), _random(4, 3).T],
    }
    diffs = {"a": [_random(3, 2) * 2, _random(3)]}
    write_caffemodel(tmp_path / "w.caffemodel", net, values, diffs)
    back = caffe_pb2.NetParameter()
    back.ParseFromString((tmp_path / "w.caffemodel").read_bytes())
    a, b, none = back.layer
    assert list(a.blobs[0].shape.dim) == [3, 2] and list(a.blobs[0].data) == values["a"][0].ravel().tolist()
    assert list(a.blobs[0].diff) == diffs["a"][0].ravel().tolist()
    assert list(a.blobs[1].double_data) == values["a"][1].tolist() and not a.blobs[1].data
    assert list(a.blobs[1].double_diff) == diffs["a"][1].astype(np.float64).tolist()
    assert not b.blobs[0].HasField("shape") and list(b.blobs[0].data) == [7]
    assert list(b.blobs[1].shape.dim) == [0, 4] and not b.blobs[1].data and not b.blobs[1].double_data
    assert list(b.blobs[2].data) == values["b"][2].ravel().tolist()
    assert not none.blobs
    for layer in back.layer:
        layer.ClearField("blobs")
    assert back == net
    with open_weights(tmp_path / "w.caffemodel") as weights:
        for stored in weights.layers[:2]:
            for blob, value in zip(stored.blobs, values[stored.name], strict=True):
                assert blob is not None and blob.matches(np.shape(value))
                np.testing.assert_array_equal(blob.array(), value)


def test_half_precision_is_stored_as_float32(tmp_path: Path) -> None:
    write_caffemodel(tmp_path / "w.caffemodel", _net("a"), [[np.array([1.5, 2], np.float16)]])
    with open_weights(tmp_path / "w.caffemodel") as weights:
        blob = weights.layers[0].blobs[0]
        assert blob is not None and blob.dtype == np.float32 and blob.array().tolist() == [1.5, 2]


def test_layers_of_one_name_keep_their_own_blobs(tmp_path: Path) -> None:
    write_caffemodel(tmp_path / "w.caffemodel", _net("a", "a"), [[_random(2)], [_random(3)]])
    with open_weights(tmp_path / "w.caffemodel") as weights:
        assert [stored.blobs[0] and stored.blobs[0].shape for stored in weights.layers] == [(2,), (3,)]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    with pytest.raises(ValueError, match='blobs for the layer "b"'):
        write_caffemodel(path, _net("a"), {"b": [_random(1)]})
    with pytest.raises(ValueError, match="blobs for 2 layers, but the net has 1"):
        write_caffemodel(path, _net("a"), [[], []])
    with pytest.raises(ValueError, match="its diff"):
        write_caffemodel(path, _net("a"), [[_random(2)]], [[_random(3)]])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(b"old")
    with pytest.raises(ValueError):
        write_caffemodel(path, _net("a", "b"), [[_random(2)], [["text"]]])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_more_than_caffe_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CAFFE_LIMIT", 100)
    with pytest.warns(FcnprotoWarning, match="more than Caffe can read"):
        write_caffemodel(tmp_path / "w.caffemodel", _net("a"), [[_random(30)]])


def test_hdf5_of_shared_blobs_and_diffs(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    value, bias = _random(2, 3), _random(2).astype(np.float64)
    write_hdf5_weights(path, ["a", "b", "c"], [[value, bias], [None, bias], []], [[value, bias], [value, bias], []])
    with h5py.File(path, "r") as file:
        assert sorted(file) == ["data", "diff"] and sorted(file["data"]) == ["a", "b", "c"]
        assert sorted(file["data/b"]) == ["1"] and sorted(file["diff/b"]) == ["0", "1"] and len(file["diff/c"]) == 0
        assert file["data/a/0"].dtype == np.float32 and file["data/a/1"].dtype == np.float64
        np.testing.assert_array_equal(file["data/a/0"][()], value)
    with open_weights(path) as weights:
        assert weights.layers[1].blobs[0] is None


@pytest.mark.parametrize("names", [["a/b"], [""], ["."], ["a", "a"]])
def test_names_that_hdf5_cannot_hold(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(WeightsError, match=r"can't be saved in HDF5.*save it as binary"):
        write_hdf5_weights(tmp_path / "w.h5", names, [[] for _ in names])
    assert list(tmp_path.iterdir()) == []
