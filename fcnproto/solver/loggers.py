"""Who else is told of a training: tables, TensorBoard, and whatever takes numbers as Weights & Biases does.

`Solver(..., loggers=[...])` takes any of these, and any callable or object that `as_listener` can make one of.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnproto.errors import UsageError
from fcnproto.escaping import printable
from fcnproto.solver.listeners import Listener
from fcnproto.solver.log import LONGEST_NAME
from fcnproto.solver.progress import LogFolder

if TYPE_CHECKING:
    from fcnproto.solver.solver import Solver


class CSVLogger(LogFolder):
    """`train.csv` and `test.csv` in a folder: a row for each iteration, and for each value of a test."""

    with_board = False


class TensorBoardLogger(LogFolder):
    """TensorBoard's events in a folder. `UsageError` without the package."""

    with_tables = False

    def __init__(self, folder: Path | str) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UsageError(
                "TensorBoardLogger needs the package tensorboard; install it with: pip install 'fcnproto[tensorboard]'"
            )
        super().__init__(folder)


class Calls(Listener):
    """Calls `log({"train/loss": 0.5, ...}, step=iteration)`, as `wandb.log` is called."""

    def __init__(self, log: Callable[..., Any]) -> None:
        self.log = log

    def iterated(self, solver: Solver, iteration: int, loss: float, smoothed: float) -> None:
        """The loss, the smoothed loss and the rate of an iteration."""
        self.log({"train/loss": loss, "train/smoothed_loss": smoothed, "train/lr": solver.lr}, step=iteration)

    def tested(self, solver: Solver, index: int, scores: Mapping[str, list[float]]) -> None:
        """The outputs of a test; of those with several elements each by its place."""
        found: dict[str, float] = {}
        for name, values in scores.items():
            title = f"test{index}/{printable(name, LONGEST_NAME)}"
            found |= {title if len(values) == 1 else f"{title}/{place}": value for place, value in enumerate(values)}
        self.log(found, step=solver.iter)


def as_listener(logger: Any) -> Listener:
    """A listener as it is; of a callable, or an object with a method `log` (a run of wandb), one that calls it.

    Raises `UsageError` for anything else."""
    if isinstance(logger, Listener):
        return logger
    log = getattr(logger, "log", logger)
    if not callable(log):
        raise UsageError(
            f"loggers: a {type(logger).__name__} is none; give a Listener, or what is called as log(values, step=...)"
        )
    return Calls(log)
