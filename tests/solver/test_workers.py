"""Two workers on CPUs: the same parameters as one process with their batches together; one writer; agreement on requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import solver_toy as toy
import torch

from fcnproto.errors import UsageError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse_file, write_message
from fcnproto.solver import Solver, distributed

ROOT = Path(__file__).resolve().parents[2]


def torchrun(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2` with a program's arguments, in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def weights(folder: Path, iteration: int) -> list[torch.Tensor]:
    solver = Solver(folder / "solver.prototxt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Caffe forgets was written for two workers, not for this one
        solver.restore(folder / f"snap_iter_{iteration}.solverstate")
    return [entry.tensor.detach() for entry in solver.net.learnable] + solver.optimizer.history


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
    return tmp_path / "two", tmp_path / "one"


@pytest.mark.filterwarnings("ignore:solver. gamma not used")
def test_two_workers_are_one_with_both_batches(folders: tuple[Path, Path]) -> None:
    """In order, worker r of 2 reads every second row: two batches of 4 rows are the rows of one batch of 8."""
    two, one = folders
    fields = {"max_iter": 5, "weight_decay": 0.01, "clip_gradients": 0.5, "iter_size": 2, "display": 1}
    fields |= {"test_iter": [2, 1], "test_interval": 2, "snapshot": 2, "gamma": 0.5}
    for folder in folders:
        toy.write(folder, shuffle=False, extra="", **fields)
    Solver(two / "solver.prototxt").net.save(two / "start.caffemodel")
    for folder in folders:
        param = parse_file(folder / "solver.prototxt", caffe_pb2.SolverParameter)
        param.weights.append(str(two / "start.caffemodel"))
        write_message(folder / "solver.prototxt", param)
    net = one / "net.prototxt"
    net.write_text(net.read_text().replace("batch_size: 4", "batch_size: 8"))
    Solver(one / "solver.prototxt").solve()
    result = torchrun(two, "-m", "fcnproto", "train", "--solver", "solver.prototxt", "--device", "cpu", "--no-plot")
    assert result.returncode == 0, result.stderr
    for ours, reference in zip(weights(two, 5), weights(one, 5), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
    lines = [line for line in result.stderr.splitlines() if "Iteration 3, lr" in line]
    assert len(lines) == 1  # rank 0 alone prints, tests and writes
    tested = [line.split("] ")[1] for line in result.stderr.splitlines() if "Testing net" in line]
    assert tested == [f"Iteration {iteration}, Testing net (#{net})" for iteration in (0, 2, 4) for net in (0, 1)]
    assert result.stderr.count("gamma not used") == 1
    assert sorted(path.name for path in two.glob("snap_iter_*.solverstate")) == [
        f"snap_iter_{iteration}.solverstate" for iteration in (2, 4, 5)
    ]
    assert not [path.name for path in two.iterdir() if path.name.startswith(".")]
    stored = json.loads((two / "snap_iter_5.resume.json").read_text())
    assert len(stored["workers"]) == 2
    assert stored["workers"][0]["random"] != stored["workers"][1]["random"]


@pytest.mark.slow
def test_workers_resume_exactly(folders: tuple[Path, Path]) -> None:
    whole, parts = folders
    for folder in folders:
        toy.write(folder, type="Adam", max_iter=6)
    command = ("-m", "fcnproto", "train", "--solver", "solver.prototxt", "--device", "cpu", "--no-plot")
    assert torchrun(whole, *command).returncode == 0
    assert torchrun(parts, *command, "--iterations", "3").returncode == 0
    assert torchrun(parts, *command, "--snapshot", "snap_iter_3.solverstate").returncode == 0
    for ours, reference in zip(weights(parts, 6), weights(whole, 6), strict=True):
        assert torch.equal(ours, reference)


SCRIPT = """
import os, signal, sys
import torch
from fcnproto.solver import Solver, Listener, distributed
from fcnproto.solver.signals import SignalRequests

with distributed.worker_group("cpu") as device, SignalRequests() as signals:
    solver = Solver("solver.prototxt", device=device)
    solver.request = signals
    # Only worker 1 is told to stop, in its third iteration: both must end after the same one.
    solver.add_callback(
        lambda: os.kill(os.getpid(), signal.SIGINT) if distributed.rank() == 1 and solver.iter == 2 else None,
        lambda: None,
    )
    solver.solve()
    with open(f"ended-{distributed.rank()}", "w") as file:
        file.write(str(solver.iter))
