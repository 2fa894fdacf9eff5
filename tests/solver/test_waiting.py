"""Solvers of nets with layers that wait for a size: told of, and set up before the parameters are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.errors import FcnprotoWarning, SolverError

NET = (
    'layer {{ name: "d" {source} }}\n'
    'layer {{ name: "e" type: "InnerProduct" bottom: "data" top: "e" inner_product_param {{ num_output: 3 '
    'weight_filler {{ type: "xavier" }} }} }}\n'
    'layer {{ name: "l" type: "EuclideanLoss" bottom: "e" bottom: "goal" top: "l" }}\n'
)
MISSING = 'type: "HDF5Data" top: "data" top: "goal" hdf5_data_param { source: "none.txt" batch_size: 2 }'
PYTHON = 'type: "Python" top: "data" top: "goal" python_param { module: "sized_late" layer: "Late" }'
SOLVER = 'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 solver_mode: CPU\n'


def write(folder: Path, source: str, more: str = "") -> Path:
    (folder / "net.prototxt").write_text(NET.format(source=source))
    (folder / "solver.prototxt").write_text(f'{SOLVER} snapshot_prefix: "{folder}/s" {more}')
    return folder / "solver.prototxt"


def batch() -> dict[str, np.ndarray]:
    return {"data": np.ones((2, 1, 3, 2), np.float32), "goal": np.ones((2, 3), np.float32)}


def test_told_and_resolved_by_the_first_step(tmp_path: Path) -> None:
    path = write(tmp_path, MISSING)
    with pytest.warns(
        FcnprotoWarning, match=r"layer 'e' \(InnerProduct\): waits for the size of 'data'.*Solver\(\.\.\., shapes="
    ):
        solver = fcnproto.Solver(path)
    assert not solver.net.learnable
    solver.step(3, **batch())
    assert len(solver.net.learnable) == 2 and solver.losses[2] < solver.losses[0]
    state = solver.snapshot()
    with pytest.warns(FcnprotoWarning, match="waits"):
        again = fcnproto.Solver(path)
    again.restore(state)
    solver.step(2, **batch())
    again.step(2, **batch())
    assert torch.equal(solver.net.params["e"][0], again.net.params["e"][0])


def test_without_data_the_first_step_says_which_blob(tmp_path: Path) -> None:
    with pytest.warns(FcnprotoWarning, match="waits"):
        solver = fcnproto.Solver(write(tmp_path, MISSING))
    with pytest.raises(SolverError, match=r"'e'.*'data'.*shapes="):
        solver.step(1)


def test_shapes_say_it(tmp_path: Path) -> None:
    path = write(tmp_path, MISSING)
    solver = fcnproto.Solver(path, shapes={"data": (2, 1, 3, 2), "elsewhere": (1,)})
    assert tuple(solver.net.params["e"][0].shape) == (3, 6)


def test_a_batch_of_data_says_it_and_the_test_net_follows(tmp_path: Path) -> None:
    from fcnproto.data import PythonLayer, register_python_layer

    seen: list[int] = []

    @register_python_layer("sized_late", "Late")
    class Late(PythonLayer):
        def setup(self, bottom: object, top: object) -> None:
            seen.append(0)

        def reshape(self, bottom: object, top: list) -> None:  # type: ignore[type-arg]
            top[0].reshape(2, 1, 3, 2)
            top[1].reshape(2, 3)

        def forward(self, bottom: object, top: list) -> None:  # type: ignore[type-arg]
            for blob in top:
                blob.data[...] = 1

    solver = fcnproto.Solver(write(tmp_path, PYTHON, "test_iter: 1 test_interval: 2"))
    solver.step(4)
    assert len(solver.net.learnable) == 2 and solver.losses[3] < solver.losses[0]
