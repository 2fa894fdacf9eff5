"""Caffe's convolution family for any number of spatial axes: Convolution, Deconvolution and Im2col."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.graph.windows import DILATION_FIELDS, WINDOW_FIELDS, WindowError, dilations, pads_by_side
from fcnproto.layers.backward import Reads
from fcnproto.layers.base import NO_BIAS, Layer, Shape
from fcnproto.layers.memory_order import channels_outermost
from fcnproto.layers.plain import MODULE, Piece, Request, Unsayable, blob_or_none, extents, parameters_of
from fcnproto.layers.registry import register
from fcnproto.layers.windows import Window, read_window
from fcnproto.schema import caffe_pb2


def needs_channels_outermost(x: Tensor, weight: Tensor, stride: Sequence[int], transposed: bool = False) -> bool:
    """Whether a convolution of these must be given channels outermost to stay within its memory.

    On processors the gradients of strided convolutions are left to oneDNN. With channels innermost, windows that leave
    rows or columns out (as 1x1 with stride 2 does) and channels that don't fill a vector, it writes past the end of its
    memory, for the bottom's gradient and for the weight's (seen with PyTorch 2.13, oneDNN 3.12, AVX2; never in a
    forward pass, with stride 1, or with channels outermost). Any stride above 1, kernel and number of channels count
    here, because the limits differ by processor and version; and a `transposed` convolution's forward pass too, because
    it is computed as the gradient of a convolution.
    """
    return x.device.type == "cpu" and max(stride, default=1) > 1 and (transposed or _needs_gradient(x, weight))


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def im2col(x: Tensor, window: Window) -> Tensor:
    """All windows of `x` (N, C, *spatial) as (N, C, *kernel, *out), for any number of spatial axes."""
    axes, window = len(window.kernel), window.settled(x.shape[2:])
    margins = window.margins(window.shortfall(x.shape[2:]))
    if any(margins):
        x = F.pad(x, margins)
    for i in range(axes):  # each step slides over one axis and appends its taps as the last one
        x = x.unfold(2 + i, window.extent[i], window.stride[i])[..., :: window.dilation[i]]
    return x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))


def im2col_channels(x: Tensor, window: Window) -> Tensor:
    """All windows of `x` (N, C, *spatial) as channels (N, C * taps, *out)."""
    return im2col(x, window).flatten(1, 1 + len(window.kernel))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    """Cross-correlation of `x` (N, C, *spatial) with `weight` (outputs, C / groups, *kernel)."""
    axes = len(window.kernel)
    if axes == 0:  # one position: a matrix product per group
        return F.conv1d(x.unsqueeze(-1), weight.unsqueeze(-1), bias, groups=groups).squeeze(-1)
    if not window.is_even:
        window = window.settled(x.shape[2:])
        x = F.pad(x, window.margins((0,) * axes))
        window = window._replace(pad=(0,) * axes, pad_after=None)
    missing = window.shortfall(x.shape[2:])
    if any(missing):
        x = F.pad(x, [amount for m in reversed(missing) for amount in (0, m)])
    if 0 in x.shape[2:]:  # nothing but padding, which torch's convolutions refuse
        x = F.pad(x, [amount for p in reversed(window.pad) for amount in (p, p)])
        window = window._replace(pad=(0,) * axes)
    if needs_channels_outermost(x, weight, window.stride):
        x, weight = channels_outermost(x), channels_outermost(weight)
    if axes <= 3:
        function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        return function(x, weight, bias, window.stride, window.pad, window.dilation, groups)
    windows = im2col(x, window)
    size = windows.shape[2 + axes :]
    columns = windows.reshape(x.shape[0], groups, weight[0].numel(), math.prod(size))
    y = (weight.reshape(groups, weight.shape[0] // groups, -1) @ columns).reshape(-1, weight.shape[0], *size)
    return y if bias is None else y + bias.view(-1, *[1] * axes)


def deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Tensor:
    """Transposed convolution of `x` (N, C, *spatial) with `weight` (C, outputs / groups, *kernel)."""
    axes = len(window.kernel)
    if axes == 0:
        return F.conv_transpose1d(x.unsqueeze(-1), weight.unsqueeze(-1), bias, groups=groups).squeeze(-1)
    if not window.is_even:
        full = deconvolve(x, weight, bias, window._replace(pad=(0,) * axes, pad_after=None), groups)
        return F.pad(full, [-amount for amount in window.margins((0,) * axes)])
    if needs_channels_outermost(x, weight, window.stride, transposed=True):
        x, weight = channels_outermost(x), channels_outermost(weight)
    if axes <= 3:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        return function(x, weight, bias, window.stride, window.pad, 0, groups, window.dilation)
    # Input spread out by the stride, then convolved with the flipped kernel.
    spread = x.new_zeros(*x.shape[:2], *(s * (n - 1) + 1 for n, s in zip(x.shape[2:], window.stride, strict=True)))
    steps = [slice(None, None, s) for s in window.stride]
    spread[(slice(None), slice(None), *steps)] = x
    margins = [e - 1 - p for e, p in zip(window.extent, window.pad, strict=True)]
    spread = F.pad(spread, [margin for m in reversed(margins) for margin in (m, m)])
    per_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2)
    flipped = per_group.flatten(0, 1).flip(tuple(range(2, 2 + axes)))
    ones = (1,) * axes
    return convolve(spread, flipped, bias, Window(window.kernel, ones, (0,) * axes, window.dilation), groups)


def said_pads(config: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter) -> list[str]:
    """The padding that forks add, in the words of `settings_text`; nothing where there is none."""
    if config.pad_type == 1:
        return ["SAME"]
    with suppress(WindowError):
        sides = pads_by_side(config)
        return [] if sides is None else ["pad t{} l{} b{} r{}".format(*sides[0], *sides[1])]
    return []


def _said_dilations(config: caffe_pb2.ConvolutionParameter) -> list[int]:
    with suppress(WindowError):
        return dilations(config)
    return []


class _Convolutional(Layer):
    """What the family shares: the channel axis, the axes before it (all batch) and after it (all spatial)."""

    config_field = "convolution_param"
    fork_fields = tuple(f"convolution_param.{name}" for name in (*WINDOW_FIELDS, *DILATION_FIELDS))
    kind = "convolution"
    coordinates = staticmethod(maps.convolution)

    def keeps_images_apart(self) -> bool:
        return self.channel_axis > 0

    @classmethod
    def settings_text(cls, param: caffe_pb2.LayerParameter) -> str:
        config = param.convolution_param
        kernel = list(config.kernel_size) or [config.kernel_h, config.kernel_w]
        kernel = kernel * 2 if len(kernel) == 1 else kernel
        words = [f"{config.num_output} of {'×'.join(map(str, kernel))}"]
        for name in ("stride", "pad", "dilation"):
            values = _said_dilations(config) if name == "dilation" else list(getattr(config, name))
            if name != "dilation" and (config.HasField(f"{name}_h") or config.HasField(f"{name}_w")):
                values = [getattr(config, f"{name}_h"), getattr(config, f"{name}_w")]
            if values and any(value != (0 if name == "pad" else 1) for value in values):
                words.append(f"{name} {'×'.join(map(str, values))}")
        words += said_pads(config)
        if config.group > 1:
            words.append(f"group {config.group}")
        return ", ".join(words)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.channel_axis = self.axis(self.config.axis, shapes[0])
        self.axes = len(shapes[0]) - self.channel_axis - 1
        self.channels = shapes[0][self.channel_axis]
        self.window = read_window(self, self.axes)

    def check_bottom(self, shape: Sequence[int]) -> None:
        """Refuse a bottom with other axes or channels than the layer was set up for."""
        if len(shape) != self.channel_axis + 1 + self.axes:
            self.fail(f"was set up for bottoms of {self.channel_axis + 1 + self.axes} axes, got shape {tuple(shape)}")
        if shape[self.channel_axis] != self.channels:
            self.fail(f"was set up for {self.channels} channels, got a bottom of shape {tuple(shape)}")

    def check_size(self, size: Shape, bottom: Sequence[int]) -> None:
        """Refuse windows that don't fit: a negative output size."""
        for i, extent in enumerate(size):
            if extent < 0:
                w = self.window
                self.fail(
                    f"spatial axis {i} of a bottom of shape {tuple(bottom)}: output size {extent} with kernel "
                    f"{w.kernel[i]}, stride {w.stride[i]}, pad {w.said_pad(i)}, dilation {w.dilation[i]}; "
                    "give a larger input or change the window"
                )

    def batched(self, call: str, x: str, shape: Sequence[int]) -> str:
        """The expression of a function of (N, C, ...) for a bottom with another number of axes before the channels:
        in `call`, `@x@` stands for what is given."""
        before = self.channel_axis
        if before == 1:
            return call.replace("@x@", x)
        if before == 0:
            return f"{call.replace('@x@', f'{x}.unsqueeze(0)')}.squeeze(0)"
        return f"{call.replace('@x@', f'{x}.flatten(0, {before - 1})')}.unflatten(0, {x}.shape[:{before}])"

    def said_window(self) -> str:
        """The window's expression."""
        window = self.window
        more = "" if window.pad_after is None else f", pad_after={window.pad_after}"
        more += ", same=True" if window.same else ""
        return f"Window({window.kernel}, {window.stride}, {window.pad}, {window.dilation}{more})"


