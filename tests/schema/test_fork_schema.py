"""A fork's own caffe.proto, for fields and numbers that the package's schema doesn't have."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from wire_bytes import field

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning, PrototxtError, WeightsError
from fcnproto.schema.definition import net_definition
from fcnproto.schema.text import format_message

# As forks have it: their own layer, a field in a message of Caffe's, an enum of V1 types, a number of Caffe's for it.
PROTO = """
syntax = "proto2";
package caffe;
message BlobProto { repeated float data = 5 [packed = true]; }
message NetParameter {
  optional string name = 1;
  repeated V1LayerParameter layers = 2;
  repeated LayerParameter layer = 100;
}
message LayerParameter {
  optional string name = 1;
  optional string type = 2;
  repeated string bottom = 3;
  repeated string top = 4;
  repeated BlobProto blobs = 7;
  optional ConvolutionParameter convolution_param = 106;
  optional WarpParameter warp_param = 143;
}
message V1LayerParameter {
  enum LayerType { NONE = 0; CONVOLUTION = 4; WARP = 77; }
  optional string name = 4;
  optional LayerType type = 5;
  optional WarpParameter warp_param = 99;
}
message ConvolutionParameter { optional uint32 num_output = 1; optional bool mirrored = 60; }
message WarpParameter {
  enum Kind { FLAT = 0; ROUND = 3; }
  optional float by = 1 [default = 2];
  optional Kind kind = 2;
}
"""
DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }\n'
NET = DATA + (
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
    "convolution_param { num_output: 2 kernel_size: 1 mirrored: true } }\n"
)


@pytest.fixture
def proto(tmp_path: Path) -> Path:
    (tmp_path / "caffe.proto").write_text(PROTO)
    return tmp_path / "caffe.proto"


def test_binary_definitions_by_the_forks_own_numbers(tmp_path: Path, proto: Path) -> None:
    warp = field(1, "w") + field(2, "Warp") + field(7, field(5, bytes(8))) + field(143, field(2, 3))
    convolution = field(1, "c") + field(2, "Convolution") + field(106, field(1, 4) + field(60, 1))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(field(1, "n") + field(100, warp) + field(100, convolution))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = net_definition(path, proto)
    assert " ".join(format_message(net).split()) == (
        'name: "n" layer { name: "w" type: "Warp" warp_param { kind: ROUND } } '
        'layer { name: "c" type: "Convolution" convolution_param { num_output: 4 mirrored: true } }'
    )
    assert main(["extract", str(path), "--caffe-proto", str(proto), "-o", str(tmp_path / "out.prototxt")]) == 0
    assert "kind: ROUND" in (tmp_path / "out.prototxt").read_text()
    path.write_bytes(field(2, field(4, "v") + field(5, 77) + field(99, field(2, 0))))
    with pytest.warns(FcnprotoWarning, match="V1 format"):
        net = net_definition(path, proto)
    assert " ".join(format_message(net).split()) == 'layer { name: "v" type: "WARP" warp_param { kind: FLAT } }'
    path.write_bytes(field(100, field(1, "w") + field(143, b"\x0a")))
    with pytest.raises(WeightsError, match=r"doesn't follow .*caffe\.proto"):
        net_definition(path, proto)


def test_texts_whose_fields_the_fork_has(tmp_path: Path, proto: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n.prototxt").write_text(NET)
    with pytest.warns(FcnprotoWarning, match=r"ConvolutionParameter\.mirrored \(in the fork's schema\)"):
        fcnproto.load(tmp_path / "n.prototxt", caffe_proto=proto)
    with pytest.raises(PrototxtError, match="mirrored"):
        fcnproto.load(tmp_path / "n.prototxt", strict=True)
    with pytest.warns(FcnprotoWarning, match="mirrored"):
        fcnproto.load(tmp_path / "n.prototxt", strict=True, caffe_proto=proto)
    assert main(["summary", str(tmp_path / "n.prototxt"), "--strict", "--caffe-proto", str(proto)]) == 0
    assert main(["summary", str(tmp_path / "n.prototxt"), "--strict"]) == 1
    assert 'no field "mirrored"' in capsys.readouterr().err
    (tmp_path / "n.prototxt").write_text(NET.replace("mirrored", "mirored"))
    with pytest.raises(PrototxtError, match=r"n\.prototxt: unknown fields: ConvolutionParameter\.mirored"):
        fcnproto.load(tmp_path / "n.prototxt", strict=True, caffe_proto=proto)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("message Net {}", "has no message NetParameter"),
        ("message NetParameter { optional Nothing a = 1; }", 'field "a" has the type Nothing'),
        ("message NetParameter { optional int32 a = 1; optional int32 b = 1; }", "caffe.proto"),
        ("message NetParameter {", "caffe.proto"),
    ],
)
def test_schemas_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "caffe.proto").write_text(text)
    (tmp_path / "n.prototxt").write_text(DATA)
    with pytest.raises(PrototxtError) as caught:
        fcnproto.load(tmp_path / "n.prototxt", caffe_proto=tmp_path / "caffe.proto")
    assert words in str(caught.value) and "\n" not in str(caught.value)
