"""Training against recorded runs of Caffe: parameters after every iteration, rates, losses, gradients, snapshots."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.schema.state import open_state

HEAVY = "fcn32s_heavy"
TOLERANCE = 1e-5


def prepared(case: golden_cases.Case, **options: Any) -> fcnproto.Solver:
    """The case's solver with the recorded first parameters and data."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver = fcnproto.Solver(case.folder / "solver.prototxt", **options)
    golden_cases.set_params(solver.net, case.keys("param"))
    if "memory.data" in case.arrays:
        solver.net.set_input_arrays(case.arrays["memory.data"], case.arrays["memory.label"])
    return solver


def params(solver: fcnproto.Solver) -> dict[str, torch.Tensor]:
    """All parameters by layer and index; those shared by name stand under each layer that has them."""
    return {f"{layer}.{index}": blob for layer, blobs in solver.net.params.items() for index, blob in enumerate(blobs)}


@pytest.mark.parametrize("name", [name for name in golden_cases.names("solver") if name != HEAVY])
def test_trajectory(name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = golden_cases.load("solver", name)
    solver, iterations = prepared(case), case.facts["iterations"]
    assert list(params(solver)) == case.facts["learnable"]
    assert len(solver.optimizer.history) == len(solver.net.learnable) * len(solver.optimizer.histories)
    rates = []
    for iteration in range(1, iterations + 1):
        solver.step(1)
        rates.append(solver.lr)
        if iteration == 1:
            for key, value in case.keys("iter.1.grad").items():
                gradient = params(solver)[key].grad
                gradient = torch.zeros(value.shape) if gradient is None else gradient
                golden_cases.assert_close(gradient, value, TOLERANCE, f"first gradient of {key}")
        for key, value in case.keys(f"iter.{iteration}.param").items():
            golden_cases.assert_close(params(solver)[key], value, TOLERANCE, f"{key} after iteration {iteration}")
    np.testing.assert_allclose(rates, case.arrays["lr"], rtol=2e-7)
    losses = np.reshape(solver.losses, case.arrays["loss"].shape)
    golden_cases.assert_close(losses, case.arrays["loss"], TOLERANCE, "losses")
    assert solver.iter == iterations


@pytest.mark.parametrize("name", [n for n in golden_cases.names("solver") if n.startswith("sgd_average_loss")])
def test_displayed_loss(name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = golden_cases.load("solver", name)
    solver = prepared(case)
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.step(case.facts["iterations"])
    shown = [float(r.getMessage().split(", loss = ")[1]) for r in caplog.records if ", loss = " in r.getMessage()]
    np.testing.assert_allclose(shown, case.facts["displayed_loss"], rtol=1e-4)


def test_fcn32s_with_its_own_heavy_momentum() -> None:
    case = golden_cases.load("solver", HEAVY)
    solver, iterations = prepared(case), case.facts["iterations"]
    for iteration in range(iterations):
        inputs = {name: case.arrays[f"in.{iteration}.{name}"].astype(np.float32) for name in ("data", "label")}
        solver.step(1, **inputs)
        for key, value in case.keys(f"iter.{iteration + 1}.param").items():
            ours, first = params(solver)[key].detach().numpy(), case.arrays[f"param.{key}"]
            # The parameters hardly move: the change is compared, and rounding may cost a few steps of float32.
            allowed = 2 * np.spacing(np.maximum(np.abs(first), np.abs(value))) + TOLERANCE * np.abs(value - first).max()
            assert np.all(np.abs(ours - value) <= allowed), key
    for place, key in enumerate(case.facts["learnable"]):
        ours = solver.optimizer.history[place]
        recorded = case.arrays.get(f"iter.{iterations}.history.{key}", np.zeros(ours.shape))  # zero where not stored
        golden_cases.assert_close(ours, recorded, TOLERANCE, f"momentum of {key}")
    np.testing.assert_allclose(solver.losses, case.arrays["loss"], rtol=1e-5)


SNAPSHOTS = golden_cases.names("snapshots")


@pytest.fixture
def snapshot_folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> golden_cases.Case:
    """A snapshot case in a folder of its own that can be written to, and is the working directory, as when recorded."""
    case = golden_cases.load("snapshots", request.param)
    shutil.copytree(case.folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    case.folder = Path(".")
    return case


def state_name(case: golden_cases.Case) -> str:
    return next(name for name in case.facts["files"] if "solverstate" in name)


@pytest.mark.parametrize("snapshot_folder", SNAPSHOTS, indirect=True)
def test_resume_from_caffes_files(snapshot_folder: golden_cases.Case) -> None:
    case = snapshot_folder
    solver = prepared(case)
    solver.restore(state_name(case))
    assert solver.iter == case.facts["restored_iter"]
    for key, value in case.keys("restored.param").items():
        np.testing.assert_array_equal(params(solver)[key].detach().numpy(), value)
    for place, value in case.keys("history").items():
        np.testing.assert_array_equal(solver.optimizer.history[int(place)].numpy(), value)
    rates = []
    for _ in range(3):
        solver.step(1)
        rates.append(solver.lr)
    for key, value in case.keys("resumed.6.param").items():
        golden_cases.assert_close(params(solver)[key], value, TOLERANCE, f"{key} after iteration 6")
    np.testing.assert_allclose(rates, case.arrays["resumed.lr"], rtol=2e-7)


@pytest.mark.parametrize("snapshot_folder", SNAPSHOTS, indirect=True)
def test_our_files_say_what_caffes_say(snapshot_folder: golden_cases.Case) -> None:
    case = snapshot_folder
    theirs = {name: Path(name).read_bytes() for name in case.facts["files"]}
    for name in theirs:
        Path(name).unlink()
    solver = prepared(case)
    solver.step(3)
    solver.snapshot()
    written = [path.name for path in Path(".").iterdir() if "iter_3" in path.name and "resume" not in path.name]
    assert sorted(written) == sorted(theirs)
    for key, value in case.keys("iter.3.param").items():
        golden_cases.assert_close(params(solver)[key], value, TOLERANCE, key)
    Path("theirs").mkdir()
    for name, content in theirs.items():
        (Path("theirs") / name).write_bytes(content)
    ours_state, their_state = state_name(case), f"theirs/{state_name(case)}"
    with open_state(ours_state) as ours, open_state(their_state) as reference:
        assert (ours.iter, ours.current_step, ours.learned_net) == (
            reference.iter,
            reference.current_step,
            reference.learned_net,
        )
        assert [blob.shape for blob in ours.history] == [blob.shape for blob in reference.history]
        for ours_blob, their_blob in zip(ours.history, reference.history, strict=True):
            golden_cases.assert_close(ours_blob.array(), their_blob.array(), TOLERANCE, ours_blob.label)
    if case.facts["format"] == "BINARYPROTO":
        from fcnproto.schema import caffe_pb2

        model = next(name for name in theirs if "caffemodel" in name)
        mine, reference_model = caffe_pb2.NetParameter(), caffe_pb2.NetParameter()
        mine.ParseFromString(Path(model).read_bytes())
        reference_model.ParseFromString(theirs[model])
        for net in (mine, reference_model):
            for layer in net.layer:
                layer.ClearField("blobs")
        assert mine == reference_model
    again = prepared(case)
    again.restore(ours_state)
    again.step(3)
    solver.step(3)
    for key, value in case.keys("iter.6.param").items():
        golden_cases.assert_close(params(solver)[key], value, TOLERANCE, f"{key} after iteration 6")
        assert torch.equal(params(solver)[key], params(again)[key])


def test_state_of_another_type_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = golden_cases.load("snapshots", "sgd_binary").folder
    case = golden_cases.load("snapshots", "adam_binary")
    monkeypatch.chdir(folder)
    solver = prepared(case)
    with pytest.raises(fcnproto.SolverError, match="4 history blobs, Adam on this net needs 8"):
        solver.restore("snap_iter_3.solverstate")
    assert solver.iter == 0


def test_side_file_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden_cases.load("snapshots", "sgd_binary")
    shutil.copytree(case.folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    case.folder = Path(".")
    solver = prepared(case)
    solver.step(2)
    solver.snapshot()
    content = json.loads(Path("snap_iter_2.resume.json").read_text())
    assert content["iteration"] == 2
    assert content["workers"][0]["net"]["positions"] == [["src", {"row": 6}]]
