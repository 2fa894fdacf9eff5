"""The text format: what it accepts, against protobuf's own parser and against values worked out by hand."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from golden_cases import SHARED, group_folder
from google.protobuf import text_format
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from message_strategies import messages

from fcnproto.errors import PrototxtError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import format_message, parse, parse_file, read_net, write_message

NET, SOLVER = caffe_pb2.NetParameter, caffe_pb2.SolverParameter
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def _class_of(path: Path) -> type:
    is_solver = "solver" in path.name or (path.parent.name == "solver_type_enum")
    return SOLVER if is_solver else NET


def _same_as_protobuf(paths: list[Path]) -> int:
    for path in paths:
        expected = text_format.Parse(path.read_text(encoding="utf-8"), _class_of(path)())
        message = parse_file(path, _class_of(path))
        assert message == expected, path
        assert text_format.Parse(format_message(message), _class_of(path)()) == expected, path
    return len(paths)


@pytest.mark.parametrize("group", ["formats", "layers", "solver"])
def test_golden_prototxts_read_as_protobuf_reads_them(group: str) -> None:
    assert _same_as_protobuf(sorted(group_folder(group).rglob("*.prototxt"))) >= 15


def test_published_prototxts_read_as_protobuf_reads_them() -> None:
    paths = sorted((SHARED / "fcn").rglob("*.prototxt"))
    if not paths:
        pytest.skip("the published nets (../shared/fcn) are not here")
    assert _same_as_protobuf(paths) >= 40


@pytest.mark.parametrize("message_class", [NET, SOLVER, caffe_pb2.LayerParameter, caffe_pb2.Datum])
def test_round_trip_of_random_messages(message_class: type) -> None:
    @RELAXED
    @given(messages(message_class))
    def check(message: object) -> None:
        assert parse(format_message(message), message_class) == message
        assert text_format.Parse(format_message(message), message_class()) == message
        assert parse(text_format.MessageToString(message), message_class) == message
        assert parse(text_format.MessageToString(message, as_one_line=True), message_class) == message
        short = text_format.MessageToString(message, use_short_repeated_primitives=True, pointy_brackets=True)
        assert parse(short, message_class) == message

    check()


_EDITS = ['"', "'", "{", "}", "[", "]", "<", ">", ":", ",", ";", "#", "\n", "\\", "-", ".", "9", "1e", "f", "0x"]
_EDITS += ["\\x41", "nan", "-inf", "true", "layer", "\0", "é", "TEST", "1.5f", "018"]


def test_random_edits_end_in_an_error_or_in_what_protobuf_reads() -> None:
    texts = [path.read_text() for path in sorted(group_folder("formats").rglob("net.prototxt"))]
    randomness = random.Random(7)
    accepted = 0  # by both parsers; most edits break a text
    for _ in range(800):
        text = randomness.choice(texts)
        for _ in range(randomness.randint(1, 3)):
            start = randomness.randrange(len(text) + 1)
            text = text[:start] + randomness.choice(_EDITS) + text[start + randomness.choice([0, 0, 1, 4]) :]
        try:
            message = parse(text, NET)
        except PrototxtError:
            continue
        try:
            expected = text_format.Parse(text, NET())
        except (text_format.ParseError, UnicodeDecodeError):
            continue
        assert message == expected, text
        accepted += 1
    assert accepted > 25


@RELAXED
@given(st.text(max_size=60) | st.text("{}<>[]:;,#'\"\\-.0x1ef layer name input_dim", max_size=60))
def test_any_text_ends_in_a_message_or_an_error(text: str) -> None:
    try:
        parse(text, NET)
    except PrototxtError:
        event("error")


@pytest.mark.parametrize(
    ("written", "value"),
    [("0x1F", 31), ("0X1f", 31), ("017", 15), ("0", 0), ("00", 0), ("-2147483648", -(2**31)), ("- 5", -5)],
)
def test_whole_numbers(written: str, value: int) -> None:
    assert parse(f"input_dim: {written}", NET).input_dim == [value]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("1.5f", 1.5),
        ("2F", 2.0),
        ("-1e-3", float(np.float32(-1e-3))),
        ("1E+2", 100.0),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("1e999", math.inf),
        ("1" + "0" * 5000, math.inf),
        ("0." + "0" * 5000 + "1", 0.0),
        ("0", 0.0),
        ("- 0.25", -0.25),
    ],
)
def test_floats(written: str, value: float) -> None:
    assert parse(f"base_lr: {written}", SOLVER).base_lr == value


def test_not_a_number_reads_and_writes() -> None:
    message = parse("base_lr: nan gamma: -NaN", SOLVER)
    assert math.isnan(message.base_lr) and math.isnan(message.gamma)
    assert format_message(message) == "base_lr: nan\ngamma: nan\n"


@pytest.mark.parametrize("written", ["true", "True", "t", "1", "0x1"])
def test_true(written: str) -> None:
    assert parse(f"force_backward: {written}", NET).force_backward is True


@pytest.mark.parametrize("written", ["false", "False", "f", "0"])
def test_false(written: str) -> None:
    message = parse(f"force_backward: {written}", NET)
    assert message.HasField("force_backward") and message.force_backward is False


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('"a" \'b\'\n "c"', "abc"),
        (r'"\a\b\f\n\r\t\v\\\'\"\?"', "\a\b\f\n\r\t\v\\'\"?"),
        (r'"\101\x42\X43\u00e9\U0001F600"', "ABCé😀"),
        (r'"\ud83d\ude00"', "😀"),
        (r'"\303\251"', "é"),
        ('"it\'s"', "it's"),
        ("'say \"x\"'", 'say "x"'),
        ('"# no comment"', "# no comment"),
        ('""', ""),
        ('"\t"', "\t"),
    ],
)
def test_texts(written: str, value: str) -> None:
    assert parse(f"name: {written}", NET).name == value


def test_layouts_that_mean_the_same() -> None:
    plain = parse('layer { name: "a" bottom: "x" bottom: "y" loss_weight: 1 loss_weight: 2 param { } }', NET)
    for text in [
        'layer: { name: "a"; bottom: ["x", "y"], loss_weight: [1,2] param: <> }',
        'layer<name:"a"bottom:"x"bottom:"y"loss_weight:1 loss_weight:2 param{}>',
        'layer [ { name: "a" bottom: ["x"] bottom: ["y"] bottom: [] loss_weight: [1, 2] param [<>] } ]',
        '# a\r\nlayer {\r\n\tname: "a" # {\r\n bottom: "x", bottom: "y"; loss_weight: [1, 2]\r\n param {}\r\n}\r\n',
    ]:
        assert parse(text, NET) == plain, text


def test_enum_values_by_name_and_number() -> None:
    assert parse("state { phase: TRAIN }", NET) == parse("state { phase: 0 }", NET)
    assert parse("layers { type: CONVOLUTION }", NET).layers[0].type == 4


def test_empty_messages_are_present() -> None:
    net = parse("layer { pooling_param { } } state {}", NET)
    assert net.HasField("state") and net.layer[0].HasField("pooling_param")


def test_files_with_byte_order_mark_and_other_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    for content in [b'\xef\xbb\xbfname: "a" # b\r\nforce_backward: true', b'name: "a" # b\rforce_backward: true']:
        path.write_bytes(content)
        net = parse_file(path, NET)
        assert net.name == "a" and net.force_backward


def test_written_files_read_back(tmp_path: Path) -> None:
    net = parse('name: "é\\n" layer { name: "l" type: "Power" power_param { scale: 0.1 shift: 1e-8 power: 2 } }', NET)
    write_message(tmp_path / "net.prototxt", net)
    assert read_net(tmp_path / "net.prototxt") == net
    assert (tmp_path / "net.prototxt").read_text(encoding="utf-8") == (
        'name: "é\\n"\nlayer {\n  name: "l"\n  type: "Power"\n  power_param {\n    power: 2\n    scale: 0.1\n'
        "    shift: 1e-08\n  }\n}\n"
    )
