"""Layers that scale values by statistics of their neighbours: LRN, MVN, Softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.graph import maps
from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.base import Layer, SameShape, Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.plain import Piece, Request, number
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("LRN")
class LRN(SameShape):
    """Caffe's local response normalisation of a 4-axis bottom (N, C, H, W), with n = `local_size` (odd).

    ACROSS_CHANNELS: x * (k + alpha / n * s)^-beta with s the sum of squares over the n channels around. WITHIN_CHANNEL:
    x * (1 + alpha * m)^-beta with m the mean of squares over the n x n pixels around, zeros beyond the border
    included; Caffe's `k` has no effect there.
    """

    config_field = "lrn_param"
    kind = "normalisation"
    coordinates = staticmethod(maps.same)

    def of_zeros(self) -> str:
        return "kept"

    def keeps_finite(self) -> bool:
        return bool(self.config.alpha >= 0 and self.config.k > 0)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return bool(param.lrn_param.norm_region == caffe_pb2.LRNParameter.ACROSS_CHANNELS)

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        (shape,), config = shapes, self.config
        if config.local_size % 2 == 0:
            self.fail(f"local_size {config.local_size} must be odd")
        self.check_axes(shape)
        if config.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
            self.warn_unread(("k",), "within channels it is 1, in Caffe too")

    def check_axes(self, shape: Sequence[int]) -> None:
        """Refuse a bottom that is no batch of images."""
        if len(shape) != 4:
            self.fail(f"needs a bottom with 4 axes, got shape {tuple(shape)}")

    def backward_reads(self, in_place: bool) -> Reads:
        if self.config.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
            return Reads(bottoms=(0,))
        return Reads(bottoms=(0,), tops=(0,), mixes=True)

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        config = self.config
        kept, (x,), (y,), slope = at_least_float32(found.before[0]), found.bottoms, found.tops, found.slope
        if config.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
            return [self._within(kept, x, slope)]
        reach, factor = config.local_size // 2, config.alpha / config.local_size
        scale = _sum_over_channels(kept.square(), reach).mul_(factor).add_(config.k)
        inverse = scale.pow(-config.beta)
        direct = inverse * (inverse if found.in_place else slope)
        ratio = (direct if found.in_place else slope) * y / scale
        return [(direct - 2 * config.beta * factor * x * _sum_over_channels(ratio, reach)).to(x.dtype)]

    def forward_in_place(self, *bottoms: Tensor) -> Tensor:
        (x,), config = bottoms, self.config
        self.check_axes(x.shape)
        # The power is written over the bottom before the two are multiplied, so it is multiplied by itself.
        scale = _sum_over_channels(at_least_float32(x).square(), config.local_size // 2)
        return (scale * (config.alpha / config.local_size) + config.k).pow(-2 * config.beta).to(x.dtype)

    def _within(self, kept: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        """The gradient within channels: the inner layers keep all but the bottom, which they read again."""
        config = self.config
        with torch.enable_grad():
            squares = kept.square().requires_grad_()
            mean = F.avg_pool2d(squares, config.local_size, stride=1, padding=config.local_size // 2)
            power = (mean * config.alpha + 1).pow(-config.beta)
            (of_squares,) = torch.autograd.grad(power, squares, slope * x)
        return (slope * power.detach() + of_squares * 2 * x).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        self.check_axes(x.shape)
        size, alpha, beta = config.local_size, config.alpha, config.beta
        if config.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
            return normalise_within_channels(x, size, alpha, beta)
        return normalise_across_channels(x, size, alpha, beta, config.k)

    def plain(self, request: Request) -> Piece:
        config = self.config
        arguments = [request.x, str(config.local_size), f"alpha={number(config.alpha)}", f"beta={number(config.beta)}"]
        if config.norm_region == caffe_pb2.LRNParameter.WITHIN_CHANNEL:
            return Piece(("normalise_within_channels", arguments), None, (normalise_within_channels,))
        arguments.append(f"k={number(config.k)}")
        return Piece(("normalise_across_channels", arguments), None, (normalise_across_channels,))


def normalise_within_channels(x: Tensor, size: int, alpha: float, beta: float) -> Tensor:
    """x * (1 + alpha * m)^-beta, m being the mean of squares over the size x size pixels around, zeros beyond."""
    values = at_least_float32(x)
    mean = F.avg_pool2d(values.square(), size, stride=1, padding=size // 2)
    return (values * (mean * alpha + 1).pow(-beta)).to(x.dtype)


def normalise_across_channels(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """x * (k + alpha / size * s)^-beta, s being the sum of squares over the `size` channels around."""
    y: Tensor = _NormaliseAcrossChannels.apply(at_least_float32(x), size // 2, alpha / size, beta, k)[0]
    return y.to(x.dtype)


class _NormaliseAcrossChannels(torch.autograd.Function):
    """x * (k + factor * s)^-beta, with s the sum of squares over the channels c - reach .. c + reach.

    torch's own LocalResponseNorm gives the same numbers in four times the time and keeps more for the gradient.
    """

    @staticmethod
    def forward(x: Tensor, reach: int, factor: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
        scale = _sum_over_channels(x.square(), reach).mul_(factor).add_(k)
        return _inverse_power(scale, beta).mul_(x), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.reach, ctx.factor, ctx.beta, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, scale = ctx.saved_tensors
        direct = _inverse_power(scale, ctx.beta).mul_(grad)
        # The sum's window is symmetric, so the gradient is summed over the same channels.
        ratio = (direct * x).div_(scale)
        spread = _sum_over_channels(ratio, ctx.reach).mul_(x)
        return direct.add_(spread, alpha=-2 * ctx.beta * ctx.factor), None, None, None, None


def _sum_over_channels(x: Tensor, reach: int) -> Tensor:
    """A new tensor: for each channel c (axis 1) the sum of x over c - reach .. c + reach, those that exist."""
    channels = x.shape[1]
    total = x.clone()
    for step in range(1, min(reach, channels - 1) + 1):
        total[:, step:] += x[:, : channels - step]
        total[:, : channels - step] += x[:, step:]
    return total


def _inverse_power(x: Tensor, beta: float) -> Tensor:
    """A new tensor x^-beta; the usual 3/4 by inverse square roots, which take a tenth of the time of a general power
    (and on a CPU of the time of a square root)."""
    if beta == 0.75:
        root = x.rsqrt()
        return root.div_(root.rsqrt())  # no product of the two: of infinity it would make NaN
    return x.pow(-beta)


@register("MVN")
class MVN(Layer):
    """Caffe's mean-variance normalisation: (x - mean) / (deviation + eps) per image and channel.

    Statistics run over height and width, or over channels too where `across_channels`; without
    `normalize_variance` only the mean is taken off. As in Caffe, up to 4 axes are read as (N, C, H, W), missing ones
    being 1, the top always has 4, and the gradient treats eps as part of the deviation.
    """

    config_field = "mvn_param"
    kind = "normalisation"
    coordinates = staticmethod(maps.same)

    def of_zeros(self) -> str:
        return "kept"

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.check_axes(shapes[0])
        if not self.config.normalize_variance:
            self.warn_unread(("eps",), "nothing is divided without normalize_variance")

    def check_axes(self, shape: Sequence[int]) -> None:
        """Refuse a bottom that can't be read as (N, C, H, W)."""
        if len(shape) > 4:
            self.fail(f"needs a bottom with at most 4 axes, got shape {tuple(shape)}")

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(tops=(0,)) if self.config.normalize_variance else Reads()

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        axes, (x,), (y,) = self._axes(), found.before, found.tops
        values = at_least_float32(x).reshape(y.shape)
        divisor = (values - values.mean(axes, keepdim=True)).square().mean(axes, keepdim=True).sqrt() + self.config.eps
        slope = found.slope
        centred = slope - slope.mean(axes, keepdim=True) - y * (slope * y).mean(axes, keepdim=True)
        return [(centred / divisor).to(x.dtype).reshape(x.shape)]

    def _axes(self) -> tuple[int, ...]:
        return (1, 2, 3) if self.config.across_channels else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        self.check_axes(x.shape)
        return normalise_mean_variance(x, self._axes(), config.eps, config.normalize_variance)

    def plain(self, request: Request) -> Piece:
        config = self.config
        arguments = [request.x, str(self._axes()), f"eps={number(config.eps)}", f"variance={config.normalize_variance}"]
        return Piece(("normalise_mean_variance", arguments), None, (normalise_mean_variance,))


