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
    """Opens a binary file unbuffered, at its start; WeightsError if it can't be one of Caffe's, saying what it is."""
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
    file.seek(0)
    return file  # type: ignore[return-value]
