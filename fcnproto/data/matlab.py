"""Reading one variable out of a MATLAB file: versions 5 to 7 by `mat5.py`, 7.3 as the HDF5 file that it is."""

from __future__ import annotations

import os

import h5py
import numpy as np

from fcnproto.data.mat5 import names_of, read_matrix
from fcnproto.errors import DataError
from fcnproto.schema.hdf5 import file_budget, find_member, hdf5_errors, member, open_hdf5, read_dataset


def load_variable(path: str, name: str, field: str | None = None) -> np.ndarray:
    """The matrix `name` of a .mat file, or the matrix `field` of its 1x1 struct `name`.

    Raises `DataError` naming the file where it is missing, damaged, without that variable, or would take far more
    memory than it has bytes.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    what = name if field is None else f"{name}.{field}"
    try:
        value = _load_hdf5(path, what) if h5py.is_hdf5(path) else read_matrix(path, name, field)
    except KeyError:
        raise DataError(f"{path}: has no variable {what}") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error
    if value.ndim != 2:
        raise DataError(f"{path}: {what} has shape {value.shape}, expected a matrix")
    return value


def variable_names(path: str) -> list[str]:
    """The names of a .mat file's variables. Raises `DataError`."""
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    try:
        if not h5py.is_hdf5(path):
            return names_of(path)
        with open_hdf5(path, DataError) as file, hdf5_errors(path, DataError):
            return [name for name in file if not name.startswith("#")]
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


def _load_hdf5(path: str, what: str) -> np.ndarray:
    with open_hdf5(path, DataError) as file, hdf5_errors(path, DataError):
        key = what.replace(".", "/")
        if find_member(file, key) is None:
            raise DataError(f"{path}: has no variable {what}")
        dataset = member(file, key, h5py.Dataset, path, DataError)
        if dataset.dtype.kind not in "fiub":
            raise DataError(f"{path}: {what} holds no numbers (its type is {dataset.dtype})")
        return read_dataset(dataset, path, file_budget(path), DataError).T