"""


def test_workers_stop_together(folders: tuple[Path, Path]) -> None:
    folder, _ = folders
    toy.write(folder, max_iter=10, test_iter=[2], test_interval=2)
    (folder / "run.py").write_text(SCRIPT)
    result = torchrun(folder, "run.py")
    assert result.returncode == 0, result.stderr
    assert [(folder / f"ended-{rank}").read_text() for rank in range(2)] == ["3", "3"]
    assert (folder / "snap_iter_3.solverstate").exists()


FAILURES = """
import os, signal
from pathlib import Path
import torch
from fcnproto.errors import SolverError
from fcnproto.solver import DivergedError, Solver, distributed

def note(name, text):
    Path(f"{name}-{distributed.rank()}").write_text(text)

try:
    with distributed.worker_group("cpu") as device:
        rank = distributed.rank()
        solver = Solver("solver.prototxt", device=device)
        solver.step(2)
        data = torch.full((4, 2, 6, 6), float("nan") if rank == 1 else 1.0)
        try:
            solver.step(1, data=data, label=torch.zeros(4))
        except DivergedError as error:
            note("diverged", str(error))
        if rank == 0:
            (Path("snap_iter_2.caffemodel") / "in the way").mkdir(parents=True)
        try:
            solver.snapshot()
        except OSError as error:
            note("unwritten", str(error))
        if rank == 1:
            solver.add_callback(lambda: None, lambda: os.kill(os.getpid(), signal.SIGKILL))
        solver.step(5)
except SolverError as error:
    note("alone", str(error))
    raise
"""


def test_workers_fail_together(folders: tuple[Path, Path]) -> None:
    """What one worker can't go on from is said by all; one that dies takes the others with it instead of hanging them."""
    folder, _ = folders
    toy.write(folder)
    (folder / "run.py").write_text(FAILURES)
    result = torchrun(folder, "run.py")
    assert result.returncode != 0
    assert [path.name for path in sorted(folder.glob("diverged-*"))] == ["diverged-0", "diverged-1"]
    messages = [(folder / f"diverged-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "the loss is nan; it began in input 'data'" in messages[0]
    messages = [(folder / f"unwritten-{rank}").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and "snap_iter_2.caffemodel" in messages[0]
    assert not list(folder.glob("*.solverstate"))
    if (folder / "alone-0").exists():  # unless torchrun was quicker to end it
        assert "another worker has ended" in (folder / "alone-0").read_text()


def test_sigint_and_sighup_of_the_command_line(tmp_path: Path) -> None:
    """SIGHUP: a snapshot and on; SIGINT: a snapshot and an end with status 0."""
    toy.write(tmp_path, max_iter=100000, display=1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fcnproto", "train", "--solver", "solver.prototxt", "--log-dir", "log"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen: list[str] = []
    sent = 0
    for line in process.stderr:
        seen.append(line)
        if "Iteration" in line and "lr =" in line and sent == 0:
            process.send_signal(signal.SIGHUP)
            sent = 1
        elif "Snapshotting solver state" in line and sent == 1:
            process.send_signal(signal.SIGINT)
            sent = 2
    assert process.wait(60) == 0, "".join(seen)
    states = sorted(tmp_path.glob("*.solverstate"))
    assert len(states) == 2
    assert any("Optimization stopped early" in line for line in seen)
    table = np.genfromtxt(tmp_path / "log" / "train.csv", delimiter=",", names=True)
    assert list(table["iteration"]) == list(range(len(table))) and np.isfinite(table["loss"]).all()
    assert (tmp_path / "log" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("local", [0, 1])
@pytest.mark.parametrize("device", [None, "cuda"])
def test_more_workers_than_gpus_are_refused_by_all(
    local: int, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not by the last ones alone, while the first wait for them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("waits for the others"))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match=rf"worker {local} of 2 on this machine: there are not as many GPUs \(1 here\)"),
        distributed.worker_group(device),
    ):
        pass
