"""SIGINT and SIGHUP as requests to a running solver, as Caffe's command line has them.

Nothing is installed by importing this, and nothing by `Solver` itself.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from fcnproto.solver.listeners import Request


class SignalRequests:
    """While the block runs, signals become requests; asked (called), it gives the pending one once.

    `sigint` and `sighup` say what each asks for; `Request.NONE` makes the signal do nothing. A request waits until it
    is asked for: after the iteration or test batch that is running. Use it in the main thread: elsewhere Python
    can't install handlers (ValueError).
    """

    def __init__(self, sigint: Request = Request.STOP, sighup: Request = Request.SNAPSHOT) -> None:
        self._effects: dict[int, Request] = {signal.SIGINT: sigint}
        if hasattr(signal, "SIGHUP"):  # Windows has none
            self._effects[signal.SIGHUP] = sighup
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
        if request is not Request.NONE:
            self._pending.add(request)
