"""Faster forms of single layers: the same numbers as the plain layer's, gradients included.

Each holds its layer by reference, so weights are shared with the net it came from; what is derived from weights is
kept (`keeping`) and made anew when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnproto import precision
from fcnproto.layers.arithmetic import Scale
from fcnproto.layers.base import Layer
from fcnproto.layers.batch_norm import BatchNorm
from fcnproto.layers.convolution import Convolution, needs_channels_outermost
from fcnproto.layers.memory_order import channels_outermost
from fcnproto.layers.pooling import Pooling, looks_finite
from fcnproto.layers.windows import Windows
from fcnproto.passes import fusing, products, splitting, winograd
from fcnproto.passes.keeping import Derived, Watch

_Kept = TypeVar("_Kept")


def stored_blobs(layer: Layer) -> list[Tensor]:
    """The tensors in which a layer's parameter blobs lie, for a look at them: quicker than `Layer.blob`."""
    found: list[Tensor] = []
    for k, name in enumerate(layer.blob_names):
        tensor: Tensor | None = layer._parameters.get(name)
        if tensor is None:
            tensor = layer._buffers.get(name)
        found.append(layer.blob(k) if tensor is None else tensor)
    return found


def channels_last(x: Tensor) -> Tensor:
    """A 4-D tensor with channels innermost and every stride as such a tensor's is.

    Axes of extent 1 may have any stride, and PyTorch's float64 convolution with groups gets the weights' gradient wrong
    where the stride of a batch of one is not what it expects.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    stride = (channels * height * width, 1, channels * width, channels)
    return x if x.stride() == stride else x.as_strided(x.shape, stride)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors will be asked for gradients."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype that products of tensors of `dtype` are computed in: autocast's, where it is on."""
    if dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def folded_weights(layer: Convolution, norm: BatchNorm | None, scale: Scale | None) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of one convolution that does what these layers do in a row, by stored statistics."""
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


class FastConvolution(nn.Module):
    """A 2-D Convolution on channels-last data, with what follows it: BatchNorm by stored statistics, Scale, ReLU.

    A large kernel with few output positions runs as a matrix product with the weights in place; a wide 3x3 layer by
    Winograd's method, unless gradients are asked for.
    """

    def __init__(
        self,
        watch: Watch,
        layer: Convolution,
        relu: bool = False,
        norm: BatchNorm | None = None,
        scale: Scale | None = None,
    ) -> None:
        super().__init__()
        self._layers = (layer, norm, scale)  # in a tuple: not submodules, the net owns them
        self.relu = relu
        self._watch = watch
        self._has_kernel: bool | None = None  # whether three products in one kernel are better; None: not tried yet

    @property
    def layer(self) -> Convolution:
        """The convolution that this one stands for."""
        return self._layers[0]

    @property
    def layers(self) -> tuple[Layer | None, ...]:
        """The convolution, and the BatchNorm and the Scale in one with it, if any."""
        return self._layers

    def sources(self) -> list[Tensor]:
        """All blobs that weight and bias are made from."""
        return [blob for layer in self._layers if layer is not None for blob in stored_blobs(layer)]

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of a convolution that is this one and its BatchNorm and Scale in one."""
        return folded_weights(*self._layers)

    def derived(self, what: Hashable, make: Callable[[], _Kept]) -> Derived[_Kept]:
        """A value called `what` that is made from the blobs anew when they change."""
        return self._watch.derived((self._layers, what), make, self.sources, self._layers)

    def drop(self, what: Hashable) -> None:
        """Free the value called `what` that was made from the blobs, if any."""
        self._watch.drop((self._layers, what))

    def watch(self) -> int:
        """Watch the blobs, from the first time on; how often they have been found changed."""
        self._watch.add(self._layers, self.sources)
        return self._watch.generation(self._layers)

    def _kept(self, dtype: torch.dtype, innermost: bool = True) -> tuple[Tensor, Tensor | None]:
        """Weight (with channels `innermost`, or contiguous) and bias in `dtype`, made once until the blobs change."""
        weight = self.layer.blob(0)
        if self._layers[1] is None and dtype == weight.dtype and max(self.layer.window.kernel) == 1:
            return channels_last(weight), self.layer.optional_blob(1)  # as it lies: nothing to keep, nothing to watch

        def make() -> tuple[Tensor, Tensor | None]:
            weight, bias = self.weight_and_bias()
            weight = weight.to(dtype)
            weight = channels_last(weight) if innermost else weight.contiguous()
            return weight, None if bias is None else bias.to(dtype)

        return self.derived((dtype, innermost), make).value

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        layer.check_bottom(x.shape)
        size = layer.window.narrowed(x.shape[2:])
        layer.check_size(size, x.shape)
        if 0 in size:
            return x.new_zeros(x.shape[0], layer.outputs, *size)
        if 0 in x.shape or any(layer.window.shortfall(x.shape[2:])):
            y = layer.compute(x, *self.weight_and_bias())
        elif products.suits(layer, x, size, len(x)):
            y = self._product(x, size)
        else:
            dtype = product_dtype(x.device, x.dtype)
            bias = self.weight_and_bias()[1] if torch.is_grad_enabled() else self._bias(dtype)
            if self.relu and self.fuses(x):
                return self.convolve(x, bias, layer.window.pad, relu=True)
            y = self.convolve(x, bias, layer.window.pad)
        if not self.relu:
            return y
        return y.relu() if y.requires_grad else y.relu_()

    def fuses(self, x: Tensor) -> bool:
        """Whether the convolution of `x`, its bias and a ReLU are one launch."""
        dtype = product_dtype(x.device, x.dtype)
        return fusing.is_offered(x.device, dtype) and not _in_three_products(x, dtype)

    def convolve(self, x: Tensor, bias: Tensor | None, pad: Sequence[int], relu: bool = False) -> Tensor:
        """The convolution with another bias and padding, where it `fuses` also with a ReLU."""
        window = self.layer.window
        dtype = product_dtype(x.device, x.dtype)
        if torch.is_grad_enabled():
            x = x.to(dtype)
            weight = self.weight_and_bias()[0]
            arrange = channels_outermost if needs_channels_outermost(x, weight, window.stride) else channels_last
            x, weight = arrange(x), arrange(weight)
            return F.conv2d(x, weight, bias, window.stride, tuple(pad), window.dilation, self.layer.groups)
        if _in_three_products(x, dtype):
            return self._in_three_products(x, bias, pad)
        if x.is_cuda and dtype == torch.float32 and precision.chosen() == "highest":
            # As it lies: cuDNN has its own choice of layout, and no copy of the weights takes memory.
            x = x.to(dtype)
            weight = self.layer.blob(0) if self._layers[1] is None else self._kept(dtype, innermost=False)[0]
        else:
            x = channels_last(x.to(dtype, memory_format=torch.channels_last))
            if self._suits_winograd(x, pad):
                return winograd.convolve(x, self._transformed(), bias, pad, self._watch.room)
            weight = self._kept(dtype)[0]
        if relu:
            return fusing.convolve(self.layer, x, weight, bias, pad)
        return F.conv2d(x, weight, bias, window.stride, tuple(pad), window.dilation, self.layer.groups)

    def _in_three_products(self, x: Tensor, bias: Tensor | None, pad: Sequence[int]) -> Tensor:
        window, x = self.layer.window, channels_last(x)
        axes = zip(x.shape[2:], pad, window.extent, window.stride, strict=True)
        size = [(n + 2 * p - extent) // stride + 1 for n, p, extent, stride in axes]
        kernel = splitting.kernel()
        if (
            kernel is None
            or self._has_kernel is False
            or not kernel.suits(x, self.layer.outputs, size, self.layer.groups)
        ):
            return self._tripled(x, bias, pad)
        if self._has_kernel is None:  # once, at the first size
            ours, other = partial(self._by_kernel, kernel, size), self._tripled
            self._has_kernel = splitting.is_better(
                partial(ours, x, bias, pad, keep=False), partial(other, x, bias, pad, keep=False)
            )
            return self._in_three_products(x, bias, pad)
        return self._by_kernel(kernel, size, x, bias, pad)

    def _tripled(self, x: Tensor, bias: Tensor | None, pad: Sequence[int], keep: bool = True) -> Tensor:
        """The three products as one convolution over three times the channels."""
        weight = self._made(lambda weight: channels_last(splitting.tripled_weight(weight)), "three products", keep)
        window, groups = self.layer.window, self.layer.groups
        tripled = splitting.tripled(x, groups)
        return splitting.convolve(tripled, weight, bias, window.stride, pad, window.dilation, groups)

    def _by_kernel(
        self, kernel: Any, size: Sequence[int], x: Tensor, bias: Tensor | None, pad: Sequence[int], keep: bool = True
    ) -> Tensor:
        """The three products in one kernel."""
        weight = self._made(kernel.arranged, "three products in one", keep)
        window = self.layer.window
        result: Tensor = kernel.convolve(x, weight, bias, window.kernel, size, window.stride, pad, window.dilation)
        return result

    def _made(self, make: Callable[[Tensor], Tensor], what: str, keep: bool) -> Tensor:
        """The weight in another form, kept until the blobs change, or made for this once."""
        if not keep:
            return make(self.weight_and_bias()[0])
        return self.derived(what, lambda: make(self.weight_and_bias()[0])).value

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """The bias alone."""
        if self._layers[1] is not None:
            on_gpu = self.layer.blob(0).is_cuda and dtype == torch.float32 and precision.chosen() != "tf32"
            return self._kept(dtype, innermost=not on_gpu)[1]
        bias = self.layer.optional_blob(1)
        return bias if bias is None or bias.dtype == dtype else self._kept(dtype)[1]

    def by_winograd(self, x: Tensor) -> Tensor:
        """The convolution alone by Winograd's method, for bottoms that it suits; no gradients."""
        weight, bias = self._transformed(), self._bias(x.dtype)
        return winograd.convolve(channels_last(x), weight, bias, self.layer.window.pad, self._watch.room)

    def by_product(self, x: Tensor) -> Tensor:
        """The convolution alone as one matrix product, for bottoms that leave no output empty; no gradients."""
        return self._product(x, self.layer.window.narrowed(x.shape[2:]))

    def by_rows(self, x: Tensor) -> Tensor:
        """A convolution of one position alone as the product of the rows (N * H * W, C) with the weights; no
        gradients."""
        weight, bias = self._kept(x.dtype)
        rows = channels_last(x).permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        factor = weight.flatten(1).t()
        y = torch.mm(rows, factor) if bias is None else torch.addmm(bias, rows, factor)
        return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)

    def _suits_winograd(self, x: Tensor, pad: Sequence[int]) -> bool:
        size = [n + 2 * p for n, p in zip(x.shape[2:], pad, strict=True)]
        return x.device.type == "cpu" and x.dtype == torch.float32 and self.suits_winograd(len(x), size)

    def suits_winograd(self, batch: int, size: Sequence[int], leniency: float = 1) -> bool:
        """Whether bottoms of `size`, padding included, are convolved by Winograd's method on a CPU in float32; with
        another `leniency` than 1, whether they would be with so many times the channels and positions."""
        window, weight = self.layer.window, self.layer.blob(0)
        return winograd.suits(
            window.kernel, window.stride, window.dilation, self.layer.groups, weight, leniency
        ) and winograd.has_enough(batch, size, leniency)

    def _transformed(self) -> Tensor:
        """The weight as `winograd.convolve` takes it, made once until the blobs change."""
        return self.derived("winograd", lambda: winograd.transform_weight(self.weight_and_bias()[0])).value

    def _product(self, x: Tensor, size: Sequence[int]) -> Tensor:
        dtype = product_dtype(x.device, x.dtype)
        weight, bias = self.layer.blob(0), self.layer.optional_blob(1)
        if not torch.is_grad_enabled() and (dtype != weight.dtype or self._layers[1] is not None):
            weight, bias = self._kept(dtype, innermost=False)
        elif self._layers[1] is not None:
            weight, bias = self.weight_and_bias()
        return products.convolve(self.layer, x.to(dtype), size, weight, bias)


