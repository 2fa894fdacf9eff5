"""How far two arrays lie apart: the numbers of a parity report. What a difference may mean is for `diagnosis.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ULP_LIMITS = (0, 1, 3, 15, 255, 4095, 65535)
"""Upper ends (inclusive) of the histogram's bins; the last bin is open."""

_CHUNK = 1 << 21  # values taken at a time, so that large blobs need no several copies in float64


@dataclass(frozen=True)
class Measures:
    """The distance of `ours` from a reference of the same shape.

    Attributes:
        max_abs: largest |a - b|; NaN or infinity where a value is not finite and not the same in both.
        max_rel: max_abs over the largest finite |b| (max_abs itself where the reference is all zero); the one number
            that a tolerance is applied to.
        mean_rel: mean |a - b| over mean |b|.
        cosine: of the angle between both, taken as vectors; 1 where both are zero.
        ulps: how many values differ by how many float32 steps; bins as in `ULP_LIMITS`, and one for all above.
        argmax: share of places whose largest channel (axis 1) is the same; None where that means nothing.
    """

    max_abs: float
    max_rel: float
    mean_rel: float
    cosine: float
    ulps: tuple[int, ...]
    argmax: float | None = None


def measure(ours: Array, reference: Array, *, scores: bool = False) -> Measures:
    """The measures of two arrays of one shape; with `scores` and two channels or more at axis 1, of their argmax too.

    ValueError where the shapes differ.
    """
    if ours.shape != reference.shape:
        raise ValueError(f"shapes {ours.shape} and {reference.shape} differ")
    worst, largest, difference, size = 0.0, 0.0, 0.0, 0.0
    product, ours_square, reference_square = 0.0, 0.0, 0.0
    ulps = np.zeros(len(ULP_LIMITS) + 1, dtype=np.int64)
    for a, b in _chunks(ours, reference):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            gaps = np.where(same, 0.0, np.abs(a - b))
        found = float(gaps.max(initial=0.0))
        worst = found if math.isnan(found) or found > worst else worst
        finite_a, finite_b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
        largest = max(largest, float(np.abs(finite_b).max(initial=0.0)))
        difference += float(gaps.sum())
        size += float(np.abs(finite_b).sum())
        product += float(finite_a @ finite_b)
        ours_square += float(finite_a @ finite_a)
        reference_square += float(finite_b @ finite_b)
        ulps += _histogram(a, b)
    norm = math.sqrt(ours_square) * math.sqrt(reference_square)
    return Measures(
        max_abs=worst,
        max_rel=worst / largest if largest else worst,
        mean_rel=difference / size if size else difference,
        cosine=product / norm if norm else float(ours_square == reference_square),
        ulps=tuple(int(count) for count in ulps),
        argmax=_argmax_agreement(ours, reference) if scores else None,
    )


def _chunks(ours: Array, reference: Array) -> Iterator[tuple[Array, Array]]:
    a, b = np.ascontiguousarray(ours).reshape(-1), np.ascontiguousarray(reference).reshape(-1)
    for start in range(0, a.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield a[part].astype(np.float64), b[part].astype(np.float64)


def _histogram(a: Array, b: Array) -> Array:
    """Counts of the distances in float32 steps; a NaN beside a number counts as the farthest."""
    steps = np.abs(_order(a) - _order(b))
    steps[np.isnan(a) != np.isnan(b)] = 1 << 32
    steps[np.isnan(a) & np.isnan(b)] = 0
    return np.bincount(np.searchsorted(ULP_LIMITS, steps), minlength=len(ULP_LIMITS) + 1)


def _order(values: Array) -> Array:
    """int64 numbers in the order of the float32 values, neighbours one apart (both zeros are 0)."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _argmax_agreement(ours: Array, reference: Array) -> float | None:
    if ours.ndim < 2 or ours.shape[1] < 2 or not ours.size:
        return None
    return float((ours.argmax(1) == reference.argmax(1)).mean())
