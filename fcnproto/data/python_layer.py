"""The base class of layers written in Python by users, their blobs, and the table of known ones.

A class here follows pycaffe's protocol, so that layers written for pycaffe run unchanged:

    class Scale(fcnproto.data.PythonLayer):
        def setup(self, bottom, top):                       # once; self.param_str is the prototxt's text
            self.factor = float(self.param_str)
        def reshape(self, bottom, top):                     # after setup and before each forward
            top[0].reshape(*bottom[0].shape)
        def forward(self, bottom, top):
            top[0].data[...] = self.factor * bottom[0].data
        def backward(self, top, propagate_down, bottom):
            if propagate_down[0]:
                bottom[0].diff[...] = self.factor * top[0].diff

`data` and `diff` are numpy arrays, `tensor` and `gradient` the same memory as torch tensors. A layer that wants
autograd, a GPU, or float64 is better written as a `fcnproto.Layer`; both kinds can be registered here under the
names that a prototxt gives as `module` and `layer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.errors import LayerError

_CLASSES: dict[tuple[str, str], type] = {}
_Class = TypeVar("_Class", bound=type)


def register_python_layer(module: str, layer: str) -> Callable[[_Class], _Class]:
    """Class decorator: make a class the one that `python_param { module layer }` with these names means.

    The class is a `PythonLayer` (pycaffe's protocol) or a `fcnproto.Layer`. No `allow_python` is needed for it, since
    nothing is imported. A later registration replaces an earlier one.
    """

    def decorate(cls: _Class) -> _Class:
        _CLASSES[module, layer] = cls
        return cls

    return decorate


def registered_python_layer(module: str, layer: str) -> type | None:
    """The class registered under these names, or None."""
    return _CLASSES.get((module, layer))


class FourAxes:
    """The names that Caffe's first years had for the axes of a blob, of which they knew four at most."""

    refusal: type[Exception] = LayerError

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents of the axes."""
        raise NotImplementedError

    @property
    def num(self) -> int:
        """The first of at most four axes; 1 where there are fewer, as for the next three."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        return self._legacy(1)

    @property
    def height(self) -> int:
        return self._legacy(2)

    @property
    def width(self) -> int:
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        shape = self.shape
        if len(shape) > 4:
            raise self.refusal(f"a blob of shape {shape} has no num, channels, height and width; use shape")
        return int(shape[axis]) if axis < len(shape) else 1


class PythonBlob(FourAxes):
    """A blob as a Python layer sees it: float32 values and gradients on the CPU, of one shape."""

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.tensor = torch.zeros(tuple(shape), dtype=torch.float32, device="cpu")
        self._gradient: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """The gradient as a tensor; zero until something is written."""
        if self._gradient is None or self._gradient.shape != self.tensor.shape:
            self._gradient = torch.zeros_like(self.tensor)
        return self._gradient

    @property
    def data(self) -> np.ndarray:
        """The values, as an array that can be written to (`blob.data[...] = x`)."""
        array: np.ndarray = self.tensor.numpy()
        return array

    @property
    def diff(self) -> np.ndarray:
        """The gradient, as an array that can be written to."""
        array: np.ndarray = self.gradient.numpy()
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def count(self) -> int:
        """The number of values."""
        return self.tensor.numel()

    def reshape(self, *dims: int) -> None:
        """Give the blob another shape; values stay where the count stays or falls, else they are zero."""
        shape = tuple(int(extent) for extent in dims)
        if shape == self.shape:
            return
        count = math.prod(shape)
        if count <= self.count:
            self.tensor = self.tensor.reshape(-1)[:count].reshape(shape)
        else:
            self.tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
        self._gradient = None


class PythonBlobs(list[PythonBlob]):
    """The parameter blobs of a Python layer, which its `setup` adds."""

    def add_blob(self, *dims: int) -> PythonBlob:
        """Append a blob of zeros of shape `dims`; write first values to its `data`."""
        self.append(PythonBlob(dims))
        return self[-1]


class Phase(int):
    """A layer's phase: the number, as Caffe 1.0 gives it, whose text is the name, as Caffe gave it in 2015."""

    def __str__(self) -> str:
        return ("TRAIN", "TEST")[self]

    def __format__(self, spec: str) -> str:
        return format(int(self), spec)


class PythonLayer:
    """Base of layers by pycaffe's protocol; the module's docstring has an example.

    Set before `setup`: `param_str` (text), `phase` (0 TRAIN, 1 TEST; kept up to date), `blobs` (to `add_blob` to), and
    `base_dir`, the folder of the prototxt or None. `backward` assigns to the bottoms' `diff` and adds to that of its
    `blobs`. What an instance remembers from `forward` for `backward` is that of the last forward.
    """

    type = "Python"
    param_str: str = ""
    phase: int = 0
    base_dir: str | None = None

    def __init__(self, param: Any = None) -> None:
        self.blobs = PythonBlobs()

    @property
    def param_str_(self) -> str:
        """`param_str` under the name that Caffe gave it until 2015."""
        return self.param_str

    def setup(self, bottom: list[PythonBlob], top: list[PythonBlob]) -> None:
        """Read `param_str`, check the numbers of blobs, add parameters. Called once."""

    def reshape(self, bottom: list[PythonBlob], top: list[PythonBlob]) -> None:
        """Give each top its shape. Called after `setup` and before each `forward`."""
        raise NotImplementedError(f"{type(self).__name__} has no reshape(bottom, top)")

    def forward(self, bottom: list[PythonBlob], top: list[PythonBlob]) -> None:
        """Write the tops' `data`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(bottom, top)")

    def backward(self, top: list[PythonBlob], propagate_down: list[bool], bottom: list[PythonBlob]) -> None:
        """Write the `diff` of the bottoms that `propagate_down` marks, from the tops' `diff`."""
        raise NotImplementedError(f"{type(self).__name__} has no backward(top, propagate_down, bottom)")

    def get_position(self) -> dict[str, Any]:
        """For a source of data: what a snapshot must hold to resume at the same item; can be written as JSON.

        This default takes every attribute that is a number, text, truth value or None, such as an index.
        """
        return plain_attributes(self)

    def set_position(self, position: dict[str, Any]) -> None:
        """Go to a position that `get_position` gave."""
        self.__dict__.update(position)


def plain_attributes(instance: object) -> dict[str, Any]:
    """The attributes of an instance that are numbers, text, truth values or None."""
    own = {"param_str", "phase", "base_dir"}
    plain = (int, float, str, bool, type(None))
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in vars(instance).items()}
    return {name: value for name, value in values.items() if name not in own and isinstance(value, plain)}
