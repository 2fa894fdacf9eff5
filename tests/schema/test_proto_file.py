"""The reader of .proto files: the same descriptions as protoc's, and one line for what it can't read."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnproto import PrototxtError
from fcnproto.schema.proto_file import parse_proto, read_proto

ROOT = Path(__file__).parents[2]


def plain(file: FileDescriptorProto) -> FileDescriptorProto:
    """A description without what has no meaning for messages and their text."""

    def strip(message: DescriptorProto) -> None:
        for field in (*message.field, *message.extension):
            field.ClearField("json_name")
        message.ClearField("reserved_range")
        message.ClearField("reserved_name")
        for nested in message.nested_type:
            strip(nested)

    for message in file.message_type:
        strip(message)
    for field in file.extension:
        field.ClearField("json_name")
    file.ClearField("name")
    file.ClearField("syntax")
    return file


def by_protoc(folder: Path, text: str) -> FileDescriptorProto:
    pytest.importorskip("grpc_tools", reason="grpcio-tools, which has the protoc, is not installed")
    (folder / "one.proto").write_text(text)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--descriptor_set_out=one.bin", "one.proto"]
    subprocess.run(command, cwd=folder, check=True)
    return FileDescriptorSet.FromString((folder / "one.bin").read_bytes()).file[0]


TRICKY = """
syntax = "proto2";  // a comment
package a.b; /* another
  over lines: message Not { } */
option java_package = "x";
message Outer {
  reserved 7, 9 to 11; reserved "gone";
  extensions 100 to 199, 1000 to max;
  option deprecated = true;
  enum Kind { option allow_alias = true; A = 0; B = 1 [deprecated = true]; C = 0x1; NEGATIVE = -5; }
  message Inner { required Kind kind = 1 [default = B]; optional Outer again = 2; }
  repeated .a.b.Outer.Inner inner = 1;
  optional float rate = 2 [default = -1.5e-3, deprecated = false];
  optional double infinite = 3 [default = inf];
  repeated sint64 packed = 4 [packed = true];
  optional string message = 5 [default = "http://x\\n\\"'"];
  optional bool enum = 6 [default = true];
  optional uint32 hex = 8 [default = 0x10];
  oneof choice { int32 one = 20; Inner two = 21; }
  optional Other other = 22;
  extend Other { optional int32 more = 150; }
}
message Other { extensions 100 to 200; };
extend Outer { optional Other.Deep deep = 150; }
message Empty {}
enum Top { ZERO = 0; }
service S { rpc Go (Empty) returns (Empty) { option deprecated = true; } }
""".replace("Other.Deep", "Other")


def test_caffes_own_schema_and_a_tricky_file_as_by_protoc(tmp_path: Path) -> None:
    for text in ((ROOT / "protos" / "caffe.proto").read_text(), TRICKY):
        wanted = plain(by_protoc(tmp_path, text))
        wanted.ClearField("options")
        wanted.ClearField("service")
        for message in wanted.message_type:
            message.ClearField("options")
            for field in message.field:
                field.options.ClearField("deprecated")
                if not field.options.ListFields():
                    field.ClearField("options")
        got = plain(parse_proto(text))
        for message in wanted.message_type:
            for enum in message.enum_type:
                for value in enum.value:
                    value.ClearField("options")
        assert got == wanted


def test_proto3_is_described_as_proto2_with_the_same_bytes() -> None:
    file = parse_proto(
        'syntax = "proto3"; message M { float a = 1; repeated float b = 2; optional M c = 3; string d = 4; }'
    )
    a, b, c, d = file.message_type[0].field
    assert a.label == FieldDescriptorProto.LABEL_OPTIONAL and b.options.packed and not a.options.packed
    assert (
        c.type_name == ".M"
        and c.type == FieldDescriptorProto.TYPE_MESSAGE
        and d.type == FieldDescriptorProto.TYPE_STRING
    )


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("message M { float a = 1; }", "1:13", "expected optional, required or repeated before the type"),
        ("message M {\n  optional float a = 0;\n}", "2:23", "0 is not a number that a field can have"),
        ("message M { optional float a = 19500; }", "1:37", "19500 is not a number"),
        ("message M { optional float a 1; }", "1:30", 'expected "=", found "1"'),
        ("message M {\n  optional float a = 1;\n", "3:1", '"}" is missing: message M is not closed'),
        ("message M { map<string, int32> a = 1; }", "1:13", "map fields are not read here"),
        ("message M { optional group A = 1 {} }", "1:13", "group fields are not read here"),
        ("mesage M {}", "1:1", "expected message, enum"),
        ('syntax = "proto4";', "1:1", "not proto2 or proto3"),
        ("enum E {}", "1:10", "enum E has no values"),
        ("service S { rpc", "1:11", 'the "{" here is not closed'),
        ("option x = 1", "1:13", 'expected ";"'),
        ("message M " + "{ message M " * 40, "1:", "more than 32 deep"),
        ("", "", ""),
    ],
)
def test_faults_are_told_in_one_line(text: str, place: str, words: str) -> None:
    if not words:
        assert parse_proto(text) == FileDescriptorProto(name="")
        return
    if "map<" in text:
        text = text.replace("message", 'syntax = "proto3"; message', 1)
        place = f"1:{13 + 20 - 1}"
    with pytest.raises(PrototxtError, match=rf"f\.proto:{place}") as caught:
        parse_proto(text, "f.proto")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.proto").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "x.proto", tmp_path, tmp_path / "absent.proto"):
        with pytest.raises(PrototxtError, match=str(path)):
            read_proto(path)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *"{}[]();=.,<>-",
                "message",
                "enum",
                "optional",
                "A",
                "1",
                '"x"',
                "oneof",
                "to",
                "extend",
                "default",
                "//",
                "/*",
                "\n",
            ]
        ),
        max_size=30,
    )
)
def test_any_text_is_read_or_refused(words: list[str]) -> None:
    with contextlib.suppress(PrototxtError):
        parse_proto(" ".join(words))
