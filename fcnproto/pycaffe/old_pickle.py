"""The module `pickle` for translated sources: also reads what Python 2 wrote, and from files opened as text."""

from __future__ import annotations

import pickle
from typing import Any

from fcnproto.pycaffe.old_ways import raw_file

_ENCODING = "latin1"
"""NumPy's arrays in pickles of Python 2 are read with it; text in ASCII is the same."""


def __getattr__(name: str) -> Any:
    return getattr(pickle, name)


def load(file: Any, **settings: Any) -> Any:
    """An object from a file."""
    return pickle.load(raw_file(file), **{"encoding": _ENCODING, **settings})


def loads(data: Any, **settings: Any) -> Any:
    """An object from bytes, or from the text that they are in Latin-1."""
    raw = data.encode(_ENCODING) if isinstance(data, str) else data
    return pickle.loads(raw, **{"encoding": _ENCODING, **settings})


def dump(value: Any, file: Any, protocol: int | None = 0, **settings: Any) -> None:
    """Write an object to a file, by default in the format that Python 2 took."""
    pickle.dump(value, file, protocol, **settings)


def dumps(value: Any, protocol: int | None = 0, **settings: Any) -> bytes:
    """An object as bytes likewise."""
    return pickle.dumps(value, protocol, **settings)
