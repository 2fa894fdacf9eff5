"""Two runs under one snapshot prefix, and how signals end a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import solver_toy as toy

import fcnproto
from fcnproto.cli._main import main
from fcnproto.solver import Request, Solver, locking
from fcnproto.solver.signals import SignalRequests

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and locks as POSIX has them")


def training(path: Path) -> subprocess.Popen[str]:
    """`fcnproto train` in a process of its own, which has written a snapshot."""
    command = [sys.executable, "-m", "fcnproto", "train", "--solver", str(path), "--no-plot"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(path.parent.glob("snap_iter_*.solverstate")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_the_second_run_is_told_who_holds_the_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = toy.write(tmp_path, snapshot=20, max_iter=10**6)
    first = training(path)
    try:
        assert main(["train", "--solver", str(path), "--no-plot", "--iterations", "1"]) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"another run writes these snapshots (process {first.pid} on {socket.gethostname()} since 20" in told
        solver = Solver(path)
        solver.step(1)
        with pytest.raises(fcnproto.SolverError, match=f"process {first.pid} on"):
            solver.snapshot()
    finally:
        first.send_signal(signal.SIGTERM)
        err = first.communicate(timeout=60)[1]
    assert first.returncode == 0 and "Optimization stopped early." in err
    states = [int(state.name.split("_")[2].split(".")[0]) for state in tmp_path.glob("snap_iter_*.solverstate")]
    assert f"Snapshotting solver state to binary proto file {tmp_path}/snap_iter_{max(states)}.solverstate" in err
    assert not list(tmp_path.glob(".*"))
    solver.snapshot()  # now it is free
    Solver(path).restore("latest")


def test_a_dead_runs_lock_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy.write(tmp_path, snapshot=20, max_iter=10**6)
    first = training(path)
    first.kill()
    first.communicate(timeout=60)
    lock = tmp_path / ".snap.lock"
    assert json.loads(lock.read_text())["process"] == first.pid
    solver = Solver(path)
    solver.snapshot()
    assert json.loads(lock.read_text())["process"] == os.getpid()
    del solver
    assert not lock.exists()
    lock.write_text("{" * 10_000)  # damaged, and nobody has it
    other = Solver(path)
    other.snapshot()
    del other

    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locking.fcntl, "lockf", refuse)  # a file system without locks
    holders = {first.pid: None, os.getppid(): f"process {os.getppid()} on"}
    for process, told in holders.items():
        lock.write_text(json.dumps({"host": socket.gethostname(), "process": process}))
        solver = Solver(path)
        if told is None:
            solver.snapshot()
            del solver
        else:
            with pytest.raises(fcnproto.SolverError, match=told):
                solver.snapshot()


def test_solvers_of_one_process_share_a_prefix(tmp_path: Path) -> None:
    path = toy.write(tmp_path, max_iter=2)
    first, second = Solver(path), Solver(path)
    first.snapshot()
    second.snapshot()
    del first
    assert (tmp_path / ".snap.lock").exists()
    second.solve()
    assert not (tmp_path / ".snap.lock").exists()


def test_signals_as_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with SignalRequests(sigint=Request.NONE) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() is Request.STOP and asked() is Request.NONE
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert asked() is Request.NONE
    with SignalRequests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # some systems repeat it
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() is Request.STOP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with SignalRequests() as asked:
        for _ in range(2):  # from the terminal and from torchrun
            os.kill(os.getpid(), signal.SIGINT)
        assert asked() is Request.STOP


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom fcnproto.cli import _main\nfrom fcnproto.solver import Solver\n"
        "update = Solver.apply_update\n"
        "def slow(solver):\n    print('in it', flush=True)\n    time.sleep(60)\n    update(solver)\n"
        "Solver.apply_update = slow\nsys.exit(_main.main(['train', '--solver', sys.argv[1], '--no-plot']))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    command = [sys.executable, "-c", code, str(toy.write(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in it\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        for _ in range(50):  # on a busy machine two may arrive as one
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                break
        assert process.poll() in (130, -signal.SIGINT)  # the latter by one that comes as the process ends
    assert not list(tmp_path.glob("*iter*")) and not list(tmp_path.glob(".*"))
