"""What a departure looks like: known patterns of two blobs that ought to be equal and are not.

Each pattern is tried on the numbers themselves; what is said is what they show, with the usual cause of it. Measuring
how large a difference is belongs to `measures.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_CLOSE = 1e-3
"""A pattern explains a departure if this share of its size, or less, is left over."""
_KNOWN_FACTORS = {1 / 255: "1/255", 255.0: "255", 1 / 256: "1/256", 256.0: "256", 0.5: "1/2", 2.0: "2", -1.0: "-1"}
_MOST_VALUES = 1 << 22
_NOTHING_KNOWN = "no known pattern: look at the layer's settings and weights"

VAGUE = ("no known pattern", "small and everywhere", "only at", "only within", "only in the last", "shifted by")
"""How descriptions begin that name a look and no cause that gradients could have by themselves."""


def describe(ours: Array, reference: Array, layer_type: str = "") -> str:
    """One sentence on how `ours` departs from `reference`; `layer_type` (Caffe's name) helps to name the cause."""
    if ours.shape != reference.shape:
        return _describe_shapes(ours.shape, reference.shape, layer_type)
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    if a.size > _MOST_VALUES and a.ndim and a.shape[0] > 1:
        a, b = a[:1], b[:1]
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        return _describe_not_finite(a, b)
    if not np.any(a - b):
        return "equal in what was looked at: the first item; others depart (items of the batch in another order?)"
    for pattern in _PATTERNS:
        found = pattern(a, b, layer_type)
        if found:
            return found
    return _NOTHING_KNOWN


def _describe_shapes(ours: tuple[int, ...], reference: tuple[int, ...], layer_type: str) -> str:
    start = f"shape {_text(ours)} instead of {_text(reference)}"
    if len(ours) == len(reference) and sorted(ours) == sorted(reference):
        order = "the axes are in another order"
        if len(ours) == 4 and (ours[0], ours[2], ours[3], ours[1]) == reference:
            order += " (channels last in the reference)"
        return f"{start}: {order}"
    if math.prod(ours) == math.prod(reference):
        return f"{start}: the same number of values, reshaped"
    if len(ours) == len(reference):
        gaps = [a - b for a, b in zip(ours[2:], reference[2:], strict=True)]
        if ours[:2] == reference[:2] and gaps and max(map(abs, gaps)) == 1:
            rule = {
                "Pooling": "pooling rule: Caffe rounds the output size up, others down",
                "Deconvolution": "rule of the transposed convolution's size (output padding)",
            }.get(layer_type, "rule for rounding the output size, mostly that of a pooling before")
            return f"{start}: off by one, {rule}"
        if ours[0] == reference[0] and ours[2:] == reference[2:]:
            return f"{start}: another number of channels (num_output, or another net)"
        if ours[1:] == reference[1:]:
            return f"{start}: another batch size"
    return f"{start}: another padding, stride, kernel or input size"


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _describe_not_finite(a: Array, b: Array) -> str:
    wrong = [f"{int((~np.isfinite(x)).sum())} in {who}" for x, who in ((a, "ours"), (b, "the reference"))]
    return f"values that are not finite: {', '.join(wrong)}; overflow, division by zero or damaged weights"


def _explains(a: Array, guess: Array, b: Array) -> bool:
    """Whether the guess leaves next to nothing of the difference between a and b."""
    return bool(np.linalg.norm(guess - b) <= _CLOSE * np.linalg.norm(a - b)) or bool(
        np.abs(guess - b).max() <= 1e-6 * np.abs(b).max() < np.abs(a - b).max()
    )


def _zero(a: Array, b: Array, layer_type: str) -> str | None:
    if not a.any():
        return "ours is zero throughout: weights that were not loaded, or a dead layer"
    if not b.any():
        return "the reference is zero throughout: its weights were not loaded, or the blob was not computed"
    return None


def _affine(a: Array, b: Array, layer_type: str) -> str | None:
    factor = float((a * b).sum() / (b * b).sum())
    if factor and _explains(a, a / factor, b):
        known = next((f" = {text}" for value, text in _KNOWN_FACTORS.items() if abs(factor / value - 1) < 1e-3), "")
        return f"a constant factor: ours is {factor:.6g}{known} times the reference (scale)"
    offset = float((a - b).mean())
    if _explains(a, a - offset, b):
        return f"a constant offset: ours is the reference {offset:+.6g} (mean or bias)"
    if a.ndim >= 2 and a.size > a.shape[1]:
        axes = tuple(axis for axis in range(a.ndim) if axis != 1)
        if _explains(a, a - (a - b).mean(axes, keepdims=True), b):
            return "a constant offset in each channel (bias, or a mean per channel)"
        squares = (b * b).sum(axes, keepdims=True)
        factors = (a * b).sum(axes, keepdims=True) / np.where(squares == 0, 1, squares)
        if factors.all() and _explains(a, a / factors, b):
            return "a constant factor in each channel (scale or normalisation of channels)"
    return None


def _rectified(a: Array, b: Array, layer_type: str) -> str | None:
    if np.array_equal(np.maximum(a, 0), b) or _explains(a, np.maximum(a, 0), b):
        return "equal where positive, and the reference has no negative values: it was read after a ReLU"
    if np.array_equal(a, np.maximum(b, 0)) or _explains(b, np.maximum(b, 0), a):
        return "equal where positive, and ours has no negative values: the reference was read before a ReLU"
    return None


def _order_of_channels(a: Array, b: Array, layer_type: str) -> str | None:
    if a.ndim < 2 or not 2 <= a.shape[1] <= 512 or a[0, 0].size < 2:
        return None
    if _explains(a, a[:, ::-1], b):
        return "the channels in reverse: channel order (RGB against BGR)"
    flat_a, flat_b = (np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)[:, :4096] for x in (a, b))
    order = [int(np.argmin(np.abs(flat_a - row).sum(1))) for row in flat_b]
    if sorted(order) == list(range(len(order))) and _explains(a, a[:, order], b):
        return f"the channels in another order: channel order (the reference's begin with ours number {order[:4]})"
    return None


