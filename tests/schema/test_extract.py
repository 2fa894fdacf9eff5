"""Definitions taken out of caffemodels load again, with what the original Caffe had added gone."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from golden_cases import group_folder

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import UsageError, WeightsError
from fcnproto.net.weights import definition
from fcnproto.schema import caffe_pb2
from fcnproto.schema.definition import net_definition
from fcnproto.schema.extract import loadable
from fcnproto.schema.text import parse, write_message
from fcnproto.schema.weights import open_weights
from fcnproto.schema.wire import LENGTH, VARINT, encode_tag, encode_varint


def net_of(text: str) -> caffe_pb2.NetParameter:
    return parse(text, caffe_pb2.NetParameter)


STORED = """
name: "n"
layer { name: "data" type: "Data" top: "data" top: "label" phase: TRAIN include { phase: TRAIN } }
layer { name: "data_data_0_split" type: "Split" bottom: "data" top: "data_data_0_split_0" top: "data_data_0_split_1"
  phase: TRAIN }
layer { name: "ip" type: "InnerProduct" bottom: "data_data_0_split_0" top: "ip" phase: TRAIN
  blobs { shape { dim: 2 } data: 1 data: 2 } inner_product_param { num_output: 2 } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" phase: TEST }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" phase: TRAIN }
layer { name: "loss_loss_0_split" type: "Split" bottom: "loss" top: "loss_loss_0_split_0" top: "loss_loss_0_split_1"
  loss_weight: 0.5 loss_weight: 0 phase: TRAIN }
layer { name: "log" type: "Power" bottom: "loss_loss_0_split_1" top: "log" phase: TRAIN }
layer { name: "out" type: "Power" bottom: "data_data_0_split_1" top: "out" phase: TRAIN }
"""


def test_what_the_built_net_added_is_gone() -> None:
    net, unknown = loadable(net_of(STORED))
    expected = net_of("""
    name: "n"
    layer { name: "data" type: "Data" top: "data" top: "label" }
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
    layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" phase: TEST }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" loss_weight: 0.5 }
    layer { name: "log" type: "Power" bottom: "loss" top: "log" }
    layer { name: "out" type: "Power" bottom: "data" top: "out" }
    """)
    assert net == expected
    assert unknown == []


def test_splits_of_ones_own_stay() -> None:
    text = 'layer { name: "s" type: "Split" bottom: "x" top: "a" top: "b" }'
    net, _ = loadable(net_of(f'layer {{ name: "x" type: "Input" top: "x" }} {text}'))
    assert [layer.type for layer in net.layer] == ["Input", "Split"]


def test_data_layers_become_inputs() -> None:
    net, unknown = loadable(net_of(STORED), {"data": (1, 3, 4, 4)})
    assert [(layer.type, list(layer.top)) for layer in net.layer[:2]] == [("Input", ["data"]), ("Input", ["label"])]
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 3, 4, 4]
    assert unknown == ["label"]
    net, unknown = loadable(net_of(STORED), {"data": (1, 3, 4, 4), "label": (1,)})
    assert unknown == []
    assert fcnproto.load(net).inputs == ["data", "label"]


def test_inputs_that_old_files_do_not_keep() -> None:
    text = 'layer { name: "p" type: "Power" bottom: "x" top: "y" }'
    net, unknown = loadable(net_of(text))
    assert unknown == ["x"]
    net, unknown = loadable(net_of(text), {"x": (1, 2)})
    assert unknown == []
    assert fcnproto.load(net).source_shapes == {"x": (1, 2)}
    with pytest.raises(UsageError, match="'z' is no input"):
        loadable(net_of(text), {"z": (1, 2)})


def test_files_of_the_original_caffe() -> None:
    """Every snapshot it wrote loads from its own definition, and building it adds the same layers again."""
    files = sorted(path for group in ("snapshots", "formats") for path in group_folder(group).rglob("*.caffemodel"))
    loaded = 0
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fcnproto.FcnprotoWarning)
            stored = net_definition(file)
            if not all(layer.HasField("phase") for layer in stored.layer):
                continue  # written by hand, not by Caffe
            net = fcnproto.load(loadable(stored)[0], file, phase=stored.layer[0].phase)
        again = definition(net)
        assert [(layer.name, list(layer.bottom), list(layer.top)) for layer in again.layer] == [
            (layer.name, list(layer.bottom), list(layer.top)) for layer in stored.layer
        ], file
        loaded += 1
    assert loaded >= 5


def old_layer(name: str, number: int, bottoms: list[str], top: str) -> bytes:
    """A V1 layer with a type number that the schema's enum need not have."""
    body = caffe_pb2.V1LayerParameter(name=name, bottom=bottoms, top=[top]).SerializeToString()
    body += encode_tag(5, VARINT) + encode_varint(number)
    return encode_tag(2, LENGTH) + encode_varint(len(body)) + body


