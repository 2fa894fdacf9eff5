"""Batches read ahead are those that would have been read without, whatever comes between."""

from __future__ import annotations

import copy
import json
import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import solver_toy as toy
import torch

import fcnproto
from fcnproto.solver import Request, Solver

SHUFFLED = {"test_iter": [2], "test_interval": 3, "snapshot": 4, "display": 1, "iter_size": 2, "average_loss": 3}


def solver_of(folder: Path, ahead: bool) -> Solver:
    solver = Solver(folder / "solver.prototxt", device="cpu")
    solver.engine.feeder.reads_ahead = ahead
    return solver


def parameters(solver: Solver) -> list[torch.Tensor]:
    return [entry.tensor.detach().clone() for entry in solver.net.learnable]


def assert_equal(ours: Solver, reference: Solver) -> None:
    assert ours.losses == reference.losses
    for a, b in zip(parameters(ours), parameters(reference), strict=True):
        assert torch.equal(a, b)


def asked(solver: Solver) -> Request:
    return {2: Request.SNAPSHOT, 5: Request.STOP}.get(solver.iter, Request.NONE)


class Watcher:
    """Which threads read while a solver runs."""

    def __init__(self, solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[str] = []
        layer = solver.net.layer("src")
        before = type(layer).forward

        def forward(its: Any) -> Any:
            if its is layer:
                self.threads.append(threading.current_thread().name)
            return before(its)

        monkeypatch.setattr(type(layer), "forward", forward)


def test_batches_and_lines_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    toy.write(tmp_path, **SHUFFLED)
    lines, solvers = [], []
    for ahead in (False, True):
        solver = solver_of(tmp_path, ahead)
        solvers.append(solver)
        watcher = Watcher(solver, monkeypatch)
        caplog.clear()
        with caplog.at_level(logging.INFO, "fcnproto.solver"):
            solver.step(5)
            solver.step(4)
        lines.append([record.getMessage().split("(")[0] for record in caplog.records])
        read_ahead = sum(name.startswith("read ahead") for name in watcher.threads)
        # Of 18 passes the first of a step, and the first after a test or a snapshot, are read when they are wanted.
        assert len(watcher.threads) == 18 and read_ahead == (12 if ahead else 0)
    assert_equal(*solvers)
    assert lines[0] == lines[1] and any("Iteration 8, lr" in line for line in lines[0])


def test_what_is_asked_for_on_the_way(tmp_path: Path) -> None:
    """A snapshot that a signal wants, and an end, come when the next batch has been read already."""
    toy.write(tmp_path, max_iter=20)
    found = {}
    for ahead in (False, True):
        solver = solver_of(tmp_path, ahead)
        solver.request = partial(asked, solver)
        solver.step(10)
        assert solver.iter == 5 and not solver.engine.feeder._ahead
        found[ahead] = (tmp_path / "snap_iter_2.resume.json").read_text(), solver
        solver.request = lambda: Request.NONE
        solver.step(3)
    states = [json.loads(text)["workers"] for text, _ in found.values()]
    assert states[0] == states[1]
    assert_equal(found[True][1], found[False][1])
    again = solver_of(tmp_path, True)
    again.restore(tmp_path / "snap_iter_2.solverstate")
    again.step(3)
    assert again.losses == found[True][1].losses[2:5]


def test_layers_that_may_not(tmp_path: Path) -> None:
    """One that somebody watches, one of a user's own, and all of them where the pass is traced."""
    toy.write(tmp_path, shuffle=False)
    solver = solver_of(tmp_path, True)
    seen: list[str] = []
    handle = solver.net.layer("src").register_forward_hook(lambda *_: seen.append(threading.current_thread().name))
    solver.step(3)
    handle.remove()
    assert seen == ["MainThread"] * 3 and not solver.engine.feeder._ahead

    class Own(type(solver.net.layer("src"))):  # type: ignore[misc]
        pass

    solver.net.layer("src").__class__ = Own
    solver.engine.feeder.goes_on = True
    solver.engine.forward({})
    assert not solver.engine.feeder._ahead
    assert not fcnproto.layers.registry.lookup("MemoryData").may_read_ahead  # type: ignore[attr-defined]
    assert not fcnproto.layers.registry.lookup("DummyData").may_read_ahead  # type: ignore[attr-defined]


def test_what_can_not_be_read_is_told_when_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write(tmp_path)
    solver = solver_of(tmp_path, True)
    layer = solver.net.layer("src")
    before, count = type(layer).forward, [0]

    def forward(its: Any) -> Any:
        count[0] += 1
        if count[0] == 3:
            raise fcnproto.DataError("the disk is gone")
        return before(its)

    monkeypatch.setattr(type(layer), "forward", forward)
    with pytest.raises(fcnproto.DataError, match="the disk is gone"):
        solver.step(5)
    assert solver.iter == 2
    solver.step(1)  # the layer stands where it stood
    copy.deepcopy(solver.net)
