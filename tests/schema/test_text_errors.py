"""What the text format refuses: the place and the words of each error."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fcnproto.errors import PrototxtError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse, parse_file, read_net, write_message

NET, SOLVER = caffe_pb2.NetParameter, caffe_pb2.SolverParameter


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ('layer {\n  name: "a"\n  kernel_siz: 3\n}', 3, 3, ['LayerParameter has no field "kernel_siz"']),
        ("layer { convolution_param { kernel_siz: 3 } }", 1, 29, ['did you mean "kernel_size"?']),
        ("layer { Bottom: 3 }", 1, 9, ['did you mean "bottom"?']),
        ("layer {\n kernel_size: 3 }", 2, 2, ["inside convolution_param or pooling_param"]),
        ('layer { pooling_param { pool: MAX\n top: "x" } }', 2, 2, ["LayerParameter has", 'closing "}" missing']),
        ("base_lr: 1", 1, 1, ["looks like a solver file"]),
        ("layer { pooling_param { pool: AVG } }", 1, 31, ['no value "AVG"', 'did you mean "AVE"?']),
        ("layer { pooling_param { pool: average } }", 1, 31, ['did you mean "AVE"?']),
        ("layer { pooling_param { pool: L2 } }", 1, 31, ["one of MAX, AVE, STOCHASTIC"]),
        ("layers { type: CONVOLUTON }", 1, 16, ['did you mean "CONVOLUTION"?']),
        ('layers { type: "Convolution" }', 1, 16, ["without quotes", 'did you mean "CONVOLUTION"?']),
        ("layers { type: 77 }", 1, 16, ["no value with the number 77"]),
        ("layer { type: Convolution }", 1, 15, ['takes text in quotes ("Convolution")']),
        ('name: "a"\nname: "b"', 2, 1, ['"name" is set twice', "line 1"]),
        ("state {}\n\nstate {}", 3, 1, ['"state" is set twice', "line 1"]),
        ("layer {\n\n clip_param { min: 1 } }", 3, 2, ['ClipParameter needs "max"']),
        ("layer {\n clip_param {} }", 2, 2, ['needs "min" and "max", which are not set']),
        ("input_dim: 2147483648", 1, 12, ["whole numbers from -2147483648 to 2147483647"]),
        ("input_dim: " + "9" * 100_000, 1, 12, ["whole numbers from"]),
        ("input_dim: 0x" + "f" * 100_000, 1, 12, ["whole numbers from"]),
        ("layer { convolution_param { num_output: -1 } }", 1, 41, ["from 0 to 4294967295"]),
        ("input_dim: 1.5", 1, 12, ["takes a whole number"]),
        ("input_dim: 089", 1, 12, ['"089" is not a number']),
        ("input_dim: 5abc", 1, 12, ['"5abc" is not a number']),
        ("input_dim: 0x", 1, 12, ["is not a number"]),
        ("input_dim: five", 1, 12, ["takes a whole number", '"five"']),
        ("force_backward: yes", 1, 17, ["takes true or false"]),
        ("force_backward: 2", 1, 17, ["takes true or false"]),
        ('name "a"', 1, 6, ['expected ":" after "name"']),
        ("name {}", 1, 6, ['expected ":" after "name"']),
        ("layer: 5", 1, 8, ['expected "{" after "layer"']),
        ("layer = {", 1, 7, ['expected "{" after "layer"', '"="']),
        ('name: "abc\nforce_backward: true', 1, 7, ["not closed on its line"]),
        ('name: "a\\qb"', 1, 9, ['"\\q"', "escape"]),
        ('name: "\\ud800"', 1, 8, ["escape"]),
        ('name: "\\U00110000"', 1, 8, ["escape"]),
        ('name: "\\777"', 1, 8, ["more than one byte"]),
        ("layer {", 1, 8, ['"}" is missing', "LayerParameter that begins on line 1"]),
        ("layer {\n name: 'x'\n", 3, 1, ['"}" is missing']),
        ("layer { > ", 1, 9, ["expected a field of LayerParameter", '">"']),
        ("layer {} }", 1, 10, ["closes nothing"]),
        ("[foo.bar] { }", 1, 1, ["extensions and Any"]),
        ("layer { [type.googleapis.com/x] {} }", 1, 9, ["extensions and Any"]),
        ('name: ["a"]', 1, 7, ["takes one value, not a list"]),
        ('input: ["a" "b", ]', 1, 18, ["takes text in quotes"]),
        ("input_dim: [1 2]", 1, 15, ['expected "," or "]"']),
        ("layer [ 1 ]", 1, 9, ['expected "{" in the list']),
        ("layer { } \0", 1, 11, ["U+0000"]),
        ("5: 3", 1, 1, ["expected a field of NetParameter"]),
        ("name: ", 1, 7, ["the end of the text"]),
        ("é: 1", 1, 1, ["expected a field"]),
        ("\r\n\r\nnope: 1", 3, 1, ['no field "nope"']),
        ("layer" * 100_000, 1, 1, ["no field"]),
        ("layer{" * 100_000, 1, 7, ["LayerParameter has no field"]),
        ("[" * 100_000, 1, 1, ["extensions"]),
    ],
)
def test_error_in_a_net(text: str, line: int, column: int, words: list[str]) -> None:
    with pytest.raises(PrototxtError) as caught:
        parse(text, NET, "net.prototxt")
    error = caught.value
    assert (error.line, error.column) == (line, column), error
    assert str(error).startswith(f"net.prototxt:{line}:{column}: ")
    for word in words:
        assert word in str(error)
    if len(text) < 1000:
        assert "\n" not in str(error) and len(str(error)) < 300


def test_decimal_numbers_of_floats_are_not_octal() -> None:
    for written in ("010", "0x10", "1e", "1.2.3"):
        with pytest.raises(PrototxtError, match="is not a decimal number"):
            parse(f"base_lr: {written}", SOLVER)


def test_a_net_read_as_a_solver_is_told() -> None:
    with pytest.raises(PrototxtError, match="looks like a net file"):
        parse('layer { name: "a" }', SOLVER)


def test_errors_survive_pickling() -> None:
    with pytest.raises(PrototxtError) as caught:
        parse("nope: 1", NET, "x.prototxt")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.column == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\x0a\x05hello\xa2\x06\x10\x0a\x04conv\x12\x04Conv", "a binary file, perhaps a caffemodel"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\n  <html><body>Not found</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04abcdefgh", "a zip archive"),
        (b"\x1f\x8b\x08\x00abcdef", "a gzip archive"),
        (b"\xff\xfen\x00a\x00m\x00e\x00", "UTF-16"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(content)
    with pytest.raises(PrototxtError) as caught:
        read_net(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_texts_of_any_encoding(tmp_path: Path) -> None:
    """Comments and strings are bytes, as in protobuf's C++ parser; outside of them other encodings stay errors."""
    path = tmp_path / "net.prototxt"
    for encoding, text in (
        ("gbk", "全卷积网络"),
        ("utf-8", "全卷积网络"),
        ("big5", "全"),
        ("latin-1", "café"),
        ("cp1252", "€é"),
    ):
        path.write_bytes(b"\xef\xbb\xbf# " + text.encode(encoding) + b'\nname: "' + text.encode(encoding) + b'" # x\n')
        name = parse_file(path, NET).name
        expected = text.encode(encoding)
        assert expected in (name.encode("utf-8"), name.encode("latin-1", "ignore"))
    path.write_bytes(b'name: "\\377\xe9"')
    assert parse_file(path, NET).name == "ÿé"
    write_message(path, parse_file(path, NET))
    assert parse_file(path, NET).name == "ÿé"
    path.write_bytes(b'name: "a"\nforce_backward\xe9: 1\n')
    with pytest.raises(PrototxtError, match="found the byte 0xe9") as caught:
        parse_file(path, NET)
    assert (caught.value.line, caught.value.column) == (2, 15)
    assert str(caught.value).isprintable()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PrototxtError, match=r"nowhere.prototxt: can't be read: No such file"):
        read_net(tmp_path / "nowhere.prototxt")
    with pytest.raises(PrototxtError, match="this is a folder"):
        read_net(tmp_path)
