"""Stored blobs: where a blob's values lie in a file, their shape, and how they get into an array.

A `StoredBlob` is known without its values having been read; `read_into` puts them straight into the memory of the array
that wants them. The binary kind (BlobProto) is here, the HDF5 kind in `hdf5.py`. Not for layers: see `weights.py`.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fcnproto.errors import WeightsError
from fcnproto.schema.wire import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Field,
    MessageReader,
    Window,
    encode_tag,
    encode_varint,
    signed,
)

Array = npt.NDArray[Any]

MOST_AXES = 32
_CHUNK = 1 << 18
_LEGACY_AXES = {1: 0, 2: 1, 3: 2, 4: 3}
_DATA, _DIFF, _SHAPE, _DOUBLE_DATA, _DOUBLE_DIFF = 5, 6, 7, 8, 9
# C3D 1.0 wrote blobs of its own: num, channels, length, height, width, then data and diff.
_C3D_AXES, _C3D_WIDTH, _C3D_DATA, _C3D_DIFF = 5, 5, 6, 7
_WIDTH = {_DATA: 4, _DIFF: 4, _DOUBLE_DATA: 8, _DOUBLE_DIFF: 8}


class StoredBlob(ABC):
    """A blob in a file. `legacy` shapes are those of files from before N-dimensional blobs: always four axes (or the
    five of C3D 1.0: num, channels, length, height, width).

    `label` says in error messages which blob of which layer it is; `dtype` is how the values are stored."""

    label: str
    shape: tuple[int, ...]
    legacy: bool
    dtype: np.dtype[Any]

    @property
    def count(self) -> int:
        """How many values the shape asks for."""
        return math.prod(self.shape)

    def matches(self, shape: Sequence[int]) -> bool:
        """Whether Caffe would take this blob for one of that shape: equal, or, for a legacy shape, equal to the four
        axes that come of padding `shape` on the left with ones (a 1x1xOxI weight fits an OxI one). A length of 1 of
        C3D's is no axis of an image."""
        wanted = tuple(int(extent) for extent in shape)
        if not self.legacy:
            return self.shape == wanted
        stored = self.shape
        if len(stored) == _C3D_AXES and len(wanted) < _C3D_AXES and stored[2] == 1:
            stored = stored[:2] + stored[3:]
        return len(wanted) <= len(stored) and stored == (1,) * (len(stored) - len(wanted)) + wanted

    @abstractmethod
    def read_into(self, array: Array) -> None:
        """Fills `array` (any float type and shape, C-contiguous, `count` values) with the stored values.

        Float32 goes straight from the file into the array's memory. WeightsError if the blob is damaged; ValueError if
        the array can't take it."""

    @abstractmethod
    def check(self) -> None:
        """WeightsError if shape and stored values contradict each other; done by all that read."""

    def array(self) -> Array:
        """The values in a new array: float32, or float64 where they are stored so."""
        self.check()
        values = np.empty(self.shape, self.dtype)
        self.read_into(values)
        return values

    def _check_target(self, array: Array) -> None:
        if array.size != self.count:
            raise ValueError(f"{self.label} has {self.count} values of shape {self.shape}, the array {array.size}")
        if not (array.flags.c_contiguous and array.flags.writeable and array.dtype.kind == "f"):
            raise ValueError(f"{self.label} can be read into writeable C-contiguous arrays of a float type only")


@dataclass(frozen=True)
class Segment:
    """Values that lie `stride` bytes apart, the first at byte `offset`: packed, or each after a tag of one byte."""

    offset: int
    count: int
    stride: int


@dataclass
class BinaryBlob(StoredBlob):
    """A BlobProto in a file. As in Caffe, `double_data` counts if there is any, else `data`; diffs are passed over."""

    window: Window
    label: str
    legacy: bool = False
    shape: tuple[int, ...] = ()
    floats: list[Segment] = field(default_factory=list)
    doubles: list[Segment] = field(default_factory=list)
    unknown: set[int] = field(default_factory=set)

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return np.dtype(np.float64 if self.doubles else np.float32)

    @property
    def stored(self) -> int:
        """How many values the file holds for this blob."""
        return sum(segment.count for segment in self.doubles or self.floats)

    def check(self) -> None:
        if any(extent < 0 for extent in self.shape):
            raise WeightsError(f"{self.window.name}: {self.label} has the impossible shape {list(self.shape)}")
        if self.stored != self.count:
            shape = " x ".join(map(str, self.shape)) or "one value"
            hint = ""
            if not self.stored and self.unknown:
                hint = f" (it has fields that Caffe does not know: {', '.join(map(str, sorted(self.unknown)))})"
            raise WeightsError(
                f"{self.window.name}: {self.label} has the shape {shape}, so {self.count} values, "
                f"but {self.stored} are stored{hint}"
            )

    def read_into(self, array: Array) -> None:
        self.check()
        self._check_target(array)
        flat, done = array.reshape(-1), 0
        stored = self.dtype.newbyteorder("<")
        for segment in self.doubles or self.floats:
            part = flat[done : done + segment.count]
            done += segment.count
            if segment.stride == stored.itemsize and part.dtype == stored and sys.byteorder == "little":
                self.window.read_into(part.view(np.uint8).data, segment.offset)
            else:
                self._convert(segment, stored, part)

    def _convert(self, segment: Segment, stored: np.dtype[Any], part: Array) -> None:
        """Through a small buffer, for values of another type or with tags between."""
        tag = segment.stride - stored.itemsize
        record = np.dtype({"names": ["value"], "formats": [stored], "offsets": [tag], "itemsize": segment.stride})
        buffer = np.empty(min(segment.count, _CHUNK), record)
        for first in range(0, segment.count, _CHUNK):
            chunk = buffer[: min(_CHUNK, segment.count - first)]
            self.window.read_into(chunk.view(np.uint8).data, segment.offset - tag + first * segment.stride)
            with np.errstate(over="ignore"):
                part[first : first + len(chunk)] = chunk["value"]


