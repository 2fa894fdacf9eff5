"""Training on a GPU: recorded trajectories, the updates of many tensors at once, snapshots from and to the CPU."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import golden_cases
import pytest
import solver_toy as toy
import torch
from gpu_waits import waits

import fcnproto
from fcnproto.solver import DivergedError, Options, Solver

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.mark.parametrize("name", [name for name in golden_cases.names("solver") if name != "fcn32s_heavy"])
def test_trajectory(name: str) -> None:
    case = golden_cases.load("solver", name)
    solver = fcnproto.Solver(case.folder / "solver.prototxt", device="cuda")
    golden_cases.set_params(solver.net, case.keys("param"))
    solver.net.set_input_arrays(case.arrays["memory.data"], case.arrays["memory.label"])
    for iteration in range(1, case.facts["iterations"] + 1):
        solver.step(1)
        for key, value in case.keys(f"iter.{iteration}.param").items():
            layer, index = key.rsplit(".", 1)
            golden_cases.assert_close(solver.net.params[layer][int(index)], value, 1e-4, f"{key} after {iteration}")


def test_a_run_moves_between_devices(tmp_path: Path) -> None:
    path = toy.write(tmp_path, type="Adam", extra="", shuffle=False)
    on_cpu = Solver(path, device="cpu")
    on_cpu.step(6)
    on_gpu = Solver(path, device="cuda")
    on_gpu.step(3)
    state = on_gpu.snapshot()
    again = Solver(path, device="cpu")
    again.restore(state)
    again.step(3)
    for ours, reference in zip(again.net.learnable, on_cpu.net.learnable, strict=True):
        torch.testing.assert_close(ours.tensor, reference.tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_other_precisions_train(precision: str, tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, max_iter=30), device="cuda", options=Options(precision, channels_last=True))
    solver.step(30)
    assert sum(solver.losses[-6:]) < sum(solver.losses[:6])
    fcnproto.load(tmp_path / "net.prototxt", phase="train").copy_from(
        solver.snapshot().replace("solverstate", "caffemodel")
    )


def test_resume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    path = toy.write(tmp_path)
    whole = Solver(path, device="cuda")
    whole.step(8)
    first = Solver(path, device="cuda")
    first.step(4)
    state = first.snapshot()  # before another solver draws: random numbers have one state a process
    second = Solver(path, device="cuda")
    second.restore(state)
    second.step(4)
    for ours, reference in zip(second.net.learnable, whole.net.learnable, strict=True):
        assert torch.equal(ours.tensor, reference.tensor)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"display": 1, "average_loss": 3}, {}),
        ({"type": "Adam", "clip_gradients": 1, "iter_size": 2, "weight_decay": 0.1}, {}),
        ({}, {"precision": "fp16"}),
        ({}, {"precision": "bf16"}),
        ({}, {"optimize": True}),
    ],
)
def test_no_iteration_waits_for_the_gpu(
    fields: dict[str, Any], options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = toy.write(tmp_path, **fields)
    solver = Solver(path, device="cuda", options=Options(**options))
    with caplog.at_level(logging.INFO, "fcnproto.solver"):
        solver.step(2)
        with waits() as found:
            solver.step(5)
    assert not found and len(solver.losses) == 7 * fields.get("iter_size", 1)
    if not options:
        on_cpu = Solver(path, device="cpu")  # dropout draws others there, so the first loss alone is the same
        on_cpu.step(1)
        assert solver.losses[0] == pytest.approx(on_cpu.losses[0], rel=0.5)


def test_batches_are_read_ahead(tmp_path: Path) -> None:
    """The numbers are those of a run that reads each when it is wanted, and so is what a snapshot goes on from."""
    path = toy.write(tmp_path, extra="", snapshot=3, iter_size=2)
    runs = []
    for ahead in (True, False):
        solver = Solver(path, device="cuda")
        solver.engine.feeder.reads_ahead = ahead
        solver.step(8)
        runs.append((solver.losses, (tmp_path / "snap_iter_6.resume.json").read_text()))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    assert json.loads(runs[0][1])["workers"][0]["net"] == json.loads(runs[1][1])["workers"][0]["net"]


def test_lines_are_those_of_the_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = toy.write(tmp_path, extra="", shuffle=False, display=1, test_iter=[2], test_interval=3, lr_policy="step",
                     gamma=0.5, stepsize=2)  # fmt: skip
    lines = []
    for device in ("cpu", "cuda"):
        caplog.clear()
        with caplog.at_level(logging.INFO, "fcnproto.solver"):
            Solver(path, device=device).step(7)
        lines.append([re.sub(r"\(.*?iters\)|\d\.\d+", "", record.getMessage()) for record in caplog.records])
    assert lines[0] == lines[1] and len(lines[0]) > 20


def test_divergence_stops_before_the_weights(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path), device="cuda")
    solver.step(2)
    before = [entry.tensor.detach().clone() for entry in solver.net.learnable]
    with pytest.raises(DivergedError, match=r"iteration 2: the loss is nan; it began in input 'data'"):
        solver.step(1, data=torch.full((4, 2, 6, 6), float("nan")), label=torch.zeros(4))
    assert all(torch.equal(a, entry.tensor) for a, entry in zip(before, solver.net.learnable, strict=True))