class _Weighted(_Convolutional):
    """Convolution and Deconvolution: the same weights for any number of bottoms, one top each."""

    bottoms = (1, None)
    tops = (1, None)
    gradient_reads_top = False

    def of_zeros(self) -> str:
        return "linear"

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=tuple(range(len(self.param.bottom))))

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        config = self.config
        if self.num_tops != len(shapes):
            self.fail(f"{len(shapes)} bottoms and {self.num_tops} tops; it needs one top for each bottom")
        self.outputs, self.groups = config.num_output, self.group_count()
        if self.outputs == 0:
            self.fail("num_output must be given and positive")
        if self.groups == 0 or self.channels % self.groups or self.outputs % self.groups:
            self.fail(
                f"{self.channels} channels and num_output {self.outputs} must be multiples of group {self.groups}"
            )
        self.add_blob("weight", self.weight_shape(), config.weight_filler)
        if config.bias_term:
            self.add_blob("bias", (self.outputs,), config.bias_filler)
        else:
            self.warn_unread(("bias_filler",), NO_BIAS)

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        for bottom in bottoms:
            if bottom.shape != bottoms[0].shape:
                self.fail(f"bottoms must have one shape, got {tuple(bottoms[0].shape)} and {tuple(bottom.shape)}")
        weight, bias = self.blob(0), self.optional_blob(1)
        tops = tuple(self.slide(bottom, weight, bias) for bottom in bottoms)
        return tops if self.num_tops > 1 else tops[0]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        # The sizes that `slide` checks; a run on the meta device would make torch import its whole compiler.
        return [self._top_shape(shape) for shape in shapes]

    def _top_shape(self, shape: Shape) -> Shape:
        self.check_bottom(shape)
        size = self.top_size(shape[self.channel_axis + 1 :])
        self.check_size(size, shape)
        return (*shape[: self.channel_axis], self.outputs, *size)

    def slide(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One top from one bottom; an output size of 0 gives an empty tensor."""
        shape = self._top_shape(x.shape)
        if 0 in shape[self.channel_axis + 1 :]:
            return x.new_zeros(shape)
        if self.channel_axis == 1:
            return self.compute(x, weight, bias)
        y = self.compute(x.reshape(math.prod(shape[: self.channel_axis]), *x.shape[self.channel_axis :]), weight, bias)
        return y.reshape(shape)

    def group_count(self) -> int:
        """How many groups the channels are divided into."""
        return int(self.config.group)

    def weight_shape(self) -> Shape:
        """The shape of the weight blob."""
        raise NotImplementedError

    def top_size(self, size: Sequence[int]) -> Shape:
        """The tops' spatial size for bottoms of spatial size `size`."""
        raise NotImplementedError

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The top for a bottom (N, C, *spatial)."""
        raise NotImplementedError

    function: ClassVar[Callable[..., Tensor]]
    """The pure function that computes a top."""

    def plain(self, request: Request) -> Piece:
        shape, window = request.shapes[0], self.window
        size = shape[self.channel_axis + 1 :]
        if 0 in self.top_size(size):
            raise Unsayable(f"its tops are empty for bottoms of shape {tuple(shape)}")
        short = self.function is convolve and any(window.settled(size).shortfall(size))
        if not 1 <= self.axes <= 3 or short or not window.is_even:
            arguments = ["@x@", f"{MODULE}.weight", blob_or_none(self.blob_names, 1), self.said_window()]
            said = f"{self.function.__name__}({', '.join([*arguments, str(self.groups)])})"
            calls = [self.batched(said, x, shape) for x in request.args]
            module = parameters_of(self.blob_names, self.blob_shapes)
            return Piece((calls[0], None) if len(calls) == 1 else ("", calls), module, (self.function, Window))
        calls = [self.batched(f"{MODULE}(@x@)", x, shape) for x in request.args]
        if calls == [f"{MODULE}({request.x})"]:
            return Piece((MODULE, [request.x]), self._said_module())
        return Piece((calls[0], None) if len(calls) == 1 else ("", calls), self._said_module())

    def _said_module(self) -> tuple[str, list[str]]:
        window = self.window
        arguments = [str(self.channels), str(self.outputs), extents(window.kernel)]
        for name, values, default in (("stride", window.stride, 1), ("padding", window.pad, 0)):
            if set(values) != {default}:
                arguments.append(f"{name}={extents(values)}")
        if self.groups != 1:
            arguments.append(f"groups={self.groups}")
        if len(self.blob_names) < 2:
            arguments.append("bias=False")
        if set(window.dilation) != {1}:
            arguments.append(f"dilation={extents(window.dilation)}")
        return f"nn.Conv{'Transpose' if self.function is deconvolve else ''}{self.axes}d", arguments


@register("Convolution")
class Convolution(_Weighted):
    """Caffe's Convolution: cross-correlation over all axes after `axis`; weight (outputs, C / group, *kernel).

    A kernel larger than the padded input reads zeros beyond it where Caffe's rounding allows an output at all.
    `engine` and `force_nd_im2col` choose an implementation in Caffe and change nothing here.
    """

    function = staticmethod(convolve)

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return math.prod(self.blob_shapes[0][1:]) * sum(map(math.prod, tops))

    def weight_shape(self) -> Shape:
        return (self.outputs, self.channels // self.groups, *self.window.kernel)

    def top_size(self, size: Sequence[int]) -> Shape:
        return self.window.narrowed(size)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(x, weight, bias, self.window, self.groups)


@register("Deconvolution")
class Deconvolution(_Weighted):
    """Caffe's Deconvolution: transposed convolution, no output padding; weight (C, outputs / group, *kernel)."""

    function = staticmethod(deconvolve)

    kind = "deconvolution"
    coordinates = staticmethod(maps.deconvolution)

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return math.prod(self.blob_shapes[0][1:]) * sum(map(math.prod, bottoms))

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.config.pad_type:
            self.fail("pad_type 1 (SAME) is for Convolution and Pooling; give pad, or pad_l, pad_r, pad_t and pad_b")

    def weight_shape(self) -> Shape:
        return (self.channels, self.outputs // self.groups, *self.window.kernel)

    def top_size(self, size: Sequence[int]) -> Shape:
        return self.window.widened(size)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return deconvolve(x, weight, bias, self.window, self.groups)


@register("Im2col")
class Im2col(_Convolutional):
    """Caffe's Im2col: the windows of a convolution as channels, in the order (channel, *kernel)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        unread = ("num_output", "bias_term", "group", "weight_filler", "bias_filler")
        self.warn_unread(unread, "nothing is convolved, the windows alone are given")

    def forward(self, x: Tensor) -> Tensor:
        self.check_bottom(x.shape)
        batch, size = x.shape[: self.channel_axis], self.window.narrowed(x.shape[self.channel_axis + 1 :])
        self.check_size(size, x.shape)
        columns = self.channels * math.prod(self.window.kernel)
        if 0 in size:
            return x.new_zeros(*batch, columns, *size)
        y = im2col_channels(x.reshape(math.prod(batch), *x.shape[self.channel_axis :]), self.window)
        return y.reshape(*batch, columns, *size)

    def plain(self, request: Request) -> Piece:
        shape = request.shapes[0]
        if 0 in self.window.narrowed(shape[self.channel_axis + 1 :]):
            raise Unsayable(f"its top is empty for a bottom of shape {tuple(shape)}")
        said = self.batched(f"im2col_channels(@x@, {self.said_window()})", request.x, shape)
        return Piece((said, None), None, (im2col_channels, Window))
