"""SIGINT, SIGHUP and SIGTERM as requests to a running solver, the first two as Caffe's command line has them.

Nothing is installed by importing this, and nothing by `Solver` itself.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from fcnproto.solver.listeners import Request


class SecondInterrupt(KeyboardInterrupt):
    """Interrupted again while the first interrupt is being seen to: to end at once."""


class SignalRequests:
    """While the block runs, signals become requests; asked (called), it gives the pending one once.

    `sigint` and `sighup` say what each asks for; `Request.NONE` makes the signal do nothing. SIGTERM, by which systems
    end a process, asks to stop. A request waits until it is asked for: after the iteration or test batch that is
    running. Whoever doesn't want to wait interrupts again: a second SIGINT after one that asks to stop is a
    SecondInterrupt. (Under torchrun only after two seconds: it passes on the terminal's own to each worker.) Use it
    in the main thread: elsewhere Python can't install handlers (ValueError).
    """

    def __init__(self, sigint: Request = Request.STOP, sighup: Request = Request.SNAPSHOT) -> None:
        self._effects: dict[int, Request] = {signal.SIGINT: sigint}
        if hasattr(signal, "SIGHUP"):  # Windows has none
            self._effects[signal.SIGHUP] = sighup
        self._effects[signal.SIGTERM] = Request.STOP
        self._interrupted: float | None = None
        self._pending: set[Request] = set()
        self._previous: dict[int, Any] = {}

    def __call__(self) -> Request:
        for request in (Request.STOP, Request.SNAPSHOT):
            if request in self._pending:
                self._pending.discard(request)
                return request
        return Request.NONE

    def __enter__(self) -> SignalRequests:
        for number in self._effects:
            self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        request = self._effects[number]
        if number == signal.SIGINT and request is Request.STOP:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted >= _repeated_within():
                raise SecondInterrupt
            self._interrupted = self._interrupted or now
        if request is not Request.NONE:
            self._pending.add(request)


def _repeated_within() -> float:
    """The seconds within which a second SIGINT is the first once more."""
    return 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