def _in_three_products(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether products of `x`, computed in `dtype`, are to be three of TF32 each."""
    return x.is_cuda and dtype == torch.float32 and precision.chosen() == "tf32x3"


class FastPooling(nn.Module):
    """Max pooling of channels-last data as maxima of whole rows, then of columns: no indices, half the time."""

    def __init__(self, layer: Pooling) -> None:
        super().__init__()
        self._layer = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return fast_pool(self._layer[0], x)


def fast_pool(layer: Pooling, x: Tensor) -> Tensor:
    """A max pooling layer's top, by `pool_rows` where that is faster and the same."""
    size = layer.size(x.shape, layer.windows)
    if 0 not in size and layer.windows.suits_torch(x.shape[2:]) and suits_rows(x, layer.windows):
        values = pool_rows(x, layer.windows.kernel, layer.windows.stride, size)
        if looks_finite(values):  # Caffe passes over NaN and minus infinity
            return values
    result: Tensor = layer(x)
    return result


def suits_rows(x: Tensor, windows: Windows) -> bool:
    """Whether `pool_rows` is the faster way: channels innermost, enough of them, no overlap, no gradient asked for."""
    if any(k > s for k, s in zip(windows.kernel, windows.stride, strict=True)):
        return False
    return x.device.type == "cpu" and x.stride(1) == 1 and x.shape[1] >= 16 and not needs_gradient(x)


def pool_rows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], size: Sequence[int]) -> Tensor:
    """The maxima of windows without padding; the last ones may reach past the end, where there is nothing."""
    for axis in range(2):
        x = _maxima(x, 2 + axis, kernel[axis], stride[axis], size[axis])
    return x.contiguous(memory_format=torch.channels_last)  # a copy only where both kernels are 1


def _maxima(x: Tensor, axis: int, kernel: int, stride: int, count: int) -> Tensor:
    result: Tensor | None = None
    before = [slice(None)] * axis
    first = x[(*before, slice(0, stride * (count - 1) + 1, stride))]
    for k in range(1, kernel):
        part = x[(*before, slice(k, k + stride * (count - 1) + 1, stride))]
        if result is None and part.shape[axis] == count:
            result = torch.maximum(first, part)
            continue
        if result is None:
            result = first.clone()
        kept = result.narrow(axis, 0, part.shape[axis])
        torch.maximum(kept, part, out=kept)
    return first if result is None else result
