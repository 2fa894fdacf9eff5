"""What the processes do that `test_kill` kills. Importing it loads all that they need, for a server to do once."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # noqa: F401
import torch

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.solver import Listener, Solver

# Building a net makes torch load further parts of itself.
NET = 'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 1 dim: 3 dim: 3 } } }'
NET += 'layer { name: "c" type: "Convolution" bottom: "d" top: "c" convolution_param { num_output: 1 kernel_size: 3 } }'
NET += 'layer { name: "i" type: "InnerProduct" bottom: "c" top: "i" inner_product_param { num_output: 1 } }'
fcnproto.load(parse(NET, caffe_pb2.NetParameter))


def newest(folder: Path) -> Path | None:
    """The state of the highest iteration: what a person would resume from."""
    found = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := re.search(r"_iter_(\d+)\.solverstate(\.h5)?$", path.name))
    ]
    return max(found)[1] if found else None


def train(folder: str, kill_at: int | None = None, states: int | None = None, delay: float = 0.0) -> None:
    """Train to the end from the newest state.

    With `kill_at`, kill this process before its so-manyeth file operation; with `states`, `delay` seconds after it has
    written so many snapshots, whatever it is doing then.
    """
    torch.set_num_threads(1)
    if kill_at is not None:
        kill_before_operation(kill_at)
    if states == 0:
        kill_later(delay)
    state = newest(Path(folder))
    solver = Solver(Path(folder) / "solver.prototxt")
    if states:
        solver.listeners.append(KillAfter(states, delay))
    solver.solve(state)


def kill_later(delay: float) -> None:
    """Let a process of its own kill this one, so that no moment is less likely than another."""
    victim = os.getpid()
    if os.fork() == 0:
        time.sleep(delay)
        if os.getppid() == victim:  # not if it has ended by itself
            os.kill(victim, signal.SIGKILL)
        os._exit(0)


class KillAfter(Listener):
    """Kills some time after so many snapshots."""

    def __init__(self, states: int, delay: float) -> None:
        self.states, self.delay = states, delay

    def snapshotted(self, solver: Solver, path: str) -> None:
        self.states -= 1
        if self.states == 0:
            kill_later(self.delay)


def kill_before_operation(number: int) -> None:
    """Count the operations that change what lies in the folder, and die before one of them."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    for name in ("replace", "unlink", "fsync"):
        setattr(os, name, counted(getattr(os, name)))


def replace(folder: str, kill_at: int) -> None:
    torch.set_num_threads(1)
    solver = Solver(Path(folder) / "solver.prototxt")
    solver.step(4)
    os.rename(Path(folder) / "kept", Path(folder) / "snap_iter_4.solverstate")
    kill_before_operation(kill_at)
    solver.snapshot()
