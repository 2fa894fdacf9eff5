"""Memory for large parameters, in pages that the system hands out quickly. Not for what is computed from them.

Linux gives fresh memory in pages of 4 KiB, each with a fault of its own, unless a program asks for huge ones; NumPy
asks for its large arrays, PyTorch does not. Filling the 0.5 GB of an FCN's weights takes a third of the time in huge
pages.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


def uninitialised(shape: Sequence[int]) -> Tensor:
    """A float32 CPU tensor without values. Raises `RuntimeError` (torch's) where there is too little memory."""
    tensor = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    if sys.platform == "linux":
        first = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        last = (tensor.data_ptr() + 4 * tensor.numel()) // _HUGE_PAGE * _HUGE_PAGE
        if first < last:  # advice only: where it is refused, nothing is lost
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_HUGEPAGE)
    return tensor
