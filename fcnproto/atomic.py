"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PathLike = str | os.PathLike[str]


@contextmanager
def atomic_write(path: PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and gives it `path`'s name when the block ends well.

    `mode` is "wb", "w+b" or "w" (text is UTF-8 with `\\n` line ends). The data are on the disk before the name changes;
    when the block raises, the temporary file is removed and what was at `path` stays. A link keeps pointing to the file
    that is replaced; an existing file's permissions are kept. OSError where the folder can't be written to."""
    if mode not in ("wb", "w+b", "w"):
        raise ValueError(f"mode {mode!r} does not write a whole file; use 'wb', 'w+b' or 'w'")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    descriptor, temporary = _temporary_beside(target)
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(descriptor, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        _finish(temporary, target)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Like `atomic_write` for writers that want a name, not a file (HDF5): gives a temporary path to write to."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    descriptor, temporary = _temporary_beside(target)
    os.close(descriptor)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _finish(temporary, target)
    except BaseException:
        _remove(temporary)
        raise


def _temporary_beside(target: Path) -> tuple[int, str]:
    """An open file of another name in the same folder; what goes wrong is told of the target."""
    try:
        return tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        error.filename = str(target)
        raise


def _finish(temporary: str, target: Path) -> None:
    os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
    os.replace(temporary, target)
    _sync_folder(target.parent)


def _umask() -> int:
    """The process's mask, which can only be read by setting it; mkstemp's own 0600 would hide files from others."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Puts the renaming itself on the disk, where the system lets folders be synchronised."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
