"""Optical flow: FlowNet2's Correlation, FlowWarp, Resample, Downsample and the two forks' L1Loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.dialects.regions import rounded
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.loss import LossLayer
from fcnproto.layers.plain import Piece, Request
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2

_Resample = caffe_pb2.ResampleParameter


def correlate(
    a: Tensor, b: Tensor, pad: int, kernel: int, reach: int, strides: tuple[int, int], subtract: bool
) -> Tensor:
    """Mean over channels and a window of the products (`subtract`: the distances) of `a` and `b` shifted against it by
    up to `reach` in steps of the second stride: one channel for each shift, rows of shifts first."""
    a, b = F.pad(a, [pad] * 4), F.pad(b, [pad] * 4)
    step, grid = strides
    counts = [-((2 * (reach + (kernel - 1) // 2) - size) // step) for size in a.shape[2:]]  # rounded up
    height, width = ((count - 1) * step + kernel for count in counts)
    first = a[:, :, reach : reach + height, reach : reach + width]
    shifts = [step_ * grid for step_ in range(-(reach // grid), reach // grid + 1)]
    tops = []
    for down in shifts:
        for right in shifts:
            y, x = reach + down, reach + right
            second = b[:, :, y : y + height, x : x + width]
            paired = (first - second).abs() if subtract else first * second
            mean = paired.mean(1, keepdim=True)
            tops.append(F.avg_pool2d(mean, kernel, step) if kernel > 1 else mean[:, :, ::step, ::step])
    return torch.cat(tops, 1)


@register("Correlation")
class Correlation(Layer):
    """What two feature maps have in common at each place and shift: see `correlate`. SUBTRACT compares by distance."""

    fork = "FlowNet2, Synopsys"
    kind = "arithmetic"
    config_field = "correlation_param"
    bottoms = (2, 2)
    in_place = False

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        for name in ("kernel_size", "max_displacement"):
            if not config.HasField(name):
                self.fail(f"{name} is missing")
        if config.kernel_size % 2 == 0 or 0 in (config.stride_1, config.stride_2):
            self.fail(f"kernel_size {config.kernel_size} must be odd, and the strides positive")
        if config.single_direction:
            self.fail("single_direction other than 0 can't be computed here")
        self.warn_unread(("do_abs",), "no version of the layer acts on it")
        self.subtract = config.correlation_type == caffe_pb2.CorrelationParameter.SUBTRACT
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        config, first = self.config, tuple(shapes[0])
        if len(first) != 4 or first != tuple(shapes[1]):
            self.fail(f"needs two maps (N, C, H, W) of one shape, got {first} and {tuple(shapes[1])}")
        border = 2 * (config.max_displacement + (config.kernel_size - 1) // 2)
        size = [math.ceil((extent + 2 * config.pad - border) / config.stride_1) for extent in first[2:]]
        if min(size) < 1:
            self.fail(f"max_displacement and kernel_size don't fit into maps of shape {first}; give more pad")
        return [(first[0], (2 * (config.max_displacement // config.stride_2) + 1) ** 2, *size)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        config = self.config
        strides = (config.stride_1, config.stride_2)
        return correlate(a, b, config.pad, config.kernel_size, config.max_displacement, strides, self.subtract)

    def plain(self, request: Request) -> Piece:
        c = self.config
        settings = [str(v) for v in (c.pad, c.kernel_size, c.max_displacement, (c.stride_1, c.stride_2), self.subtract)]
        return Piece(("correlate", [*request.args, *settings]), None, (correlate,))


def warp(x: Tensor, flow: Tensor, outside: float) -> Tensor:
    """The values of `x` (N, C, H, W) at each place plus its `flow` (N, 2, H, W; right, down), bilinear; `outside` where
    that is beyond the map. Neighbours beyond the last row or column are that row or column."""
    height, width = x.shape[2:]
    options: dict[str, Any] = {"dtype": x.dtype, "device": x.device}
    right = torch.arange(width, **options) + flow[:, 0]
    down = torch.arange(height, **options).unsqueeze(1) + flow[:, 1]
    inside = (right >= 0) & (down >= 0) & (right < width) & (down < height)
    left, top = (torch.where(inside, at.detach(), 0).floor().long() for at in (right, down))
    far, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    alpha = torch.where(inside, right - left, 0).unsqueeze(1)
    beta = torch.where(inside, down - top, 0).unsqueeze(1)
    flat = x.flatten(2)
    corners = []
    for row in (top, bottom):
        for column in (left, far):
            index = (row * width + column).flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
            corners.append(flat.gather(2, index).view(x.shape))
    upper = corners[0] * (1 - alpha) + corners[1] * alpha
    lower = corners[2] * (1 - alpha) + corners[3] * alpha
    return torch.where(inside.unsqueeze(1), upper * (1 - beta) + lower * beta, outside)


@register("FlowWarp")
class FlowWarp(Layer):
    """An image moved by a flow: see `warp`. Places that come from outside are 0, or NaN with NOT_A_NUMBER."""

    fork = "FlowNet2, Synopsys"
    kind = "arithmetic"
    config_field = "flow_warp_param"
    bottoms = (2, 2)
    in_place = False
    differences = "the flow gets the gradient 0 where the target lies outside (the forks leave what was there)."

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        x, flow = (tuple(shape) for shape in shapes)
        if len(x) != 4 or flow != (x[0], 2, *x[2:]):
            self.fail(f"needs maps (N, C, H, W) and a flow (N, 2, H, W), got {x} and {flow}")
        zero = self.config.fill_value == caffe_pb2.FlowWarpParameter.ZERO
        self.outside = 0.0 if zero else math.nan

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(shapes[0])]

    def forward(self, x: Tensor, flow: Tensor) -> Tensor:
        return warp(x, flow, self.outside)

    def plain(self, request: Request) -> Piece:
        value = "math.nan" if math.isnan(self.outside) else "0.0"
        return Piece(("warp", [*request.args, value]), None, (warp,))


def cubic(x: Tensor) -> Tensor:
    """The cubic convolution's weights (a = -0.5) at distances `x`."""
    x = x.abs()
    near, far = x * x * (1.5 * x - 2.5) + 1, x * (x * (-0.5 * x + 2.5) - 4) + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0))


