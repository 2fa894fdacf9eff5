"""What others may hear from a running solver, and ask of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcnproto.solver.solver import Solver


class Request(enum.Enum):
    """What a signal (or a program) asks of a running solver."""

    NONE = "none"
    STOP = "stop"
    SNAPSHOT = "snapshot"


class Listener:
    """Told by a solver what has happened. Override what is of interest; only rank 0's listeners are told."""

    def started(self, solver: Solver, end: int) -> None:
        """A call of `step` begins; it will go to iteration `end` unless stopped."""

    def iterated(self, solver: Solver, iteration: int, loss: float, smoothed: float) -> None:
        """An iteration is done; the losses belong to the weights before its update."""

    def tested(self, solver: Solver, index: int, scores: Mapping[str, list[float]]) -> None:
        """A test net was run: the mean of every element of its outputs, and with test_compute_loss of "loss"."""

    def snapshotted(self, solver: Solver, path: str) -> None:
        """A snapshot lies complete on the disk; `path` is its solver state."""

    def finished(self, solver: Solver, error: BaseException | None) -> None:
        """A call of `step` has ended, by itself or by an error."""