def normalise_mean_variance(x: Tensor, axes: tuple[int, ...], eps: float, variance: bool) -> Tensor:
    """(x - mean) / (deviation + eps) over some axes of (N, C, H, W), or without `variance` x - mean alone."""
    x = x.reshape([*x.shape, *[1] * (4 - x.dim())])
    if not variance:
        return x - x.mean(axes, keepdim=True)
    y: Tensor = _NormaliseMeanVariance.apply(at_least_float32(x), axes, eps)[0]
    return y.to(x.dtype)


class _NormaliseMeanVariance(torch.autograd.Function):
    """(x - mean) / (deviation + eps) over some axes, with Caffe's gradient: finite also where x is constant."""

    @staticmethod
    def forward(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
        centred = x - x.mean(axes, keepdim=True)
        divisor = centred.square().mean(axes, keepdim=True).sqrt_().add_(eps)
        return centred.div_(divisor), divisor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.axes = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        y, divisor = ctx.saved_tensors
        along_y = (grad * y).mean(ctx.axes, keepdim=True)
        return (grad - grad.mean(ctx.axes, keepdim=True)).sub_(y * along_y).div_(divisor), None, None


@register("Softmax")
class Softmax(SameShape):
    """Caffe's Softmax over `axis` (1 unless given)."""

    config_field = "softmax_param"
    fork_fields = ("softmax_param.normalize_type",)
    kind = "normalisation"
    coordinates = staticmethod(maps.softmax)

    def keeps_finite(self) -> bool:
        return True

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return bool(param.softmax_param.axis == 1)

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    @classmethod
    def ranks(cls, param: caffe_pb2.LayerParameter) -> bool:
        return param.softmax_param.axis in (1, -3)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.axis(self.config.axis, shapes[0])
        if self.config.normalize_type != "Softmax":
            self.fail(f'normalize_type {self.config.normalize_type!r}: only "Softmax" is known')

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (y,), slope = found.tops, found.slope
        return [(slope - (slope * y).sum(self.axis(self.config.axis, y.shape), keepdim=True)) * y]

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(self.axis(self.config.axis, x.shape))

    def plain(self, request: Request) -> Piece:
        return Piece(("F.softmax", [request.x, f"dim={self.axis(self.config.axis, request.shapes[0])}"]))
