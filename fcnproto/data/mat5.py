"""Numeric matrices out of MATLAB files of versions 5 to 7, read with a damaged or hostile file in mind.

Every length is checked against what holds it before it is believed, and what inflates stays within the file's budget
(`schema/limits.py`). Of a file only the wanted variable is unpacked, of a struct only the wanted field. Cells, texts,
sparse and complex matrices are stepped over. Version 7.3 is HDF5: see `matlab.py`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fcnproto.errors import DataError
from fcnproto.schema.limits import Budget

_HEADER = 128
_MATRIX, _COMPRESSED, _STRUCT, _OBJECT = 14, 15, 2, 3
_COMPLEX = 0x800
_PADDING = 64  # what may stand behind a packed variable, at most
_HEAD = 4096  # of a packed variable so much is unpacked to see its name
_MOST_AXES = 32
# How values are stored, and the types of a matrix that they are given as.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {
    6: np.float64,
    7: np.float32,
    8: np.int8,
    9: np.uint8,
    10: np.int16,
    11: np.uint16,
    12: np.int32,
    13: np.uint32,
    14: np.int64,
    15: np.uint64,
}


class _Element(NamedTuple):
    """One element: its type, where its bytes begin, how many there are, and where the next one begins."""

    kind: int
    start: int
    size: int
    next: int


class _Matrix(NamedTuple):
    """The head of a matrix: its class, whether it has an imaginary part, its shape and name, where its rest begins."""

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    rest: int
    end: int


def read_matrix(path: str, name: str, field: str | None = None) -> np.ndarray:
    """The numeric matrix `name`, or `field` of the 1x1 struct `name`, in the type that MATLAB had it in.

    Raises `KeyError` where there is no such variable, `DataError` for a damaged file or a variable of another kind.
    """
    with open(path, "rb") as file:
        content = file.read()
    reader = _Reader(path, content)
    for part, start, size in reader.variables(name):
        found = part.matrix(start, size)
        if found.name == name:
            return part.numbers(found) if field is None else part.numbers(part.field(found, field))
    raise KeyError(name)


def names_of(path: str) -> list[str]:
    """The names of a file's variables. Raises `DataError` for a damaged file."""
    with open(path, "rb") as file:
        content = file.read()
    return list(_Reader(path, content).names())


