"""Rates against the formulas of Caffe's policies, and the state that `multistep` keeps."""

from __future__ import annotations

import math

import pytest

from fcnproto.errors import SolverError
from fcnproto.schema import caffe_pb2
from fcnproto.solver.policies import LearningRatePolicy


def policy(**fields: object) -> LearningRatePolicy:
    return LearningRatePolicy(caffe_pb2.SolverParameter(base_lr=0.2, **fields))


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"lr_policy": "fixed"}, lambda i: 0.2),
        ({"lr_policy": "step", "gamma": 0.5, "stepsize": 3}, lambda i: 0.2 * 0.5 ** (i // 3)),
        ({"lr_policy": "exp", "gamma": 0.9}, lambda i: 0.2 * 0.9**i),
        ({"lr_policy": "inv", "gamma": 0.1, "power": 0.75}, lambda i: 0.2 * (1 + 0.1 * i) ** -0.75),
        ({"lr_policy": "poly", "power": 1.5, "max_iter": 20}, lambda i: 0.2 * (1 - i / 20) ** 1.5),
        ({"lr_policy": "sigmoid", "gamma": -1.5, "stepsize": 4}, None),
        ({"lr_policy": "sigmoid", "gamma": 1.5, "stepsize": 4}, lambda i: 0.2 / (1 + math.exp(-1.5 * (i - 4)))),
        (
            {"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [2, 5]},
            lambda i: 0.2 * 0.1 ** ((i >= 2) + (i >= 5)),
        ),
        (
            {"lr_policy": "multifixed", "stagelr": [0.3, 0.4, 0.01], "stageiter": [2, 4, 6]},
            lambda i: 0.3 if i <= 2 else 0.4 if i <= 4 else 0.01,
        ),
    ],
)
def test_rates(fields: dict[str, object], rate: object) -> None:
    if rate is None:
        with pytest.raises(SolverError, match="gamma"):
            policy(**fields)
        return
    made = policy(**fields)
    for iteration in range(10):
        assert made(iteration) == pytest.approx(rate(iteration), rel=1e-6)  # type: ignore[operator]


def test_rates_are_float32() -> None:
    assert policy(lr_policy="fixed")(0) == 0.20000000298023224


def test_step_counts_are_part_of_the_state() -> None:
    made = policy(lr_policy="step", gamma=0.5, stepsize=2)
    made(5)
    assert made.current_step == 2


def test_multistep_catches_up_one_step_per_call() -> None:
    made = policy(lr_policy="multistep", gamma=0.1, stepvalue=[1, 2, 2, 3])
    assert [round(made(10) / 0.2, 6) for _ in range(5)] == [0.1, 0.01, 0.001, 0.0001, 0.0001]
    assert made.current_step == 4


def test_plateau_steps_where_the_loss_has_not_fallen_for_long_enough() -> None:
    made = policy(lr_policy="plateau", gamma=0.5, plateau_winsize=[2, 3])
    losses = [5, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3]
    rates = []
    for iteration, loss in enumerate(losses):
        made.smoothed_loss = loss
        assert made.peek(iteration) == made.peek(iteration)
        rates.append(made(iteration) / 0.2)
    # The least loss is of iteration 1: a step at 3; that of iteration 4: a step at 7; no third window, no third step.
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25])
    assert made.state() == (2, 3, 7)


def test_stages_without_their_ends_are_refused() -> None:
    for fields in ({"stagelr": [0.1]}, {"stageiter": [3]}, {}):
        with pytest.raises(SolverError, match="stagelr for"):
            policy(lr_policy="multifixed", **fields)


def test_peek_leaves_the_count() -> None:
    made = policy(lr_policy="multistep", gamma=0.1, stepvalue=[1, 2])
    assert made.peek(7) == pytest.approx(0.02)
    assert made.current_step == 0


def test_overflow_is_infinite_and_poly_beyond_max_iter_is_nan() -> None:
    assert policy(lr_policy="exp", gamma=1e30)(100) == math.inf
    assert math.isnan(policy(lr_policy="poly", power=0.5, max_iter=5)(9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no lr_policy"),
        ({"lr_policy": "cosine"}, "cosine.*choose one of fixed"),
        ({"lr_policy": "step", "gamma": 0.1}, "stepsize"),
        ({"lr_policy": "poly", "power": 1}, "max_iter"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SolverError, match=message):
        policy(**fields)
