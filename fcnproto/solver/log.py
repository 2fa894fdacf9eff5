"""Caffe's log lines, so that what reads Caffe's logs reads these: the format of a line, and the figures shown in it.

Lines go through `logging` (logger "fcnproto.solver", level INFO). Not for the live display: that is `progress`.
"""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from torch import Tensor

from fcnproto.escaping import printable

LONGEST_NAME = 200
"""Characters of a blob's name in a line."""
LOGGER = logging.getLogger("fcnproto.solver")


class CaffeFormatter(logging.Formatter):
    """glog's format: `I0731 14:05:09.123456  4711 solver.py:88] message`; names are printable."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created)
        where = f"{record.process or 0:5d} {record.filename}:{record.lineno}"
        return f"{record.levelname[0]}{moment:%m%d %H:%M:%S.%f} {where}] {printable(record.getMessage())}"


def log_to(stream: TextIO | None = None) -> logging.Handler:
    """Send the lines to a stream (stderr, as Caffe does); returns the handler, for `LOGGER.removeHandler`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(CaffeFormatter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    return handler


def figure(value: float) -> str:
    """A number with six digits, as C++ streams write it."""
    return f"{value:g}"


def output_lines(kind: str, outputs: Mapping[str, Any], weights: Mapping[str, float]) -> Iterator[str]:
    """One line for each element of each output blob; with the weighted value where the blob has a loss weight.

    `kind` is "Train" or "Test".
    """
    number = 0
    for name, value in outputs.items():
        weight = weights.get(name, 0.0)
        elements = value.detach().double().flatten().tolist() if isinstance(value, Tensor) else list(value)
        for element in elements:
            loss = f" (* {figure(weight)} = {figure(weight * element)} loss)" if weight else ""
            yield f"    {kind} net output #{number}: {printable(name, LONGEST_NAME)} = {figure(element)}{loss}"
            number += 1


class LossWindow:
    """Caffe's smoothed loss: a running mean up to `size` losses, then a ring in which each replaces the oldest.

    Starts afresh with each call of `step`; `start` is the iteration it began with.
    """

    def __init__(self, size: int, start: int, losses: list[float] | None = None, smoothed: float = 0.0) -> None:
        self.size, self.start, self.losses, self.smoothed = size, start, losses or [], smoothed

    def add(self, loss: float, iteration: int) -> float:
        """Take in the loss of an iteration; returns the smoothed loss."""
        if len(self.losses) < self.size:
            self.losses.append(loss)
            self.smoothed += (loss - self.smoothed) / len(self.losses)
        else:
            place = (iteration - self.start) % self.size
            self.smoothed += (loss - self.losses[place]) / self.size
            self.losses[place] = loss
        return self.smoothed

    def state(self) -> dict[str, Any]:
        """What `LossWindow(**state)` takes."""
        return {"size": self.size, "start": self.start, "losses": list(self.losses), "smoothed": self.smoothed}


class Pace:
    """The speed between two displays."""

    def __init__(self, iteration: int) -> None:
        self.restart(iteration)

    def restart(self, iteration: int) -> None:
        """Begin to measure at this iteration."""
        self._iteration, self._time = iteration, time.perf_counter()

    def lap(self, iteration: int, display: int) -> str:
        """Caffe's figures since the last call, `(8.5 iter/s, 2.35s/20 iters)`."""
        seconds = time.perf_counter() - self._time
        rate = (iteration - self._iteration) / seconds if seconds > 0 else 1.0
        self.restart(iteration)
        return f"({figure(rate)} iter/s, {figure(seconds)}s/{display} iters)"
