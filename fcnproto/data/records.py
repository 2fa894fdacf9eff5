"""Databases of Datum records: LMDB, and LevelDB where its binding is installed.

Read in the order of the keys' bytes ("10" before "9"), wrapping around at the end.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from fcnproto.errors import DataError
from fcnproto.schema import caffe_pb2

Record = tuple[bytes, bytes]
"""(key, value)"""


class Records(ABC):
    """An open database with a place in it; read-only."""

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def seek(self, key: bytes | None) -> Record:
        """Go to the first record (None), or to `key` or what follows it, and return that record."""

    @abstractmethod
    def next(self) -> Record:
        """Go to the next record, after the last to the first, and return it."""

    @abstractmethod
    def count(self) -> int:
        """The number of records."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    def _empty(self) -> DataError:
        return DataError(f"{self.path}: the database is empty")


def open_records(path: str, backend: int = caffe_pb2.DataParameter.LMDB) -> Records:
    """Open a database. `backend` is a value of `DataParameter.DB`. Raises `DataError`."""
    return _LevelDB(path) if backend == caffe_pb2.DataParameter.LEVELDB else _LMDB(path)


def is_lmdb(path: str) -> bool:
    """Whether the folder holds an LMDB."""
    return os.path.isfile(os.path.join(path, "data.mdb"))


def is_leveldb(path: str) -> bool:
    """Whether the folder holds a LevelDB."""
    return os.path.isfile(os.path.join(path, "CURRENT"))


def import_lmdb() -> Any:
    """The module lmdb; a `DataError` that says how to get it where it is missing."""
    try:
        import lmdb
    except ImportError:
        raise DataError("reading and writing LMDB needs the module lmdb: pip install 'fcnproto[lmdb]'") from None
    return lmdb


def import_plyvel(path: str) -> Any:
    """The module plyvel; a `DataError` that says what to do where it is missing."""
    try:
        import plyvel
    except ImportError:
        raise DataError(
            f"{path}: a LevelDB needs the module plyvel (pip install 'fcnproto[leveldb]'); or make an LMDB from the "
            "images with fcnproto convert-imageset, and say backend: LMDB"
        ) from None
    return plyvel


class _Open:
    """A database open for reading, shared by all that read it: a process may open each only once."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __del__(self) -> None:
        self.handle.close()


_open: weakref.WeakValueDictionary[str, _Open] = weakref.WeakValueDictionary()


def _shared(path: str, opener: Callable[[], Any]) -> _Open:
    """The database at `path`, opened with `opener` unless somebody holds it open."""
    if not os.path.exists(path):
        raise DataError(f"{path}: no such database")
    key = os.path.realpath(path)
    found = _open.get(key)
    if found is None:
        found = _open[key] = _Open(opener())
    return found


class _LMDB(Records):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        lmdb = import_lmdb()
        options = {"readonly": True, "lock": False, "create": False, "readahead": False, "subdir": os.path.isdir(path)}
        try:
            self._database: _Open | None = _shared(path, lambda: lmdb.open(path, **options))
        except lmdb.Error as error:
            raise DataError(f"{path}: not a readable LMDB ({error})") from error
        self._transaction = self._database.handle.begin(buffers=False)
        self._cursor = self._transaction.cursor()

    def seek(self, key: bytes | None) -> Record:
        found = self._cursor.first() if key is None else self._cursor.set_range(key) or self._cursor.first()
        if not found:
            raise self._empty()
        return self._cursor.item()

    def next(self) -> Record:
        if not (self._cursor.next() or self._cursor.first()):
            raise self._empty()
        return self._cursor.item()

    def count(self) -> int:
        assert self._database is not None
        return int(self._database.handle.stat()["entries"])

    def close(self) -> None:
        self._cursor.close()
        self._transaction.abort()
        self._database = None


class _LevelDB(Records):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        plyvel = import_plyvel(path)
        try:
            self._database: _Open | None = _shared(path, lambda: plyvel.DB(path, create_if_missing=False))
        except (plyvel.Error, OSError) as error:
            raise DataError(f"{path}: not a readable LevelDB ({error})") from error
        self._iterator = self._database.handle.raw_iterator()

    def seek(self, key: bytes | None) -> Record:
        if key is None:
            self._iterator.seek_to_first()
        else:
            self._iterator.seek(key)
        return self._item()

    def next(self) -> Record:
        self._iterator.next()
        return self._item()

    def _item(self) -> Record:
        if not self._iterator.valid():
            self._iterator.seek_to_first()
            if not self._iterator.valid():
                raise self._empty()
        return self._iterator.key(), self._iterator.value()

    def count(self) -> int:
        assert self._database is not None
        with self._database.handle.iterator(include_value=False) as keys:
            return sum(1 for _ in keys)

    def close(self) -> None:
        self._iterator.close()
        self._database = None
