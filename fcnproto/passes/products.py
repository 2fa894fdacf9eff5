"""Convolutions with many weights, for few output positions, as one matrix product, with the weights as they lie.

A convolution would first bring all its weights into an order of its own, at every call: 411 MB for the first fully
connected layer of VGG16. Here they are the left factor, which is read in place; only the windows are arranged anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.convolution import Convolution
from fcnproto.passes import onednn, team

# Up to this many output positions, and from this many weights on, is that the faster way; in parts for any number.
_FEW_POSITIONS = 1024
_MANY_WEIGHTS = 1 << 20
# Up to this many weights a convolution's own order of them costs less than windows that hold more than the weights do.
_TOO_MANY_WEIGHTS = 1 << 24
_BYTES_AT_ONCE = 24 * 2**20


def suits(layer: Convolution, x: Tensor, size: Sequence[int], batch: int = 1) -> bool:
    """Whether a layer's output of `size` (rows, columns) is better computed as a product, on the device of `x` and in
    its dtype: where laying out what the windows see is less than bringing the weights into another order."""
    weights, positions = layer.blob(0).numel(), math.prod(size)
    return (
        x.device.type == "cpu"
        and layer.groups == 1
        and weights >= _MANY_WEIGHTS
        and math.prod(layer.window.kernel) not in range(2, 25)  # small windows overlap too much to be laid out
        and (weights > _TOO_MANY_WEIGHTS or batch * positions <= layer.outputs)
        and (positions <= _FEW_POSITIONS or _runs_in_parts(x, layer.blob(0)))
    )


def convolve(layer: Convolution, x: Tensor, size: Sequence[int], weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's top (N, outputs, rows, columns) with this weight and bias; differentiable."""
    if _runs_in_parts(x, weight):
        result = _in_parts(weight.flatten(1), _windows(layer, x, size))
        if bias is not None:
            result += bias[:, None]
    else:
        window = layer.window
        columns = F.unfold(x, window.kernel, window.dilation, window.pad, window.stride)
        columns = columns[0] if len(x) == 1 else columns.transpose(0, 1).flatten(1)
        rows = weight.flatten(1)
        result = rows @ columns if bias is None else torch.addmm(bias[:, None], rows, columns)
    return result.view(-1, len(x), *size).transpose(0, 1)


def _windows(layer: Convolution, x: Tensor, size: Sequence[int]) -> Tensor:
    """What the outputs see: (N, rows, columns, C, kernel rows, kernel columns), a view."""
    window = layer.window
    if any(window.pad):
        x = F.pad(x, [p for p in reversed(window.pad) for _ in range(2)])
    x = x.contiguous()
    image, channel, row, column = x.stride()
    down, across = window.stride
    return x.as_strided(
        (len(x), *size, x.shape[1], *window.kernel),
        (image, row * down, column * across, channel, row * window.dilation[0], column * window.dilation[1]),
    )


def _in_parts(weight: Tensor, windows: Tensor) -> Tensor:
    """The product of weight and windows: (outputs, positions); of so many rows at once that memory is used again."""
    most = max(1, _BYTES_AT_ONCE // (windows[0, 0].numel() * windows.element_size()))
    lines = team.evenly(windows.shape[1], most)
    parts = [
        onednn.multiply_by_rows(weight, part.reshape(-1, weight.shape[1]))
        for image in windows
        for part in image.split(lines)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _runs_in_parts(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(x.device.type)
        and onednn.works()
    )
