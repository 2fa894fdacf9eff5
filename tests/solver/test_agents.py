"""Training over two torchrun agents that find each other by c10d: lost workers and agents, started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import solver_toy as toy
import torch

from fcnproto.solver import Solver

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240
FIRST, SECOND = "127.0.0.1", "127.0.0.2"

RUN = """
import os, signal, sys
from pathlib import Path
from fcnproto.cli._main import main
from fcnproto.solver import Solver, distributed

obey, folder = Solver.obey, Path(__file__).parent

def once(name):
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def obeying(self, testing=False):
    if os.environ["KILLED"]:
        if self.iter == 4 and once("worker-killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.iter == 8 and once("agent-killed"):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    obey(self, testing)

Solver.obey = obeying
sys.exit(main(["train", "--solver", "solver.prototxt", "--device", "cpu", "--no-plot"]))
"""


def agent(folder: Path, address: str, port: int, killed: bool, restarts: int) -> subprocess.Popen[str]:
    """One agent of two, each with one worker, in a process group of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else an agent started anew waits for an address told once
        "KILLED": "1" if killed else "",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "toy"]
    command += ["--max-restarts", str(restarts), "--local-addr", address, "run.py"]
    with open(folder / f"log-{address}", "a") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )


def two(folder: Path, port: int, killed: bool, restarts: int) -> list[subprocess.Popen[str]]:
    """Two agents; the first one, which keeps the meeting point, is there before the second, which may be killed."""
    first = agent(folder, FIRST, port, False, restarts)
    deadline = time.time() + PATIENCE
    while time.time() < deadline and first.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    return [first, agent(folder, SECOND, port, killed, restarts)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def end(agents: list[subprocess.Popen[str]]) -> None:
    """End agents that still run; each ends its workers."""
    for one in agents:
        one.terminate()
    for one in agents:
        with suppress(subprocess.TimeoutExpired):
            one.wait(60)
        one.kill()


def weights(folder: Path, iteration: int) -> list[torch.Tensor]:
    solver = Solver(folder / "solver.prototxt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Caffe forgets was written for two workers, not for this one
        solver.restore(folder / f"snap_iter_{iteration}.solverstate")
    return [entry.tensor.detach() for entry in solver.net.learnable] + solver.optimizer.history


def prepared(folder: Path) -> Path:
    folder.mkdir()
    toy.write(folder, type="Adam", max_iter=10, snapshot=3)
    (folder / "run.py").write_text(RUN)
    return folder


def test_a_lost_worker_and_a_lost_agent_change_nothing(tmp_path: Path) -> None:
    whole, broken = prepared(tmp_path / "whole"), prepared(tmp_path / "broken")
    port = free_port()
    agents = two(whole, port, False, 0)
    try:
        assert [one.wait(PATIENCE) for one in agents] == [0, 0], (whole / f"log-{FIRST}").read_text()
    finally:
        end(agents)

    port = free_port()
    agents = two(broken, port, True, 3)
    try:
        deadline = time.time() + PATIENCE
        while not (broken / "agent-killed").exists() and time.time() < deadline:
            assert agents[0].poll() is None, (broken / f"log-{FIRST}").read_text()
            time.sleep(0.2)
        assert agents[1].wait(PATIENCE) == -signal.SIGKILL
        agents.append(agent(broken, SECOND, port, True, 3))
        assert [agents[0].wait(PATIENCE), agents[2].wait(PATIENCE)] == [0, 0], (broken / f"log-{FIRST}").read_text()
    finally:
        end(agents)
    for ours, reference in zip(weights(broken, 10), weights(whole, 10), strict=True):
        assert torch.equal(ours, reference)
    log = "".join((broken / f"log-{address}").read_text() for address in (FIRST, SECOND))
    assert log.count("Restoring iteration 3 from") == 1 and log.count("Restoring iteration 6 from") == 1  # rank 0 tells
    assert not list(broken.glob(".*tmp"))


def test_without_restarts_a_lost_worker_ends_all_with_a_word(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "lost")
    port = free_port()
    agents = two(folder, port, True, 0)
    try:
        assert all(one.wait(PATIENCE) != 0 for one in agents)
    finally:
        end(agents)
    log = "".join((folder / f"log-{address}").read_text() for address in (FIRST, SECOND))
    assert log.count("fcnproto: error: another worker has ended or can't be reached") == 1
    assert "Traceback" not in log.partition("fcnproto: error: another worker")[0]
