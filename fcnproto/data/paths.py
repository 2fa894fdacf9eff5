"""Finding the files that a prototxt names."""

from __future__ import annotations

import os

from fcnproto.errors import DataError


def find(name: str, base_dir: str | None = None) -> str | None:
    """The path of an existing file or folder `name`: from the working directory, then from `base_dir`; else None."""
    if not name:
        return None
    for spelt in _spellings(name):
        if os.path.exists(spelt):
            return spelt
        if base_dir is not None and not os.path.isabs(spelt):
            beside = os.path.join(base_dir, spelt)
            if os.path.exists(beside):
                return beside
    return None


def _spellings(name: str) -> list[str]:
    """The name, and the one of the same bytes where it comes of a text that is not UTF-8 (`schema.tokens.text_of`)."""
    if name.isascii() or "\0" in name:
        return [name] if "\0" not in name else []
    try:
        return [name, os.fsdecode(name.encode("latin-1", "surrogateescape"))]
    except UnicodeEncodeError:
        return [name]


def read_list(path: str, what: str) -> str:
    """The text of a list of files, ids or names, line ends as "\\n". A byte order mark is skipped.

    Bytes that are not UTF-8 stay what they are in file names (surrogateescape). `DataError` if it can't be read; `what`
    says what the list is.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: not a readable {what} ({error.strerror or error})") from error


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
