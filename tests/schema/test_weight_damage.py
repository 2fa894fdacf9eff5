"""Damaged, foreign and hostile weight files: each ends in one clear line, or in a correct reading."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from golden_cases import group_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_bytes import field, floats, layer, shape, tag, traced_memory, varint

from fcnproto.errors import PrototxtError, WeightsError
from fcnproto.schema.definition import net_definition
from fcnproto.schema.state import open_state
from fcnproto.schema.weights import open_weights, read_blob

GOOD = field(1, "net") + layer(shape(2, 3) + field(5, floats(range(6))), shape(2) + field(5, floats([1, 2])))


def _read_all(path: Path) -> None:
    with open_weights(path) as weights:
        for stored in weights.layers:
            for blob in stored.blobs:
                if blob is not None:
                    assert blob.array().shape == blob.shape


def _error(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        _read_all(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 500 + len(str(path))
    return message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n\n<HTML><head>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "zip archive (perhaps a PyTorch file)"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip archive"),
        (b'# a net\nname: "x"\nlayer {\n}\n', "a text file, perhaps a prototxt"),
        (b'{"a": 1}', "cut off, or no file of Caffe's"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"x":{}}' + bytes(60), "a safetensors file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "an image"),
        (bytes(5000), "damaged, or no file of Caffe's"),
        (b"\xff" * 5000, "damaged, or no file of Caffe's"),
        (field(1, "only a name"), "there is no layer in it"),
        (field(1, 3) + field(2, "x"), "not a caffemodel but a solverstate"),
        (GOOD[:-1], "cut off"),
        (GOOD[: len(GOOD) // 2], "cut off"),
        (GOOD + tag(100, 2) + varint(1 << 62), "cut off"),
        (GOOD + tag(100, 2) + b"\x80", "cut off"),
        (GOOD + tag(100, 2) + b"\xff" * 11, "a number does not end"),
        (GOOD + tag(5, 6), "unknown wire type 6"),
        (GOOD + b"\x00\x00", "impossible number 0"),
        (GOOD + tag(50, 4), "a group ends that did not begin"),
        (GOOD + tag(50, 3), "a group begins that does not end"),
        (GOOD + tag(50, 3) + tag(51, 4), "a group ends that did not begin"),
        (GOOD + tag(50, 3) * 1_000_000, "deep"),
        (GOOD + field(2, field(4, "old")), "layers in the old and in the current format"),
        (layer(shape(2) + field(5, b"abcdefghi")), "9 bytes should be numbers of 4 bytes each"),
        (layer(shape(2) + field(5, 3)), "can't have"),
        (layer(shape(2) + tag(5, 1) + bytes(8)), "can't have"),
        (layer(shape(*[1] * 33) + field(5, floats([1]))), "more than 32 axes"),
        (layer(field(7, field(1, b"\x80" * 4))), "does not end"),
        (layer(field(7, field(1, bytes(400)))), "more than 32 axes"),
        (layer(name="x" * 70_000), "a name is 70000 bytes long"),
        (field(100, tag(7, 2) + varint(1000)) + bytes(2000), "the message around them is shorter"),
    ],
)
def test_clear_errors(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in _error(tmp_path / "net.caffemodel", content)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="can't be read: No such file"):
        open_weights(tmp_path / "none.caffemodel")
    with pytest.raises(WeightsError, match="this is a folder"):
        open_weights(tmp_path)


def test_solver_state_and_mean_instead_of_weights() -> None:
    state = next(group_folder("snapshots").rglob("*.solverstate"))
    with pytest.raises(
        WeightsError, match=r"not a caffemodel but a solverstate \(a solver's state; its weights are in"
    ):
        open_weights(state)
    weights = next(group_folder("snapshots").rglob("*.caffemodel"))
    with pytest.raises(WeightsError, match=r"not a solverstate but a caffemodel \(weights; "):
        open_state(weights)
    for path, kind in ((weights, "caffemodel"), (state, "solverstate")):
        with pytest.raises(WeightsError, match=f"not a .binaryproto file but a {kind}"):
            read_blob(path)


def test_every_truncation_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    start = len(field(1, "net"))
    for end in range(len(GOOD)):
        words = _error(path, GOOD[:end])
        if end > start:
            assert "cut off" in words


def _golden_models() -> list[bytes]:
    paths = sorted(group_folder("formats").glob("*/weights.caffemodel"))
    return [path.read_bytes() for path in paths]


def _edits(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    randomness = random.Random(seed)
    for _ in range(count):
        edited = bytearray(content)
        for _ in range(randomness.randint(1, 4)):
            # Most of a file is floats; the structure at its beginning deserves more hits.
            place = min(randomness.randrange(len(edited)), randomness.randrange(len(edited)))
            edited[place] = randomness.choice([0, 0x7F, 0x80, 0xFF, edited[place] ^ 1 << randomness.randrange(8)])
        yield bytes(edited[: randomness.randint(1, len(edited))]) if randomness.random() < 0.2 else bytes(edited)


@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
def test_damaged_golden_models(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    refused = 0
    with traced_memory() as peak:
        for seed, content in enumerate(_golden_models()):
            for edited in _edits(content, seed, 60):
                path.write_bytes(edited)
                try:
                    _read_all(path)
                except WeightsError:
                    refused += 1
                try:
                    net_definition(path)
                except (WeightsError, PrototxtError):
                    refused += 1
        assert refused > 100 and peak() < 20_000_000


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore::fcnproto.errors.FcnprotoWarning")
@given(st.binary(max_size=80), st.integers(0, len(GOOD)))
def test_random_bytes(tmp_path: Path, content: bytes, kept: int) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(GOOD[:kept] + content)
    for read in (_read_all, read_blob, net_definition, lambda path: open_state(path).close()):
        with suppress(WeightsError, PrototxtError):
            read(path)


def test_damaged_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel.h5"
    source = next(group_folder("formats").glob("*/resaved.h5")).read_bytes()
    refused = 0
    for end in range(8, len(source), 97):
        path.write_bytes(source[:end])
        with pytest.raises(WeightsError):
            _read_all(path)
    for edited in _edits(source, 3, 120):
        path.write_bytes(edited)
        try:
            _read_all(path)
        except WeightsError as error:
            refused += "\n" not in str(error)
    assert refused


def test_hdf5_of_other_layouts(tmp_path: Path) -> None:
    path, other = tmp_path / "w.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["data/conv/0"] = np.zeros(3, np.float32)

    def error() -> str:
        with pytest.raises(WeightsError) as caught:
            _read_all(path)
        return str(caught.value)

    def fresh() -> h5py.File:
        return h5py.File(path, "w")

    with fresh() as file:
        file["model_weights/conv/0"] = np.zeros(3)
    assert "the group /data is missing; this is not Caffe's layout" in error()
    with fresh() as file:
        file.create_group("data")
    assert "there is no layer in it" in error()
    with fresh() as file:
        file["data/conv/weight"] = np.zeros(3)
    assert 'a member "weight"' in error()
    with fresh() as file:
        file["data/conv/9999999999"] = np.zeros(3)
    assert 'a member "9999999999"' in error()
    with fresh() as file:
        file["data/conv/0"] = "text"
    assert "does not hold numbers" in error()
    with fresh() as file:
        file["data/conv"] = h5py.ExternalLink(str(other), "/data/conv")
    assert "is a link to another place, which is not followed" in error()
    with fresh() as file:
        file.create_group("data/conv")
        file["data/conv/0"] = file["data"]
    assert "is something else" in error()
    with fresh() as file:
        file.create_dataset("data/conv/0", (1 << 40,), np.float32, chunks=(1024,), compression="gzip")
    assert "no values are stored" in error()
    with fresh() as file:
        layout = h5py.VirtualLayout((3,), np.float32)
        layout[:] = h5py.VirtualSource(str(other), "data/conv/0", (3,))
        file.create_virtual_dataset("data/conv/0", layout)
    assert "lies in another file" in error()
    with fresh() as file:
        file.create_dataset("data/conv/0", (3,), np.float32, external=[(str(other), 0, 12)])
    assert "lies in another file" in error()


def test_many_tiny_layers(tmp_path: Path) -> None:
    """Two bytes each would become far more memory than the file has."""
    assert "more than" in _error(tmp_path / "net.caffemodel", (tag(100, 2) + b"\x00") * 250_000)


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(layer(shape(100_000) + field(5, bytes(400_000))))
    with open_weights(path) as weights:
        with path.open("rb+") as file:
            file.truncate(1000)
        blob = weights.layers[0].blobs[0]
        assert blob is not None
        with pytest.raises(WeightsError, match="became shorter"):
            blob.array()
