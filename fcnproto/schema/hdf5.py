"""HDF5 files as Caffe lays them out: opening them with clear errors, blobs in them, datasets as Caffe writes them.

An HDF5 file can name other files, claim extents that it does not hold, and contain itself; nothing of that is followed.
What the groups mean is for `weights.py` and `state.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from fcnproto.errors import WeightsError
from fcnproto.schema.blobs import MOST_AXES, Array, StoredBlob, storable

MOST_COMPRESSION = 1100
"""Compression can't make a file's data more than this many times larger than the file (deflate: 1032)."""
# What h5py raises where a file is damaged.
_FAILURES = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


@contextmanager
def hdf5_errors(name: str) -> Iterator[None]:
    """Turns what h5py raises about a damaged file into a WeightsError."""
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{name}: the HDF5 file is damaged ({reason})") from error


def open_hdf5(path: str) -> h5py.File:
    """The file, open for reading."""
    with hdf5_errors(path):
        return h5py.File(path, "r")


def member(group: h5py.Group, key: str, kind: type, name: str) -> Any:
    """The group or dataset `key` of a group; WeightsError if it is missing, of another kind, or in another file."""
    with hdf5_errors(name):
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
            found: Any = link
        else:
            found = group.get(key)
    if not isinstance(found, kind):
        what = "group" if kind is h5py.Group else "dataset"
        there = "is missing" if found is None else "is something else"
        raise WeightsError(f"{name}: the {what} {group.name.rstrip('/')}/{key} {there}; this is not Caffe's layout")
    return found


class HDF5Blob(StoredBlob):
    """A blob that is a dataset of an HDF5 file. Its shape must match exactly: there are no legacy shapes in HDF5."""

    legacy = False

    def __init__(self, dataset: h5py.Dataset, file: str, label: str) -> None:
        self.dataset, self.file, self.label = dataset, file, label
        with hdf5_errors(file):
            if dataset.shape is None or dataset.dtype.kind not in "fiu":
                raise self._error("does not hold numbers")
            self.shape = tuple(dataset.shape)
            self.dtype = np.dtype(np.float64 if dataset.dtype == np.float64 else np.float32)
            if len(self.shape) > MOST_AXES:
                raise self._error(f"has more than {MOST_AXES} axes")

    def _error(self, message: str) -> WeightsError:
        return WeightsError(f"{self.file}: {self.label} {message}")

    def check(self) -> None:
        with hdf5_errors(self.file):
            dataset = self.dataset
            if dataset.is_virtual or dataset.external:
                raise self._error("lies in another file, which is not followed")
            size = math.prod(self.shape) * dataset.dtype.itemsize
            held = dataset.id.get_storage_size()
            limit = held * MOST_COMPRESSION if dataset.id.get_create_plist().get_nfilters() else held
            if size > limit:
                raise self._error(f"should have {size} bytes, but {held} are stored")

    def read_into(self, array: Array) -> None:
        self.check()
        self._check_target(array)
        if self.count:
            with hdf5_errors(self.file):
                self.dataset.read_direct(array.reshape(self.shape))


def numbered(group: h5py.Group, name: str) -> list[str | None]:
    """The keys of a group whose members are called "0", "1", ...: each at its number, None where one is missing."""
    with hdf5_errors(name):
        keys = list(group)
    places: dict[int, str] = {}
    for key in keys:
        if not (key.isascii() and key.isdigit() and len(key) <= 4 and str(int(key)) == key):
            raise WeightsError(f'{name}: {group.name} has a member "{key}"; in Caffe\'s layout they are numbers')
        places[int(key)] = key
    return [places.get(index) for index in range(max(places, default=-1) + 1)]


def write_dataset(group: h5py.Group, key: str, values: Any) -> None:
    """A dataset as Caffe writes it: contiguous, float32 or float64, a scalar for a blob without axes."""
    group.create_dataset(key, data=storable(values))
