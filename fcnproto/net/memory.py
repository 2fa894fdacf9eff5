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
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def free_bytes(device: torch.device) -> int | None:
    """The bytes that may still be taken on a device: of a CPU those that the machine, the process's limits and its
    control group leave, None where nobody says it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    found = [*_left_by_the_machine(), *_left_by_limits(), *_left_by_the_group()]
    return max(min(found), 0) if found else None


def _left_by_the_machine() -> Iterator[int]:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _left_by_limits() -> Iterator[int]:
    pages = _text("/proc/self/statm").split()
    if not pages:
        return
    import resource  # where there is a /proc, there is this module

    for limit, place in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            yield most - int(pages[place]) * resource.getpagesize()


def _left_by_the_group() -> Iterator[int]:
    for folder, most, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, now = (_text(f"{folder}/{name}").strip() for name in (most, used))
        if limit.isdigit() and now.isdigit():
            yield int(limit) - int(now)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


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
