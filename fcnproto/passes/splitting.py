"""Float32 convolutions as three TF32 products each (`precision="tf32x3"`): Caffe's numbers on a GPU's tensor cores.

A float32 number x is split into x1, which TF32 holds exactly (11 bits of the mantissa), and the rest x2 = x - x1. Of
x * w = x1 * w1 + x2 * w1 + x1 * w2 + x2 * w2 the last term is below the rounding of float32 and left out. The three
others are one convolution, of three times the channels, whose sum is float32's; or, where Triton is, one kernel
(`three_dots`) for the layers in which it is right and the faster of the two.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

BOUND = 3.01 * 2**-22
"""By how much a product may depart from the exact one, relative to the size of its factors: the term left out, and the
two whose second factor the GPU rounds to TF32, each below 2^-22."""

_ROUND, _KEPT = 1 << 12, ~((1 << 13) - 1)  # half of the last bit that TF32 keeps, and the bits that it keeps


_AGREES, _ROUNDS = 1e-5, 3


@cache
def kernel() -> Any:
    """The module `three_dots`; None where there is no Triton, or none that compiles."""
    try:
        return importlib.import_module("fcnproto.passes.three_dots")
    except Exception:  # of another version it may fail in any way
        return None


def is_better(ours: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    """Whether `ours` works, agrees with the other way to float32's rounding, and is the faster one. Waits for both."""
    if torch.cuda.is_current_stream_capturing():
        return False
    try:
        found, reference = ours(), other()
        if not bool((found - reference).abs().max() <= _AGREES * reference.abs().max()):
            return False
        return milliseconds(ours, found.device) < milliseconds(other, found.device)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a compiler's errors have no common base
        return False


def milliseconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """How long a call takes on a GPU, by its own clock."""
    start: Any = torch.cuda.Event(enable_timing=True)
    end: Any = torch.cuda.Event(enable_timing=True)
    stream = torch.cuda.current_stream(device)
    start.record(stream)
    for _ in range(_ROUNDS):
        call()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end))


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest numbers that TF32 holds (away from zero of two), and what is left; their sum is `x` to the last bit.

    Of what is not finite the second is not a number.
    """
    high = (x.view(torch.int32) + _ROUND).bitwise_and_(_KEPT).view(torch.float32)
    return high, x - high


def tripled(x: Tensor, groups: int) -> Tensor:
    """The first factor (N, C, ...) of the three products, (N, 3 C, ...): in each group x1, x2, x1."""
    high, low = (part.unflatten(1, (groups, -1)) for part in split(x))
    return torch.cat([high, low, high], 2).flatten(1, 2)


def tripled_weight(weight: Tensor) -> Tensor:
    """The second factor (O, C, ...) of the three products, (O, 3 C, ...): w1, w1, w2."""
    high, low = split(weight)
    return torch.cat([high, high, low], 1)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of `tripled` and `tripled_weight`; this one may use TF32, whatever holds for the others."""
    cudnn = torch.backends.cudnn
    return torch.ops.aten._convolution.default(  # type: ignore[no-any-return]
        x,
        weight,
        bias,
        list(stride),
        list(pad),
        list(dilation),
        False,
        [0] * len(stride),
        groups,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.enabled,
        True,
    )
