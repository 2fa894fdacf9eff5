"""Databases of Datum records: LMDB, and LevelDB where its binding is installed.

Read in the order of the keys' bytes ("10" before "9"), wrapping around at the end.
"""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fcnproto.data.lmdb_pages import check_lmdb
from fcnproto.errors import DataError
from fcnproto.escaping import printable
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

    def keys(self) -> list[bytes]:
        """The keys of all records, in order; the place in the database is the first record then."""
        found = [self.seek(None)[0]]
        while (key := self.next()[0]) != found[0]:
            found.append(key)
        return found

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    def _empty(self) -> DataError:
        return DataError(f"{self.path}: the database is empty")

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path}: the database is damaged ({reason})")


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
        self._error = lmdb.Error
        options = {"readonly": True, "lock": False, "create": False, "readahead": False, "subdir": os.path.isdir(path)}
        check_lmdb(path)
        try:
            self._database: _Open | None = _shared(path, lambda: lmdb.open(path, **options))
            self._transaction = self._database.handle.begin(buffers=False)
            self._cursor = self._transaction.cursor()
            self._entries = self.count()
        except lmdb.Error as error:
            raise DataError(f"{path}: not a readable LMDB ({error})") from error
        self._passed: int | None = None
        """Records passed since the first one; None where reading began elsewhere."""
        self._key = b""

    def seek(self, key: bytes | None) -> Record:
        with self._damage():
            found = key is not None and self._cursor.set_range(key)
            return self._item(None) if found else self._first()

    def next(self) -> Record:
        with self._damage():
            if self._cursor.next():
                return self._item(None if self._passed is None else self._passed + 1)
            if self._passed is not None and self._passed != self._entries:
                raise self._damaged(f"it says to have {self._entries} records, {self._passed} are found")
            return self._first()

    def _first(self) -> Record:
        self._key = b""
        if not self._cursor.first():
            if self._entries:
                raise self._damaged(f"it says to have {self._entries} records, none is found")
            raise self._empty()
        return self._item(1)

    def _item(self, passed: int | None) -> Record:
        key, value = self._cursor.item()
        if passed is not None and passed != 1 and key <= self._key:
            raise self._damaged(f"record {printable(repr(key))} follows {printable(repr(self._key))}")
        self._key, self._passed = key, passed
        return key, value

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise self._damaged(str(error)) from error

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
        self._errors = (plyvel.Error, OSError)
        try:
            self._database: _Open | None = _shared(path, lambda: _open_leveldb(plyvel, path))
            self._iterator = self._database.handle.raw_iterator(verify_checksums=True)
        except self._errors as error:
            raise DataError(f"{path}: not a readable LevelDB ({error})") from error

    def seek(self, key: bytes | None) -> Record:
        with self._damage():
            if key is None:
                self._iterator.seek_to_first()
            else:
                self._iterator.seek(key)
            return self._item()

    def next(self) -> Record:
        with self._damage():
            self._iterator.next()
            return self._item()

    def _item(self) -> Record:
        if not self._iterator.valid():
            self._iterator.seek_to_first()
            if not self._iterator.valid():
                raise self._empty()
        return self._iterator.key(), self._iterator.value()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise self._damaged(str(error)) from error

    def count(self) -> int:
        assert self._database is not None
        with self._damage(), self._database.handle.iterator(include_value=False, verify_checksums=True) as keys:
            return sum(1 for _ in keys)

    def close(self) -> None:
        self._iterator.close()
        self._database = None


def _open_leveldb(plyvel: Any, path: str) -> Any:
    files = sorted(os.listdir(path))
    if files and "CURRENT" not in files:  # LevelDB would leave files of its own among them
        raise DataError(f"{path}: no LevelDB is in this folder (it has no file CURRENT)")
    newest = 0
    for name in files:
        if name.startswith("MANIFEST-"):
            newest = max(newest, *(_next_file(edit) for edit in _log_entries(os.path.join(path, name))), 0)
        elif name.endswith(".log"):
            for _ in _log_entries(os.path.join(path, name)):
                pass
    for name in files:
        number, _, kind = name.partition(".")
        if newest and kind in ("ldb", "sst") and number.isdecimal() and int(number) >= newest:
            raise DataError(f"{path}: the LevelDB's MANIFEST is older than {name}: it is cut off, or of another time")
    return plyvel.DB(path, create_if_missing=False, paranoid_checks=True)


def _log_entries(file: str) -> Iterator[bytes]:
    """The entries of one of LevelDB's logs; `DataError` where it is cut off within one, which LevelDB drops silently.

    A log is blocks of 32 KB of parts: 4 bytes of checksum, 2 of length, 1 of kind (whole, first, middle, last part).
    """
    cut = DataError(f"{file}: the log of the LevelDB is cut off")
    whole = bytearray()
    kind = _WHOLE
    with open(file, "rb") as log:
        while block := log.read(_LOG_BLOCK):
            place = 0
            while place + _LOG_HEAD <= len(block):
                length, kind = int.from_bytes(block[place + 4 : place + 6], "little"), block[place + 6]
                part = block[place + _LOG_HEAD : place + _LOG_HEAD + length]
                place += _LOG_HEAD + length
                if place > len(block):
                    raise cut
                if not kind and not length:  # room that was set aside and not used
                    break
                whole = whole + part if kind in (_MIDDLE, _LAST) else bytearray(part)
                if kind in (_WHOLE, _LAST):
                    yield bytes(whole)
            else:
                if len(block) < _LOG_BLOCK and place < len(block):
                    raise cut
    if kind in (_FIRST, _MIDDLE):
        raise cut


_LOG_BLOCK, _LOG_HEAD = 1 << 15, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def _next_file(edit: bytes) -> int:
    """The number of the next file by an entry of a MANIFEST; 0 where it doesn't say, or can't be understood."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while place < len(edit) and shift < 64:
            byte = edit[place]
            place, value, shift = place + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        return value

    while place < len(edit):
        tag = number()
        if tag == 3:
            return number()
        if tag == 1:  # the comparator's name
            length = number()
            place += length
        elif tag in (2, 4, 9):  # numbers of logs and records
            number()
        else:
            return 0
    return 0
