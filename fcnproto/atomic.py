"""Writing files so that a reader, or a crash, never sees half of one.

What can't be replaced as a whole (a device, a pipe, a descriptor such as `/dev/stdout`) is written to, once the content
is complete; nothing is ever put in its place.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays until somebody deletes it
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

STDOUT = Path("/dev/stdout")
"""The path that stands for the process's standard output, on every system."""
TEMPORARY = ".fcnproto.tmp"
"""How the hidden names of files end that are not complete yet."""
_STALE_SECONDS = 10.0
"""So long after its last change a temporary file without a lock is a dead process's; a living one locks it at once."""
_DESCRIPTOR = re.compile(r"/dev/(?:(?P<name>stdin|stdout|stderr)|fd/(?P<number>\d+))$|/proc/self/fd/(?P<own>\d+)$")
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_tidied: set[Path] = set()
_protected: list[frozenset[tuple[int, int]]] = []


@contextmanager
def atomic_write(path: PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and gives it `path`'s name when the block ends well.

    `mode` is "wb", "w+b" or "w" (text is UTF-8 with `\\n` line ends). The data are on the disk before the name changes;
    when the block raises, the temporary file is removed and what was at `path` stays. A link keeps pointing to the file
    that is replaced; an existing file's permissions are kept. A device, pipe or descriptor gets the content at the end
    of the block. OSError where the folder can't be written to, and where the file is one of those `protected`."""
    if mode not in ("wb", "w+b", "w"):
        raise ValueError(f"mode {mode!r} does not write a whole file; use 'wb', 'w+b' or 'w'")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if is_stream(path):
        with tempfile.TemporaryFile() as spool:
            with os.fdopen(os.dup(spool.fileno()), mode, **text) as file:
                yield file
            spool.seek(0)
            _send(spool, path)
        return
    target = _target(path)
    descriptor, temporary = _temporary_beside(target)
    try:
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _finish(temporary, target)
    except BaseException:
        _remove(temporary)
        raise


def is_stream(path: PathLike) -> bool:
    """Whether the path is no file that could be replaced: a device, a pipe, a socket, a descriptor of a process.

    A descriptor (`/dev/stdout`, `/dev/fd/3`) is one whatever it leads to: what was written through it must stay."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _descriptor(path: PathLike) -> int | None:
    """The number of this process's descriptor that the path names, by itself or through links."""
    name = os.fspath(path)
    for _ in range(40):  # as many links as Linux follows
        found = _DESCRIPTOR.match(name)
        if found is not None:
            return _STANDARD[found["name"]] if found["name"] else int(found["number"] or found["own"])
        try:
            name = os.path.join(os.path.dirname(name), os.readlink(name))
        except OSError:
            return None
    return None


def _send(spool: IO[bytes], path: PathLike) -> None:
    """Write a file's content to a device, pipe or descriptor."""
    number = _descriptor(path)
    # Python's own streams, which may have text waiting, and may have been led elsewhere.
    own = {1: sys.stdout, 2: sys.stderr}.get(-1 if number is None else number)
    buffer = getattr(own, "buffer", None)
    if own is not None and buffer is not None:
        own.flush()
        shutil.copyfileobj(spool, buffer)
        buffer.flush()
        return
    with os.fdopen(os.open(path, os.O_WRONLY) if number is None else os.dup(number), "wb") as file:
        shutil.copyfileobj(spool, file)


@contextmanager
def protected(paths: Iterable[PathLike]) -> Iterator[None]:
    """While the block runs, no thread of this process replaces any of these files (by whatever name): OSError."""
    added = frozenset(key for path in paths if (key := file_key(path)) is not None)
    _protected.append(added)
    try:
        yield
    finally:
        _protected.remove(added)


def file_key(path: PathLike) -> tuple[int, int] | None:
    """What makes out a file or folder whatever its name: device and inode; None where there is nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _target(path: PathLike) -> Path:
    """The file that a path leads to through links, if it may be replaced."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    key = file_key(target)
    if key is not None and any(key in keys for keys in _protected):
        raise FileExistsError(f"{os.fspath(path)} is one of the files to be read; write to another place")
    return target


def _temporary_beside(target: Path) -> tuple[int, str]:
    """An open file of another name in the same folder; what goes wrong is told of the target.

    Its lock says that its writer lives: the first writing into a folder removes what dead processes left there."""
    if target.parent not in _tidied:
        _tidied.add(target.parent)
        _tidy(target.parent)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=TEMPORARY, dir=target.parent)
    except OSError as error:
        error.filename = str(target)
        raise
    _lock(descriptor)
    return descriptor, temporary


def _lock(descriptor: int) -> bool:
    """Lock an open file against other processes' `_tidy`; whether that was possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another, or a file system without locks
        return False
    return True


def tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder and its subfolders, where no other process may be writing."""
    for inner, _, names in os.walk(folder):
        if any(name.endswith(TEMPORARY) for name in names):
            _tidy(Path(inner), 0.0)


def tidy_beside(path: PathLike) -> None:
    """Remove what killed processes left when they wrote this file, or one whose name is this one's and more."""
    file = Path(path)
    _tidy(file.parent, 0.0, f"{file.name[:100]}.")


def _tidy(folder: Path, seconds: float = _STALE_SECONDS, start: str = "") -> None:
    """Remove the temporary files of processes that were killed in the middle of writing, so long ago at least, where
    the names that they were to have start so."""
    with suppress(OSError):
        for left in folder.glob(f".{glob.escape(start)}*{TEMPORARY}"):
            with suppress(OSError), open(left, "rb") as file:
                old = time.time() - os.fstat(file.fileno()).st_mtime > seconds
                if old and _lock(file.fileno()):
                    left.unlink()


def _finish(temporary: str, target: Path) -> None:
    os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
    os.replace(temporary, target)
    sync_folder(target.parent)


def _umask() -> int:
    """The process's mask, which can only be read by setting it; mkstemp's own 0600 would hide files from others."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
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
