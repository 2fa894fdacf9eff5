"""Faster forms of Deconvolution, with the Crop after it: the same numbers as the plain layers', gradients included."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnproto.layers.convolution import Deconvolution, needs_channels_outermost
from fcnproto.layers.memory_order import channels_outermost
from fcnproto.layers.pooling import looks_finite
from fcnproto.layers.shaping import Crop
from fcnproto.passes.keeping import Latest, Watch
from fcnproto.passes.kernels import needs_gradient, product_dtype

_SIZES_KEPT = 8


class FastDeconvolution(nn.Module):
    """A 2-D Deconvolution without gaps between its windows, alone or with the Crop that alone reads it.

    Of a Crop only what it keeps is computed. Where the weights are one kernel on the diagonal (fixed bilinear
    upsampling), every channel is computed by itself; and where that kernel is a column times a row, alike for all
    channels, as two matrix products, one along each axis.
    """

    def __init__(self, watch: Watch, layer: Deconvolution, crop: Crop | None = None) -> None:
        super().__init__()
        self._layers = (layer, crop)  # in a tuple: not submodules, the net owns them
        sources = lambda: [layer.blob(0).detach()]  # noqa: E731
        diagonal = self._diagonal = watch.derived(("diagonal", layer), lambda: _diagonal(layer), sources)
        self._lines = watch.derived(("lines", layer), lambda: _lines(layer, diagonal.value), sources)
        self._kept: Latest[Hashable, tuple[object, tuple[Tensor, Tensor]]] = Latest(_SIZES_KEPT)

    def forward(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        layer, crop = self._layers
        window = layer.window
        full = layer.top_shapes([x.shape])[0]
        if 0 in full or 0 in x.shape:
            y: Tensor = layer(x)
            return y if crop is None else crop(y, reference)
        if crop is None or reference is None:
            if self._suits_lines(x):
                return self._along_lines(x, window.pad, full[2:])
            return self._deconvolve(x, window.pad)
        if not _fits(crop, full, reference):
            failing: Tensor = crop(x.new_empty(full), reference)
            return failing
        read, kept = [], []
        wanted = dict(crop.offsets(full))
        for axis in (2, 3):
            offset, n = (wanted[axis], reference.shape[axis]) if axis in wanted else (0, full[axis])
            extent, stride, pad = (values[axis - 2] for values in (window.extent, window.stride, window.pad))
            begin = max(0, -(-(offset + pad - extent + 1) // stride))  # the inputs that reach what is kept
            read.append(slice(begin, (offset + n - 1 + pad) // stride + 1))
            kept.append(slice(offset + pad - begin * stride, offset + pad - begin * stride + n))
        x = x[:, :, read[0], read[1]].contiguous()
        if self._suits_lines(x):
            return self._along_lines(x, [part.start for part in kept], [part.stop - part.start for part in kept])
        return self._deconvolve(x, (0, 0))[:, :, kept[0], kept[1]]

    @property
    def form(self) -> str:
        """How the weights let it be computed, gradients aside: "full", "per channel" or "along lines"."""
        if self._lines.value is not None:
            return "along lines"
        return "full" if self._diagonal.value is None else "per channel"

    def _deconvolve(self, x: Tensor, pad: Sequence[int]) -> Tensor:
        layer = self._layers[0]
        weight, groups, window = layer.blob(0), layer.groups, layer.window
        diagonal = None if needs_gradient(weight) else self._diagonal.value
        if diagonal is not None:
            weight, groups = diagonal, x.shape[1]
        if needs_channels_outermost(x, weight, window.stride, transposed=True):
            x, weight = channels_outermost(x), channels_outermost(weight)
        return F.conv_transpose2d(
            x, weight, layer.optional_blob(1), window.stride, tuple(pad), 0, groups, window.dilation
        )

    def _suits_lines(self, x: Tensor) -> bool:
        weight = self._layers[0].blob(0)
        return (
            not needs_gradient(x, weight, self._layers[0].optional_blob(1))
            and (x.is_cuda or product_dtype(x.device, x.dtype) == weight.dtype)
            and self._lines.value is not None
            and looks_finite(x)  # a row of the product reads all of x, if only to multiply it by zero
        )

    def _along_lines(self, x: Tensor, first: Sequence[int], size: Sequence[int]) -> Tensor:
        """The part of the top, of some `size`, that begins at position `first` of the top without padding."""
        bias, dtype = self._layers[0].optional_blob(1), product_dtype(x.device, x.dtype)
        down, across = self._factors((x.shape[2], x.shape[3]), tuple(first), tuple(size), dtype)
        y = down @ (x.to(dtype) @ across.t())
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    def _factors(
        self, bottom: tuple[int, int], first: tuple[int, ...], size: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The matrices that the bottom is multiplied by from the left and, transposed, from the right; kept for the
        latest sizes, since making them is a dozen small operations each."""
        lines, key = self._lines.value, (bottom, first, size, dtype)
        assert lines is not None
        found = self._kept.get(key)
        if found is None or found[0] is not lines:
            stride = self._layers[0].window.stride
            with torch.inference_mode(False), torch.no_grad():
                down, across = (_spread(*each) for each in zip(lines, bottom, stride, first, size, strict=True))
            found = lines, (down.to(dtype), across.to(dtype))
            self._kept.put(key, found)
        return found[1]


def _fits(crop: Crop, shape: Sequence[int], reference: Tensor) -> bool:
    """Whether the Crop has something to keep and finds it all inside a bottom of `shape`."""
    if reference.dim() < len(shape):
        return False
    sizes = [(shape[axis] - offset, reference.shape[axis]) for axis, offset in crop.offsets(shape)]
    return all(0 < size <= room for room, size in sizes)


def _diagonal(layer: Deconvolution) -> Tensor | None:
    """The (C, 1, h, w) kernels of a full Deconvolution whose other weights are all zero; None if they aren't."""
    weight = layer.blob(0).detach()
    if layer.groups != 1 or weight.shape[0] != weight.shape[1]:
        return None
    kernels = weight.diagonal(dim1=0, dim2=1).permute(2, 0, 1).unsqueeze(1).contiguous()
    return kernels if int(torch.count_nonzero(weight)) == int(torch.count_nonzero(kernels)) else None


def _lines(layer: Deconvolution, kernels: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The column and the row whose product is every kernel of `_diagonal`; None if there are none."""
    if kernels is None or max(layer.window.dilation) > 1 or not bool((kernels == kernels[:1]).all()):
        return None
    kernel = kernels[0, 0]
    top = int(kernel.abs().argmax())
    row, column = kernel[top // kernel.shape[1]], kernel[:, top % kernel.shape[1]] / kernel.flatten()[top]
    rest = (torch.outer(column.double(), row.double()) - kernel).abs().max()
    return (column, row) if bool(rest <= torch.finfo(kernel.dtype).eps * kernel.abs().max()) else None


def _spread(line: Tensor, n: int, stride: int, first: int, count: int) -> Tensor:
    """The matrix (count, n) that lays `line` down at every `stride`-th position, times an input; from `first` on."""
    place = torch.arange(first, first + count, device=line.device)
    tap = place.unsqueeze(1) - stride * torch.arange(n, device=line.device)
    inside = (tap >= 0) & (tap < len(line))
    return torch.where(inside, line[tap.clamp(0, len(line) - 1)], line.new_zeros(()))
