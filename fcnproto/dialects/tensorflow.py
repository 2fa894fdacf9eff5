"""Layers that Synopsys' Caffe has for nets converted from TensorFlow and darknet: Mul, ResizeBilinear,
ResizeNearestNeighbor, UpsampleDarknet, DepthToSpace, SpaceToBatchND, BatchToSpaceND."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.dialects.regions import rounded
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.registry import register


@register("Mul")
class Mul(Layer):
    """The product of two bottoms, or of one and a blob of `mul_shape`; axes of extent 1, and missing ones in front, are
    taken for every place."""

    fork = "Synopsys"
    kind = "arithmetic"
    config_field = "mul_param"
    bottoms = (1, 2)
    in_place = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes) == 1:
            self.add_blob("weight", tuple(self.config.mul_shape))
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        both = [tuple(shapes[0]), tuple(shapes[1]) if len(shapes) > 1 else self.blob_shapes[0]]
        try:
            return [np.broadcast_shapes(*both)]
        except ValueError:
            self.fail(f"shapes {both[0]} and {both[1]} don't go together: extents must be equal, or 1")

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x * (self.blob(0) if other is None else other)


class _Resized(Layer):
    """Maps of another size, their axes by `data_format`: "NHWC" (the default) or "NCHW"."""

    fork = "Synopsys"
    kind = "deconvolution"
    in_place = False

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.data_format not in ("NHWC", "NCHW"):
            self.fail(f'data_format {self.config.data_format!r}: expected "NHWC" or "NCHW"')
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, config = list(shapes[0]), self.config
        if len(shape) != 4:
            self.fail(f"resizes bottoms of four axes, got shape {tuple(shape)}")
        for axis, name in zip(self.axes(), ("height", "width"), strict=True):
            if config.HasField(f"output_{name}"):
                shape[axis] = getattr(config, f"output_{name}")
            else:
                shape[axis] = math.floor(shape[axis] * getattr(config, f"scale_{name}"))
        if min(shape[axis] for axis in self.axes()) < 1:
            self.fail(f"the top would have the shape {tuple(shape)}")
        return [tuple(shape)]

    def axes(self) -> tuple[int, int]:
        """Of the height and the width."""
        return (1, 2) if self.config.data_format == "NHWC" else (2, 3)

    def at(self, new: int, old: int, x: Tensor, half: bool) -> Tensor:
        """Where each of `new` places lies among `old` ones, in float32 as the fork has it."""
        corners = self.config.align_corners and new > 1
        scale = np.float32((old - 1) / np.float32(new - 1) if corners else old / np.float32(new))
        place = torch.arange(new, dtype=torch.float32, device=x.device)
        return (place + 0.5) * float(scale) if half and not self.config.align_corners else place * float(scale)


@register("ResizeBilinear")
class ResizeBilinear(_Resized):
    """TensorFlow's resize_bilinear to `output_height` x `output_width`, or by `scale_height` and `scale_width`:
    `align_corners` has corners on corners, `half_pixel_centers` (or `pytorch_half_pixel`) the middles of pixels on each
    other, neither their upper left corners."""

    config_field = "resize_bilinear_param"

    def forward(self, x: Tensor) -> Tensor:
        (size,) = self.top_shapes([x.shape])
        half = self.config.half_pixel_centers or self.config.pytorch_half_pixel
        for axis in self.axes():
            if self.config.pytorch_half_pixel and not self.config.align_corners and size[axis] == 1:
                at = torch.full((1,), -0.5, device=x.device)
            else:
                at = self.at(size[axis], x.shape[axis], x, half) - (
                    0.5 if half and not self.config.align_corners else 0
                )
            low, last = at.floor(), x.shape[axis] - 1
            share = (at - low).to(x.dtype).view(-1, *[1] * (3 - axis))
            lower = x.index_select(axis, low.long().clamp(min=0))
            x = lower + (x.index_select(axis, at.ceil().long().clamp(0, last)) - lower) * share
        return x


@register("ResizeNearestNeighbor")
class ResizeNearestNeighbor(_Resized):
    """TensorFlow's resize_nearest_neighbor to `output_height` x `output_width`, or by `scale_height` and `scale_width`:
    with `align_corners` the nearest place, else the one below (with `half_pixel_centers` of the pixels' middles;
    `half_pixel_onnx` half a pixel less)."""

    config_field = "resize_nearest_neighbor_param"

    def forward(self, x: Tensor) -> Tensor:
        (size,) = self.top_shapes([x.shape])
        config = self.config
        half = config.half_pixel_centers or config.half_pixel_onnx
        for axis in self.axes():
            at = self.at(size[axis], x.shape[axis], x, half)
            at = rounded(at) if config.align_corners else (at - (0.5 if config.half_pixel_onnx else 0)).floor()
            x = x.index_select(axis, at.long().clamp(0, x.shape[axis] - 1))
        return x


@register("UpsampleDarknet")
class UpsampleDarknet(Layer):
    """Each value of (N, C, H, W) `stride` times along height and width."""

    fork = "Synopsys"
    kind = "deconvolution"
    config_field = "upsample_darknet_param"
    in_place = False

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.stride < 1:
            self.fail(f"stride {self.config.stride} must be positive")
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) != 4:
            self.fail(f"needs a bottom (N, C, H, W), got shape {tuple(shapes[0])}")
        return [(*shapes[0][:2], *(extent * self.config.stride for extent in shapes[0][2:]))]

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.config.stride, 2).repeat_interleave(self.config.stride, 3)


class _Rearranged(Layer):
    """What moves values between the batch or the channels and the plane."""

    fork = "Synopsys"
    kind = "shaping"
    in_place = False
    moves_values = True

    def keeps_images_apart(self) -> bool:
        return False


@register("DepthToSpace")
class DepthToSpace(_Rearranged):
    """Blocks of `block_size` x `block_size` places out of the channels. `data_format`: "NHWC" (the default), "NCHW" or
    "DCR" (block, then channel), "CRD" (channel, then block, as pixel shuffling has it)."""

    config_field = "depth_to_space_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.data_format not in ("NHWC", "NCHW", "DCR", "CRD"):
            self.fail(f'data_format {self.config.data_format!r}: expected "NHWC", "NCHW", "DCR" or "CRD"')
        self.top_shapes(shapes)

    def keeps_images_apart(self) -> bool:
        return True

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        size, shape = self.config.block_size, tuple(shapes[0])
        channels = 3 if self.config.data_format == "NHWC" else 1
        if size < 1 or len(shape) != 4 or shape[channels] % size**2:
            self.fail(f"block_size {size} doesn't divide the channels of a bottom of shape {shape}")
        few = shape[channels] // size**2
        if channels == 3:
            return [(shape[0], shape[1] * size, shape[2] * size, few)]
        return [(shape[0], few, shape[2] * size, shape[3] * size)]

    def forward(self, x: Tensor) -> Tensor:
        size, style = self.config.block_size, self.config.data_format
        x = x.movedim(3, 1) if style == "NHWC" else x
        if style != "CRD":
            x = x.unflatten(1, (size * size, -1)).transpose(1, 2).flatten(1, 2)
        x = F.pixel_shuffle(x, size)
        return x.movedim(1, 3) if style == "NHWC" else x


@register("SpaceToBatchND")
class SpaceToBatchND(_Rearranged):
    """TensorFlow's space_to_batch: the axes behind the first, padded with zeros by `paddings` (before and after each),
    are cut into blocks of `block_shape`, whose places become images of the batch, the first place's first."""

    config_field = "space_to_batch_nd_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, block, around = list(shapes[0]), list(self.config.block_shape), list(self.config.paddings)
        if len(around) != 2 * len(block) or len(block) >= len(shape) or min(block, default=1) < 1:
            self.fail(f"block_shape {block} and paddings {around} don't fit a bottom of shape {tuple(shape)}")
        for axis, size in enumerate(block):
            shape[1 + axis] += around[2 * axis] + around[2 * axis + 1]
            if shape[1 + axis] % size:
                self.fail(f"blocks of {size} don't divide the {shape[1 + axis]} places of axis {1 + axis}")
            shape[1 + axis] //= size
        return [(shape[0] * math.prod(block), *shape[1:])]

    def forward(self, x: Tensor) -> Tensor:
        (top,) = self.top_shapes([x.shape])
        block, around = list(self.config.block_shape), list(self.config.paddings)
        ends = [value for axis in reversed(range(len(block))) for value in around[2 * axis : 2 * axis + 2]]
        x = F.pad(x, [0, 0] * (x.dim() - 1 - len(block)) + ends)
        for axis in reversed(range(len(block))):
            x = x.unflatten(1 + axis, (-1, block[axis]))
        # (N, d1, b1, d2, b2, ..., rest) to (b1, b2, ..., N, d1, d2, ..., rest)
        inner = [2 + 2 * axis for axis in range(len(block))]
        others = [axis for axis in range(x.dim()) if axis not in inner]
        return x.permute(*inner, *others).reshape(top)


