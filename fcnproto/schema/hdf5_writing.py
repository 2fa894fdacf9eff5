"""Writing HDF5 files so that a full disk is an ordinary error.

The HDF5 library can't live with a failing write: the process dies, or the file is closed as if all were well, with
values missing. So it never sees one here. It writes through `_Backing`, a file that keeps in memory what the disk
refuses, and the refusal is raised when the library is done with the file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py

from fcnproto.atomic import PathLike, atomic_write


@contextmanager
def new_hdf5(path: PathLike) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """A new HDF5 file that gets its name when the block ends well; see `atomic_write`. OSError where it can't be.

    Gives the file, and a function that raises what the disk has refused so far: whoever writes much calls it after each
    part, since what comes after a refusal stays in memory. At the end it is raised in any case."""
    with atomic_write(path, "w+b") as target:
        backing = _Backing(target.fileno())
        with h5py.File(backing, "w") as file:
            yield file, backing.check
        backing.check()


@contextmanager
def grown_hdf5(path: PathLike) -> Iterator[h5py.File]:
    """An HDF5 file to be changed in place; where the disk refuses, it stays as it was, and the OSError is raised.

    What is written waits in memory. New room is filled first, and given back if that fails; what lies in room that the
    file has already is changed last."""
    with open(path, "r+b", buffering=0) as target:
        backing = _Backing(target.fileno(), holds=True)
        with h5py.File(backing, "r+") as file:
            yield file
        backing.carry_out()


class _Backing(io.RawIOBase):
    """A file for h5py whose writes never fail: with `holds`, and after the first failure, they stay in memory."""

    def __init__(self, descriptor: int, holds: bool = False) -> None:
        super().__init__()
        self.descriptor, self.holds = descriptor, holds
        self.failure: OSError | None = None
        self.kept: list[tuple[int, bytes]] = []
        self.place = 0
        self.before = os.fstat(descriptor).st_size
        self.size = self.before

    # What h5py asks of a file.

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self.place))
        done = 0
        while done < count:
            found = os.preadv(self.descriptor, [view[done:count]], self.place + done)
            if not found:
                break
            done += found
        view[done:count] = bytes(count - done)  # room that was reserved, and not written yet
        for start, content in self.kept:
            low, high = max(start, self.place), min(start + len(content), self.place + count)
            if low < high:
                view[low - self.place : high - self.place] = content[low - start : high - start]
        self.place += count
        return count

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        if not self.holds:
            try:
                _write_all(self.descriptor, view, self.place)
            except OSError as error:
                self.failure, self.holds = error, True
        if self.holds:
            self.kept.append((self.place, bytes(view)))
        self.place += len(view)
        self.size = max(self.size, self.place)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.place if size is None else size
        if not self.holds:
            try:
                os.ftruncate(self.descriptor, self.size)
            except OSError as error:
                self.failure, self.holds = error, True
        return self.size

    def flush(self) -> None:
        """Nothing waits, or it waits on purpose."""

    # What the writer of the file asks.

    def check(self) -> None:
        """Raise the first failure."""
        if self.failure is not None:
            raise self.failure

    def carry_out(self) -> None:
        """Bring what was held to the disk: the file is as it was where that is an OSError."""
        old = [(start, part) for start, content in self.kept if (part := content[: max(0, self.before - start)])]
        new = [
            (max(start, self.before), part)
            for start, content in self.kept
            if (part := content[max(0, self.before - start) :])
        ]
        try:
            for start, part in new:
                _write_all(self.descriptor, memoryview(part), start)
            if self.size > self.before:
                os.ftruncate(self.descriptor, self.size)
            os.fsync(self.descriptor)
        except OSError:
            os.ftruncate(self.descriptor, self.before)
            raise
        for start, part in old:
            _write_all(self.descriptor, memoryview(part), start)
        os.ftruncate(self.descriptor, self.size)
        os.fsync(self.descriptor)


def _write_all(descriptor: int, view: memoryview, place: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], place + done)
