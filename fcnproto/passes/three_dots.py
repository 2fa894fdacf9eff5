"""A float32 convolution as three TF32 products in one kernel of Triton's; imported only where Triton is.

Image and weights are read once, where the convolution over three times the channels (`splitting`) reads them three
times: each block is split where it is multiplied. Channels lie innermost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, DEPTH = 128, 64, 32
"""Positions and outputs of a block, and the channels that are added up at a time."""


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    x, weight, bias, y,
    height, width, channels, rows, columns, outputs, positions,
    stride_down, stride_across, pad_down, pad_across, dilation_down, dilation_across,
    kernel_down: tl.constexpr, kernel_across: tl.constexpr, has_bias: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One block of (positions, outputs): a sum over the kernel's taps and the channels."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    out = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column = place % columns
    row = (place // columns) % rows
    image = place // (columns * rows)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for tap in range(kernel_down * kernel_across):
        h = row * stride_down - pad_down + (tap // kernel_across) * dilation_down
        w = column * stride_across - pad_across + (tap % kernel_across) * dilation_across
        inside = (place < positions) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        start = ((image * height + h) * width + w) * channels
        for first in range(0, channels, DEPTH):
            channel = first + tl.arange(0, DEPTH)
            there = channel < channels
            left = tl.load(x + start[:, None] + channel[None, :], mask=inside[:, None] & there[None, :], other=0.0)
            line = tap * channels + channel
            right = tl.load(
                weight + line[:, None] * outputs + out[None, :],
                mask=there[:, None] & (out < outputs)[None, :],
                other=0.0,
            )
            total = tl.dot(left, right, total, input_precision="tf32x3")
    if has_bias:
        total += tl.load(bias + out, mask=out < outputs, other=0.0)[None, :]
    kept = (place < positions)[:, None] & (out < outputs)[None, :]
    tl.store(y + place[:, None] * outputs + out[None, :], total, mask=kept)


def arranged(weight: Tensor) -> Tensor:
    """A convolution's weight (O, C, h, w) as `convolve` reads it: (h * w * C, O)."""
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def suits(x: Tensor, outputs: int, size: Sequence[int], groups: int) -> bool:
    """Whether the kernel takes a bottom: enough channels for its blocks, and places that 31 bits can count."""
    largest = max(x.numel(), len(x) * outputs * size[0] * size[1])
    return groups == 1 and x.dtype == torch.float32 and x.shape[1] >= DEPTH // 2 and largest < 2**31


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The convolution of `x` (channels innermost) with a weight from `arranged`, `size` (rows, columns) large."""
    batch, channels, height, width = x.shape
    outputs, positions = weight.shape[1], batch * size[0] * size[1]
    y = torch.empty((batch, outputs, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    grid = (triton.cdiv(positions, ROWS), triton.cdiv(outputs, COLUMNS))
    launch: Any = _products[grid]
    launch(
        x, weight, weight if bias is None else bias, y,
        height, width, channels, *size, outputs, positions, *stride, *pad, *dilation,
        kernel_down=kernel[0], kernel_across=kernel[1], has_bias=bias is not None,
        ROWS=ROWS, COLUMNS=COLUMNS, DEPTH=DEPTH, num_warps=4, num_stages=3,
    )  # fmt: skip
    return y
