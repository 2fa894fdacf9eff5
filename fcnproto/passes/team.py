"""Independent pieces of work, each on one core from its beginning to its end.

PyTorch spreads every single operation over the cores, and not always alike: what one core has just written another
reads next. Where cores don't share a cache that takes longer than the operation itself. Here each core does all
operations of a piece.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_Result = TypeVar("_Result")
_lock = threading.Lock()
_team: tuple[int, int, ThreadPoolExecutor] | None = None  # process, members, the threads
_member = threading.local()


def run(pieces: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """All results, computed side by side on as many cores as `torch.get_num_threads` says, in the caller's modes.

    Raises what a piece raises, after all have ended.
    """
    count = torch.get_num_threads()
    if count == 1 or len(pieces) == 1 or getattr(_member, "here", False) or torch.compiler.is_compiling():
        return [piece() for piece in pieces]
    inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def work(piece: Callable[[], _Result]) -> _Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            return piece()

    futures = [_threads(count).submit(work, piece) for piece in pieces]
    wait(futures)
    return [future.result() for future in futures]


def evenly(count: int, most: int) -> int:
    """The size of the largest of the fewest equal parts of `count` things that are no larger than `most`."""
    return -(-count // -(-count // most))


def _threads(count: int) -> ThreadPoolExecutor:
    """The team of `count` members; of this process, since threads don't survive a fork."""
    global _team
    with _lock:
        if _team is None or _team[:2] != (os.getpid(), count):
            if _team is not None and _team[0] == os.getpid():
                _team[2].shutdown(wait=False)
            ready = threading.Barrier(count + 1)
            pool = ThreadPoolExecutor(count, "fcnproto", _begin, (ready,))
            for _ in range(count):
                pool.submit(int)
            ready.wait()
            torch.set_num_threads(count)  # what the members set holds for threads to come as well
            _team = os.getpid(), count, pool
        return _team[2]


def _begin(ready: threading.Barrier) -> None:
    torch.get_num_threads()  # torch sets a thread's number when it is first asked for, and not after that
    torch.set_num_threads(1)
    _member.here = True
    ready.wait()
