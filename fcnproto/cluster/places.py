"""Files wherever they are: local paths and fsspec's addresses (`s3://...`), read and written in one way.

An address is an absolute local path or a text with `://`. Nothing is ever half-written under its own name.
"""

from __future__ import annotations

import errno
import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from fcnproto.atomic import TEMPORARY, atomic_write
from fcnproto.errors import DataError, Error, UsageError, first_line

PathLike = str | os.PathLike[str]

_WHOLE_AT_ONCE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory")
"""File systems on which an object appears when all of it is there; on others a file is written beside and renamed."""


def address_of(given: PathLike) -> str:
    """The address that a user's text means: `file://` ones and paths become absolute local paths."""
    text = os.fspath(given)
    for head in ("file://", "local://"):
        if text.startswith(head):
            return os.path.abspath(text[len(head) :])
    return text.rstrip("/") if "://" in text else os.path.abspath(text)


def is_local(address: str) -> bool:
    """Whether an address is a path of this machine (or of a file system that all machines share)."""
    return "://" not in address


def in_memory(address: str) -> bool:
    """Whether only the process that holds it sees what is there: `memory://`."""
    return address.startswith("memory://")


def join(address: str, *names: str) -> str:
    """The address of something in a folder."""
    return os.path.join(address, *names) if is_local(address) else posixpath.join(address, *names)


def parent_and_name(address: str) -> tuple[str, str]:
    """The folder that something is in, and what it is called there."""
    if is_local(address):
        return os.path.split(address)
    parent, _, name = address.rpartition("/")
    return parent, name


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address and the path there.

    Raises `UsageError` for a scheme that nobody knows or whose package is missing.
    """
    from fsspec.core import url_to_fs

    try:
        return cast("tuple[Any, str]", url_to_fs(address))
    except (ImportError, ValueError, OSError) as error:
        hint = "; hdfs:// goes through pyarrow, which wants Java and Hadoop's libhdfs" if "hdfs://" in address else ""
        raise UsageError(f"{address}: {first_line(error)}{hint}") from None


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Errors of an address's own package as OSErrors that name it: what can't be reached now may be tried again."""
    try:
        yield
    except (Error, FileNotFoundError):
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise OSError(errno.EIO, reason or type(error).__name__, address) from error


def read(address: str) -> bytes:
    """All of a file. Raises `DataError`."""
    try:
        if is_local(address):
            return Path(address).read_bytes()
        with _reaching(address):
            system, path = file_system(address)
            return cast("bytes", system.cat_file(path))
    except OSError as error:
        raise unreadable(address, error) from None


def unreadable(address: str, error: OSError) -> DataError:
    """What to say of a file that can't be read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{address}: no such file")
    return DataError(f"{address}: can't be read ({error.strerror or first_line(error)})")


def opened(address: str) -> IO[bytes]:
    """A file opened for reading and seeking. Raises `DataError`."""
    try:
        if is_local(address):
            return open(address, "rb")
        with _reaching(address):
            system, path = file_system(address)
            return cast("IO[bytes]", system.open(path, "rb"))
    except OSError as error:
        raise unreadable(address, error) from None


def exists(address: str) -> bool:
    """Whether there is a file or folder."""
    if is_local(address):
        return os.path.exists(address)
    with _reaching(address):
        system, path = file_system(address)
        return bool(system.exists(path))


def is_folder(address: str) -> bool:
    """Whether there is a folder."""
    if is_local(address):
        return os.path.isdir(address)
    with _reaching(address):
        system, path = file_system(address)
        return bool(system.isdir(path))


def write(address: str, data: bytes) -> None:
    """Write a file that appears whole or not at all, its folders made. Raises OSError."""
    if is_local(address):
        os.makedirs(os.path.dirname(address), exist_ok=True)
        with atomic_write(address) as file:
            file.write(data)
        return
    with _reaching(address):
        system, path = file_system(address)
        beside = _beside(system, path)
        system.pipe_file(beside, data)
        if beside != path:
            system.mv(beside, path)


def _beside(system: Any, path: str) -> str:
    """The path to write a file under until it is complete; its folder is made."""
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    folder, name = posixpath.split(path)
    system.makedirs(folder, exist_ok=True)
    return path if set(protocols) & set(_WHOLE_AT_ONCE) else posixpath.join(folder, f".{name}{TEMPORARY}")


@contextmanager
def writing(address: str) -> Iterator[IO[bytes]]:
    """As `write`, for a file of any length: what the block writes is there when it has ended well."""
    if is_local(address):
        os.makedirs(os.path.dirname(address), exist_ok=True)
        with atomic_write(address) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile() as spool:
        yield cast("IO[bytes]", spool)
        spool.flush()
        with _reaching(address):
            system, path = file_system(address)
            beside = _beside(system, path)
            system.put_file(spool.name, beside)
            if beside != path:
                system.mv(beside, path)


def remove_file(address: str) -> None:
    """Remove a file, if it is there."""
    if exists(address):
        with _reaching(address):
            system, path = file_system(address)
            system.rm_file(path)


def remove_folder(address: str) -> None:
    """Remove a folder and all that is in it, if it is there."""
    if exists(address):
        with _reaching(address):
            system, path = file_system(address)
            system.rm(path, recursive=True)


def files_in(address: str, recursive: bool = True) -> list[tuple[str, int]]:
    """The files in a folder that aren't hidden, by address, with their sizes in bytes; in alphabetical order."""
    with _reaching(address):
        system, path = file_system(address)
        path = path.rstrip("/")
        found = system.find(path, detail=True, maxdepth=None if recursive else 1)
    files = []
    for name, details in found.items():
        inner = name[len(path) :].lstrip("/")
        if not any(part.startswith(".") for part in inner.split("/")):
            files.append((join(address, inner), int(details.get("size") or 0)))
    return sorted(files)
