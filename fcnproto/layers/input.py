"""Layers without bottoms that read no files: Input, DummyData and Parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.errors import GraphError
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.fillers import check, fill, unread_fields
from fcnproto.layers.plain import MODULE, Piece, Request, parameters_of
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer
from fcnproto.schema import caffe_pb2


def _per_top(layer: Layer, values: Sequence[Any], what: str, count: int) -> list[Any]:
    """`values` for each of `count` tops: one for all of them, or one each (Caffe's rule)."""
    if len(values) not in (1, count):
        layer.fail(f"{len(values)} {what} for {count} tops; give one for all or one for each")
    return list(values) * (count if len(values) == 1 else 1)


def _dims(shape: caffe_pb2.BlobShape) -> Shape:
    return tuple(int(extent) for extent in shape.dim)


@register("Input")
class Input(SourceLayer):
    """Caffe's Input: tops that the caller gives. Shapes in `input_param`: none, one for all tops, or one for each."""

    config_field = "input_param"
    may_read_ahead = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        if not self.config.shape:
            return [None] * self.num_tops
        return _per_top(self, [_dims(shape) for shape in self.config.shape], "shapes", self.num_tops)

    def forward(self) -> tuple[Tensor, ...]:
        names = ", ".join(repr(top) for top in self.param.top)
        self.fail(f"has no data of its own; give {names} as arguments of the call")


@register("DummyData")
class DummyData(SourceLayer):
    """Caffe's DummyData: tops that fillers fill, from torch's global generator.

    They are filled anew at every call, which for constant ones changes nothing. Shapes come from `shape` or from the
    old fields num, channels, height and width; one for all tops or one for each, and so the fillers (none: constant 0).
    """

    config_field = "dummy_data_param"
    makes_data = True
    may_read_ahead = False
    replaced_fields = dict.fromkeys(("num", "channels", "height", "width"), "shape")

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)
        for filler in self.fillers():
            try:
                check(filler)
            except GraphError as error:
                self.fail(str(error))
            for name in unread_fields(filler):
                self.warn(f"{name} has no effect on fillers of type {filler.type!r}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        config = self.config
        old = [config.num, config.channels, config.height, config.width]
        if config.shape and any(old):
            self.fail("give the shapes as shape or as num, channels, height and width, not both")
        if config.shape:
            return _per_top(self, [_dims(shape) for shape in config.shape], "shapes", self.num_tops)
        names = ("num", "channels", "height", "width")
        columns = [_per_top(self, values, name, self.num_tops) for values, name in zip(old, names, strict=True)]
        return [tuple(int(extent) for extent in row) for row in zip(*columns, strict=True)]

    def fillers(self) -> list[caffe_pb2.FillerParameter]:
        """The filler of each top."""
        given = list(self.config.data_filler) or [caffe_pb2.FillerParameter(type="constant")]
        return _per_top(self, given, "data_fillers", self.num_tops)

    def forward(self) -> tuple[Tensor, ...]:
        tops = []
        for shape, filler in zip(self.top_shapes(()), self.fillers(), strict=True):
            assert shape is not None
            try:
                top = torch.empty([extent or 0 for extent in shape], device="cpu", dtype=torch.float32)
            except RuntimeError:
                self.data_error(f"no memory for a top of shape {shape}")
            fill(top, filler)
            tops.append(top)
        return tuple(tops)


@register("Parameter")
class Parameter(Layer):
    """Caffe's Parameter: a learnable blob as a top; zero unless loaded. Gradients add up as for any parameter."""

    differences = (
        "gradients of several backward passes add up as for any parameter (Caffe overwrites them, which "
        "breaks `iter_size`)."
    )

    config_field = "parameter_param"
    kind = "data"
    gradient_memory = "inner"
    bottoms = (0, 0)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.add_blob("weight", _dims(self.config.shape))

    def overwrites_gradients(self) -> tuple[int, ...]:
        return (0,)

    def forward(self) -> Tensor:
        return self.blob(0)

    def plain(self, request: Request) -> Piece:
        return Piece((f"{MODULE}.weight", None), parameters_of(self.blob_names, self.blob_shapes))
