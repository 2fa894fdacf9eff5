"""The HDF5Data and HDF5Output layers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from fcnproto.data.paths import read_list, resolve
from fcnproto.errors import DataError
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer
from fcnproto.schema.hdf5 import dataset_problem, file_budget, find_member, hdf5_errors, member, read_dataset
from fcnproto.schema.hdf5_writing import grown_hdf5, new_hdf5


@register("HDF5Data")
class HDF5Data(SourceLayer):
    """Caffe's HDF5Data: rows of HDF5 files, one dataset per top, of the top's name.

    `source` is a text file with the names of HDF5 files. Batches run on within a file and
    from file to file, wrapping around at the end. `shuffle` draws the order of the files, and of the rows within each,
    anew every time round; several workers then each go through all rows in an order of their own. One file at a time
    is held in memory.
    """

    differences = (
        "files whose rows differ in shape are an error (Caffe reads wrong values). Shuffling uses the seeded generator "
        "(Caffe the C library's, which no seed reaches)."
    )
    config_field = "hdf5_data_param"
    also_reads = ("transform_param",)  # refused in setup
    position_fields = ("file", "row", "offset", "file_seed", "row_seed")
    handles = ("names", "arrays", "order")

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.file = 0
        self.row = 0
        self.offset = 0
        """Rows passed since the start, those of other workers included."""
        self.file_seed: int | None = None
        self.row_seed: int | None = None
        """The seeds of the present orders of files and of rows, where they are shuffled."""
        self.names: list[str] | None = None
        self.arrays: list[np.ndarray] | None = None
        self.order: np.ndarray | None = None

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.param.HasField("transform_param"):
            self.fail("takes no transform_param; transform the data when you write them")
        if self.config.batch_size == 0:
            self.fail("hdf5_data_param needs a batch_size above 0")

    def declared_shapes(self) -> list[PartialShape]:
        """Nothing: only the files know."""
        return [None] * self.num_tops

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        """From the first file, where it is there."""
        try:
            path = resolve(self._read_list()[0], self.base_dir)
            with _opened(path) as file:
                rows = [_dataset(file, path, top).shape[1:] for top in self.param.top]
        except DataError:
            return self.declared_shapes()
        return [(self.config.batch_size, *row) for row in rows]

    def forward(self) -> tuple[Tensor, ...]:
        rank, workers = (0, 1) if self.config.shuffle else self.share()
        rows: list[list[np.ndarray]] = []
        while len(rows) < self.config.batch_size:
            arrays, order = self._load()
            if self.offset % workers == rank:
                rows.append([array[order[self.row]] for array in arrays])
            self._advance(len(order))
        try:
            return tuple(torch.from_numpy(np.stack(items)) for items in zip(*rows, strict=True))
        except ValueError:
            self.data_error(f"the rows of {self.config.source!r} differ in shape from file to file")

    def _advance(self, rows_in_file: int) -> None:
        self.offset += 1
        self.row += 1
        if self.row < rows_in_file:
            return
        self.row, self.row_seed, self.order = 0, None, None
        assert self.names is not None
        if len(self.names) == 1:
            return
        self.file, self.arrays = self.file + 1, None
        if self.file == len(self.names):
            self.file, self.file_seed, self.names = 0, None, None

    def _load(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The present file's arrays, one per top, and the order of its rows."""
        if self.names is None:
            self.names = self._read_list()
            if self.config.shuffle:
                self.file_seed = self._seed(self.file_seed)
                order = np.random.default_rng(self.file_seed).permutation(len(self.names))
                self.names = [self.names[index] for index in order]
        if self.arrays is None:
            try:
                self.arrays = self._read_file(resolve(self.names[self.file], self.base_dir))
            except (DataError, IndexError) as error:
                self.data_error(str(error))
        if self.order is None:
            self.order = np.arange(len(self.arrays[0]))
            if self.config.shuffle:
                self.row_seed = self._seed(self.row_seed)
                np.random.default_rng(self.row_seed).shuffle(self.order)
        if self.row >= len(self.order):
            rows = len(self.order)
            self.data_error(f"{self.names[self.file]} has only {rows} rows; it is not the file that the position is of")
        return self.arrays, self.order

    def _seed(self, known: int | None) -> int:
        """The seed of one shuffle: drawn anew unless a snapshot gave it."""
        return int(self.generator.integers(2**62)) if known is None else known

    def _read_list(self) -> list[str]:
        path = resolve(self.config.source, self.base_dir, "hdf5_data_param.source")
        names = read_list(path, "list of files").split()
        if not names:
            raise DataError(f"{path}: names no HDF5 files")
        return names

    def count_rows(self) -> int:
        """How many rows all files have together. `DataError` for a missing or damaged one."""
        rows = 0
        for path in [resolve(name, self.base_dir) for name in self._read_list()]:
            with _opened(path) as file:
                rows += len(_dataset(file, path, self.param.top[0]))
        return rows

    def _read_file(self, path: str) -> list[np.ndarray]:
        with _opened(path) as file:
            datasets = [_dataset(file, path, top) for top in self.param.top]
            counts = {len(dataset) for dataset in datasets}
            if len(counts) != 1 or not counts.pop():
                sizes = ", ".join(f"{top} {len(data)}" for top, data in zip(self.param.top, datasets, strict=True))
                raise DataError(f"{path}: the datasets need equally many rows, at least 1; there are {sizes}")
            budget = file_budget(path)
            return [read_dataset(dataset, path, budget, DataError, np.float32) for dataset in datasets]


