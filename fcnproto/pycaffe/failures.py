"""Errors as scripts written for pycaffe expect them: the package's own, which are also what pycaffe raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fcnproto.errors import DataError, Error, GraphError


class MissingFileError(DataError, RuntimeError):
    """A file that isn't there; pycaffe raised RuntimeError."""


@contextmanager
def as_pycaffe_raised() -> Iterator[None]:
    """Let what a Python layer's own code raised come out as an error of that type too.

    pycaffe let a layer's ValueError through as it was; here it is a `LayerError`, which names the layer and the line,
    and a ValueError.
    """
    try:
        yield
    except GraphError as error:
        cause: BaseException | None = error.__cause__
        while isinstance(cause, Error):
            cause = cause.__cause__
        if not isinstance(cause, Exception):
            raise
        try:
            kind = type(
                f"{type(cause).__name__}InLayer",
                (type(error), type(cause)),
                {"__module__": __name__, "__str__": Exception.__str__},
            )
            both = kind(*error.args)
        except TypeError:  # types that can't be joined, or made from a text
            raise error from cause
        raise both from cause
