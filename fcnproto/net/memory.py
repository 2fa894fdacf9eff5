"""Memory for large parameters, and for what is computed again and again, in pages that the system hands out quickly.

Linux gives fresh memory in pages of 4 KiB, each with a fault of its own, unless a program asks for huge ones; NumPy
asks for its large arrays, PyTorch does not. Filling the 0.5 GB of an FCN's weights takes a third of the time in huge
pages.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
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


class Room(threading.local):
    """Two pieces of memory for each thread, used again and again, as large as the largest request so far.

    Fresh memory would be handed out by the system page by page, which takes as long as the transformations.
    """

    def __init__(self) -> None:
        self._pieces = [torch.empty(0, device="cpu"), torch.empty(0, device="cpu")]

    def __reduce__(self) -> tuple[type[Room], tuple[()]]:
        return Room, ()  # a copy begins with none

    def reserve(self, size: int, dtype: torch.dtype) -> None:
        """Make room for `size` values in each piece."""
        needed = -(-size * dtype.itemsize // 4)
        if self._pieces[0].numel() < needed:
            with torch.inference_mode(False):  # what inference mode makes, nothing else could write to
                self._pieces = [uninitialised((needed,)) for _ in range(2)]

    def take(self, which: int, dtype: torch.dtype, *shape: int) -> Tensor:
        """One of the pieces in this shape, whatever is in it."""
        return self._pieces[which].view(dtype)[: math.prod(shape)].view(shape)
