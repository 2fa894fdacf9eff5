"""Training over two torchrun agents that find each other by c10d: lost workers and agents, started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import solver_toy as toy
import torch

from fcnproto.solver import Solver

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240

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


@dataclass(frozen=True)
class Host:
    """Where an agent runs: what its command begins with, its address, and the interface that has it."""

    prefix: tuple[str, ...]
    address: str
    interface: str


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts: network namespaces with a cable between them where these can be made, else two loopback addresses."""
    names = [f"fcnproto-{os.getpid()}-{number}" for number in (1, 2)]
    ends = [Host(("ip", "netns", "exec", name), f"10.77.0.{k}", "eth0") for k, name in enumerate(names, 1)]
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"]
    for name, end in zip(names, ends, strict=True):
        commands += [f"-n {name} addr add {end.address}/24 dev eth0"]
        commands += [f"-n {name} link set {interface} up" for interface in ("eth0", "lo")]
    try:
        made = shutil.which("ip") is not None and all(
            subprocess.run(["ip", *command.split()], capture_output=True, check=False).returncode == 0
            for command in commands
        )
        yield (ends[0], ends[1]) if made else (Host((), "127.0.0.1", "lo"), Host((), "127.0.0.2", "lo"))
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def agent(folder: Path, host: Host, meeting: str, killed: bool, restarts: int) -> subprocess.Popen[str]:
    """One agent of two, with one worker."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": host.interface,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else an agent started anew waits for an address told once
        "KILLED": "1" if killed else "",
    }
    command = [*host.prefix, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", "toy"]
    # A namespace's own address is none of those that the machine's name stands for: say who keeps the place.
    keeps = int(meeting.startswith(f"{host.address}:"))
    command += ["--rdzv-conf", f"is_host={keeps}"]
    command += ["--max-restarts", str(restarts), "--local-addr", host.address, "run.py"]
    with open(folder / f"log-{host.address}", "a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)


def two(folder: Path, hosts: tuple[Host, Host], killed: bool, restarts: int) -> tuple[list[subprocess.Popen[str]], str]:
    """Two agents, and where they meet; the first one, which keeps that place, is there before the second."""
    meeting = f"{hosts[0].address}:{free_port()}"
    first = agent(folder, hosts[0], meeting, False, restarts)
    reaching = [*hosts[1].prefix, "bash", "-c", f"exec 3<>/dev/tcp/{meeting.replace(':', '/')}"]
    deadline = time.time() + PATIENCE
    while time.time() < deadline and first.poll() is None:
        if subprocess.run(reaching, capture_output=True, check=False).returncode == 0:
            break
        time.sleep(0.2)
    return [first, agent(folder, hosts[1], meeting, killed, restarts)], meeting


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("log-*")))


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


def test_a_lost_worker_and_a_lost_agent_change_nothing(tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    whole, broken = prepared(tmp_path / "whole"), prepared(tmp_path / "broken")
    agents, _ = two(whole, hosts, False, 0)
    try:
        assert [one.wait(PATIENCE) for one in agents] == [0, 0], log_of(whole)
    finally:
        end(agents)

    agents, meeting = two(broken, hosts, True, 3)
    try:
        assert agents[1].wait(PATIENCE) == -signal.SIGKILL, log_of(broken)
        agents.append(agent(broken, hosts[1], meeting, True, 3))
        assert [agents[0].wait(PATIENCE), agents[2].wait(PATIENCE)] == [0, 0], log_of(broken)
    finally:
        end(agents)
    for ours, reference in zip(weights(broken, 10), weights(whole, 10), strict=True):
        assert torch.equal(ours, reference)
    log = log_of(broken)
    assert log.count("Restoring iteration 3 from") == 1 and log.count("Restoring iteration 6 from") == 1  # rank 0 tells
    assert not list(broken.glob(".*tmp"))


def test_without_restarts_a_lost_worker_ends_all_with_a_word(tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    folder = prepared(tmp_path / "lost")
    agents, _ = two(folder, hosts, True, 0)
    try:
        assert all(one.wait(PATIENCE) != 0 for one in agents)
    finally:
        end(agents)
    log = log_of(folder)
    assert log.count("fcnproto: error: another worker has ended or can't be reached") == 1
    assert "Traceback" not in log.partition("fcnproto: error: another worker")[0]
