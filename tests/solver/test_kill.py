"""Training processes killed without warning: what they leave can be resumed, to the bits of an undisturbed run."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import solver_toy as toy
from kill_worker import newest, replace, train

from fcnproto.solver import Solver, resume

# Processes come from a server that has torch loaded already, so that each starts in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kill_worker"])
FIELDS: dict[str, Any] = {"type": "Adam", "snapshot": 2, "max_iter": 14, "test_iter": [1], "test_interval": 3}
LAST = "snap_iter_14.solverstate"
Pair = tuple[list[bytes], list[bytes]]


def run(folder: Path, kill_at: int | None = None, kill_after: float | None = None) -> int | None:
    """One training process; gives its exit code (-SIGKILL if it was killed)."""
    process = CONTEXT.Process(target=train, args=(str(folder), kill_at))
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Start the server with this process's path for modules, which it does not inherit by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="module")
def undisturbed(server: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """What an undisturbed run ends with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    toy.write(folder, **FIELDS)
    assert run(folder) == 0
    return pair(folder, folder / LAST)


def pair(folder: Path, state: Path) -> Pair:
    """Weights and history, to the bit, that a solver has after restoring the state."""
    solver = Solver(folder / "solver.prototxt")
    solver.restore(state)
    weights = [entry.tensor.detach().numpy().tobytes() for entry in solver.net.learnable]
    return weights, [blob.numpy().tobytes() for blob in solver.optimizer.history]


def compare(folder: Path, undisturbed: Pair) -> None:
    assert pair(folder, folder / LAST) == undisturbed
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kill_at", [2, 9, 17, 24])
def test_kill_between_file_operations(kill_at: int, tmp_path: Path, undisturbed: Pair) -> None:
    _kills(kill_at, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", range(1, 40))
def test_kill_before_every_file_operation(kill_at: int, tmp_path: Path, undisturbed: Pair) -> None:
    _kills(kill_at, tmp_path, undisturbed)


def _kills(kill_at: int, folder: Path, undisturbed: Pair) -> None:
    toy.write(folder, **FIELDS)
    assert run(folder, kill_at) == -signal.SIGKILL
    state = newest(folder)
    if state is not None:  # a state that can be seen is complete, with its model and what Caffe forgets
        assert Path(str(state).replace("solverstate", "caffemodel")).exists()
        assert resume.path_beside(state).exists()
    assert run(folder) == 0
    compare(folder, undisturbed)


REPLACING = [pytest.param(n, marks=() if n in (9, 12, 13, 14) else pytest.mark.slow) for n in range(1, 25)]


@pytest.mark.parametrize("kill_at", REPLACING)
def test_kill_while_a_snapshot_of_the_same_name_is_replaced(kill_at: int, tmp_path: Path) -> None:
    """An older run's pair is overwritten: whatever the moment, the pair is the old or the new one, never a mixture."""
    toy.write(tmp_path, **{**FIELDS, "snapshot": 0, "max_iter": 4, "random_seed": 77})
    assert run(tmp_path) == 0
    state = tmp_path / "snap_iter_4.solverstate"
    old = pair(tmp_path, state)
    toy.write(tmp_path, **{**FIELDS, "snapshot": 0, "max_iter": 4})
    state.rename(tmp_path / "kept")  # so that the run begins anew
    process = CONTEXT.Process(target=replace, args=(str(tmp_path), kill_at))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    found = pair(tmp_path, state)
    (tmp_path / "fresh").mkdir()
    toy.write(tmp_path / "fresh", **{**FIELDS, "snapshot": 0, "max_iter": 4})
    assert run(tmp_path / "fresh") == 0
    new = pair(tmp_path / "fresh", tmp_path / "fresh" / state.name)
    assert found in (old, new)
    if process.exitcode == 0:
        assert found == new


def _killed_again_and_again(folder: Path, kills: int, longest: float, seed: int) -> int:
    generator, done = random.Random(seed), 0
    for _ in range(kills):
        if run(folder, kill_after=generator.uniform(0.0, longest)) == 0:
            break
        done += 1
    assert run(folder) == 0
    return done


def test_kills_at_random_moments(tmp_path: Path, undisturbed: Pair) -> None:
    toy.write(tmp_path, **FIELDS)
    start = time.perf_counter()
    (tmp_path / "probe").mkdir()
    toy.write(tmp_path / "probe", **FIELDS)
    run(tmp_path / "probe")
    _killed_again_and_again(tmp_path, 5, time.perf_counter() - start, seed=1)
    compare(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_kills_at_random_moments(seed: int, tmp_path: Path, undisturbed: Pair) -> None:
    toy.write(tmp_path, **FIELDS)
    _killed_again_and_again(tmp_path, 10, 0.6, seed)
    compare(tmp_path, undisturbed)
