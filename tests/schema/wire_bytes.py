"""Protobuf's binary format by hand, to test readers with something other than the package's own writer."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def varint(value: int) -> bytes:
    """A number as a varint; negative ones take ten bytes."""
    value %= 1 << 64
    parts = []
    while value >= 128:
        parts.append(value % 128 + 128)
        value //= 128
    return bytes([*parts, value])


def tag(number: int, wire: int) -> bytes:
    return varint(number * 8 + wire)


def field(number: int, content: bytes | str | int) -> bytes:
    """A field with bytes or text (with its length), or with a number as varint."""
    if isinstance(content, int):
        return tag(number, 0) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return tag(number, 2) + varint(len(content)) + content


def floats(values: Iterable[float], code: str = "f") -> bytes:
    """Little-endian floats (or doubles with code "d") one after the other."""
    values = list(values)
    return struct.pack(f"<{len(values)}{code}", *values)


def unpacked(number: int, values: Iterable[float], code: str = "f") -> bytes:
    """Floats with a tag before each."""
    return b"".join(tag(number, 5 if code == "f" else 1) + floats([value], code) for value in values)


def shape(*extents: int) -> bytes:
    """The shape field of a blob."""
    return field(7, field(1, b"".join(map(varint, extents))))


def layer(*blobs: bytes, name: str = "conv", kind: str = "Convolution") -> bytes:
    """A net's layer field in the current format."""
    return field(100, field(1, name) + field(2, kind) + b"".join(field(7, blob) for blob in blobs))


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that tells the most bytes that Python and numpy held at once since the block began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
