"""C3D's layers over (N, C, length, height, width): Convolution3D, Deconvolution3D and Pooling3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import fields_of

Triple = tuple[int, int, int]


class _Volume(Layer):
    """What the layers share: five axes, and a window that has `kernel_depth`, `temporal_stride` and `temporal_pad`."""

    in_place = False
    first_version: ClassVar[str] = ""
    """The settings field that C3D's first version has instead."""

    @property
    def config(self) -> Any:
        """The type's own settings, or what C3D's first version says of them elsewhere."""
        own = getattr(self.param, self.config_field or "")
        if self.param.HasField(self.config_field or "") or not self.param.HasField(self.first_version):
            return own
        made = type(own)()
        for field, value in getattr(self.param, self.first_version).ListFields():
            if field.name in ("weight_filler", "bias_filler"):
                getattr(made, field.name).CopyFrom(value)
            elif field.name in fields_of(own.DESCRIPTOR).by_name:
                several = isinstance(value, Sequence)
                setattr(made, field.name, value[0] if several else value)
        return made

    def keeps_images_apart(self) -> bool:
        return True

    def read_window(self, shape: Sequence[int]) -> None:
        """Take kernel, stride and pad from the settings."""
        config = self.config
        if len(shape) != 5:
            self.fail(f"needs a bottom (N, C, length, height, width), got shape {tuple(shape)}")
        if not config.kernel_size or not config.kernel_depth:
            self.fail("kernel_size and kernel_depth must be given and positive")
        if not config.stride or not config.temporal_stride:
            self.fail("stride and temporal_stride must be positive")
        self.kernel: Triple = (config.kernel_depth, config.kernel_size, config.kernel_size)
        self.stride: Triple = (config.temporal_stride, config.stride, config.stride)


class _Convolution3D(_Volume):
    config_field = "convolution3d_param"
    first_version = "convolution_param"
    also_reads = ("convolution_param",)
    fork_fields = tuple(
        f"convolution_param.{name}" for name in ("kernel_depth", "temporal_stride", "filter_group", "temporal_pad")
    )
    bottoms = (1, None)
    tops = (1, None)
    transposed = False

    def setup(self, shapes: Sequence[Shape]) -> None:
        config, channels = self.config, shapes[0][1] if len(shapes[0]) > 1 else 0
        self.read_window(shapes[0])
        self.pad: Triple = (config.temporal_pad, config.pad, config.pad)
        groups = self.groups = config.group
        if not config.num_output or not groups or channels % groups or config.num_output % groups:
            self.fail(f"group {groups} must divide the {channels} channels and num_output {config.num_output}")
        if config.filter_group != 1:
            self.fail("filter_group other than 1 can't be computed here")
        ends = (channels, config.num_output // groups) if self.transposed else (config.num_output, channels // groups)
        self.add_blob("weight", (*ends, *self.kernel), config.weight_filler)
        if config.bias_term:
            self.add_blob("bias", (config.num_output,), config.bias_filler)

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        places = bottoms if self.transposed else tops
        return sum(math.prod(self.blob_shapes[0]) * shape[0] * math.prod(shape[2:]) for shape in places)

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        compute = F.conv_transpose3d if self.transposed else F.conv3d
        settings = {"stride": self.stride, "padding": self.pad, "groups": self.groups}
        tops = tuple(compute(x, self.blob(0), self.optional_blob(1), **settings) for x in bottoms)  # type: ignore[operator]
        return tops if len(tops) > 1 else tops[0]


@register("Convolution3D")
class Convolution3D(_Convolution3D):
    """A convolution over length, height and width: kernel (kernel_depth, kernel_size, kernel_size), stride and pad
    likewise from `temporal_stride` and `temporal_pad`."""

    fork = "C3D"
    kind = "convolution"


@register("Deconvolution3D")
class Deconvolution3D(_Convolution3D):
    """The transposed convolution of the same settings."""

    fork = "C3D"
    kind = "deconvolution"
    transposed = True


@register("Pooling3D")
class Pooling3D(_Volume):
    """MAX or AVE pooling over length, height and width, sizes rounded up; `pad` along height and width."""

    fork = "C3D"
    kind = "pooling"
    config_field = "pooling3d_param"
    first_version = "pooling_param"
    also_reads = ("pooling_param",)
    fork_fields = ("pooling_param.kernel_depth", "pooling_param.temporal_stride")

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.read_window(shapes[0])
        self.pad: Triple = (0, config.pad, config.pad)
        if config.pool == caffe_pb2.Pooling3DParameter.STOCHASTIC:
            self.fail("STOCHASTIC pooling of volumes can't be computed here")
        if config.pad >= config.kernel_size:
            self.fail(f"pad {config.pad} must be smaller than kernel_size {config.kernel_size}")
        self.averages = config.pool == caffe_pb2.Pooling3DParameter.AVE
        self.top_shapes(shapes)

    def size(self, shape: Sequence[int]) -> Triple:
        """The top's (length, height, width): rounded up, without a last window that begins behind the padded bottom."""
        found = []
        for extent, kernel, stride, pad in zip(shape[2:], self.kernel, self.stride, self.pad, strict=True):
            count = -(-(extent + 2 * pad - kernel) // stride) + 1
            found.append(count - 1 if self.pad[1] and (count - 1) * stride >= extent + pad else count)
        if min(found) < 1:
            self.fail(f"the windows {self.kernel} don't fit into a bottom of shape {tuple(shape)}")
        return found[0], found[1], found[2]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][:2], *self.size(shapes[0]))]

    def forward(self, x: Tensor) -> Tensor:
        size = self.size(x.shape)
        margins: list[int] = []
        extents: list[Tensor] = []
        for i in range(3):
            end = (size[i] - 1) * self.stride[i] + self.kernel[i]
            margins = [self.pad[i], max(0, end - x.shape[2 + i] - self.pad[i]), *margins]
            start = torch.arange(size[i], device=x.device) * self.stride[i] - self.pad[i]
            last = (start + self.kernel[i]).clamp(max=x.shape[2 + i] + self.pad[i])
            extents.append(last - start)
        if not self.averages:
            return F.max_pool3d(F.pad(x, margins, value=torch.finfo(x.dtype).min), self.kernel, self.stride)
        total = F.avg_pool3d(F.pad(x, margins), self.kernel, self.stride, divisor_override=1)
        # Padding counts in the mean as far as `pad` goes, nothing beyond it does.
        return total / (extents[0].view(-1, 1, 1) * extents[1].view(-1, 1) * extents[2])
