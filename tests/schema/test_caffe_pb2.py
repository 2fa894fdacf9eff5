"""The schema itself: generated code that is current, and the numbers, types and defaults of Caffe's fields."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import FIRST_ADDED, fields_of, suggestion
from fcnproto.schema.text import format_message, parse
from fcnproto.schema.upgrade import upgrade_net

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [value for value in vars(caffe_pb2).values() if isinstance(value, type) and issubclass(value, Message)]


def test_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools, which has the protoc, is not installed")
    (tmp_path / "fcnproto" / "schema").mkdir(parents=True)
    subprocess.run([sys.executable, "protos/make.py", str(tmp_path)], cwd=ROOT, check=True)
    made = (tmp_path / "fcnproto" / "schema" / "caffe_pb2.py").read_text()
    assert made == (ROOT / "fcnproto" / "schema" / "caffe_pb2.py").read_text(), "run `make proto`"


def test_lives_beside_an_installed_caffe() -> None:
    assert caffe_pb2.DESCRIPTOR.package == "fcnproto"
    assert caffe_pb2.DESCRIPTOR.name == "fcnproto/schema/caffe.proto"


def test_needs_no_torch() -> None:
    code = "import sys, fcnproto.schema.text, fcnproto.schema.weights, fcnproto.schema.saving, fcnproto.schema.state"
    code += ", fcnproto.schema.definition; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("message", "name", "number", "kind", "default"),
    [
        ("NetParameter", "layers", 2, "message", None),
        ("NetParameter", "input_shape", 8, "message", None),
        ("NetParameter", "layer", 100, "message", None),
        ("BlobProto", "data", 5, "float", None),
        ("BlobProto", "shape", 7, "message", None),
        ("BlobProto", "double_diff", 9, "double", None),
        ("BlobShape", "dim", 1, "int64", None),
        ("Datum", "float_data", 6, "float", None),
        ("Datum", "encoded", 7, "bool", False),
        ("LayerParameter", "phase", 10, "enum", 0),
        ("LayerParameter", "propagate_down", 11, "bool", None),
        ("LayerParameter", "transform_param", 100, "message", None),
        ("LayerParameter", "softmax_param", 125, "message", None),
        ("LayerParameter", "python_param", 130, "message", None),
        ("LayerParameter", "recurrent_param", 146, "message", None),
        ("LayerParameter", "clip_param", 148, "message", None),
        ("FillerParameter", "type", 1, "string", "constant"),
        ("FillerParameter", "std", 6, "float", 1.0),
        ("FillerParameter", "sparse", 7, "int32", -1),
        ("NetState", "phase", 1, "enum", 1),
        ("LossParameter", "normalization", 3, "enum", 1),
        ("ParamSpec", "lr_mult", 3, "float", 1.0),
        ("SolverParameter", "solver_mode", 17, "enum", 1),
        ("SolverParameter", "random_seed", 20, "int64", -1),
        ("SolverParameter", "regularization_type", 29, "string", "L2"),
        ("SolverParameter", "clip_gradients", 35, "float", -1.0),
        ("SolverParameter", "snapshot_format", 37, "enum", 1),
        ("SolverParameter", "type", 40, "string", "SGD"),
        ("SolverParameter", "weights", 42, "string", None),
        ("SolverState", "current_step", 4, "int32", 0),
        ("TransformationParameter", "crop_size", 3, "uint32", 0),
        ("V1LayerParameter", "blob_share_mode", 1002, "enum", None),
        ("V0LayerParameter", "blobs", 50, "message", None),
        ("V0LayerParameter", "det_crop_mode", 59, "string", "warp"),
        ("V0LayerParameter", "concat_dim", 65, "uint32", 1),
    ],
)
def test_fields_of_caffe(message: str, name: str, number: int, kind: str, default: Any) -> None:
    message_class = getattr(caffe_pb2, message)
    field = fields_of(message_class.DESCRIPTOR).by_name[name]
    assert (field.number, field.kind) == (number, kind)
    assert field.repeated is (
        default is None and (kind != "message" or name in ("layers", "layer", "input_shape", "blobs"))
    )
    if default is not None:
        assert getattr(message_class(), name) == default and not message_class().HasField(name)


def test_only_clip_requires_anything() -> None:
    required = {message.DESCRIPTOR.name: fields_of(message.DESCRIPTOR).required for message in MESSAGES}
    assert {name: fields for name, fields in required.items() if fields} == {"ClipParameter": ("min", "max")}
    assert len(required) >= 60


def test_only_arrays_are_packed() -> None:
    packed = {
        f"{message.DESCRIPTOR.name}.{field.name}"
        for message in MESSAGES
        for field in message.DESCRIPTOR.fields
        if field.GetOptions().packed
    }
    assert packed == {
        "BlobShape.dim",
        *(f"BlobProto.{name}" for name in ("data", "diff", "double_data", "double_diff")),
    }


def test_suggestions() -> None:
    names = ["convolution_param", "pooling_param", "TEST", "conv"]
    assert suggestion("convolution_parm", names) == '; did you mean "convolution_param"?'
    assert suggestion("test", names) == '; did you mean "TEST"?'
    assert suggestion("pooling", names) == '; did you mean "pooling_param"?'
    assert suggestion("xyz", names) == "" and suggestion("", names) == ""


def test_additions_of_forks_have_private_numbers() -> None:
    """So that no binary file of Caffe's own, nor of a fork, is misread for one of them."""
    for name in ("LayerParameter", "V1LayerParameter", "PoolingParameter", "ConvolutionParameter", "LossParameter"):
        numbers = sorted(fields_of(getattr(caffe_pb2, name).DESCRIPTOR).by_number)
        assert not [number for number in numbers if 1002 < number < FIRST_ADDED] and numbers[-1] >= FIRST_ADDED


def test_additions_read_and_write_like_caffes_own_fields() -> None:
    text = 'layer { name: "p" type: "PriorBox" prior_box_param { min_size: 3 flip: false } }'
    net = parse(text, caffe_pb2.NetParameter)
    assert list(net.layer[0].prior_box_param.min_size) == [3] and not net.layer[0].prior_box_param.flip
    assert parse(format_message(net), caffe_pb2.NetParameter) == net
    assert caffe_pb2.NetParameter.FromString(net.SerializeToString()) == net
    pooling = parse("pool: AVE_EXC_PAD ceil_mode: false", caffe_pb2.PoolingParameter)
    assert format_message(pooling) == "pool: AVE_EXC_PAD\nceil_mode: false\n"


def test_a_crop_of_the_old_format_is_a_crop() -> None:
    net = parse('layers { name: "c" type: CROP bottom: "a" bottom: "b" top: "c" }', caffe_pb2.NetParameter)
    upgrade_net(net)
    assert net.layer[0].type == "Crop"
