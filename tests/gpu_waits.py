"""Counting how often the host waits for a GPU: by torch on a real one, by the stand-in's own log on that (CONTRIBUTING)."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """The places, known when the block has ended, where it waited for a GPU: values read, blocking copies to the host,
    `synchronize`. Not copies into pinned memory that nobody waits for."""
    found: list[str] = []
    stand_in = sys.modules.get("fakecuda_py")
    if stand_in is not None:
        with stand_in.log() as events:
            yield found
        waiting = [e for e in events if e[0] == "sync" or (e[0] == "d2h" and "non_blocking" not in e[1])]
        found += [f"{kind} {operation} at {place}" for kind, operation, _, place in waiting]
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [str(w.message) for w in caught if "synchronizing" in str(w.message)]
