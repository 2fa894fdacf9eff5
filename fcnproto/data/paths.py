"""Finding the files that a prototxt names."""

from __future__ import annotations

import os

from fcnproto.errors import DataError


def find(name: str, base_dir: str | None = None) -> str | None:
    """The path of an existing file or folder `name`: from the working directory, then from `base_dir`; else None."""
    if not name:
        return None
    if os.path.exists(name):
        return name
    if base_dir is not None and not os.path.isabs(name):
        beside = os.path.join(base_dir, name)
        if os.path.exists(beside):
            return beside
    return None


def resolve(name: str, base_dir: str | None = None, what: str = "file") -> str:
    """Like `find`, but a missing file is a `DataError` that says where it was looked for.

    `base_dir` is the folder of the prototxt that names the file; `what` says in the message what the file is for.
    """
    path = find(name, base_dir)
    if path is not None:
        return path
    if not name:
        raise DataError(f"no {what} given")
    if os.path.isabs(name):
        raise DataError(f"{what} {name!r} does not exist")
    folders = dict.fromkeys([os.getcwd(), os.path.abspath(base_dir or ".")])
    raise DataError(f"{what} {name!r} not found in {' or '.join(folders)}")
