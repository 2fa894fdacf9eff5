"""Layers of Caffe's forks that move values about: Permute, Transpose, Reverse, Flip, Squeeze, ShuffleChannel, Reorg;
and Pad."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.base import Layer, SameShape, Shape
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


class _Rearranging(Layer):
    """What all layers here share: one bottom, whose values are in the top."""

    kind = "shaping"
    moves_values = True


@register("Pad")
class Pad(Layer):
    """`constant_values` around the bottom: `paddings` says how many before and after along each axis."""

    fork = "Synopsys"
    kind = "shaping"
    config_field = "pad_param"
    in_place = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def keeps_images_apart(self) -> bool:
        return not any(self.config.paddings[:2])

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, around = shapes[0], self.config.paddings
        if len(around) != 2 * len(shape):
            self.fail(f"{len(around)} paddings for a bottom of shape {tuple(shape)}; give two for each axis")
        return [tuple(n + around[2 * axis] + around[2 * axis + 1] for axis, n in enumerate(shape))]

    def forward(self, x: Tensor) -> Tensor:
        around = list(self.config.paddings)
        backwards = [value for axis in reversed(range(x.dim())) for value in around[2 * axis : 2 * axis + 2]]
        return F.pad(x, backwards, value=self.config.constant_values)


@register("Permute")
class Permute(_Rearranging):
    """The top's axis i is the bottom's axis `order`[i]; the axes not listed follow in rising order."""

    fork = "SSD"
    config_field = "permute_param"
    in_place = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.order_for(shapes[0])

    def keeps_images_apart(self) -> bool:
        order = list(self.config.order)
        return not order or order[0] == 0

    def order_for(self, shape: Sequence[int]) -> list[int]:
        """All axes of a bottom of `shape` in the top's order."""
        order = list(self.config.order)
        wrong = [axis for axis in order if axis >= len(shape)]
        if wrong or len(set(order)) != len(order):
            what = f"axis {wrong[0]} is" if wrong else "an axis is given twice, or"
            self.fail(f"order {order}: {what} not one of the {len(shape)} axes of a bottom of shape {tuple(shape)}")
        return [*order, *(axis for axis in range(len(shape)) if axis not in order)]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(shapes[0][axis] for axis in self.order_for(shapes[0]))]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order_for(x.shape)).contiguous()


@register("Transpose")
class Transpose(_Rearranging):
    """The top's axis i is the bottom's axis `dim`[i]; every axis is listed."""

    fork = "CTPN"
    config_field = "transpose_param"
    in_place = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.order_for(shapes[0])

    def keeps_images_apart(self) -> bool:
        return list(self.config.dim[:1]) == [0]

    def order_for(self, shape: Sequence[int]) -> list[int]:
        """The axes of a bottom of `shape` in the top's order."""
        order = list(self.config.dim)
        if sorted(order) != list(range(len(shape))):
            self.fail(f"dim {order} must hold each of the {len(shape)} axes of a bottom of shape {tuple(shape)} once")
        return order

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(shapes[0][axis] for axis in self.order_for(shapes[0]))]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order_for(x.shape)).contiguous()


@register("Reverse")
class Reverse(_Rearranging, SameShape):
    """The bottom with the order along `axis` (0; several may be given) turned round."""

    fork = "CTPN, Synopsys"
    config_field = "reverse_param"
    in_place = False

    def keeps_images_apart(self) -> bool:
        return all(axis > 0 for axis in self.config.axis) and len(self.config.axis) > 0

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.axes_for(shapes[0])

    def axes_for(self, shape: Sequence[int]) -> list[int]:
        """The axes of a bottom of `shape`, counted from 0."""
        return sorted({self.axis(axis, shape) for axis in self.config.axis or [0]})

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self.axes_for(x.shape))


