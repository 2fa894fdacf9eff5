"""Settings messages of layer types from outside: fields like Caffe's own, in text, in binary files and in Python."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fcnproto import PrototxtError, UsageError
from fcnproto.netspec import NetSpec, layers
from fcnproto.schema import caffe_pb2
from fcnproto.schema.settings import add_settings, field_name, stable_number
from fcnproto.schema.text import format_message, parse

PROTO = """
message StirParameter {
  enum How { LINEAR = 0; SQUARE = 1; }
  message Corner { repeated float at = 1 [packed = true]; }
  optional float ratio = 1 [default = 0.25];
  optional How how = 2 [default = LINEAR];
  repeated Corner corner = 3;
  optional FillerParameter filler = 4;
  optional sint32 low = 5;
}
"""
TEXT = """type: "Stir"
stir_param {
  ratio: 0.75
  how: SQUARE
  corner {
    at: 1
    at: 2.5
  }
  filler {
    type: "gaussian"
  }
  low: -3
}
"""


@pytest.fixture(autouse=True)
def stir(tmp_path: Path) -> Path:
    (tmp_path / "stir.proto").write_text(PROTO)
    assert add_settings("Stir", "stir.proto", tmp_path, 160) == "stir_param"
    return tmp_path


def test_text_and_bytes_come_back() -> None:
    layer = parse(TEXT, caffe_pb2.LayerParameter)
    assert format_message(layer) == TEXT
    net = caffe_pb2.NetParameter(layer=[layer, layer])
    assert caffe_pb2.NetParameter.FromString(net.SerializeToString()) == net
    assert layer.SerializeToString().startswith(
        b"\x12\x04Stir" + bytes([(160 << 3 | 2) & 0x7F | 0x80, (160 << 3) >> 7])
    )
    assert copy.deepcopy(layer) == layer == pickle.loads(pickle.dumps(layer))


def test_attributes_as_of_any_field() -> None:
    layer = parse(TEXT, caffe_pb2.LayerParameter)
    assert layer.HasField("stir_param") and layer.HasField("type") and not layer.HasField("name")
    assert layer.stir_param.ratio == 0.75 and list(layer.stir_param.corner[0].at) == [1, 2.5]
    layer.stir_param.ratio = 2
    assert parse(format_message(layer), caffe_pb2.LayerParameter).stir_param.ratio == 2
    layer.ClearField("stir_param")
    assert not layer.HasField("stir_param") and layer.stir_param.ratio == 0.25
    assert parse("stir_param {}", caffe_pb2.LayerParameter).HasField("stir_param")


def test_faults_in_the_text_have_their_place_and_the_nearest_name() -> None:
    with pytest.raises(PrototxtError, match=r'1:14: StirParameter has no field "rato"; did you mean "ratio"'):
        parse("stir_param { rato: 1 }", caffe_pb2.LayerParameter)
    with pytest.raises(PrototxtError, match='"how" has no value "SQARE"; did you mean "SQUARE"'):
        parse("stir_param { how: SQARE }", caffe_pb2.LayerParameter)


def test_the_builder_knows_them() -> None:
    net = NetSpec()
    net.a = layers.Input()
    net.b = layers.Stir(net.a, ratio=0.5, how="SQUARE", corner=[{"at": [1, 2]}])
    assert net.to_proto().layer[1].stir_param.ratio == 0.5


def test_the_same_again_is_fine_and_another_is_not(stir: Path) -> None:
    assert add_settings("Stir", "stir.proto", stir, 160) == "stir_param"
    with pytest.raises(UsageError, match="was registered before with other settings"):
        add_settings("Stir", "stir.proto", stir, 161)
    (stir / "stir.proto").write_text(PROTO.replace("low", "high"))
    with pytest.raises(UsageError, match="was registered before with other settings"):
        add_settings("Stir", "stir.proto", stir, 160)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("BlendParameter", "blend_param"),
        ("HardSwishParameter", "hard_swish_param"),
        ("ROIPoolingParameter", "roi_pooling_param"),
        ("HDF5DataParameter", "hdf5_data_param"),
        ("Plain", "plain_param"),
    ],
)
def test_field_names(name: str, field: str) -> None:
    assert field_name(name) == field


def test_numbers_are_stable_and_open() -> None:
    assert stable_number("blend_param") == stable_number("blend_param") == 327701961
    assert 100000 < stable_number("x_param") < 19 << 26


def pool_class(name: str, package: str, proto3: bool = False) -> type:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}/{name}.proto", package=package)
    file.syntax = "proto3" if proto3 else "proto2"
    message = file.message_type.add(name=name)
    message.field.add(name="count", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, label=1)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(f"{package}.{name}"))


@pytest.mark.parametrize("proto3", [False, True])
def test_message_classes(proto3: bool) -> None:
    name = "Whirl3" if proto3 else "Whirl2"
    cls = pool_class(f"{name}Parameter", f"test_settings.{name.lower()}", proto3)
    field = add_settings(name, cls, ".")
    layer = parse(f"{field} {{ count: 7 }}", caffe_pb2.LayerParameter)
    assert isinstance(getattr(layer, field), cls) and getattr(layer, field).count == 7
    assert caffe_pb2.LayerParameter.FromString(layer.SerializeToString()) == layer


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("message OtherParameter {}", PrototxtError, 'no message "FaultParameter" in it'),
        ('import "x.proto"; message FaultParameter {}', PrototxtError, 'imports "x.proto", which is not read'),
        (
            "message FaultParameter { extensions 9; extend FaultParameter { optional int32 a = 9; } }",
            PrototxtError,
            "extends",
        ),
        ("message FaultParameter { optional Nope a = 1; }", PrototxtError, "has the type Nope, which neither"),
        ("message FaultParameter { optional float a = 1; optional float a = 2; }", UsageError, "protobuf refuses"),
    ],
)
def test_faulty_files(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / "fault.proto").write_text(text)
    with pytest.raises(error, match=words) as caught:
        add_settings("Fault", "fault.proto", tmp_path)
    assert "\n" not in str(caught.value)


def test_names_and_numbers_that_are_taken(tmp_path: Path) -> None:
    (tmp_path / "own.proto").write_text("message TakenParameter { optional float a = 1; }")
    for number, words in (
        (106, "that of convolution_param"),
        (25000, "open are 12 to 99"),
        (160, "that of stir_param"),
    ):
        with pytest.raises(UsageError, match=words):
            add_settings("Taken", "own.proto", tmp_path, number)
    with pytest.raises(UsageError, match="no such file"):
        add_settings("Taken", "absent.proto", tmp_path)
    with pytest.raises(UsageError, match="is no protobuf message class"):
        add_settings("Taken", dict, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has a field power_param already; say config_field = 'power_param'"):
        add_settings("Power", caffe_pb2.PowerParameter, tmp_path)


def test_a_file_that_the_schema_covers_is_no_second_field(tmp_path: Path) -> None:
    (tmp_path / "crop.proto").write_text(
        "message CropParameter { optional int32 axis = 1; repeated uint32 offset = 2; }"
    )
    assert add_settings("Crop", "crop.proto", tmp_path) == "crop_param"
    (tmp_path / "crop.proto").write_text("message CropParameter { optional int32 edge = 1; }")
    with pytest.raises(UsageError, match="it has no 'edge'"):
        add_settings("Crop", "crop.proto", tmp_path)


def test_with_protobufs_own_python_messages(stir: Path) -> None:
    code = (
        "from fcnproto.schema import caffe_pb2; from fcnproto.schema.settings import add_settings\n"
        "from fcnproto.schema.text import parse, format_message\n"
        f"add_settings('Stir', 'stir.proto', {str(stir)!r}, 160)\n"
        f"layer = parse({TEXT!r}, caffe_pb2.LayerParameter)\n"
        f"assert format_message(layer) == {TEXT!r} and layer.HasField('stir_param')\n"
        "assert caffe_pb2.LayerParameter.FromString(layer.SerializeToString()) == layer\n"
    )
    environment = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
