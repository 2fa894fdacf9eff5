"""`Timer`: pycaffe's stopwatch, which waits for the GPU where one computes."""

from __future__ import annotations

import time

import torch

from fcnproto.pycaffe import mode


class Timer:
    """Start it, stop it, ask it; times are of the last start to the last stop (or to now)."""

    def __init__(self) -> None:
        self._begin = self._end = 0.0
        self._running = False

    def start(self) -> None:
        """Begin anew."""
        self._begin, self._running = _now(), True

    def stop(self) -> None:
        """End."""
        if self._running:
            self._end, self._running = _now(), False

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return (_now() if self._running else self._end) - self._begin

    @property
    def ms(self) -> float:
        """The time in milliseconds."""
        return 1e3 * self.seconds

    @property
    def us(self) -> float:
        """The time in microseconds."""
        return 1e6 * self.seconds

    @property
    def has_run_at_least_once(self) -> bool:
        """Whether it has been started."""
        return self._begin != 0.0


def _now() -> float:
    if mode.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