def resampling(size: int, count: int, other: float, method: str, antialias: bool) -> Tensor:
    """The matrix (count, size) that resamples one axis; `other` is the factor of the other axis, which the forks take
    for the half cell's offset."""
    factor = torch.tensor(size, dtype=torch.float32) / count
    at = torch.arange(count, dtype=torch.float32) * factor + torch.tensor(other, dtype=torch.float32) / 2 - 0.5
    place = torch.arange(size, dtype=torch.float32)
    middle = rounded(at)
    if method == "nearest":
        return (place == middle.clamp(0, size - 1).unsqueeze(1)).float()
    narrowing = 1 / factor if antialias else torch.tensor(1.0)
    width = 4 if method == "cubic" else 2
    reach = 2 if factor < 1 else math.ceil(width / float(narrowing))
    distance = narrowing * (at.unsqueeze(1) - place)
    weights = cubic(distance) if method == "cubic" else (1 - distance.abs()).clamp(min=0)
    weights = torch.where((place - middle.unsqueeze(1)).abs() <= reach, weights, 0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total == 0, 0, weights / torch.where(total == 0, 1, total))


def resample(x: Tensor, height: int, width: int, method: str, antialias: bool) -> Tensor:
    """Maps (N, C, H, W) of another size, by the forks' rule."""
    down, right = x.shape[2] / height, x.shape[3] / width
    smooth = antialias and (down > 1 or right > 1)
    rows = resampling(x.shape[2], height, right, method, smooth).to(x)
    columns = resampling(x.shape[3], width, down, method, smooth).to(x)
    return rows @ (x @ columns.t())


class _ToSize(Layer):
    """Maps brought to the size of the settings, or of a second bottom."""

    kind = "deconvolution"
    bottoms = (1, 2)
    size_bottoms = (1,)
    in_place = False

    def keeps_images_apart(self) -> bool:
        return True

    def given_size(self) -> tuple[int, int]:
        """The (height, width) of the settings."""
        raise NotImplementedError

    def size(self, shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
        """The top's (height, width)."""
        height, width = (shapes[1][2], shapes[1][3]) if len(shapes) == 2 else self.given_size()
        if len(shapes[0]) != 4 or min(height, width) < 1:
            self.fail(f"needs maps (N, C, H, W) and a size, got shape {tuple(shapes[0])} and {height} x {width}")
        return height, width

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][:2], *self.size(shapes))]


