"""Where surgery takes values from: nets in memory or weight files, as layers with blobs that are read when needed.

Also the rules of which shapes may stand for which. Nothing is ever cut, repeated or broadcast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.errors import WeightsError
from fcnproto.net import Net
from fcnproto.net.tensor_files import read_safetensors
from fcnproto.schema.weights import open_weights

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
Shape = tuple[int, ...]
Source = Net | PathLike
"""A net, or the path of a .caffemodel, .caffemodel.h5 or .safetensors."""


@dataclass(frozen=True)
class SourceBlob:
    """A blob's shape, and `read`, which gives its values (float32, in that shape)."""

    shape: Shape
    read: Callable[[], Array]


@dataclass(frozen=True)
class SourceLayer:
    """A layer that has blobs."""

    name: str
    blobs: list[SourceBlob]


@contextmanager
def opened(source: Source) -> Iterator[list[SourceLayer]]:
    """The layers with blobs of a source, in order; only the first of a name, as Caffe takes them."""
    if isinstance(source, Net):
        yield [
            SourceLayer(name, [SourceBlob(tuple(blob.shape), _reader(blob)) for blob in blobs])
            for name, blobs in source.params.items()
        ]
        return
    if os.fspath(source).lower().endswith(".safetensors"):
        yield _tensors(source)
        return
    with open_weights(source) as file:
        layers: dict[str, SourceLayer] = {}
        for stored in file.layers:
            blobs = []
            for blob in stored.blobs:
                if blob is not None:
                    blob.check()
                    blobs.append(SourceBlob(tuple(blob.shape), blob.array))
            if blobs:
                layers.setdefault(stored.name, SourceLayer(stored.name, blobs))
        if not layers:
            raise WeightsError(f"{os.fspath(source)}: holds no weights")
        yield list(layers.values())


_ORDER = ("weight", "bias", "running_mean", "running_var", "scale_factor")
"""The names that layers' blobs have in a state dict, in Caffe's order; recurrent layers have others."""


def _tensors(source: PathLike) -> list[SourceLayer]:
    """The layers in a .safetensors file, by the names of modules; those whose blobs have names of another kind are left
    out."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in read_safetensors(source).items():
        layer, _, blob = key.rpartition(".")
        found.setdefault(layer, {})[blob] = value
    layers = [
        SourceLayer(
            layer, [SourceBlob(tuple(blobs[name].shape), _reader(blobs[name])) for name in _ORDER if name in blobs]
        )
        for layer, blobs in found.items()
        if blobs.keys() <= set(_ORDER)
    ]
    if not layers:
        raise WeightsError(f"{os.fspath(source)}: holds no weights of layers")
    return layers


def _reader(blob: Tensor) -> Callable[[], Array]:
    return lambda: blob.detach().to("cpu", torch.float32).numpy()


def title(source: Source) -> str:
    """How messages call a source."""
    return source.graph.title if isinstance(source, Net) else os.fspath(source)


def find(layers: Sequence[SourceLayer], name: str, source: Source) -> SourceLayer:
    """The layer of that name. `WeightsError` if there is none."""
    for layer in layers:
        if layer.name == name:
            return layer
    known = ", ".join(layer.name for layer in layers[:8]) + (", ..." if len(layers) > 8 else "")
    raise WeightsError(f"{title(source)}: no layer {name!r} with weights; it has {known}")


def relation(source: Shape, target: Shape) -> str | None:
    """How values of one shape become those of another: "copied", "coerced", or None where they must not.

    Copied: equal shapes, also where an old file wrote four axes with leading ones. Coerced: the weights of an inner
    product (O, C*H*W) and of the convolution (O, C, H, W) that computes the same, whose order in memory is one; the
    number of outputs must be equal, and so the number of values.
    """
    old = _without_padding(source, len(target))
    if source == target or old == target:
        return "copied"
    flat = _without_padding(source, 2)
    for shape in (source, flat):
        same = shape[:1] == target[:1] and math.prod(shape) == math.prod(target)
        if same and {len(shape), len(target)} == {2, 4}:
            return "coerced"
    return None


def _without_padding(shape: Shape, axes: int) -> Shape:
    """A four-axis shape of an old file with as many axes as it stands for, where its leading extents are ones."""
    extra = len(shape) - axes
    return shape[extra:] if len(shape) == 4 and extra > 0 and set(shape[:extra]) == {1} else shape


def store(target: Tensor, values: Array) -> None:
    """Write values into a parameter blob, in the blob's shape."""
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(target.shape))
