"""Reading one variable out of a MATLAB file: version 5 to 7 through scipy, 7.3 through h5py."""

from __future__ import annotations

import os

import h5py
import numpy as np

from fcnproto.errors import DataError
from fcnproto.schema.hdf5 import file_budget, find_member, hdf5_errors, member, open_hdf5, read_dataset


def load_variable(path: str, name: str, field: str | None = None) -> np.ndarray:
    """The matrix `name` of a .mat file, or the matrix `field` of its 1x1 struct `name`.

    Raises `DataError` naming the file where it is missing, damaged or without that variable, and where scipy is needed
    but not installed.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    what = name if field is None else f"{name}.{field}"
    try:
        value = _load_hdf5(path, what) if h5py.is_hdf5(path) else _load_classic(path, name, field)
    except DataError:
        raise
    except KeyError:
        raise DataError(f"{path}: has no variable {what}") from None
    except Exception as error:  # scipy and h5py raise many kinds for a damaged file
        raise DataError(f"{path}: not a readable MATLAB file ({type(error).__name__}: {error})") from error
    if value.ndim != 2:
        raise DataError(f"{path}: {what} has shape {value.shape}, expected a matrix")
    return value


def _load_hdf5(path: str, what: str) -> np.ndarray:
    with open_hdf5(path, DataError) as file, hdf5_errors(path, DataError):
        key = what.replace(".", "/")
        if find_member(file, key) is None:
            raise DataError(f"{path}: has no variable {what}")
        dataset = member(file, key, h5py.Dataset, path, DataError)
        if dataset.dtype.kind not in "fiub":
            raise DataError(f"{path}: {what} holds no numbers (its type is {dataset.dtype})")
        return read_dataset(dataset, path, file_budget(path), DataError).T


def _load_classic(path: str, name: str, field: str | None) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{path}: reading MATLAB files needs scipy (pip install 'fcnproto[scipy]')") from None
    value = loadmat(path, variable_names=[name])[name]
    if field is not None:
        if value.dtype.names is None or field not in value.dtype.names or value.size != 1:
            raise KeyError(field)
        value = value.ravel()[0][field]
    return np.asarray(value)