@register("BatchToSpaceND")
class BatchToSpaceND(_Rearranged):
    """TensorFlow's batch_to_space, the inverse of SpaceToBatchND: images of the batch become the places of blocks of
    `block_shape`; `crops` is cut off before and after each axis."""

    config_field = "batch_to_space_nd_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, block, off = list(shapes[0]), list(self.config.block_shape), list(self.config.crops)
        whole = len(off) == 2 * len(block) and len(block) < len(shape) and min(block, default=1) > 0
        if not whole or shape[0] % math.prod(block):
            self.fail(f"block_shape {block} and crops {off} don't fit a bottom of shape {tuple(shape)}")
        for axis, size in enumerate(block):
            shape[1 + axis] = shape[1 + axis] * size - off[2 * axis] - off[2 * axis + 1]
        if min(shape[1:], default=0) < 0:
            self.fail(f"crops {off} leave nothing of a bottom of shape {tuple(shapes[0])}")
        return [(shape[0] // math.prod(block), *shape[1:])]

    def forward(self, x: Tensor) -> Tensor:
        self.top_shapes([x.shape])
        block, off = list(self.config.block_shape), list(self.config.crops)
        count = len(block)
        x = x.reshape(*block, -1, *x.shape[1:])
        order = [count]
        for axis in range(count):
            order += [count + 1 + axis, axis]
        x = x.permute(*order, *range(2 * count + 1, x.dim()))
        for axis in range(count):
            x = x.flatten(1 + axis, 2 + axis)
            x = x.narrow(1 + axis, off[2 * axis], x.shape[1 + axis] - off[2 * axis] - off[2 * axis + 1])
        return x.contiguous()
