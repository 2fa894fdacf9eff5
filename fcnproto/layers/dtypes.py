"""The dtype that a layer computes in where half precision would overflow or lose too much."""

from __future__ import annotations

import torch
from torch import Tensor


def computing_type(x: Tensor) -> torch.dtype:
    """float32 for half types, in which squares and sums over an image overflow; the tensor's own for others."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, as float32 if it has a half type."""
    return x.to(computing_type(x))