def test_old_types_that_caffe_never_had(tmp_path: Path) -> None:
    path = tmp_path / "v1.caffemodel"
    path.write_bytes(old_layer("conv", 4, ["data"], "up") + old_layer("score", 40, ["up", "data"], "score"))
    assert [layer.type for layer in net_definition(path).layer] == ["Convolution", "Crop"]
    with open_weights(path) as stored:
        assert [layer.type for layer in stored.layers] == ["Convolution", "Crop"]
    path.write_bytes(old_layer("conv", 4, ["data"], "up") + old_layer("mine", 4711, ["up"], "y"))
    with pytest.raises(WeightsError, match=r"v1\.caffemodel: .* no known type \(numbers 4711\) for layer 'mine'"):
        net_definition(path)
    out = tmp_path / "out.prototxt"
    assert main(["extract", str(path), "-o", str(out)]) == 1
    assert not out.exists()


EXTRACTED = """
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "b" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "s" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "p" top: "ip" inner_product_param { num_output: 5 } }
layer { name: "r" type: "PReLU" bottom: "ip" top: "ip" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip" top: "ip2" inner_product_param { num_output: 2 } }
"""
INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 5 dim: 12 dim: 10 } } }'
LMDB = (
    'layer { name: "d" type: "Data" top: "data" top: "label" '
    'data_param { source: "none" batch_size: 2 backend: LMDB } }'
)
LOSS = 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "l" }'


@pytest.mark.parametrize("head", [INPUT, LMDB], ids=["input", "database"])
def test_what_is_extracted_loads_with_its_own_weights(tmp_path: Path, head: str) -> None:
    (tmp_path / "net.prototxt").write_text(head + EXTRACTED + (LOSS if head is LMDB else ""))
    net = fcnproto.load(tmp_path / "net.prototxt", shapes={"data": (2, 5, 12, 10)})
    for tensor in (blob for blobs in net.params.values() for blob in blobs):
        with torch.no_grad():
            tensor.copy_(torch.linspace(0.1, 1, tensor.numel()).reshape(tensor.shape))
    net.save(tmp_path / "w.caffemodel")
    if head is INPUT:  # old files don't keep their inputs
        stored = caffe_pb2.NetParameter.FromString((tmp_path / "w.caffemodel").read_bytes())
        kept = caffe_pb2.NetParameter(layer=stored.layer[1:])
        (tmp_path / "w.caffemodel").write_bytes(kept.SerializeToString())
    definition, _ = loadable(net_definition(tmp_path / "w.caffemodel"))
    write_message(tmp_path / "again.prototxt", definition)
    again = fcnproto.load(tmp_path / "again.prototxt", tmp_path / "w.caffemodel")
    assert not again.unknown
    image = torch.rand(2, 5, 12, 10)
    assert torch.equal(again(data=image, blobs=["ip2"])["ip2"], net(data=image, blobs=["ip2"])["ip2"])
