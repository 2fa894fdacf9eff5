"""Single layers for tests, made from a line of prototxt, with seeded values in their blobs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from google.protobuf import text_format
from torch import Tensor, nn

import fcnproto.dialects
import fcnproto.layers  # noqa: F401  (these register the types)
from fcnproto.layers.base import Layer
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2


def make_layer(
    text: str,
    *shapes: Sequence[int],
    train: bool = False,
    tops: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Layer:
    """The layer `text` describes (a `LayerParameter` without its name), set up for bottoms of these shapes."""
    param = caffe_pb2.LayerParameter(name="it")
    text_format.Merge(text, param)
    if not param.bottom:
        param.bottom.extend(f"bottom{i}" for i in range(len(shapes)))
    layer = lookup(param.type)(param, tops)
    layer.train(train)
    layer.setup([tuple(shape) for shape in shapes])
    generator = torch.Generator().manual_seed(1)
    for name, shape in zip(layer.blob_names, layer.blob_shapes, strict=True):
        values = torch.randn(shape, dtype=torch.float64, generator=generator).mul(0.5).to(device, dtype)
        if name in layer._parameters:
            setattr(layer, name, nn.Parameter(values))
        else:
            setattr(layer, name, torch.zeros_like(values))
    return layer


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random values that are the same at every call."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
