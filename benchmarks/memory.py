"""A process's peak memory."""

from __future__ import annotations

import resource
from pathlib import Path


def peak() -> int:
    """The largest resident size of this process so far, in bytes.

    From the kernel's high-water mark where there is one: `ru_maxrss` of a new process starts at its parent's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
