"""The net definition inside a caffemodel."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_cases import load
from wire_bytes import field, floats, layer, shape, tag, traced_memory

from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.definition import net_definition


@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
@pytest.mark.parametrize("name", ["caffemodel_v0", "caffemodel_v1", "caffemodel_v2_legacy_shape"])
def test_as_caffe_upgrades_it(name: str) -> None:
    folder = load("formats", name).folder
    expected = caffe_pb2.NetParameter()
    expected.ParseFromString((folder / "upgraded.caffemodel").read_bytes())
    for entry in expected.layer:
        entry.ClearField("blobs")
    assert net_definition(folder / "weights.caffemodel") == expected


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(layer(shape(1_000_000) + field(5, bytes(4_000_000))))
    with traced_memory() as peak:
        net = net_definition(path)
        assert peak() < 500_000
    assert [(entry.name, entry.type, len(entry.blobs)) for entry in net.layer] == [("conv", "Convolution", 0)]


def test_fields_of_forks_are_told_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    own = field(100, field(1, "a") + field(2, "ReLU") + field(8266711, "mine") + tag(900, 3) + tag(900, 4))
    path.write_bytes(own + field(777, 3))
    with pytest.warns(FcnprotoWarning, match=r"numbers 777, 900, 8266711"):
        net = net_definition(path)
    assert net == caffe_pb2.NetParameter(layer=[caffe_pb2.LayerParameter(name="a", type="ReLU")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (field(1, "name"), "there is no layer in it"),
        (field(100, field(1, b"\xff\xfe")), "is damaged"),
        (field(100, field(106, b"\x0a")), "is damaged"),
        (field(100, field(148, field(1, 0))), "lacks"),
        (field(100, field(106, b"")) + field(1, bytes(65 << 20)), "absurdly large"),
        (layer(shape(1) + field(5, floats([1])))[:-3], "cut off"),
    ],
)
def test_errors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        net_definition(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_hdf5_has_none() -> None:
    with pytest.raises(WeightsError, match="carry no net definition"):
        net_definition(load("formats", "caffemodel_v1").folder / "resaved.h5")
