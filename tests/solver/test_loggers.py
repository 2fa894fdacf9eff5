"""Loggers of a solver: tables, TensorBoard, and what takes numbers as Weights & Biases does."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import solver_toy as toy

import fcnproto
from fcnproto.solver import CSVLogger, Listener, Solver, TensorBoardLogger


def test_a_callable_and_an_object_that_logs(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    def log(values: dict[str, float], step: int) -> None:
        told.append((step, values))

    class Run:
        def __init__(self) -> None:
            self.seen = 0

        def log(self, values: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
            self.seen += 1

    run = Run()
    solver = Solver(toy.write(tmp_path, test_iter=[2], test_interval=2), loggers=[log, run])
    solver.step(3)
    losses = [values["train/loss"] for _, values in told if "train/loss" in values]
    assert losses == solver.losses and run.seen == len(told)
    assert [step for step, values in told if "test0/accuracy" in values] == [0, 2]
    assert told[-1][1]["train/lr"] == solver.lr


def test_csv(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "log")
    solver = Solver(toy.write(tmp_path), loggers=[logger])
    solver.step(2)
    solver.step(2)
    logger.close()
    with (tmp_path / "log" / "train.csv").open(newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == solver.losses
    assert not list((tmp_path / "log").glob("events*"))


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path / "board")
    solver = Solver(toy.write(tmp_path), loggers=[logger])
    solver.step(3)
    logger.close()
    found = events.EventAccumulator(str(tmp_path / "board")).Reload()
    assert [entry.value for entry in found.Scalars("train/loss")] == pytest.approx(solver.losses)
    assert not list((tmp_path / "board").glob("*.csv"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(fcnproto.UsageError, match=r"needs the package tensorboard; .*fcnproto\[tensorboard\]"):
        TensorBoardLogger(tmp_path)


def test_listeners_and_what_is_none(tmp_path: Path) -> None:
    class Count(Listener):
        done = 0

        def iterated(self, solver: Solver, iteration: int, loss: float, smoothed: float) -> None:
            self.done += 1

    count = Count()
    Solver(toy.write(tmp_path), loggers=[count]).step(2)
    assert count.done == 2
    with pytest.raises(fcnproto.UsageError, match=r"a str is none; give a Listener, or what is called as log"):
        Solver(toy.write(tmp_path), loggers=["wandb"])