class _Reader:
    """Bytes with elements in them: a file, or an unpacked variable of it."""

    def __init__(self, path: str, content: bytes, order: str = "", budget: Budget | None = None) -> None:
        self.path, self.content = path, memoryview(content)
        self.budget = budget or Budget(len(content))
        self.order = order or self._byte_order()

    def _byte_order(self) -> str:
        mark = bytes(self.content[124:128])
        if len(self.content) < _HEADER or mark[2:] not in (b"IM", b"MI"):
            raise self.damaged("it doesn't begin as MATLAB files of versions 5 to 7.3 do")
        return "<" if mark[2:] == b"IM" else ">"

    def damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path}: not a readable MATLAB file ({reason})")

    def _number(self, place: int) -> int:
        return int.from_bytes(self.content[place : place + 4], "little" if self.order == "<" else "big")

    def element(self, place: int, end: int) -> _Element:
        """The element at a place of something that ends at `end`."""
        if place + 8 > end:
            raise self.damaged(f"it is cut off at byte {place}")
        kind = self._number(place)
        if kind >> 16:  # up to four bytes stand within the tag
            kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
            fits = size <= 4
        else:
            size, start = self._number(place + 4), place + 8
            following = start + size + (0 if kind == _COMPRESSED else -size % 8)
            fits = start + size <= end
        if not fits:
            raise self.damaged(f"an element at byte {place} says to have {size:,} bytes, more than there are")
        return _Element(kind, start, size, following)

    def elements(self, place: int, end: int) -> Iterator[_Element]:
        while place < end:
            found = self.element(place, end)
            yield found
            place = found.next

    def variables(self, wanted: str) -> Iterator[tuple[_Reader, int, int]]:
        """The matrices of a file, each with what it lies in, place and size; packed ones if they are wanted."""
        for found in self.elements(_HEADER, len(self.content)):
            if found.kind == _MATRIX:
                yield self, found.start, found.size
            elif found.kind == _COMPRESSED:
                packed = self.content[found.start : found.start + found.size]
                head = _Reader(self.path, self._unpacked(packed, _HEAD), self.order, self.budget)
                outer = head.element(0, 1 << 62)
                if outer.kind != _MATRIX or head.matrix(outer.start, outer.size, cut=True).name != wanted:
                    continue
                problem = self.budget.take(outer.start + outer.size)
                if problem is not None:
                    raise self.damaged(f"variable {wanted!r} {problem}")
                content = self._unpacked(packed, outer.start + outer.size, whole=True)
                whole = _Reader(self.path, content, self.order, self.budget)
                yield whole, outer.start, outer.size

    def names(self) -> Iterator[str]:
        """The names of a file's matrices; a helper's own ones, which have none, are left out."""
        for found in self.elements(_HEADER, len(self.content)):
            name = ""
            if found.kind == _MATRIX:
                name = self.matrix(found.start, found.size).name
            elif found.kind == _COMPRESSED:
                packed = self.content[found.start : found.start + found.size]
                head = _Reader(self.path, self._unpacked(packed, _HEAD), self.order, self.budget)
                outer = head.element(0, 1 << 62)
                name = head.matrix(outer.start, outer.size, cut=True).name if outer.kind == _MATRIX else ""
            if name:
                yield name

    def _unpacked(self, packed: memoryview, most: int, whole: bool = False) -> bytes:
        """The first bytes of what is packed; of the `whole` also the end is looked at, where the checksum stands."""
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(packed, most)
            if whole and not inflater.eof:
                inflater.decompress(inflater.unconsumed_tail, _PADDING)
        except zlib.error as error:
            raise self.damaged(str(error)) from error
        if whole and not inflater.eof:
            raise self.damaged("a packed variable is cut off, or longer than it says")
        return content

    def matrix(self, start: int, size: int, cut: bool = False) -> _Matrix:
        """The head of the matrix that begins there; of one that is `cut`, only the head need be there."""
        end = start + size
        if end > len(self.content):
            if not cut:
                raise self.damaged(f"a matrix says to have {size:,} bytes, more than there are")
            end = len(self.content)
        if not size:
            return _Matrix(0, False, (0, 0), "", start, end)
        flags = self.element(start, end)
        dims = self.element(flags.next, end)
        name = self.element(dims.next, end)
        axes = dims.size // 4
        if flags.size < 4 or not 2 <= axes <= _MOST_AXES:
            raise self.damaged("the head of a matrix is none")
        bits = self._number(flags.start)
        shape = tuple(self._number(dims.start + 4 * axis) for axis in range(axes))
        text = bytes(self.content[name.start : name.start + name.size]).decode("latin-1")
        return _Matrix(bits & 0xFF, bool(bits & _COMPLEX), shape, text, name.next, end)

    def field(self, struct: _Matrix, wanted: str) -> _Matrix:
        """A field of a 1x1 struct; `KeyError` where there is none."""
        if struct.kind not in (_STRUCT, _OBJECT) or math.prod(struct.shape) != 1:
            raise KeyError(wanted)
        place = struct.rest if struct.kind == _STRUCT else self.element(struct.rest, struct.end).next
        length = self.element(place, struct.end)
        names = self.element(length.next, struct.end)
        width = self._number(length.start)
        if length.size != 4 or not 0 < width <= names.size or names.size % width:
            raise self.damaged("the names of a struct's fields are damaged")
        place = names.next
        for first in range(names.start, names.start + names.size, width):
            found = self.element(place, struct.end)
            if found.kind != _MATRIX:
                raise self.damaged("a struct's field is no matrix")
            if bytes(self.content[first : first + width]).partition(b"\0")[0].decode("latin-1") == wanted:
                return self.matrix(found.start, found.size)
            place = found.next
        raise KeyError(wanted)

    def numbers(self, found: _Matrix) -> np.ndarray:
        """The values of a real numeric matrix."""
        if found.kind not in _CLASSES or found.is_complex:
            raise DataError(f"{self.path}: {found.name or 'the field'} is no matrix of real numbers")
        wanted: Any = _CLASSES[found.kind]
        values = self.element(found.rest, found.end)
        if values.kind not in _STORED:
            raise self.damaged(f"values of kind {values.kind} are no numbers")
        stored = np.dtype(self.order + _STORED[values.kind])
        count = math.prod(found.shape)
        if values.size != count * stored.itemsize:
            raise self.damaged(f"a matrix of shape {found.shape} has {values.size // stored.itemsize} values")
        problem = self.budget.take(count * np.dtype(wanted).itemsize)
        if problem is not None:
            raise self.damaged(problem)
        array = np.frombuffer(self.content[values.start : values.start + values.size], stored)
        with np.errstate(invalid="ignore"):
            return np.array(array.astype(wanted).reshape(found.shape, order="F"))
