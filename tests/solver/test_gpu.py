"""Training on a GPU: recorded trajectories, the updates of many tensors at once, snapshots from and to the CPU."""

from __future__ import annotations

from pathlib import Path

import golden_cases
import pytest
import solver_toy as toy
import torch

import fcnproto
from fcnproto.solver import Options, Solver

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