def read_binary_blob(window: Window, start: int, end: int, label: str) -> BinaryBlob:
    """The BlobProto between two places of a file, its values left where they are."""
    blob = BinaryBlob(window, label)
    legacy, shape, is_c3d = [0, 0, 0, 0], list[int](), False
    reader = MessageReader(window, start, end)
    while found := reader.next():
        number = found.number
        if number == _C3D_WIDTH and found.wire == VARINT and blob.legacy:
            legacy, is_c3d = [*legacy[:4], signed(found.value, 32)], True
        elif is_c3d and number in (_C3D_DATA, _C3D_DIFF):
            segment = _segment(reader, found, 4)
            if number == _C3D_DATA and segment.count:
                blob.floats.append(segment)
        elif number in _WIDTH:
            segment = _segment(reader, found, _WIDTH[number])
            if number in (_DATA, _DOUBLE_DATA) and segment.count:
                (blob.floats if number == _DATA else blob.doubles).append(segment)
        elif number in _LEGACY_AXES:
            expect(window, found, VARINT)
            legacy[_LEGACY_AXES[number]] = signed(found.value, 32)
            blob.legacy = True
        elif number == _SHAPE:
            expect(window, found, LENGTH)
            _read_shape(window, found, shape)
        else:
            blob.unknown.add(number)
    # Presence of any legacy extent decides, as in Caffe, even where a shape is given too.
    blob.shape = tuple(legacy if blob.legacy else shape)
    return blob


def expect(window: Window, found: Field, *wires: int) -> None:
    """WeightsError if a field that the schema knows is stored as another kind of value: then this is another file."""
    if found.wire not in wires:
        raise window.damaged(found.begin, f"field {found.number} has the wire type {found.wire}, which it can't have")


def _segment(reader: MessageReader, found: Field, width: int) -> Segment:
    if found.wire == LENGTH:
        length = found.end - found.start
        if length % width:
            raise reader.window.damaged(found.start, f"{length} bytes should be numbers of {width} bytes each")
        return Segment(found.start, length // width, width)
    expect(reader.window, found, FIXED32 if width == 4 else FIXED64)
    if found.start - found.begin != 1:
        return Segment(found.start, 1, width)
    following = reader.run(found.number << 3 | found.wire, width)
    return Segment(found.start, 1 + following, width + 1)


def _read_shape(window: Window, message: Field, shape: list[int]) -> None:
    reader = MessageReader(window, message.start, message.end)
    while found := reader.next():
        if found.number != 1:
            continue
        expect(window, found, VARINT, LENGTH)
        shape.extend([signed(found.value)] if found.wire == VARINT else _packed_varints(window, found))
        if len(shape) > MOST_AXES:
            raise window.damaged(found.begin, f"a shape has more than {MOST_AXES} axes")


def _packed_varints(window: Window, found: Field) -> Iterator[int]:
    if found.end - found.start > 10 * MOST_AXES:
        raise window.damaged(found.begin, f"a shape has more than {MOST_AXES} axes")
    value = shift = 0
    for byte in window.read(found.start, found.end):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield signed(value)
            value = shift = 0
    if shift:
        raise window.damaged(found.start, "a number of a shape does not end")


def storable(array: Array) -> Array:
    """The array as files hold it: contiguous little-endian float32, or float64 if it is that; a view where possible."""
    array = np.asarray(array)
    wanted = "<f8" if array.dtype == np.float64 else "<f4"
    # ascontiguousarray alone would give a scalar blob an axis.
    return np.ascontiguousarray(array, wanted).reshape(array.shape)


def encode_blob(data: Array, diff: Array | None = None, legacy: bool = False) -> Iterator[bytes | memoryview]:
    """A BlobProto in parts, in the order of field numbers as Caffe writes them; values are uncopied parts of their own.

    float64 arrays become `double_data`, as in a net of doubles. `legacy`: four extents in the old fields (the array
    has at most four axes; missing ones on the left are 1)."""
    shape = data.shape
    double = data.dtype.itemsize == 8
    extents = b"".join(map(encode_varint, shape))
    shape_field = encode_tag(1, LENGTH) + encode_varint(len(extents)) + extents
    parts: list[bytes | memoryview] = []
    if legacy:
        for number, extent in enumerate((1,) * (4 - len(shape)) + shape, start=1):
            parts.append(encode_tag(number, VARINT) + encode_varint(extent))
    if not double:
        parts += [*_packed(_DATA, data), *_packed(_DIFF, diff)]
    if shape and not legacy:
        parts.append(encode_tag(_SHAPE, LENGTH) + encode_varint(len(shape_field)) + shape_field)
    if double:
        parts += [*_packed(_DOUBLE_DATA, data), *_packed(_DOUBLE_DIFF, diff)]
    return iter(parts)


def _packed(number: int, values: Array | None) -> list[bytes | memoryview]:
    if values is None or values.size == 0:
        return []
    raw = values.reshape(-1).view(np.uint8).data
    return [encode_tag(number, LENGTH) + encode_varint(len(raw)), raw]
