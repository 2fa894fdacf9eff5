"""Training processes killed without warning: what they leave can be resumed, to the bits of an undisturbed run.

In both formats, and with the file beside the states that holds what Caffe forgets.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import solver_toy as toy
from kill_worker import newest, replace, train

from fcnproto.schema import caffe_pb2
from fcnproto.solver import Solver, resume

# Processes come from a server that has torch loaded already, so that each starts in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["kill_worker"])
FIELDS: dict[str, Any] = {"type": "Adam", "snapshot": 2, "max_iter": 14, "test_iter": [1], "test_interval": 3}
FORMATS = {
    "binary": caffe_pb2.SolverParameter.BINARYPROTO,
    "hdf5": caffe_pb2.SolverParameter.HDF5,
}
ENDS = {"binary": "", "hdf5": ".h5"}
# What a run ends with: weights, history, and what Caffe forgets (random states, data positions, smoothed loss).
Outcome = tuple[list[bytes], list[bytes], object]


def run(folder: Path, *arguments: Any) -> int | None:
    """One process of `kill_worker.train`; gives its exit code (-SIGKILL if it was killed)."""
    process = CONTEXT.Process(target=train, args=(str(folder), *arguments))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Start the server with this process's path for modules, which it does not inherit by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()


def last(kind: str) -> str:
    """The name of the last state of a run in that format."""
    return f"snap_iter_14.solverstate{ENDS[kind]}"


@pytest.fixture(scope="module")
def undisturbed(server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What undisturbed runs end with, by format."""
    outcomes = {}
    for kind in FORMATS:
        folder = tmp_path_factory.mktemp(f"undisturbed-{kind}")
        toy.write(folder, snapshot_format=FORMATS[kind], **FIELDS)
        assert run(folder) == 0
        outcomes[kind] = outcome(folder, folder / last(kind))
    return outcomes


def outcome(folder: Path, state: Path) -> Outcome:
    """Weights and history, to the bit, that a solver has after restoring the state, and the file beside it."""
    solver = Solver(folder / "solver.prototxt")
    solver.restore(state)
    weights = [entry.tensor.detach().numpy().tobytes() for entry in solver.net.learnable]
    history = [blob.numpy().tobytes() for blob in solver.optimizer.history]
    forgotten = json.loads(resume.path_beside(state).read_text())
    del forgotten["files"]  # checksums; the state holds its model's path
    return weights, history, forgotten


def compare(folder: Path, kind: str, undisturbed: dict[str, Outcome]) -> None:
    assert outcome(folder, folder / last(kind)) == undisturbed[kind]
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


OPERATIONS = [
    pytest.param(kill_at, kind, marks=() if kill_at in often else pytest.mark.slow)
    for kind, often in (("binary", (2, 9, 17, 24)), ("hdf5", (9, 14)))
    for kill_at in range(1, 40)
]


@pytest.mark.parametrize(("kill_at", "kind"), OPERATIONS)
def test_kill_before_each_file_operation(
    kill_at: int, kind: str, tmp_path: Path, undisturbed: dict[str, Outcome]
) -> None:
    toy.write(tmp_path, snapshot_format=FORMATS[kind], **FIELDS)
    assert run(tmp_path, kill_at) == -signal.SIGKILL
    check_newest(tmp_path)
    assert run(tmp_path) == 0
    compare(tmp_path, kind, undisturbed)


def check_newest(folder: Path) -> None:
    """A state that can be seen is complete, with its model and what Caffe forgets."""
    state = newest(folder)
    if state is not None:
        assert Path(str(state).replace("solverstate", "caffemodel")).exists()
        assert resume.path_beside(state).exists()


REPLACING = [pytest.param(n, marks=() if n in (9, 12, 13, 14) else pytest.mark.slow) for n in range(1, 25)]


@pytest.mark.parametrize("kill_at", REPLACING)
def test_kill_while_a_snapshot_of_the_same_name_is_replaced(kill_at: int, tmp_path: Path) -> None:
    """An older run's pair is overwritten: whatever the moment, the pair is the old or the new one, never a mixture."""
    toy.write(tmp_path, **{**FIELDS, "snapshot": 0, "max_iter": 4, "random_seed": 77})
    assert run(tmp_path) == 0
    state = tmp_path / "snap_iter_4.solverstate"
    old = outcome(tmp_path, state)
    toy.write(tmp_path, **{**FIELDS, "snapshot": 0, "max_iter": 4})
    state.rename(tmp_path / "kept")  # so that the run begins anew
    process = CONTEXT.Process(target=replace, args=(str(tmp_path), kill_at))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL)
    found = outcome(tmp_path, state)
    (tmp_path / "fresh").mkdir()
    toy.write(tmp_path / "fresh", **{**FIELDS, "snapshot": 0, "max_iter": 4})
    assert run(tmp_path / "fresh") == 0
    new = outcome(tmp_path / "fresh", tmp_path / "fresh" / state.name)
    assert found in (old, new)
    if process.exitcode == 0:
        assert found == new


def killed_again_and_again(folder: Path, kills: int, seed: int) -> None:
    """Kill a training run at random moments, each time going on from what is there, then let it end.

    A moment is some milliseconds (an iteration or a part of a snapshot takes one or two) after one of the next snapshots,
    or anywhere from the start on. A run that ends before its moment has come begins anew.
    """
    generator, done = random.Random(seed), 0
    for _ in range(20 * kills):
        states = generator.choice((0, 1, 1, 2))
        code = run(folder, None, states, generator.uniform(0.0, 0.012 if states else 0.12))
        if code == 0:
            for path in folder.glob("snap_iter_*"):
                path.unlink()
            continue
        assert code == -signal.SIGKILL
        check_newest(folder)
        done += 1
        if done == kills:
            break
    assert done == kills
    assert run(folder) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_kills_at_random_moments(kind: str, tmp_path: Path, undisturbed: dict[str, Outcome]) -> None:
    toy.write(tmp_path, snapshot_format=FORMATS[kind], **FIELDS)
    killed_again_and_again(tmp_path, 4, seed=1)
    compare(tmp_path, kind, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(20))
def test_many_kills_at_random_moments(seed: int, kind: str, tmp_path: Path, undisturbed: dict[str, Outcome]) -> None:
    toy.write(tmp_path, snapshot_format=FORMATS[kind], **FIELDS)
    killed_again_and_again(tmp_path, 10, seed)
    compare(tmp_path, kind, undisturbed)
