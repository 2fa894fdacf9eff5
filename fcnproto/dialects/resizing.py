"""Layers of Caffe's forks that make maps larger or smaller: Interp, Upsample (two layers of one name), Unpooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2

Pair = tuple[int, int]


@register("Interp")
class Interp(Layer):
    """Bilinear resampling with the corners on the corners: `height` and `width`, `shrink_factor`, `zoom_factor`, both
    factors (shrinking first), or the size of a second bottom; `pad_beg` and `pad_end` (at most 0) cut it first.

    A factor counts where it is given, whatever its value. Positions and weights are float32, as in the forks.
    """

    fork = "DeepLab, PSPNet, Synopsys, ncnn"
    kind = "deconvolution"
    config_field = "interp_param"
    bottoms = (1, 2)
    size_bottoms = (1,)
    in_place = False
    coordinates = staticmethod(maps.interp)

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if len(shapes[0]) != 4:
            self.fail(f"resamples (N, C, H, W) bottoms only, got shape {tuple(shapes[0])}")
        if config.pad_beg > 0 or config.pad_end > 0:
            self.fail(f"pad_beg {config.pad_beg} and pad_end {config.pad_end}: only 0 and less (cropping) are possible")
        for name in ("zoom_factor", "shrink_factor"):
            if config.HasField(name) and getattr(config, name) < 1:
                self.fail(f"{name} {getattr(config, name)} must be positive")
        self.top_shapes(shapes)

    def size(self, shapes: Sequence[Sequence[int]]) -> Pair:
        """The top's (height, width) for bottoms of these shapes."""
        config = self.config
        inside = [extent + config.pad_beg + config.pad_end for extent in shapes[0][2:]]
        shrinks, zooms = config.HasField("shrink_factor"), config.HasField("zoom_factor")
        if len(shapes) == 2:
            inside = list(shapes[1][2:])
        elif shrinks or zooms:
            if shrinks:
                inside = [(extent - 1) // config.shrink_factor + 1 for extent in inside]
            if zooms:
                inside = [extent + (extent - 1) * (config.zoom_factor - 1) for extent in inside]
        elif config.HasField("height") and config.HasField("width"):
            inside = [config.height, config.width]
        else:
            self.fail("give height and width, shrink_factor, zoom_factor, or a second bottom for the size")
        if len(inside) != 2 or min(inside) < 1:
            self.fail(f"the top would have the size {tuple(inside)} for a bottom of shape {tuple(shapes[0])}")
        return inside[0], inside[1]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][:2], *self.size(shapes))]

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        config = self.config
        shapes = [x.shape] if like is None else [x.shape, like.shape]
        size = self.size(shapes)
        if config.pad_beg or config.pad_end:
            height, width = x.shape[2] + config.pad_end, x.shape[3] + config.pad_end
            x = x[:, :, -config.pad_beg : height, -config.pad_beg : width]
        if tuple(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=bool(config.align_corners))


def put_at(x: Tensor, index: Tensor, size: Pair) -> Tensor:
    """Zeros of `size` (height, width) but for the values of `x` (N, C, H, W) at the flat `index` within their planes;
    of several values for one place the last stays. Their gradient is the one at that place.
    """
    flat = x.new_zeros(*x.shape[:2], size[0] * size[1])
    return flat.scatter(2, index.flatten(2), x.flatten(2)).unflatten(2, size)


class _ByMask(Layer):
    """What puts values where a second bottom, the mask of a MAX Pooling, says they came from."""

    kind = "pooling"
    in_place = False
    index_bottoms = (1,)
    force_backward_refuses = (1,)

    def keeps_images_apart(self) -> bool:
        return True

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(first[2] * first[3]) if bottom == 1 else None

    def check_bottoms(self, shapes: Sequence[Shape]) -> None:
        """Refuse bottoms that aren't maps, and a mask of another size."""
        if len(shapes[0]) != 4 or (len(shapes) == 2 and tuple(shapes[1]) != tuple(shapes[0])):
            self.fail(f"needs (N, C, H, W) and a mask of its shape, got {', '.join(str(tuple(s)) for s in shapes)}")

    def place(self, x: Tensor, mask: Tensor, size: Pair) -> Tensor:
        """The values of `x` where the mask says. `LayerError` for a place outside (told on the CPU alone)."""
        index = mask.long()
        if index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling():
            low, high = (int(value) for value in index.aminmax())
            if low < 0 or high >= size[0] * size[1]:
                self.fail(f"the mask holds {low if low < 0 else high}, outside of the top's planes of {size}")
        return put_at(x, index, size)


