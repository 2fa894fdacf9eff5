"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) by batched matrix products.

Shmuel Winograd, Arithmetic Complexity of Computations (1980), by way of Toom and Cook: a window of 6x6 inputs and the
kernel are evaluated as polynomials at six points along each axis, multiplied there, and interpolated to 4x4 outputs.
With the usual points 0, 1, -1, 2, -2 and infinity the rounding error is five times a direct convolution's; with 0, 2/3,
-2/3, 3/2, -3/2 and infinity, the best of those tried, it is about the same. It pays for wide layers, where the
transformations are little beside the products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.net import memory
from fcnproto.passes import team

_OUTPUTS, _KERNEL = 4, 3
_WINDOW = _OUTPUTS + _KERNEL - 1
_POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
_LEAST_CHANNELS = 128
_LEAST_TILES = 32
_AT_ONCE = 64
_BYTES_AT_ONCE = 4 * 2**20


def suits(
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    weight: Tensor,
    leniency: float = 1,
) -> bool:
    """Whether a convolution's settings and widths (times `leniency`) make this the faster way."""
    return (
        tuple(kernel) == (_KERNEL, _KERNEL)
        and tuple(stride) == tuple(dilation) == (1, 1)
        and groups == 1
        and min(weight.shape[:2]) * leniency >= _LEAST_CHANNELS
    )


def has_enough(batch: int, size: Sequence[int], leniency: float = 1) -> bool:
    """Whether a bottom of `size` (rows, columns; padding included) has so many positions that larger weights pay."""
    rows, columns = (n - _KERNEL + 1 for n in size)
    return batch * -(-rows // _OUTPUTS) * -(-columns // _OUTPUTS) * leniency >= _LEAST_TILES


SAVED = 1 - _WINDOW**2 / (_OUTPUTS * _KERNEL) ** 2
"""The share of a direct convolution's multiplications that is saved."""


def transform_weight(weight: Tensor) -> Tensor:
    """A weight (outputs, C, 3, 3) at the 36 pairs of points: (36, C, outputs), in its own dtype."""
    _, at_points, _ = _matrices(torch.float64)
    shape = (_WINDOW**2, weight.shape[1], weight.shape[0])
    result = memory.uninitialised(shape) if weight.dtype == torch.float32 else weight.new_empty(shape)
    for start in range(0, weight.shape[0], _AT_ONCE):  # in float64, so not all at once
        part = weight[start : start + _AT_ONCE].double().cpu()
        moved = torch.einsum("ai,ocij,bj->abco", at_points, part, at_points)
        result[:, :, start : start + _AT_ONCE] = moved.flatten(0, 1)
    return result


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pad: Sequence[int], room: memory.Room) -> Tensor:
    """The convolution of `x` (N, C, H, W; best with channels innermost) by a transformed weight; channels innermost.

    Works on so many tiles at once that what lies between stays in the cache and in memory that was used before.
    """
    batch, channels, *size = x.shape
    outputs = weight.shape[2]
    rows, columns = (n + 2 * p - _KERNEL + 1 for n, p in zip(size, pad, strict=True))
    down, across = -(-rows // _OUTPUTS), -(-columns // _OUTPUTS)
    more = [_OUTPUTS * count + _KERNEL - 1 - n - p for count, n, p in zip((down, across), size, pad, strict=True)]
    padded = F.pad(x, (pad[1], more[1], pad[0], more[0])).permute(0, 2, 3, 1).contiguous()
    image, row, column, _ = padded.stride()
    windows = padded.as_strided(
        (_WINDOW, _WINDOW, batch, down, across, channels), (row, column, image, _OUTPUTS * row, _OUTPUTS * column, 1)
    )
    y = x.new_empty(batch, down, _OUTPUTS, across, _OUTPUTS, outputs)
    most = max(1, max(_BYTES_AT_ONCE, weight.nbytes // 2) // (_WINDOW**2 * max(channels, outputs) * x.element_size()))
    images, lines = max(1, most // (down * across)), team.evenly(down, max(1, most // across))
    pieces = []
    for n in range(0, batch, images):
        for line in range(0, down, lines):
            part = slice(n, n + images), slice(line, line + lines)
            pieces.append(partial(_tiles, windows[:, :, part[0], part[1]], weight, bias, y[part], room))
    team.run(pieces)
    y = y.view(batch, _OUTPUTS * down, _OUTPUTS * across, outputs)[:, :rows, :columns]
    return y.permute(0, 3, 1, 2)


def _tiles(windows: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, room: memory.Room) -> None:
    """Fill tiles `y` (N, rows, 4, columns, 4, outputs) from their windows (6, 6, N, rows, columns, C)."""
    forward, _, backward = _matrices(windows.dtype)
    (m, n), tiles, channels, outputs = backward.shape, windows.shape[2:5].numel(), windows.shape[5], weight.shape[2]
    room.reserve(n * n * tiles * max(channels, outputs), windows.dtype)
    gathered = room.take(0, windows.dtype, n, n, tiles * channels)
    gathered.view(windows.shape).copy_(windows)
    first = torch.mm(forward, gathered.flatten(1), out=room.take(1, windows.dtype, n, n * tiles * channels))
    torch.matmul(forward, first.view(n, n, -1), out=gathered)
    products = room.take(1, windows.dtype, n * n, tiles, outputs)
    torch.bmm(gathered.view(n * n, tiles, channels), weight, out=products)
    first = torch.mm(backward, products.view(n, -1), out=room.take(0, windows.dtype, m, n * tiles * outputs))
    last = torch.matmul(backward, first.view(m, n, -1), out=room.take(1, windows.dtype, m, m, tiles * outputs))
    last = last.view(m, m, *windows.shape[2:5], outputs).permute(2, 3, 0, 4, 1, 5)
    torch.add(last, 0 if bias is None else bias, out=y)


@cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """For one axis: inputs to points (6x6), kernel to points (6x3), points to outputs (4x6).

    Winograd's transposed form of Toom and Cook's multiplication; the last point is infinity.
    """
    factors = [_product(p - q for q in _POINTS if q != p) for p in _POINTS]
    back = [[p**i for p in _POINTS] + [Fraction(i == _OUTPUTS - 1)] for i in range(_OUTPUTS)]
    kernel = [[p**j / f for j in range(_KERNEL)] for p, f in zip(_POINTS, factors, strict=True)]
    kernel.append([Fraction(j == _KERNEL - 1) for j in range(_KERNEL)])
    inputs = [[*_polynomial([q for q in _POINTS if q != p]), Fraction(0)] for p in _POINTS]
    inputs.append(_polynomial(_POINTS))
    first, second, third = (
        torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64, device="cpu").to(dtype)
        for matrix in (inputs, kernel, back)
    )
    return first, second, third


def _product(values: Iterable[Fraction]) -> Fraction:
    result = Fraction(1)
    for value in values:
        result *= value
    return result


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the polynomial with these roots and leading coefficient 1."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * value for value in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients
