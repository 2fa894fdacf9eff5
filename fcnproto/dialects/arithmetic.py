"""Arithmetic layers of Caffe's forks: Axpy, Add, ChannelNorm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.base import Layer, Pointwise, Shape
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("Axpy")
class Axpy(Layer):
    """a * x + y for bottoms a (N, C) or (N, C, 1, 1), x and y (N, C, H, W): the end of SENet's blocks."""

    fork = "SENet"
    bottoms = (3, 3)
    kind = "arithmetic"
    config_field = "axpy_param"
    in_place = False
    coordinates = staticmethod(maps.same)

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        scale, x, y = (tuple(shape) for shape in shapes)
        if len(x) < 2 or x != y or scale[:2] != x[:2] or any(extent != 1 for extent in scale[2:]):
            self.fail(
                f"needs bottoms of shapes (N, C[, 1, 1]), (N, C, H, W) and (N, C, H, W), got {scale}, {x} and {y}"
            )
        return [x]

    def forward(self, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return scale.reshape(*x.shape[:2], *[1] * (x.dim() - 2)) * x + y


@register("Add")
class Add(Pointwise):
    """The sum of bottoms of one shape."""

    fork = "Synopsys"
    bottoms = (2, None)
    kind = "arithmetic"

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len({tuple(shape) for shape in shapes}) > 1:
            self.fail(f"bottoms must have one shape, got {', '.join(str(tuple(shape)) for shape in shapes)}")

    def forward(self, *bottoms: Tensor) -> Tensor:
        total = bottoms[0]
        for bottom in bottoms[1:]:
            total = total + bottom
        return total


@register("ChannelNorm")
class ChannelNorm(Layer):
    """The length of each position's vector of channels: (N, 1, H, W), without a gradient at length 0."""

    fork = "FlowNet2"
    kind = "normalisation"
    in_place = False
    coordinates = staticmethod(maps.same)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return True

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) != 4:
            self.fail(f"needs a bottom (N, C, H, W), got shape {tuple(shapes[0])}")
        return [(shapes[0][0], 1, *shapes[0][2:])]

    def forward(self, x: Tensor) -> Tensor:
        return x.norm(dim=1, keepdim=True)
