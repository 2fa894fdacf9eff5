"""`Blob`: a shape over memory of values and of gradients, as pycaffe's scripts and Python layers see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.python_layer import FourAxes
from fcnproto.errors import UsageError
from fcnproto.pycaffe.memory import Memory

_MOST_VALUES = 2**31 - 1
_MOST_AXES = 32


class BlobError(UsageError, RuntimeError):
    """A blob is asked for what it can't be; pycaffe raised RuntimeError."""


class Blob(FourAxes):
    """Values (`data`) and gradients (`diff`), both float32 arrays of the blob's own memory.

    Writing into an array is writing into the net. Blobs may share memory, and then see each other's writes. As in
    Caffe a smaller shape keeps the memory, a larger one takes new memory, which is zero.
    """

    refusal = BlobError

    def __init__(self, shape: Sequence[int] = (), data: Memory | None = None, diff: Memory | None = None) -> None:
        self._shape = tuple(int(extent) for extent in shape)
        self.count = math.prod(self._shape)
        """The number of values."""
        self.values = Memory(self.count) if data is None else data
        self.slopes = Memory(self.count) if diff is None else diff
        self.loss_weight = 0.0

    # What scripts use.

    @property
    def data(self) -> np.ndarray:
        """The values, as an array that can be written to."""
        return self.values.array(self._shape, self.count)

    @property
    def diff(self) -> np.ndarray:
        """The gradient, as an array that can be written to."""
        return self.slopes.array(self._shape, self.count)

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents of the axes."""
        return self._shape

    def reshape(self, *dims: int) -> None:
        """Take another shape. Raises `BlobError` (a RuntimeError) for extents that no blob can have."""
        shape = tuple(int(extent) for extent in dims)
        count = math.prod(shape)
        if min(shape, default=0) < 0 or len(shape) > _MOST_AXES or count > _MOST_VALUES:
            raise BlobError(f"a blob can't have the shape {shape}")
        self._shape, self.count = shape, count
        if count > self.values.capacity:
            self.values = Memory(count)
        if count > self.slopes.capacity:
            self.slopes = Memory(count, self.loss_weight)

    def __repr__(self) -> str:
        return f"<caffe.Blob of shape {self._shape}>"

    # What the net uses.

    def tensor(self, device: torch.device) -> Tensor:
        """The values as a tensor of the blob's shape: the memory itself, without gradient."""
        return self.values.on(device)[: self.count].view(self._shape)

    def slope(self, device: torch.device) -> Tensor:
        """The gradient likewise."""
        return self.slopes.on(device)[: self.count].view(self._shape)

    def put(self, values: Tensor, owned: bool) -> None:
        """Take a layer's result, and its shape; `owned` as in `Memory.write`."""
        if tuple(values.shape) != self._shape:
            self._shape, self.count = tuple(values.shape), values.numel()
            if self.count > self.slopes.capacity:
                self.slopes = Memory(self.count, self.loss_weight)
        self.values.write(values, owned)

    def put_slope(self, values: Tensor, owned: bool) -> None:
        """Take a gradient of the blob's shape."""
        self.slopes.write(values, owned)

    def share_values(self, other: Blob, shape: Sequence[int]) -> None:
        """Have `other`'s memory of values, in a shape of as many values (Caffe: ShareData)."""
        self._shape, self.count, self.values = tuple(shape), math.prod(shape), other.values
        if self.count > self.slopes.capacity:
            self.slopes = Memory(self.count, self.loss_weight)


class BlobVec(list[Any]):
    """A layer's blobs; a Python layer's setup adds its parameters by `add_blob`."""

    def add_blob(self, *dims: int) -> None:
        """Append a blob of zeros of shape `dims`."""
        self.append(Blob(dims))
