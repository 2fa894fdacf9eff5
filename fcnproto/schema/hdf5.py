"""HDF5 files, read with a hostile file in mind; blobs and data sets as Caffe lays them out.

An HDF5 file can name other files, claim extents that it does not hold, and contain itself; nothing of that is followed.
`open_hdf5`, `member` and `read_dataset` are what all readers of HDF5 files use. What the groups mean is for them.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from fcnproto.errors import Error, WeightsError
from fcnproto.schema import limits
from fcnproto.schema.blobs import MOST_AXES, Array, StoredBlob, storable
from fcnproto.schema.limits import Budget

# What h5py raises where a file is damaged.
_FAILURES = (
    *(OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError),
    zlib.error,
)
_DEFLATE, _PACKERS = h5py.h5z.FILTER_DEFLATE, (h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET)
_MOST_INFLATION = 1032  # what deflate can make of a byte
_STEP = 1 << 20


@contextmanager
def hdf5_errors(name: str, error: type[Error] = WeightsError) -> Iterator[None]:
    """Turns what h5py raises about a damaged file into an `error` of one line."""
    try:
        yield
    except _FAILURES as failure:
        reason = " ".join(str(failure).split()) or type(failure).__name__
        raise error(f"{name}: the HDF5 file is damaged ({reason})") from failure


def open_hdf5(path: str, error: type[Error] = WeightsError) -> h5py.File:
    """The file, open for reading."""
    with hdf5_errors(path, error):
        return h5py.File(path, "r")


def member(group: h5py.Group, key: str, kind: type, name: str, error: type[Error] = WeightsError) -> Any:
    """The group or dataset `key` of a group, by hard links alone; `error` if it is missing or of another kind.

    In a key with slashes each part is a group's member. Links to other places or files are not followed.
    """
    with hdf5_errors(name, error):
        found = find_member(group, key)
    if not isinstance(found, kind):
        what = "group" if kind is h5py.Group else "dataset"
        if isinstance(found, h5py.SoftLink | h5py.ExternalLink):
            there = "is a link to another place, which is not followed"
        else:
            there = "is missing" if found is None else "is something else"
        # Weight and state files have a layout to depart from, others only names.
        layout = "; this is not Caffe's layout" if error is WeightsError else ""
        raise error(f"{name}: the {what} {group.name.rstrip('/')}/{key} {there}{layout}")
    return found


def find_member(group: h5py.Group, key: str) -> Any:
    """The group or dataset `key` of a group, the link that leads elsewhere (unfollowed), or None."""
    found: Any = group
    for part in key.split("/"):
        found = _linked(found, part) if isinstance(found, h5py.Group) else None
    return found


def _linked(group: h5py.Group, part: str) -> Any:
    """What stands under one name in a group: an object, a link that leads elsewhere, or None."""
    link = group.get(part, getlink=True) if part not in ("", ".") else None
    return group.get(part) if isinstance(link, h5py.HardLink) else link


def dataset_problem(dataset: h5py.Dataset, file_size: int) -> str | None:
    """Why a dataset can't be read safely: it lies elsewhere, is not stored, or unpacks to far too much; else None.

    The words follow the dataset's name. A part that was never written reads as zero; so may `limits.FLOOR` bytes at
    most. What may be unpacked of one file in all is for `read_dataset`.
    """
    if dataset.is_virtual or dataset.external:
        return "lies in another file, which is not followed"
    size = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    held = dataset.id.get_storage_size()
    if held > file_size:
        return f"should have {held:,} bytes in the file, which has {file_size:,}"
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(index) for index in range(settings.get_nfilters())]
    if size and not held:
        return f"says shape {dataset.shape}, but no values are stored"
    if not filters and size > max(held, limits.FLOOR):
        return f"says shape {dataset.shape}, so {size:,} bytes, but {held:,} are stored"
    if not filters or not held:
        return None
    chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
    return Budget(file_size).refusal(chunk) or _filter_problem(dataset, filters, chunk)


def _filter_problem(dataset: h5py.Dataset, filters: list[tuple[Any, ...]], chunk: int) -> str | None:
    """Why the packed chunks of a dataset, of `chunk` bytes each, can't be unpacked safely, or None.

    HDF5 inflates a chunk as far as it goes before it compares the size, and takes the size of what the packing filters
    make from the file, so both are looked at first.
    """
    numbers = [entry[0] for entry in filters]
    if len(numbers) != len(set(numbers)):
        return "is packed twice over"
    for number, _, values, _ in filters:
        if number in _PACKERS and (len(values) < 5 or values[2] * values[4] > chunk):
            return "is packed in chunks of another size than its own"
    if _DEFLATE not in numbers:
        return None
    large: list[tuple[int, ...]] = []

    def look(found: Any) -> None:
        if found.size * _MOST_INFLATION > limits.FLOOR:
            large.append(found.chunk_offset)

    if dataset.id.get_storage_size() * _MOST_INFLATION > limits.FLOOR:
        dataset.id.chunk_iter(look)
    if any(_inflates_beyond(dataset, offset, chunk) for offset in large):
        return f"has a chunk that unpacks to more than its {chunk:,} bytes"
    return None


def _inflates_beyond(dataset: h5py.Dataset, offset: tuple[int, ...], most: int) -> bool:
    """Whether a deflated chunk gives more than `most` bytes (and a checksum), found out in little memory."""
    _, raw = dataset.id.read_direct_chunk(offset)
    inflater, given = zlib.decompressobj(), 0
    while raw and not inflater.eof and given <= most + 8:
        given += len(inflater.decompress(raw, _STEP))
        raw = inflater.unconsumed_tail
    return given > most + 8


def file_budget(path: str | os.PathLike[str]) -> Budget:
    """What may be unpacked of an HDF5 file, for `read_dataset`."""
    return Budget(os.path.getsize(path))


def read_dataset(
    dataset: Any,
    name: str,
    budget: Budget,
    error: type[Error] = WeightsError,
    dtype: Any = None,
) -> Array:
    """The values of a dataset, as `dtype` where one is given; its size is checked, and counted, before memory is taken.

    `name` is the file's. Raises `error` where the dataset lies elsewhere, claims too much or is damaged.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise error(f"{name}: {dataset.path!r} is reached through a link, which is not followed")
    with hdf5_errors(name, error):
        problem = dataset_problem(dataset, budget.file_size)
        if problem is None:
            width = max(dataset.dtype.itemsize, np.dtype(dtype or dataset.dtype).itemsize)
            problem = budget.take(math.prod(dataset.shape or ()) * width)
        if problem is not None:
            raise error(f"{name}: dataset {dataset.name.lstrip('/')!r} {problem}")
        return np.asarray((dataset if dtype is None else dataset.astype(dtype))[()])


def all_datasets(group: h5py.Group) -> Iterator[tuple[str, Any]]:
    """The datasets below a group by their paths within it, each group gone into once.

    Links to other places or files are given as they are, and refused by `read_dataset`."""
    seen = {h5py.h5o.get_info(group.id).addr}
    waiting = [("", group)]
    while waiting:
        prefix, inner = waiting.pop()
        for key in inner:
            found = _linked(inner, key)
            if isinstance(found, h5py.Dataset | h5py.SoftLink | h5py.ExternalLink):
                yield prefix + key, found
            elif isinstance(found, h5py.Group) and (address := h5py.h5o.get_info(found.id).addr) not in seen:
                seen.add(address)
                waiting.append((f"{prefix}{key}/", found))


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
            file_size = os.path.getsize(self.file)
            size = math.prod(self.shape) * self.dataset.dtype.itemsize
            problem = dataset_problem(self.dataset, file_size) or Budget(file_size).refusal(size)
            if problem is not None:
                raise self._error(problem)

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
