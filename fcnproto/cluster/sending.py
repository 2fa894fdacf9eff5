"""A net on its way to the workers: its structure pickled, its values as arrays beside it.

Put into Ray's object store once, the arrays travel to each node once, and its workers share them without a copy:
parameters are views of the store (which nobody writes to when a net is run), everything else is copied.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Parcel:
    """An object whose tensors stand apart; see `pack`. `kinds` says of each array: parameter (needing a gradient or
    not), or another tensor."""

    structure: bytes
    arrays: list[np.ndarray]
    dtypes: list[torch.dtype]
    kinds: list[str]

    @property
    def size(self) -> int:
        """The bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.known: dict[int, int] = {}
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, found: Any) -> int | None:
        """The number of a tensor; one that occurs several times is one tensor again."""
        if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.is_quantized:
            return None
        if id(found) not in self.known:
            self.known[id(found)] = len(self.tensors)
            self.tensors.append(found)
        return self.known[id(found)]


class _Unpacker(pickle.Unpickler):
    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.structure))
        self.parcel = parcel
        self.made: dict[int, torch.Tensor] = {}

    def persistent_load(self, number: Any) -> torch.Tensor:
        if number not in self.made:
            self.made[number] = self._make(number)
        return self.made[number]

    def _make(self, number: int) -> torch.Tensor:
        kind, array = self.parcel.kinds[number], self.parcel.arrays[number]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the array can't be written to
            tensor = torch.from_numpy(array if kind != "tensor" else array.copy()).view(self.parcel.dtypes[number])
        return tensor if kind == "tensor" else nn.Parameter(tensor, requires_grad=kind == "trained")


def pack(given: Any) -> Parcel:
    """An object (a net, a segmenter) on the CPU as a parcel."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(given)
    arrays, kinds = [], []
    for tensor in packer.tensors:
        values = tensor.detach().contiguous()
        plain = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
        arrays.append(plain.numpy())
        is_parameter = isinstance(tensor, nn.Parameter)
        kinds.append(("trained" if tensor.requires_grad else "fixed") if is_parameter else "tensor")
    return Parcel(file.getvalue(), arrays, [tensor.dtype for tensor in packer.tensors], kinds)


def unpack(parcel: Parcel) -> Any:
    """The object of a parcel; its parameters are views of the parcel's arrays."""
    return _Unpacker(parcel).load()
