"""Tells from a file's first bytes what kind of file it is, for errors that say what was found instead.

People hand over downloads that turned out to be web pages, large-file pointers of git, or the wrong one of two files.
Reading is for `text.py` and `weights.py`.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO

from fcnproto.errors import WeightsError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HEAD_BYTES = 4096

_TEXT_START = re.compile(rb"\s*(?:#[^\n]*\n\s*)*[A-Za-z_][A-Za-z0-9_]*\s*[:{<\[]")


def foreign_kind(head: bytes) -> str | None:
    """What a file is that is neither text format nor one of Caffe's binary files, from its first bytes; else None."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "a web page (the download went wrong)"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself (run `git lfs pull`)"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive (perhaps a PyTorch file)"
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "a Python pickle (perhaps an old PyTorch file)"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive (unpack it first)"
    if head.startswith((b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf", b"Rar!")) or head[257:262] == b"ustar":
        return "an archive (unpack it first)"
    if head[8:10] == b'{"':
        return "a safetensors file"
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy array"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")):
        return "an image"
    return None


WEIGHTS, STATE, BLOB = "a caffemodel", "a solverstate", "a .binaryproto file"
"""The kinds of Caffe's binary files, as messages call them."""
_ADVICE = {
    WEIGHTS: "weights; a solver's state is the .solverstate beside them",
    STATE: "a solver's state; its weights are in the .caffemodel beside it, training goes on from it by --snapshot",
    BLOB: "one array, such as a mean image",
}
_VARINT_1, _BYTES_1, _NET_LAYER = b"\x08", b"\x0a", b"\xa2\x06"  # tags of fields 1 (two types) and 100


def caffe_kind(head: bytes) -> str | None:
    """Which of Caffe's binary files begins like this, None where that can't be told.

    Protobuf writes fields by number. A state begins with its iteration, then the model's name; a net with its name (if
    it has one), then layers or inputs; an array with an extent followed by another, or with its shape or values."""
    if head.startswith(_NET_LAYER):
        return WEIGHTS
    if head.startswith((b"\x3a", b"\x2a")):  # shape, data
        return BLOB
    if head[:1] not in (_VARINT_1, _BYTES_1):
        return None
    value, place = 0, 1
    for shift in range(0, 70, 7):
        if place >= len(head) or shift == 63:
            return None
        value |= (head[place] & 127) << shift
        place += 1
        if head[place - 1] < 128:
            break
    if head[:1] == _BYTES_1:
        after = head[place + value : place + value + 2]
        return WEIGHTS if after == _NET_LAYER or after[:1] in (b"\x12", b"\x1a", b"\x22") else None
    after = head[place : place + 1]
    return BLOB if after == b"\x10" else STATE if after in (b"\x12", b"\x1a", b"\x20") else None


def wrong_kind(name: str, wanted: str, found: str) -> WeightsError:
    """The error where one of Caffe's files was given for another; both are one of the kinds above."""
    return WeightsError(f"{name}: this is not {wanted} but {found} ({_ADVICE[found]})")


def is_hdf5(head: bytes) -> bool:
    """Whether the file begins with HDF5's signature; Caffe decides by content too, not by the name."""
    return head.startswith(HDF5_SIGNATURE)


def looks_like_text(head: bytes) -> bool:
    """Whether the bytes look like text format: a field name first, and no byte that texts don't have."""
    return b"\x00" not in head and _TEXT_START.match(head.removeprefix(b"\xef\xbb\xbf")) is not None


def looks_binary(head: bytes) -> bool:
    """Whether the bytes are no text at all: control characters other than white space."""
    return any(byte < 9 or 13 < byte < 32 for byte in head)


def open_binary(name: str, wanted: str) -> BinaryIO:
    """Opens a binary file unbuffered, at its start; WeightsError if it can't be one of Caffe's, saying what it is.

    `wanted` is WEIGHTS, STATE or BLOB."""
    try:
        if os.path.isdir(name):
            raise WeightsError(f"{name}: this is a folder; {wanted} was expected")
        file = open(name, "rb", buffering=0)  # noqa: SIM115 - the caller's to close
    except OSError as error:
        raise WeightsError(f"{name}: can't be read: {error.strerror or error}") from None
    head = file.read(HEAD_BYTES) or b""
    kind = "empty" if not head else foreign_kind(head)
    if kind is None and looks_like_text(head) and not looks_binary(head):
        kind = "a text file, perhaps a prototxt (a net's definition, not its weights)"
    if kind is not None:
        file.close()
        raise WeightsError(f"{name}: this is not {wanted} but {kind}" if head else f"{name}: the file is empty")
    found = caffe_kind(head)
    if found is not None and found != wanted:
        file.close()
        raise wrong_kind(name, wanted, found)
    file.seek(0)
    return file  # type: ignore[return-value]