@contextmanager
def _opened(path: str) -> Iterator[h5py.File]:
    """The file, open for reading; whatever h5py raises of it is a `DataError`."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error})") from error
    with file, hdf5_errors(path, DataError):
        yield file


def _dataset(file: h5py.File, path: str, name: str) -> h5py.Dataset:
    """The dataset of a top's name, its kind and size checked."""
    if find_member(file, name) is None:
        raise DataError(f"{path}: has no dataset {name!r} (the top's name); it has {', '.join(file) or 'none'}")
    dataset = member(file, name, h5py.Dataset, path, DataError)
    if dataset.dtype.kind not in "fiu" or dataset.ndim == 0:
        raise DataError(
            f"{path}: dataset {name!r} is {dataset.dtype} of shape {dataset.shape}, expected rows of numbers"
        )
    problem = dataset_problem(dataset, os.path.getsize(path))
    if problem is not None:
        raise DataError(f"{path}: dataset {name!r} {problem}")
    return dataset


@register("HDF5Output")
class HDF5Output(Layer):
    """Caffe's HDF5Output: writes its two bottoms as the datasets `data` and `label` of an HDF5 file, always 4-D.

    The first forward makes the file (under a temporary name, so that an older one is replaced by a complete one), each
    later forward appends its rows to the datasets and closes the file again; Caffe itself aborts at the second one.
    After a resume the file is cut back to the rows that the snapshot knew of. `file_name` counts from the working
    directory. Outside training and testing nothing is written unless `allow_writes` is given.
    """

    differences = (
        "further forward passes append rows (Caffe aborts on the second). Nothing is written outside training and "
        "testing, unless allow_writes is given."
    )

    config_field = "hdf5_output_param"
    kind = "loss"
    bottoms = (2, 2)
    tops = (0, 0)
    position_fields = ("rows",)

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.rows = 0
        """Rows written so far."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        if not self.config.file_name:
            self.fail("hdf5_output_param needs a file_name")
        for shape in shapes:
            if len(shape) > 4:
                self.fail(f"a bottom has shape {tuple(shape)}; it is written with 4 axes, and so may have 4 at most")
        if shapes[0][:1] != shapes[1][:1]:
            self.fail(f"the bottoms have {shapes[0][:1]} and {shapes[1][:1]} rows; expected as many")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return []

    def files_written(self) -> list[str]:
        return [self.config.file_name]

    def forward(self, data: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        if not self.allow_writes:
            return ()
        arrays = {}
        for name, bottom in (("data", data), ("label", label)):
            array = bottom.detach().to(device="cpu", dtype=torch.float32).numpy()
            arrays[name] = array.reshape(array.shape + (1,) * (4 - array.ndim))
        try:
            if self.rows:
                with grown_hdf5(self.config.file_name) as file:
                    self._append(file, arrays)
            else:
                with new_hdf5(self.config.file_name) as (file, _):
                    for name, array in arrays.items():
                        file.create_dataset(name, data=array, maxshape=(None, *array.shape[1:]))
        except (OSError, KeyError) as error:
            raise DataError(
                f"layer {self.name!r} ({self.type}): can't write {self.config.file_name}: {error}"
            ) from error
        self.rows += len(arrays["data"])
        return ()

    def _append(self, file: h5py.File, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            dataset = file[name]
            if dataset.shape[1:] != array.shape[1:] or len(dataset) < self.rows:
                raise DataError(
                    f"layer {self.name!r} ({self.type}): {self.config.file_name}: dataset {name!r} has shape "
                    f"{dataset.shape}, which rows {self.rows}.. of shape {array.shape[1:]} can't follow"
                )
            dataset.resize(self.rows + len(array), axis=0)
            dataset[self.rows :] = array

    def get_position(self) -> dict[str, Any]:
        """What a snapshot must hold to go on with the same file."""
        return {"rows": self.rows}

    def set_position(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `get_position` gave: later rows are overwritten."""
        self.rows = int(position["rows"])
