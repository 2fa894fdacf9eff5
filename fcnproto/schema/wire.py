"""Protobuf's binary format, walked in a file without reading what nobody asked for.

A caffemodel is a few kilobytes of structure around hundreds of megabytes of floats. The reader here steps from field
to field and tells where each value lies; only structure passes through Python. No length is believed before it was
compared with what is left of the message around it, so a hostile file can't make anything large be allocated. Not for
what the fields mean: see `blobs.py` and `weights.py`.
"""

from __future__ import annotations

import os
from typing import BinaryIO, NamedTuple

import numpy as np

from fcnproto.errors import WeightsError

VARINT, FIXED64, LENGTH, GROUP, GROUP_END, FIXED32 = range(6)
_WINDOW = 1 << 16
_RUN_WINDOW = 1 << 20
# Far beyond any net (a layer has some thirty fields), but soon reached by a file that was made to be slow.
MOST_FIELDS = 5_000_000
_DEEPEST_GROUP = 100


class Field(NamedTuple):
    """A field found in a message. `start` and `end` bound its value in the file, `begin` is where its tag stands.

    `value` is a VARINT's number (0 for the other wire types)."""

    number: int
    wire: int
    begin: int
    start: int
    end: int
    value: int


class Window:
    """Small reads anywhere in a file, through a buffer; `size` is the file's. Errors name the file and the place."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.size = os.fstat(file.fileno()).st_size
        self._start, self._buffer = 0, b""
        self._fields_left = MOST_FIELDS

    def read(self, start: int, end: int) -> bytes:
        """The file's bytes from `start` to `end`; the caller has checked that they are inside the file."""
        if not self._start <= start <= end <= self._start + len(self._buffer):
            buffer = bytearray(min(max(_WINDOW, end - start), self.size - start))
            self.read_into(memoryview(buffer), start)
            self._start, self._buffer = start, bytes(buffer)
        return self._buffer[start - self._start : end - self._start]

    def read_into(self, target: memoryview, start: int) -> None:
        """Fills `target` (bytes) from the file at `start`, without a copy between."""
        self.file.seek(start)
        done = 0
        while done < len(target):
            count = self.file.readinto(target[done:])  # type: ignore[attr-defined]
            if not count:
                raise self.error("the file became shorter while it was read")
            done += count

    def count_field(self) -> None:
        self._fields_left -= 1
        if self._fields_left < 0:
            raise self.error(f"more than {MOST_FIELDS} fields: this is no file of Caffe's")

    def damaged(self, position: int, what: str) -> WeightsError:
        return self.error(f"the file is damaged, or no file of Caffe's: at byte {position} {what}")

    def error(self, message: str) -> WeightsError:
        return WeightsError(f"{self.name}: {message}")


class MessageReader:
    """The fields of the message that lies between two places of a file, one after the other.

    `position` may be moved forward by callers that know what follows."""

    def __init__(self, window: Window, start: int, end: int) -> None:
        self.window, self.position, self.end = window, start, end

    def next(self) -> Field | None:
        """The next field, or None at the message's end; groups come as one field. WeightsError where there is none."""
        if self.position >= self.end:
            return None
        field = self._field()
        if field.wire == GROUP_END:
            raise self.window.damaged(field.begin, "a group ends that did not begin")
        if field.wire == GROUP:
            self._skip_group(field)
            return field._replace(end=self.position)
        return field

    def _field(self) -> Field:
        self.window.count_field()
        begin = self.position
        tag = self._varint()
        number, wire, start, value = tag >> 3, tag & 7, self.position, 0
        if not 0 < number < 1 << 29:
            raise self.window.damaged(begin, f"a field has the impossible number {number}")
        if wire == VARINT:
            value = self._varint()
        elif wire == LENGTH:
            length = self._varint()
            start = self.position
            if length > self.end - start:
                raise self._too_long(start, length)
            self.position = start + length
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
            if length > self.end - start:
                raise self._too_long(start, length)
            self.position = start + length
        elif wire not in (GROUP, GROUP_END):
            raise self.window.damaged(begin, f"a field has the unknown wire type {wire}")
        return Field(number, wire, begin, start, self.position, value)

    def _too_long(self, start: int, length: int) -> WeightsError:
        if start + length > self.window.size:
            return self.window.error(
                f"the file is cut off, or no file of Caffe's: {length} bytes should follow byte {start}, "
                f"but it ends at byte {self.window.size} (was the download complete?)"
            )
        return self.window.damaged(start, f"{length} bytes should follow, but the message around them is shorter")

    def _skip_group(self, first: Field) -> None:
        open_groups = [first.number]
        while open_groups:
            if self.position >= self.end:
                raise self.window.damaged(first.begin, "a group begins that does not end")
            field = self._field()
            if field.wire == GROUP:
                if len(open_groups) >= _DEEPEST_GROUP:
                    raise self.window.damaged(field.begin, f"groups lie more than {_DEEPEST_GROUP} deep in each other")
                open_groups.append(field.number)
            elif field.wire == GROUP_END and field.number != open_groups.pop():
                raise self.window.damaged(field.begin, "a group ends that did not begin")

    def _varint(self) -> int:
        begin = self.position
        raw = self.window.read(begin, min(begin + 10, self.end))
        value = 0
        for index, byte in enumerate(raw):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                self.position = begin + index + 1
                return value & 0xFFFFFFFFFFFFFFFF
        if len(raw) < 10 and self.end == self.window.size:
            raise self.window.error(f"the file is cut off: it ends within a number at byte {begin}")
        raise self.window.damaged(begin, "a number does not end")

    def run(self, tag: int, width: int) -> int:
        """How many more fields with the one-byte `tag` and a value of `width` bytes follow directly; skips them.

        Keeps files whose floats aren't packed from costing a Python step per float."""
        count, stride = 0, width + 1
        while True:
            room = min(_RUN_WINDOW // stride, (self.end - self.position) // stride)
            if room == 0:
                return count
            raw = np.frombuffer(self.window.read(self.position, self.position + room * stride), np.uint8)
            other = np.flatnonzero(raw[::stride] != tag)
            found = int(other[0]) if other.size else room
            self.position += found * stride
            count += found
            if other.size:
                return count


def encode_varint(value: int) -> bytes:
    """A number of up to 64 bits as a varint; negative ones as their two's complement."""
    value &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_tag(number: int, wire: int) -> bytes:
    """The tag that precedes a field's value."""
    return encode_varint(number << 3 | wire)


def signed(value: int, bits: int = 64) -> int:
    """A varint's number as protobuf reads it into a signed field of so many bits."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