@register("Flip")
class Flip(_Rearranging, SameShape):
    """Images mirrored along their width (unless `flip_width` is false) and, with `flip_height`, along their height."""

    fork = "happynear"
    config_field = "flip_param"
    in_place = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[0]) != 4:
            self.fail(f"mirrors (N, C, H, W) bottoms only, got shape {tuple(shapes[0])}")

    def keeps_images_apart(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        axes = [2] * self.config.flip_height + [3] * self.config.flip_width
        return x.flip(axes) if axes else x


@register("Squeeze")
class Squeeze(_Rearranging):
    """The bottom without the axes in `axis`, which must have one value; without all such axes where none is given."""

    fork = "Synopsys"
    config_field = "squeeze_param"
    in_place = False

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        return True

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis) and 0 not in self.config.axis and min(self.config.axis) > 0

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.kept(shapes[0])

    def kept(self, shape: Sequence[int]) -> Shape:
        """The top's shape for a bottom of `shape`."""
        if not self.config.axis:
            return tuple(extent for extent in shape if extent != 1)
        gone = {self.axis(axis, shape) for axis in self.config.axis}
        for axis in gone:
            if shape[axis] != 1:
                self.fail(
                    f"axis {axis} of a bottom of shape {tuple(shape)} has more than one value; it can't be removed"
                )
        return tuple(extent for axis, extent in enumerate(shape) if axis not in gone)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [self.kept(shapes[0])]

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.kept(x.shape))


@register("ShuffleChannel")
class ShuffleChannel(_Rearranging, SameShape):
    """Channels seen as (`group`, C / group), transposed: channel i * group + g is the bottom's g * C / group + i."""

    fork = "ncnn, Synopsys, mini-caffe"
    config_field = "shuffle_channel_param"
    in_place = False
    coordinates = staticmethod(maps.same)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        shape, group = shapes[0], self.config.group
        if len(shape) < 2 or group == 0 or shape[1] % group:
            self.fail(f"group {group} must divide the channels of a bottom of shape {tuple(shape)}")

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.config.group, -1)).transpose(1, 2).flatten(1, 2)


@register("Reorg")
class Reorg(_Rearranging):
    """darknet's rearrangement of (C, H, W) into (C * s^2, H / s, W / s) for `stride` s, with `reverse` into
    (C / s^2, H * s, W * s).

    It is not space-to-depth: darknet reads the bottom as if it had the shape (C / s^2, H * s, W * s), and the two
    directions are no inverses of each other.
    """

    fork = "YOLO, Tengine, Intel"
    config_field = "reorg_param"
    in_place = False
    differences = "the gradient is the inverse rearrangement (the forks read an unused buffer)."

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[0]) != 4 or self.config.stride == 0:
            self.fail(f"needs a stride and a bottom (N, C, H, W), got stride {self.config.stride}, shape {shapes[0]}")
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count, channels, height, width = shapes[0]
        s = self.config.stride
        if self.config.reverse:
            if channels % (s * s):
                self.fail(f"{channels} channels are no multiple of stride^2 ({s * s})")
            return [(count, channels // (s * s), height * s, width * s)]
        if channels % (s * s) or height % s or width % s:
            self.fail(
                f"stride {s} must divide height and width, and stride^2 the channels, of shape {tuple(shapes[0])}"
            )
        return [(count, channels * s * s, height // s, width // s)]

    def forward(self, x: Tensor) -> Tensor:
        return reorganise(x, self.config.stride, self.config.reverse)


def reorganise(x: Tensor, stride: int, reverse: bool) -> Tensor:
    """darknet's reorg of (N, C, H, W) by `stride`, the rearrangement of its other direction with `reverse`."""
    count, channels, height, width = x.shape
    if reverse:
        few, high, wide = channels // stride**2, height, width
        # (o, c2, j, i), where the channel of the wide view is c2 and o says which of its stride^2 phases.
        phases = x.reshape(count, stride, stride, few, high, wide)
        spread = phases.permute(0, 3, 4, 1, 5, 2)
        return spread.reshape(count, few, high * stride, wide * stride)
    few = channels // stride**2
    wide_view = x.reshape(count, few, height, stride, width, stride)
    phases = wide_view.permute(0, 3, 5, 1, 2, 4)
    return phases.reshape(count, channels * stride**2, height // stride, width // stride)
