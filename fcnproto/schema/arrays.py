"""Arrays in NumPy's .npy and .npz files, read with a hostile file in mind.

Nothing is unpickled. The size that an array claims is checked against the file (see `limits.py`) before memory is
taken, and whatever numpy and zipfile raise of a damaged file becomes a `DataError` of one line.
"""

from __future__ import annotations

import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fcnproto.atomic import PathLike
from fcnproto.errors import DataError
from fcnproto.schema.limits import Budget

Array = npt.NDArray[Any]

# What numpy and zipfile raise for files that are damaged.
_FAULTS = (
    *(OSError, ValueError, EOFError, KeyError, IndexError, SyntaxError, TypeError, MemoryError, RuntimeError),
    *(OverflowError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_LONGEST_HEADER = 10_000  # numpy's own limit; it reads the header before it looks at its length


def is_archive(path: PathLike) -> bool:
    """Whether the file begins like a zip archive, which an .npz file is."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def read_npy(path: PathLike, content: bytes | None = None) -> Array:
    """The array in an .npy file. `DataError` for a missing, damaged or foreign file, or one of Python objects.

    With `content` that is the file's, and the path only its name."""
    name = os.fspath(path) if content is not None else _existing(path)
    try:
        if content is not None:
            return _array(lambda: io.BytesIO(content), len(content), Budget(len(content)))
        size = os.path.getsize(name)
        return _array(lambda: open(name, "rb"), size, Budget(size))
    except _FAULTS as error:
        raise DataError(f"{name}: not a readable .npy file ({_reason(error)})") from error


def read_npz(path: PathLike, wanted: Callable[[str], bool] = lambda key: True) -> Iterator[tuple[str, Array]]:
    """The arrays of an .npz file whose key is `wanted`, one after the other, each with its key.

    Raises `DataError` for a missing, damaged or foreign file, one of Python objects, and one that would take more
    memory than `limits.py` allows for its size.
    """
    name = _existing(path)
    budget = Budget(os.path.getsize(name))
    try:
        with zipfile.ZipFile(name) as archive:
            members = archive.infolist()
            if sum(member.compress_size for member in members) > budget.file_size:
                raise ValueError("its members overlap")
            for member in members:
                key = member.filename.removesuffix(".npy")
                if wanted(key):
                    yield key, _member(archive, member, budget)
    except _FAULTS as error:
        raise DataError(f"{name}: not a readable .npz file ({_reason(error)})") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget) -> Array:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!r} is packed in a way that NumPy doesn't write")
    try:
        return _array(lambda: archive.open(member), member.file_size, budget)
    except ValueError as error:
        raise ValueError(f"{member.filename!r}: {error}") from error


def npy_shape(stream: IO[bytes]) -> tuple[int, ...]:
    """The shape that the header of an .npy file says. Raises what numpy does where it is none."""
    return _header(stream)[0]


def _array(opened: Callable[[], IO[bytes]], size: int, budget: Budget) -> Array:
    """The array in a stream of `size` bytes, which `opened` gives from its start."""
    with opened() as stream:
        shape, dtype, start = _header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size - start:
        raise ValueError(f"its array should have {needed:,} bytes, {max(size - start, 0):,} are stored")
    problem = budget.take(needed)
    if problem is not None:
        raise ValueError(problem)
    with opened() as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and the number of bytes before the values, of a header that is no longer than headers are."""
    version = np.lib.format.read_magic(stream)
    width = 2 if version == (1, 0) else 4
    length = stream.read(width)
    count = int.from_bytes(length, "little")
    if len(length) < width or count > _LONGEST_HEADER:
        raise ValueError(f"its header says to be {count:,} bytes long")
    text = stream.read(count)
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(length + text))
    if any(extent < 0 for extent in shape):
        raise ValueError(f"it has the impossible shape {shape}")
    return shape, dtype, 8 + width + count


def _existing(path: PathLike) -> str:
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    return str(file)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
