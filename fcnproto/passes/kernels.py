"""Faster forms of single layers: the same numbers as the plain layer's, gradients included.

Each holds its layer by reference, so weights are shared with the net it came from; what is derived from weights is
kept with their version and made anew when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnproto.layers.arithmetic import Scale
from fcnproto.layers.base import Layer
from fcnproto.layers.convolution import Convolution, Deconvolution
from fcnproto.layers.normalisation import BatchNorm

_Derived = TypeVar("_Derived")

# Up to this many output positions, a large kernel is cheaper as one matrix product over the gathered windows: its
# weights are used as they lie in memory, where a convolution would first reorder all of them.
_FEW_POSITIONS = 1024
_LARGE_KERNEL = 25


def version_of(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """What changes whenever one of the tensors is written to, moved or replaced."""
    return tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)


class Derived(Generic[_Derived]):
    """A value made from tensors, made anew when they have changed."""

    def __init__(self, make: Callable[[], _Derived], sources: Callable[[], Sequence[Tensor]]) -> None:
        self._make, self._sources = make, sources
        self._version: tuple[object, ...] | None = None
        self._value: _Derived

    def __call__(self) -> _Derived:
        version = version_of(self._sources())
        if version != self._version:
            self._value = self._make()
            self._version = version
        return self._value


def blobs_of(layer: Layer) -> list[Tensor]:
    """A layer's parameter blobs without their gradients."""
    return [layer.blob(k).detach() for k in range(len(layer.blob_names))]


class FastConvolution(nn.Module):
    """A 2-D Convolution on channels-last data, with what follows it: BatchNorm by stored statistics, Scale, ReLU.

    A large kernel with few output positions runs as a matrix product with the weights in place.
    """

    def __init__(
        self, layer: Convolution, relu: bool = False, norm: BatchNorm | None = None, scale: Scale | None = None
    ) -> None:
        super().__init__()
        self._layers = (layer, norm, scale)  # in a tuple: not submodules, the net owns them
        self.relu = relu
        self._kept = Derived(self._channels_last, self.sources)

    @property
    def layer(self) -> Convolution:
        """The convolution that this one stands for."""
        return self._layers[0]

    def sources(self) -> list[Tensor]:
        """All blobs that weight and bias are made from."""
        return [blob for layer in self._layers if layer is not None for blob in blobs_of(layer)]

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of a convolution that is this one and its BatchNorm and Scale in one."""
        layer, norm, scale = self._layers
        weight, bias = layer.blob(0), layer.optional_blob(1)
        if norm is None:
            return weight, bias
        factor = norm.blob(2).double()
        factor = torch.where(factor == 0, factor, 1 / factor)
        gain = (norm.blob(1).double() * factor + norm.config.eps).rsqrt()
        shift = -norm.blob(0).double() * factor if bias is None else bias.double() - norm.blob(0).double() * factor
        if scale is not None:
            gain = gain * scale.blob(0).double()
        shift = shift * gain
        offset = None if scale is None else scale.optional_blob(1)
        if offset is not None:
            shift = shift + offset.double()
        return (weight * gain.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)

    def _channels_last(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.weight_and_bias()
        return weight.detach().contiguous(memory_format=torch.channels_last), None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        layer.check_bottom(x.shape)
        size = layer.window.narrowed(x.shape[2:])
        layer.check_size(size, x.shape)
        if 0 in size:
            return x.new_zeros(x.shape[0], layer.outputs, *size)
        if any(layer.window.shortfall(x.shape[2:])):
            y = layer.compute(x, *self.weight_and_bias())
        elif self._is_product(x, size):
            y = self._product(x, *self.weight_and_bias(), size)
        else:
            bias = self._kept()[1] if not torch.is_grad_enabled() else self.weight_and_bias()[1]
            y = self.convolve(x, bias, layer.window.pad)
        if not self.relu:
            return y
        return y.relu() if y.requires_grad else y.relu_()

    def convolve(self, x: Tensor, bias: Tensor | None, pad: Sequence[int]) -> Tensor:
        """The convolution with another bias and padding."""
        window = self.layer.window
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled():
            weight = self.weight_and_bias()[0].contiguous(memory_format=torch.channels_last)
        else:
            weight = self._kept()[0]
        return F.conv2d(x, weight, bias, window.stride, tuple(pad), window.dilation, self.layer.groups)

    def _is_product(self, x: Tensor, size: Sequence[int]) -> bool:
        kernel = self.layer.window.kernel
        return (
            x.device.type == "cpu"
            and self.layer.groups == 1
            and kernel[0] * kernel[1] >= _LARGE_KERNEL
            and x.shape[1] >= 64
            and size[0] * size[1] <= _FEW_POSITIONS
        )

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
        window = self.layer.window
        columns = F.unfold(x, window.kernel, window.dilation, window.pad, window.stride).transpose(1, 2)
        rows = F.linear(columns, weight.flatten(1), bias)  # (N, positions, outputs): channels last
        return rows.view(x.shape[0], *size, -1).permute(0, 3, 1, 2)


class CroppedDeconvolution(nn.Module):
    """A 2-D Deconvolution followed by a Crop along its spatial axes: only what is kept is computed.

    Where the weights are one kernel on the diagonal (fixed bilinear upsampling), as a per-channel one.
    """

    def __init__(self, layer: Deconvolution, offsets: Sequence[int]) -> None:
        super().__init__()
        self._layer = [layer]
        self.offsets = tuple(offsets)
        self._diagonal = Derived(lambda: _diagonal(layer), lambda: [layer.blob(0)])

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        layer = self._layer[0]
        window = layer.window
        weight, groups = layer.blob(0), layer.groups
        diagonal = None if weight.requires_grad and torch.is_grad_enabled() else self._diagonal()
        if diagonal is not None:
            weight, groups = diagonal, x.shape[1]
        full = window.widened(x.shape[2:])
        first, size, start = [], [], []
        for axis in range(2):
            lo, n = self.offsets[axis], reference.shape[2 + axis]
            if lo + n > full[axis]:
                layer.fail(f"its top of {full[axis]} positions is cropped to {n} from {lo}")
            extent, stride, pad = window.extent[axis], window.stride[axis], window.pad[axis]
            begin = max(0, -(-(lo + pad - extent + 1) // stride))  # the first and last inputs that reach the crop
            end = min(x.shape[2 + axis], (lo + n - 1 + pad) // stride + 1)
            first.append((begin, end))
            start.append(lo - (begin * stride - pad))
            size.append(n)
        part = x[:, :, first[0][0] : first[0][1], first[1][0] : first[1][1]].contiguous()
        y = F.conv_transpose2d(part, weight, layer.optional_blob(1), window.stride, 0, 0, groups, window.dilation)
        return F.pad(y, [v for a in (1, 0) for v in (-start[a], start[a] + size[a] - y.shape[2 + a])])


def _diagonal(layer: Deconvolution) -> Tensor | None:
    """The (C, 1, h, w) kernels of a full Deconvolution whose other weights are all zero; None if they aren't."""
    weight = layer.blob(0).detach()
    if layer.groups != 1 or weight.shape[0] != weight.shape[1]:
        return None
    kernels = weight.diagonal(dim1=0, dim2=1).permute(2, 0, 1).unsqueeze(1).contiguous()
    return kernels if int(torch.count_nonzero(weight)) == int(torch.count_nonzero(kernels)) else None
