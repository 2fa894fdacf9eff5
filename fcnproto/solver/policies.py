"""Learning-rate policies: the rate of each iteration, in float32 as Caffe keeps it.

A policy is a small object with state, because Caffe's `multistep` counts the steps it has passed and goes on by at
most one step each time it is asked, and that count is part of a solver's saved state. Not for momentum or decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fcnproto.errors import SolverError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import suggestion

#: The fields of `SolverParameter` that each policy reads beside `base_lr`.
FIELDS: dict[str, tuple[str, ...]] = {
    "fixed": (),
    "step": ("gamma", "stepsize"),
    "exp": ("gamma",),
    "inv": ("gamma", "power"),
    "multistep": ("gamma", "stepvalue"),
    "poly": ("power", "max_iter"),
    "sigmoid": ("gamma", "stepsize"),
    # Of Caffe's forks: the SSD family's, and the one that YOLO's ports to Caffe use.
    "plateau": ("gamma", "plateau_winsize"),
    "multifixed": ("stagelr", "stageiter"),
}


class LearningRatePolicy:
    """The rate as a function of the iteration (the number of updates done so far, from 0).

    `current_step` is Caffe's field of that name in the solver state: the count of passed steps for `step`,
    `multistep` and `plateau`, else untouched. `plateau` steps once the smoothed loss has not fallen below its least for
    as many iterations as `plateau_winsize` says for that step; whoever trains sets `smoothed_loss` before each call.
    Raises `SolverError` where the policy is unknown or a field it needs is out of range.
    """

    def __init__(self, param: caffe_pb2.SolverParameter, current_step: int = 0) -> None:
        self.param = param
        self.current_step = current_step
        self.smoothed_loss = self.least_loss = math.inf
        self.last_event = 0
        """The iteration of the last least loss, or of the step after it."""
        policies: dict[str, Callable[[int], float]] = {
            "fixed": lambda iteration: 1.0,
            "step": self._step,
            "exp": lambda iteration: math.pow(param.gamma, iteration),
            "inv": lambda iteration: math.pow(1.0 + param.gamma * iteration, -param.power),
            "multistep": self._multistep,
            "poly": self._poly,
            "sigmoid": self._sigmoid,
            "plateau": self._plateau,
            "multifixed": self._multifixed,
        }
        if param.lr_policy not in policies:
            given = f"lr_policy {param.lr_policy!r} is unknown" if param.lr_policy else "the solver gives no lr_policy"
            near = suggestion(param.lr_policy, FIELDS) if param.lr_policy else ""
            raise SolverError(f"{given}{near}; choose one of {', '.join(FIELDS)}")
        self._factor = policies[param.lr_policy]
        self._check()

    def _check(self) -> None:
        param, used = self.param, FIELDS[self.param.lr_policy]
        where = f"lr_policy {param.lr_policy!r}"
        if "gamma" in used and not param.gamma >= 0:
            raise SolverError(f"{where}: gamma must be at least 0, not {param.gamma:g}")
        if "stepsize" in used and param.stepsize <= 0:
            raise SolverError(f"{where}: stepsize must be above 0, not {param.stepsize}")
        if "stagelr" in used and (not param.stagelr or len(param.stagelr) != len(param.stageiter)):
            raise SolverError(
                f"{where}: {len(param.stagelr)} stagelr for {len(param.stageiter)} stageiter; give one for each"
            )
        if "max_iter" in used and param.max_iter <= 0:
            raise SolverError(f"{where}: max_iter must be above 0, not {param.max_iter}")

    def __call__(self, iteration: int) -> float:
        """The rate for `iteration`, rounded to float32; advances `current_step` as Caffe does."""
        try:
            factor = self._factor(iteration)
        except (OverflowError, ValueError):  # what C's pow answers with infinity
            factor = math.inf
        if self.param.lr_policy == "multifixed":
            return float(np.float32(factor))
        return float(np.float32(self.param.base_lr * factor))

    def peek(self, iteration: int) -> float:
        """The rate that a call would give now, without advancing `current_step`."""
        before = self.state()
        try:
            return self(iteration)
        finally:
            self.current_step, self.least_loss, self.last_event = before

    def state(self) -> tuple[int, float, int]:
        """What calls advance: `current_step`, and the least loss of `plateau` with its iteration."""
        return self.current_step, self.least_loss, self.last_event

    def _step(self, iteration: int) -> float:
        self.current_step = iteration // self.param.stepsize
        return math.pow(self.param.gamma, self.current_step)

    def _multistep(self, iteration: int) -> float:
        # One step at a time, so a state without current_step catches up over several iterations, as in Caffe.
        values = self.param.stepvalue
        if self.current_step < len(values) and iteration >= values[self.current_step]:
            self.current_step += 1
        return math.pow(self.param.gamma, self.current_step)

    def _plateau(self, iteration: int) -> float:
        if self.smoothed_loss < self.least_loss:
            self.least_loss, self.last_event = self.smoothed_loss, iteration
        sizes = self.param.plateau_winsize
        if self.current_step < len(sizes) and iteration - self.last_event >= sizes[self.current_step]:
            self.current_step += 1
            self.last_event = iteration
        return math.pow(self.param.gamma, self.current_step)

    def _multifixed(self, iteration: int) -> float:
        """The rate of the first stage that has not ended; a stage's own last iteration counts to it."""
        stages = zip(self.param.stagelr, self.param.stageiter, strict=True)
        return next((rate for rate, end in stages if iteration <= end), self.param.stagelr[-1])

    def _poly(self, iteration: int) -> float:
        base = 1.0 - iteration / self.param.max_iter
        # Beyond max_iter Caffe's pow gives NaN for a fractional power; Python's raises.
        return math.pow(base, self.param.power) if base >= 0 or self.param.power.is_integer() else math.nan

    def _sigmoid(self, iteration: int) -> float:
        exponent = -self.param.gamma * (iteration - self.param.stepsize)
        return 1.0 / (1.0 + math.exp(exponent)) if exponent < 700 else 0.0
