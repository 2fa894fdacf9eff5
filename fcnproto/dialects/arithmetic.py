"""Arithmetic layers of Caffe's forks: Axpy, Add, Mean, ChannelNorm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.base import Layer, Pointwise, SameShape, Shape
from fcnproto.layers.files import named_file
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import read_blob


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


@register("Mean")
class Mean(SameShape):
    """output_scale * (input_scale * x +- mean_scale * mean): a mean from a file, of which each image takes what it has
    values for, or from `value`, of which channel c takes number c modulo their count. SUBTRACT takes it away, any other
    operation adds it. Each bottom gives a top; there is no gradient, as in the fork.
    """

    fork = "FlowNet, FlowNet2"
    kind = "arithmetic"
    config_field = "mean_param"
    bottoms = (1, None)
    tops = (1, None)
    coordinates = staticmethod(maps.same)

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if self.num_tops != len(shapes):
            self.fail(f"makes a top of each of its {len(shapes)} bottoms, but has {self.num_tops}")
        if config.HasField("file"):
            mean = torch.from_numpy(read_blob(named_file(self, config.file, "mean_param.file")).astype(np.float32))
        elif config.value:
            mean = torch.tensor(list(config.value), device="cpu").view(-1, 1, 1)
        else:
            self.fail("give a file or value")
        self.mean = mean.reshape(-1, *mean.shape[-2:])
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        channels, *plane = self.mean.shape
        for shape in shapes:
            if len(shape) != 4 or shape[1] % channels or (plane != [1, 1] and list(shape[2:]) != plane):
                self.fail(f"a mean of shape {tuple(self.mean.shape)} doesn't fit a bottom of shape {tuple(shape)}")
        return [tuple(shape) for shape in shapes]

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        config = self.config
        self.top_shapes([bottom.shape for bottom in bottoms])
        sign = -1 if config.operation == caffe_pb2.MeanParameter.SUBTRACT else 1
        tops = []
        for bottom in bottoms:
            mean = self.mean.to(bottom).repeat(bottom.shape[1] // len(self.mean), 1, 1)
            tops.append(config.output_scale * (config.input_scale * bottom.detach() + sign * config.mean_scale * mean))
        return tops[0] if len(tops) == 1 else tuple(tops)


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
