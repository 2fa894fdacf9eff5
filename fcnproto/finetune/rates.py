"""Finding a learning rate: a short training in which it grows from step to step, on a copy of everything."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcnproto.finetune.output import write_files
from fcnproto.finetune.planned import Plan
from fcnproto.solver import Solver

STEPS = 60
_BELOW, _ABOVE = 1e-3, 1e2
"""The range that is tried, as multiples of the optimization's own rate."""
_SMOOTHING, _WORSE, _SETTLING = 0.85, 4.0, 8
_MARGIN = 10.0


@dataclass(frozen=True)
class Trial:
    """What a growing rate did: the `rates` of the steps, the losses smoothed (as far as it went), the rate to take."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    rate: float


def find_rate(made: Plan, told: Callable[[int], None] = lambda step: None, steps: int = STEPS) -> Trial:
    """Train a copy for some steps, from a thousandth of the optimization's rate to a hundredfold of it.

    It ends where the smoothed loss is four times its least, or no number. `made` and its folder stay as they are.
    """
    param = type(made.solver)()
    param.CopyFrom(made.solver)
    lowest = param.base_lr * _BELOW
    growth = (_ABOVE / _BELOW) ** (1 / max(steps - 1, 1))
    param.base_lr, param.lr_policy, param.gamma = lowest, "exp", growth
    param.max_iter, param.display = steps, 0
    with tempfile.TemporaryDirectory(prefix="fcnproto-") as folder:
        copy = replace(made, settings=replace(made.settings, output=Path(folder)), solver=param)
        write_files(copy)
        solver = Solver(Path(folder) / "solver.prototxt", device=made.settings.device, **made.base.reading)
        losses = list[float]()
        running = 0.0
        for step in range(steps):
            solver.step(1)
            running = _SMOOTHING * running + (1 - _SMOOTHING) * solver.losses[-1]
            losses.append(running / (1 - _SMOOTHING ** (step + 1)))
            told(step + 1)
            if not math.isfinite(losses[-1]) or (step >= _SETTLING and losses[-1] > _WORSE * min(losses)):
                break
    rates = [lowest * growth**step for step in range(len(losses))]
    return Trial(tuple(rates), tuple(losses), choose(rates, losses))


def choose(rates: Sequence[float], losses: Sequence[float]) -> float:
    """A tenth of the rate at which the smoothed loss was least: there it falls still, with room to where it rises.

    Where it never fell, that is a tenth of the rate at which it began to rise.
    """
    finite = np.nan_to_num(np.array(losses), nan=np.inf, posinf=np.inf)
    # The first steps say more of their images than of the rate.
    first = min(_SETTLING, len(finite) - 1)
    return float(rates[first + int(finite[first:].argmin())] / _MARGIN)
