"""What a net was given and what came out of it, as arrays by Caffe's names: the golden files of a comparison.

A file, npz or HDF5, holds arrays under these keys:

=========================  ============================================================
`in.<blob>`                value given to an input
`param.<layer>.<i>`        parameter blob, optional: checked, or used where no weights are given
`out.<blob>`               a blob after the forward pass (in-place layers: the last value)
`gout.<blob>`              gradient put in at an output of a net without loss
`gin.<blob>`               gradient of an input
`gparam.<layer>.<i>`       gradient of a parameter blob
=========================  ============================================================

Other keys are left alone. In HDF5 the keys are datasets at the top, or groups `in`, `out`, ... of datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy.typing as npt

from fcnproto.errors import DataError
from fcnproto.schema.arrays import is_archive, read_npy, read_npz
from fcnproto.schema.hdf5 import all_datasets, file_budget, hdf5_errors, read_dataset

Array = npt.NDArray[Any]

_PREFIXES = {
    "inputs": "in",
    "params": "param",
    "blobs": "out",
    "output_gradients": "gout",
    "input_gradients": "gin",
    "param_gradients": "gparam",
}


@dataclass
class Recording:
    """One forward (and perhaps backward) pass. Blobs by name, parameters by `<layer>.<index>`."""

    source: str = ""
    inputs: dict[str, Array] = field(default_factory=dict)
    params: dict[str, Array] = field(default_factory=dict)
    blobs: dict[str, Array] = field(default_factory=dict)
    output_gradients: dict[str, Array] = field(default_factory=dict)
    input_gradients: dict[str, Array] = field(default_factory=dict)
    param_gradients: dict[str, Array] = field(default_factory=dict)

    @property
    def has_gradients(self) -> bool:
        """Whether a backward pass was recorded."""
        return bool(self.input_gradients or self.param_gradients)

    def arrays(self) -> dict[str, Array]:
        """All arrays under the keys of a golden file."""
        return {
            f"{_PREFIXES[part.name]}.{name}": value
            for part in fields(self)
            if part.name in _PREFIXES
            for name, value in getattr(self, part.name).items()
        }


def read_recording(path: str | Path) -> Recording:
    """The recording in a golden file (npz or HDF5, told by its content).

    Raises `DataError`: the file is missing or unreadable, holds something else than numbers, or no blob to compare.
    """
    file = Path(path)
    places = {prefix: name for name, prefix in _PREFIXES.items()}
    result = Recording(source=str(file))
    for key, value in _items(file):
        prefix, dot, name = key.partition(".")
        if not dot or prefix not in places:
            continue
        if value.dtype.kind not in "fiub":
            raise DataError(f"{file}: {key!r} holds no numbers (its type is {value.dtype})")
        getattr(result, places[prefix])[name] = value
    if not result.blobs and not result.has_gradients:
        raise DataError(f"{file}: nothing to compare in it; keys out.<blob> (or gin., gparam.) are expected")
    return result


def _items(file: Path) -> Iterator[tuple[str, Array]]:
    """The arrays under the keys of a golden file."""
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if h5py.is_hdf5(file):
        try:
            opened = h5py.File(file, "r")
        except OSError as error:
            raise DataError(f"{file}: not a readable HDF5 file ({error})") from error
        with opened as content, hdf5_errors(str(file), DataError):
            budget = file_budget(file)
            for key, dataset in _golden_datasets(content):
                yield key, read_dataset(dataset, str(file), budget, DataError)
        return
    if not is_archive(file):
        read_npy(file)  # whatever is wrong with it, or that it is one array without a name
        raise DataError(f"{file}: one array without a name; an .npz or HDF5 file is expected")
    yield from read_npz(file, lambda key: key.partition(".")[0] in _PREFIXES.values())


def _golden_datasets(content: h5py.File) -> Iterator[tuple[str, Any]]:
    """Golden keys: `out.y` at the top, or `y` in the group `out`. A slash in a blob's name is a group of HDF5's."""
    for path, dataset in all_datasets(content):
        group, _, name = path.partition("/")
        if group in _PREFIXES.values() and name:
            yield f"{group}.{name}", dataset
        elif group.partition(".")[0] in _PREFIXES.values():
            yield path, dataset
