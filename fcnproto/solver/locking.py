"""One run at a time writes the snapshots of a prefix: who that is stands in a hidden file beside them.

The file `.<prefix>.lock` is locked by the process that writes, and holds its host, process and beginning for whoever
comes second. A process that dies gives its lock back, however it dies; where the file system knows no locks, a holder
counts as gone if it is of this host and no longer runs.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from fcnproto.errors import SolverError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MOST_BYTES = 4096
_held: dict[Path, _Held] = {}


class _Held:
    """A lock that this process has, for so many users."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.process, self.users = file, os.getpid(), 0


class PrefixLock:
    """The right to write the snapshots of a prefix, from `acquire` to `release` or until the object is gone.

    Within one process any number of solvers may share it; they don't write at the same time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._finalizer: Any = None

    def acquire(self, prefix: str) -> bool:
        """Take the lock; False if this object has it already. SolverError, naming the holder, where another process has
        it."""
        path = Path(os.path.realpath(Path(prefix).parent)) / f".{Path(prefix).name}.lock"
        if self._path == path and self._finalizer.alive and path in _held and _held[path].process == os.getpid():
            return False
        self.release()
        held = _held.get(path)
        if held is None or held.process != os.getpid():  # a child has the table of its parent, but not its locks
            path.parent.mkdir(parents=True, exist_ok=True)
            held = _held[path] = _Held(_locked(path, prefix))
        held.users += 1
        self._path = path
        self._finalizer = weakref.finalize(self, _give_back, path, os.getpid())
        return True

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self._finalizer is not None:
            self._finalizer()
        self._path = self._finalizer = None


def _give_back(path: Path, process: int) -> None:
    held = _held.get(path)
    if held is None or held.process != os.getpid() or process != os.getpid():
        return
    held.users -= 1
    if not held.users:
        del _held[path]
        path.unlink(missing_ok=True)  # before the lock goes: whoever waits for it sees that the file is another
        held.file.close()


def _locked(path: Path, prefix: str) -> BinaryIO:
    """The lock file, open and locked, with what is to be known of this process in it."""
    while True:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)  # noqa: SIM115
        if not _lock(file):
            holder = _read(file)
            file.close()
            raise SolverError(
                f"snapshot_prefix {prefix!r}: another run writes these snapshots{_called(holder)}; "
                "stop it, or give this one another snapshot_prefix"
            )
        if _is_at(file, path):
            break
        file.close()  # removed by its holder in the meantime
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    content = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": started})
    file.truncate(0)
    file.write(content.encode())
    return file


def _lock(file: BinaryIO) -> bool:
    """Lock the file; False where another process has it."""
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            return not _seems_alive(_read(file))
        return True
    return not _seems_alive(_read(file))


def _seems_alive(holder: dict[str, Any]) -> bool:
    """Whether the process named in a lock file runs, as far as can be told from here."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    if not isinstance(process, int) or process <= 0 or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _read(file: BinaryIO) -> dict[str, Any]:
    """What the lock file says of its holder; empty where that can't be read."""
    file.seek(0)
    try:
        content = json.loads(file.read(_MOST_BYTES))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _called(holder: dict[str, Any]) -> str:
    known = [
        f"{what} {holder[key]}"
        for key, what in (("process", "process"), ("host", "on"), ("since", "since"))
        if key in holder
    ]
    return f" ({' '.join(known)})" if known else ""
