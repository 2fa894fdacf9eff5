"""The order of a tensor's axes in memory, where the order decides how PyTorch computes."""

from __future__ import annotations

import math

from torch import Tensor


def channels_outermost(x: Tensor) -> Tensor:
    """A tensor with its last axis innermost and every stride as such a tensor's is, that of axes of extent 1 as well.

    PyTorch takes a contiguous tensor for one with channels innermost where the strides of such axes say so.
    """
    x = x.contiguous()
    strides = tuple(math.prod(x.shape[axis + 1 :]) for axis in range(x.dim()))
    return x if x.stride() == strides else x.flatten().view(x.shape)