@register("Upsample")
class Upsample(_ByMask):
    """SegNet's Upsample with a mask as its second bottom: zeros but for the bottom's values where its pooling had found
    them; or YOLO's with one bottom: each value `scale` times along both axes.

    SegNet's size is `upsample_h` x `upsample_w`, or the bottom's times `scale` (2; `scale_h`, `scale_w`), less 1 with
    `pad_out_h`, `pad_out_w`.
    """

    fork = "SegNet, Synopsys; YOLO, Tengine"
    config_field = "upsample_param"
    bottoms = (1, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.check_bottoms(shapes)
        if len(shapes) == 1:
            extra = [field.name for field, _ in self.config.ListFields() if field.name != "scale"]
            if extra:
                self.fail(f"{', '.join(extra)} belong to SegNet's layer, which takes the mask of a pooling as bottom 2")
        self.top_shapes(shapes)

    def size(self, shape: Sequence[int], masked: bool) -> Pair:
        """The top's (height, width)."""
        config = self.config
        if not masked:
            scale = config.scale if config.HasField("scale") else 1
            return shape[2] * scale, shape[3] * scale
        if config.HasField("upsample_h") != config.HasField("upsample_w"):
            self.fail("give both upsample_h and upsample_w")
        if config.HasField("upsample_h"):
            return config.upsample_h, config.upsample_w
        both = config.scale if config.HasField("scale") else 2
        down = config.scale_h if config.HasField("scale_h") else both
        right = config.scale_w if config.HasField("scale_w") else both
        return shape[2] * down - config.pad_out_h, shape[3] * right - config.pad_out_w

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        size = self.size(shapes[0], len(shapes) == 2)
        if min(size) < 1:
            self.fail(f"the top would have the size {size}")
        return [(*shapes[0][:2], *size)]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        size = self.size(x.shape, mask is not None)
        return F.interpolate(x, size, mode="nearest") if mask is None else self.place(x, mask, size)


@register("Unpooling")
class Unpooling(_ByMask):
    """DeconvNet's Unpooling. MAX puts each value where the mask of the pooling (bottom 2) says, else at the start of
    its window; AVE spreads it evenly over its window, TILE repeats it there; windows that overlap add up.

    The size is `unpool_size` (`unpool_h`, `unpool_w`), else the larger of (n - 1) * stride + kernel and
    n * stride + 1. TILE's gradient is the mean over the window, as in the fork.
    """

    fork = "DeconvNet"
    config_field = "unpooling_param"
    bottoms = (1, 2)
    differences = "AVE and TILE begin from zeros at every call (the fork adds to what was there before)."

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.check_bottoms(shapes)
        if config.pad or config.pad_h or config.pad_w:
            self.fail("only a pad of 0 is possible; remove pad")
        self.method = str(caffe_pb2.UnpoolingParameter.UnpoolMethod.Name(config.unpool))
        self.kernel = self._pair("kernel_size", "kernel", None)
        self.stride = self._pair("stride", "stride", 1)
        if min(*self.kernel, *self.stride) < 1:
            self.fail(f"kernel {self.kernel} and stride {self.stride} must be positive")
        self.given_size = self._pair("unpool_size", "unpool", 0)

    def _pair(self, field: str, stem: str, default: int | None) -> Pair:
        config = self.config
        parts = config.HasField(f"{stem}_h"), config.HasField(f"{stem}_w")
        if parts[0] != parts[1] or (any(parts) and config.HasField(field)):
            self.fail(f"give either {field} or both {stem}_h and {stem}_w")
        if all(parts):
            return getattr(config, f"{stem}_h"), getattr(config, f"{stem}_w")
        if default is None and not config.HasField(field):
            self.fail(f"give either {field} or both {stem}_h and {stem}_w")
        value = getattr(config, field) if config.HasField(field) else default or 0
        return value, value

    def size(self, shape: Sequence[int]) -> Pair:
        """The top's (height, width)."""
        if self.given_size != (0, 0):
            return self.given_size
        height, width = (
            max((n - 1) * stride + kernel, n * stride + 1)
            for n, stride, kernel in zip(shape[2:], self.stride, self.kernel, strict=True)
        )
        return height, width

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][:2], *self.size(shapes[0]))]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        size = self.size(x.shape)
        if self.method == "MAX":
            return self.place(x, self._starts(x, size) if mask is None else mask, size)
        average = self._spread(x / self._areas(x, size), size)
        if self.method == "AVE":
            return average
        return average + (self._spread(x, size) - average).detach()

    def _starts(self, x: Tensor, size: Pair) -> Tensor:
        """The flat index of each window's first place."""
        down, right = (
            (torch.arange(x.shape[2 + i], device=x.device) * self.stride[i]).clamp(max=size[i] - 1) for i in (0, 1)
        )
        return (down.unsqueeze(1) * size[1] + right).expand(x.shape)

    def _areas(self, x: Tensor, size: Pair) -> Tensor:
        """How many places of the top each window has."""
        down, right = (
            (size[i] - torch.arange(x.shape[2 + i], device=x.device) * self.stride[i]).clamp(1, self.kernel[i])
            for i in (0, 1)
        )
        return down.unsqueeze(1) * right

    def _spread(self, x: Tensor, size: Pair) -> Tensor:
        """Each value at every place of its window, sums where windows overlap."""
        ones = x.new_ones(1, 1, *self.kernel)
        full = F.conv_transpose2d(x.reshape(-1, 1, *x.shape[2:]), ones, stride=self.stride)
        full = F.pad(full, [0, max(0, size[1] - full.shape[3]), 0, max(0, size[0] - full.shape[2])])
        return full[:, :, : size[0], : size[1]].reshape(*x.shape[:2], *size)