@register("Resample")
class Resample(_ToSize):
    """Resampling by NEAREST, LINEAR or CUBIC to `height` x `width` or the size of a second bottom; with `antialias`
    over as many cells as one of the top's covers, where an axis shrinks. Half a cell's offset is the other axis', as in
    the forks."""

    fork = "FlowNet2, Synopsys"
    config_field = "resample_param"
    differences = "has the gradient of what it computes (the forks stop)."

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.type == _Resample.AREA:
            self.fail("AREA is computed in no fork; NEAREST, LINEAR and CUBIC are")
        self.method = _Resample.ResampleType.Name(self.config.type).lower()
        self.warn_unread(("factor",), "height and width, or the second bottom, give the size")
        self.size(shapes)

    def given_size(self) -> tuple[int, int]:
        return self.config.height, self.config.width

    def forward(self, x: Tensor, *like: Tensor) -> Tensor:
        height, width = self.size([x.shape, *(other.shape for other in like)])
        return resample(x, height, width, self.method, bool(self.config.antialias))


@register("Downsample")
class Downsample(_ToSize):
    """FlowNet2's Downsample to `top_height` x `top_width` or the size of a second bottom: corners on corners, each
    place of the top a mean of those near it, weighted by 1 - distance / scale. Values that are no number don't count;
    where their weight is above half of the others', the top is none."""

    fork = "FlowNet2"
    config_field = "downsample_param"
    differences = "its forks compute it on the GPU alone, so it is recorded nowhere; it has a gradient (theirs stop)."

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.size(shapes)

    def given_size(self) -> tuple[int, int]:
        return self.config.top_height, self.config.top_width

    def forward(self, x: Tensor, *like: Tensor) -> Tensor:
        size = self.size([x.shape, *(other.shape for other in like)])
        if tuple(x.shape[2:]) == size:
            return x
        if min(size) == 1:
            self.fail(f"a top of {size[0]} x {size[1]} has no corners to lie on those of the bottom; give 2 or more")
        return downsample(x, *size)


def downsample(x: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, C, H, W) of another size with at least two rows and columns, by FlowNet2's rule."""
    rows, columns = closeness(x.shape[2], height).to(x), closeness(x.shape[3], width).to(x)
    known = ~x.isnan()
    weight = rows @ (known.to(x.dtype) @ columns.t())
    unknown = rows @ ((~known).to(x.dtype) @ columns.t())
    mean = rows @ (torch.where(known, x, 0) @ columns.t()) / weight
    return torch.where(unknown / weight > 0.5, math.nan, mean)


def closeness(size: int, count: int) -> Tensor:
    """How near each place of an axis (count, size) is to the top's: 1 on it, 0 from one cell of the top on."""
    scale = torch.tensor((size - 1) / (count - 1), dtype=torch.float32)
    at = torch.arange(count, dtype=torch.float32) / (count - 1) * (size - 1)
    place = torch.arange(size, dtype=torch.float32)
    near = (place - rounded(at).unsqueeze(1)).abs() <= scale.ceil()
    return torch.where(near, (1 - (place - at.unsqueeze(1)).abs() / scale).clamp(min=0), 0)


@register("L1Loss")
class L1Loss(LossLayer):
    """The sum of |a - b| over N (NVIDIA's), or FlowNet2's where `l1_loss_param` is given: of one or two bottoms, with
    `l2_per_location` the root of the channels' squares and `epsilon`. Values that are not a number, and those below
    `plateau`, are taken for 0; the former don't count in `normalize_by_num_entries`."""

    fork = "NVIDIA; FlowNet2"
    config_field = "l1_loss_param"
    bottoms = (1, 2)
    force_backward_refuses = ()
    index_bottoms = ()
    fork_fields = ()
    differences = (
        "FlowNet2's is computed on the GPU alone and recorded nowhere; at a difference of 0 the gradient is 0."
    )

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if len(shapes) == 2 and math.prod(shapes[0]) != math.prod(shapes[1]):
            self.fail(f"bottoms must have as many values, got shapes {tuple(shapes[0])} and {tuple(shapes[1])}")
        self.as_flownet = self.param.HasField("l1_loss_param")

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        difference = a if b is None else a - b.reshape(a.shape)
        if not self.as_flownet:
            return difference.abs().sum() / a.shape[0]
        config = self.config
        known = ~difference.isnan()
        difference = torch.where(known, difference, 0)
        if config.l2_per_location:
            squares = difference.square()
            total = squares.mean(1) if config.l2_prescale_by_channels else squares.sum(1)
            costs = (torch.where(total < config.plateau**2, 0, total) + config.epsilon).sqrt()
        else:
            costs = torch.where(difference.abs() < config.plateau, 0, difference).abs()
        count = known.sum() / a.shape[1] if config.normalize_by_num_entries else a.shape[0]
        return costs.sum() / count
