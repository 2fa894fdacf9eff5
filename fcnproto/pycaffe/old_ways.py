"""What translated sources call where Python 2, or the NumPy of its time, did something else under the same name.

Python 2 made no difference between text and bytes: files took both whatever their mode, and so did StringIO; pickles
were read from either, and those that Python 2 wrote hold bytes where text was meant.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import operator
import os
import tempfile
import weakref
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np

_ERRORS = "surrogateescape"  # a byte that is no UTF-8 passes through, as every byte did


def old_division(a: Any, b: Any, into: bool = False) -> Any:
    """`a / b` as in Python 2: between whole numbers (and arrays of them) rounded down. `into`: `a /= b`."""
    whole = _is_whole(a) and _is_whole(b)
    if into:
        return operator.ifloordiv(a, b) if whole else operator.itruediv(a, b)
    return a // b if whole else a / b


def _is_whole(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "iub"
    return isinstance(value, int)


def compare(a: Any, order: str, b: Any) -> Any:
    """`a < b` and the like (`order`: lt, le, gt, ge); where Python 3 finds no order, Python 2's: nothing, numbers, the
    rest by the name of its type."""
    decide = getattr(operator, order)
    try:
        return decide(a, b)
    except TypeError:
        return decide(_rank(a), _rank(b))


def _rank(value: Any) -> tuple[int, str, int]:
    if value is None:
        return 0, "", 0
    return (1, "", 0) if isinstance(value, (int, float)) else (2, type(value).__name__, id(value))


def round(number: Any, ndigits: int = 0) -> Any:
    """Python 2's `round`: a float, halves away from zero."""
    if not isinstance(number, (int, float)):
        return builtins.round(number, ndigits)
    try:
        return float(Decimal(number).quantize(Decimal(1).scaleb(-ndigits), ROUND_HALF_UP))
    except ArithmeticError:  # infinite, no number, or more digits than there are
        return float(number)


def fromstring(string: Any, dtype: Any = float, count: int = -1, sep: str = "", **settings: Any) -> np.ndarray:
    """NumPy's `fromstring`, which read raw bytes too where no `sep` is given; the array is a copy of its own."""
    if sep:
        return np.fromstring(string, dtype, count, sep=sep, **settings)
    raw = string.encode("latin-1", _ERRORS) if isinstance(string, str) else string
    return np.frombuffer(raw, dtype, count).copy()


def loadtxt(fname: Any, *arguments: Any, **settings: Any) -> Any:
    """NumPy's `loadtxt`, in which `delimiter="\\n"` made whole lines the values."""
    if settings.get("delimiter") == "\n":
        settings["delimiter"] = "\x1f"  # stands in no line
    return np.loadtxt(fname, *arguments, **settings)


def load(file: Any, *arguments: Any, **settings: Any) -> Any:
    """NumPy's `load`, which read arrays of objects and what Python 2 had pickled without being told."""
    if not arguments:
        settings = {"allow_pickle": True, "encoding": "latin1", **settings}
    return np.load(raw_file(file), *arguments, **settings)


# Files.


def _raw(data: Any) -> Any:
    return data.encode("utf-8", _ERRORS) if isinstance(data, str) else data


class _Writer(io.BufferedWriter):
    def write(self, data: Any) -> int:
        return super().write(_raw(data))


class _Random(io.BufferedRandom):
    def write(self, data: Any) -> int:
        return super().write(_raw(data))


class _Unbuffered(io.FileIO):
    def write(self, data: Any) -> int:
        return super().write(_raw(data))


class _Text(io.TextIOWrapper):
    def write(self, data: Any) -> int:
        if isinstance(data, str):
            return super().write(data)
        self.flush()
        self.buffer.write(data)
        return len(data)


def _taking_both(file: Any) -> Any:
    """A binary file whose `write` takes text as well."""
    if type(file) is io.BufferedWriter:
        return _Writer(file.detach())
    return _Random(file.detach()) if type(file) is io.BufferedRandom else file


def open(name: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **settings: Any) -> Any:
    """Python 2's `open`: what it writes may be text or bytes, and no byte of a text is refused."""
    mode = mode.replace("U", "") or "r"
    mode = mode if mode.strip("+bt") else f"r{mode}"
    if arguments or settings:
        return builtins.open(name, mode, buffering, *arguments, **settings)
    binary = f"{mode.replace('b', '').replace('t', '')}b"
    if buffering == 0:
        file: Any = _Unbuffered(name, binary)
    else:
        file = _taking_both(builtins.open(name, binary, buffering if buffering > 1 else -1))  # noqa: SIM115
    if "b" in mode:
        return file
    text = _Text(file, "utf-8", _ERRORS, line_buffering=buffering == 1, write_through=buffering == 0)
    setattr(text, "mode", mode)  # noqa: B010
    return text


class _Temporary:
    """A file that is gone once it is closed."""

    def __init__(self, file: Any) -> None:
        self.file, self._forget = file, weakref.finalize(self, _remove, file.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _Temporary:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self.file)

    def close(self) -> None:
        """Close and remove it."""
        self.file.close()
        self._forget()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def NamedTemporaryFile(
    mode: str = "w+b", bufsize: int = -1, suffix: str = "", prefix: str = "tmp", dir: Any = None, delete: bool = True
) -> Any:
    """`tempfile`'s of Python 2, which takes text whatever its mode."""
    number, path = tempfile.mkstemp(suffix, prefix, dir)
    os.close(number)
    file = open(path, mode, bufsize)
    return _Temporary(file) if delete else file


class StringIO(io.BytesIO):
    """Python 2's StringIO: takes text and bytes; what it gives back is text unless bytes were put in."""

    def __init__(self, initial: Any = "") -> None:
        super().__init__(_raw(initial))
        self._text = isinstance(initial, str)
        self.seek(0)

    def _given(self, data: bytes) -> Any:
        return data.decode("utf-8", _ERRORS) if self._text else data

    def write(self, data: Any) -> int:
        """Put in text or bytes."""
        self._text = self._text and isinstance(data, str)
        return super().write(_raw(data))

    def getvalue(self) -> Any:
        """All that is in it."""
        return self._given(super().getvalue())

    def read(self, size: int | None = -1, /) -> Any:
        """What comes next."""
        return self._given(super().read(size))

    def readline(self, size: int | None = -1, /) -> Any:
        """The next line."""
        return self._given(super().readline(size))

    def readlines(self, hint: int | None = None, /) -> list[Any]:
        """The lines that come next."""
        return [self._given(line) for line in super().readlines(hint)]

    def __next__(self) -> Any:
        return self._given(super().__next__())


def set_default_encoding(name: str) -> None:
    """What `sys.setdefaultencoding` was asked for is so in Python 3."""


def raw_file(file: Any) -> Any:
    """The bytes under a file, which pickle reads."""
    return getattr(file, "buffer", file)
