"""Writing databases of Datum records, so that they appear under their name only when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fcnproto.data.records import import_lmdb, import_plyvel
from fcnproto.errors import DataError

Backend = Literal["lmdb", "leveldb"]

_BATCH_BYTES = 1 << 24
_FIRST_MAP_SIZE = 1 << 26


class _LMDBWriter:
    """Puts records into a new LMDB, in transactions of some megabytes; the map grows as need be."""

    def __init__(self, path: str) -> None:
        self._lmdb = import_lmdb()
        self._environment = self._lmdb.open(path, map_size=_FIRST_MAP_SIZE, subdir=True)
        self._waiting: list[tuple[bytes, bytes]] = []
        self._bytes = 0

    def put(self, key: bytes, value: bytes) -> None:
        self._waiting.append((key, value))
        self._bytes += len(value)
        if self._bytes >= _BATCH_BYTES:
            self._commit()

    def _commit(self) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._waiting:
                        transaction.put(key, value)
                break
            except self._lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
        self._waiting, self._bytes = [], 0

    def finish(self) -> None:
        self._commit()

    def close(self) -> None:
        self._environment.close()


class _LevelDBWriter:
    """Puts records into a new LevelDB."""

    def __init__(self, path: str) -> None:
        self._database: Any = import_plyvel(path).DB(path, create_if_missing=True)

    def put(self, key: bytes, value: bytes) -> None:
        self._database.put(key, value)

    def finish(self) -> None:
        """Everything is in the database already."""

    def close(self) -> None:
        self._database.close()


@contextmanager
def new_database(path: str, backend: Backend = "lmdb") -> Iterator[_LMDBWriter | _LevelDBWriter]:
    """A new database to `put(key, value)` records into, written beside `path` and given its name at the end.

    Raises `DataError` where something is at `path` already, as Caffe does, where the backend's module is missing, and
    where it can't write: a full disk, say. Nothing is left then.
    """
    path = os.path.abspath(path)
    if os.path.exists(path):
        raise DataError(f"{path}: exists already; databases are not overwritten, give another name")
    faults = import_lmdb().Error if backend == "lmdb" else import_plyvel(path).Error
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise DataError(f"{path}: the folder {folder} does not exist")
    temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.", suffix=".tmp", dir=folder)
    try:
        writer = _LMDBWriter(temporary) if backend == "lmdb" else _LevelDBWriter(temporary)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()
        if backend == "lmdb":
            os.unlink(os.path.join(temporary, "lock.mdb"))
        os.chmod(temporary, 0o755)
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, faults):
            raise DataError(f"{path}: can't be written: {error}") from error
        raise