def _moved(a: Array, b: Array, layer_type: str) -> str | None:
    if a.ndim < 4 or min(a.shape[2:]) < 3:
        return None
    for axes, what in (
        ((3,), "left and right"),
        ((2,), "top and bottom"),
        ((2, 3), "turned by 180 degrees, both axes"),
    ):
        if _explains(a, np.flip(a, axes), b):
            return f"mirrored: {what}"
    if a.shape[2] == a.shape[3] and _explains(a, a.swapaxes(2, 3), b):
        return "height and width are exchanged"
    height, width = a.shape[2:4]
    for down, right in itertools.product(range(-3, 4), repeat=2):
        if (down, right) == (0, 0) or abs(down) >= height or abs(right) >= width:
            continue
        part_a = a[:, :, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
        part_b = b[:, :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
        if np.abs(part_a - part_b).max() <= 1e-4 * np.abs(b).max() and part_a.any():
            return f"shifted by {down} down and {right} to the right: padding, crop offset, or rounding of an offset"
    return None


def _place(a: Array, b: Array, layer_type: str) -> str | None:
    """Departures in one part of the plane only: the border, its end, or few places."""
    if a.ndim < 4:
        return None
    gaps = np.abs(a - b).max((0, 1))
    wrong = gaps > max(1e-3 * gaps.max(), 1e-6 * np.abs(b).max())
    rows, columns = wrong.shape[-2:]
    wrong = wrong.reshape(-1, rows, columns).any(0)
    if min(rows, columns) >= 4:
        for width in range(1, min(rows, columns) // 4 + 1):
            inner = wrong[width : rows - width, width : columns - width]
            if inner.any():
                continue
            if not wrong[: rows - width, : columns - width].any():
                return f"only in the last {width} rows and columns: pooling rule (the window that is not whole)"
            return f"only within {width} of the border: padding"
    share = float(wrong.mean())
    if share < 0.01:
        return f"only at {int(wrong.sum())} places of {wrong.size}: ties or values near a threshold"
    return None


def _precision(a: Array, b: Array, layer_type: str) -> str | None:
    relative = float(np.abs(a - b).max() / np.abs(b).max())
    if relative > 0.02:
        return None
    level = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    if level > 1e-4:
        return f"small and everywhere (about {level:.1g} of the values): lower precision (half, bfloat16, TF32)"
    return f"small and everywhere (about {level:.1g} of the values): rounding, another order of summation"


_PATTERNS: tuple[Callable[[Array, Array, str], str | None], ...] = (
    _zero,
    _affine,
    _rectified,
    _order_of_channels,
    _moved,
    _place,
    _precision,
)
