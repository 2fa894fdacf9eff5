"""MATLAB files of versions 5 to 7: what scipy writes is read as scipy reads it, damaged ones give one clear line."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcnproto.data.matlab import load_variable
from fcnproto.errors import DataError
from fcnproto.schema import limits

scipy_io = pytest.importorskip("scipy.io")
sparse = pytest.importorskip("scipy.sparse")
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 21, (12, 17)).astype(np.uint8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">i2", "b1"])
def test_every_type(kind: str, packed: bool, tmp_path: Path) -> None:
    for array in (LABELS, LABELS[:1, :1], LABELS[:1, :3], np.zeros((0, 4)), LABELS[::-1, ::2]):
        scipy_io.savemat(tmp_path / "x.mat", {"other": LABELS * 2, "S": array.astype(kind)}, do_compression=packed)
        found = load_variable(str(tmp_path / "x.mat"), "S")
        expected = scipy_io.loadmat(tmp_path / "x.mat")["S"]
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_a_struct_with_cells_beside(packed: bool, tmp_path: Path) -> None:
    """The shape of SBD's files: sparse boundaries in cells, texts, and the segmentation."""
    cells = np.empty((3, 1), object)
    for index in range(3):
        cells[index, 0] = sparse.csc_matrix(LABELS > 10)
    inner = {"Boundaries": cells, "Segmentation": LABELS, "CategoriesPresent": [[1, 2]], "note": "text"}
    scipy_io.savemat(tmp_path / "x.mat", {"GTcls": inner, "z": 1j}, do_compression=packed)
    path = str(tmp_path / "x.mat")
    assert np.array_equal(load_variable(path, "GTcls", "Segmentation"), LABELS)
    for name, field, message in (
        ("GTcls", "segmentation", "has no variable GTcls.segmentation"),
        ("none", None, "has no variable none"),
        ("GTcls", None, "GTcls is no matrix of real numbers"),
        ("GTcls", "note", "the field is no matrix of real numbers"),
        ("z", None, "z is no matrix of real numbers"),
        ("z", "part", "has no variable z.part"),
    ):
        with pytest.raises(DataError, match=rf"x\.mat: {message}"):
            load_variable(path, name, field)


def test_big_endian(tmp_path: Path) -> None:
    body = struct.pack(">IIII", 6, 8, 9, 0) + struct.pack(">IIii", 5, 8, 2, 3) + struct.pack(">I4s", 1 << 16 | 1, b"S")
    body += struct.pack(">II6h4x", 3, 12, 1, 2, 3, 4, 5, 6)
    (tmp_path / "x.mat").write_bytes(bytes(124) + b"\1\0MI" + struct.pack(">II", 14, len(body)) + body)
    assert load_variable(str(tmp_path / "x.mat"), "S").tolist() == [[1, 3, 5], [2, 4, 6]]


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def file_of(*elements: bytes) -> bytes:
    return bytes(124) + b"\0\1IM" + b"".join(elements)


def matrix(shape: tuple[int, ...], values: bytes, kind: int = 2) -> bytes:
    head = element(6, struct.pack("<II", 9, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape)) + element(1, b"S")
    return element(14, head + element(kind, values))


HOSTILE = {
    "empty": (b"", "doesn't begin as MATLAB files"),
    "another": (bytes(300), "doesn't begin as MATLAB files"),
    "cut off": (file_of(matrix((2, 2), b"abcd"))[:-9], "more than there are"),
    "a shape": (file_of(matrix((1 << 30, 1 << 30), b"abcd")), r"shape \(1073741824, 1073741824\) has 4 values"),
    "a negative shape": (file_of(matrix((-1, 4), b"abcd")), "has 4 values"),
    "many axes": (file_of(matrix((1,) * 40, b"a")), "the head of a matrix is none"),
    "no numbers": (file_of(matrix((1, 1), b"a", 16)), "values of kind 16 are no numbers"),
    "a length": (file_of(struct.pack("<II", 14, 1 << 31)), "2,147,483,648 bytes, more than there are"),
    "not packed": (file_of(struct.pack("<II", 15, 8) + b"rubbish!"), "Error -3 while decompressing"),
    "packed cut": (
        file_of(struct.pack("<II", 15, 20) + zlib.compress(matrix((2, 2), b"abcd"))[:20]),
        "cut off|more than",
    ),
    "a cube": (file_of(matrix((1, 2, 2), b"abcd")), r"S has shape \(1, 2, 2\), expected a matrix"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.mat: .*({message})") as caught:
        load_variable(str(tmp_path / "x.mat"), "S")
    assert "\n" not in str(caught.value)


def test_what_inflates_stays_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io.savemat(tmp_path / "x.mat", {"S": np.zeros((1000, 1000))}, do_compression=True)
    assert load_variable(str(tmp_path / "x.mat"), "S").shape == (1000, 1000)
    monkeypatch.setattr(limits, "FLOOR", 1 << 20)
    with pytest.raises(DataError, match=r"variable 'S' would take .* bytes of memory; of a file of"):
        load_variable(str(tmp_path / "x.mat"), "S")


def test_mutations(tmp_path: Path) -> None:
    """Bits, lengths and ends changed at random: an array or a `DataError`, never anything else."""
    numbers, path, refused = random.Random(4), tmp_path / "x.mat", 0
    wholes: list[bytes] = []
    for packed in (False, True):
        values: dict[str, Any] = {"GTcls": {"Boundaries": "text", "Segmentation": LABELS}, "S": LABELS.astype(np.int16)}
        scipy_io.savemat(path, values, do_compression=packed)
        wholes.append(path.read_bytes())
    for case in range(600):
        content = bytearray(wholes[case % 2])
        for _ in range(numbers.choice([1, 2, 6])):
            place = numbers.randrange(124, len(content))
            content[place] = numbers.choice([0, 255, content[place] ^ 1 << numbers.randrange(8)])
        path.write_bytes(content if numbers.random() < 0.8 else content[: numbers.randrange(len(content))])
        for name, field in (("S", None), ("GTcls", "Segmentation")):
            try:
                found = load_variable(str(path), name, field)
                assert not case % 2 or np.array_equal(found, LABELS)  # packed ones have a checksum
            except DataError as error:
                refused += str(path) in str(error) and "\n" not in str(error)
    assert refused > 300
