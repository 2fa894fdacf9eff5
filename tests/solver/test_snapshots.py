"""Snapshots and resuming: names, contents, what a damaged or foreign file does, and that nothing is half done."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import solver_toy as toy
import torch
from solver_toy import equal, messages, values

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_solver
from fcnproto.solver import Listener, Solver, snapshots


@pytest.mark.parametrize("hdf5", [False, True])
def test_resume_is_exact(tmp_path: Path, hdf5: bool, caplog: pytest.LogCaptureFixture) -> None:
    form = caffe_pb2.SolverParameter.HDF5 if hdf5 else caffe_pb2.SolverParameter.BINARYPROTO
    more = """
      layer { name: "noise" type: "DummyData" top: "noise" dummy_data_param { shape { dim: 4 dim: 4 dim: 4 dim: 4 }
        data_filler { type: "gaussian" std: 0.1 } } }
      layer { name: "cont" type: "DummyData" top: "cont" dummy_data_param { shape { dim: 4 dim: 4 }
        data_filler { type: "constant" value: 1 } } }
      layer { name: "add" type: "Eltwise" bottom: "conv" bottom: "noise" top: "sum" }
      layer { name: "lstm" type: "LSTM" bottom: "sum" bottom: "cont" top: "lstm"
        recurrent_param { num_output: 3 weight_filler { type: "xavier" } } }
      layer { name: "mean" type: "Reduction" bottom: "lstm" top: "mean" loss_weight: 1 }
    """
    fields = {"type": "Adam", "display": 1, "average_loss": 4, "test_iter": [2], "test_interval": 5}
    path = toy.write(tmp_path, extra=toy.DROPOUT + more, snapshot_format=form, **fields)

    def shown() -> list[str]:
        return [m.split(", loss = ")[1] for m in messages(caplog) if ", loss = " in m]

    with caplog.at_level("INFO", logger="fcnproto.solver"):
        whole = Solver(path)
        whole.step(12)
        expected = shown()[7:]
        first = Solver(path)
        first.step(7)
        state = first.snapshot()
        torch.manual_seed(99)
        second = Solver(path)
        second.step(3)
        second.restore(state)
        assert second.iter == 7 and second.last_snapshot == state
        caplog.clear()
        second.step(5)
    assert equal(values(whole), values(second))
    assert whole.losses[7:] == second.losses[3:]
    assert shown() == expected


def test_restore_finds_a_model_that_moved_with_its_state(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(2)
    solver.snapshot()
    (tmp_path / "moved").mkdir()
    for file in tmp_path.glob("snap_iter_2*"):
        file.rename(tmp_path / "moved" / file.name)
    fresh = Solver(tmp_path / "solver.prototxt")
    fresh.restore(tmp_path / "moved" / "snap_iter_2.solverstate")
    assert equal(values(solver), values(fresh))
    (tmp_path / "moved" / "snap_iter_2.caffemodel").unlink()
    with pytest.raises(fcnproto.WeightsError, match=r"its model .* is neither in"):
        fresh.restore(tmp_path / "moved" / "snap_iter_2.solverstate")


@pytest.mark.parametrize("hdf5", [False, True])
def test_a_failed_restore_changes_nothing(tmp_path: Path, hdf5: bool) -> None:
    form = caffe_pb2.SolverParameter.HDF5 if hdf5 else caffe_pb2.SolverParameter.BINARYPROTO
    path = toy.write(tmp_path, snapshot_format=form)
    solver = Solver(path)
    solver.step(3)
    state = Path(solver.snapshot())
    model = state.with_name(state.name.replace("solverstate", "caffemodel"))
    fresh = Solver(path)
    fresh.step(1)
    before = values(fresh), [blob.clone() for blob in fresh.optimizer.history]
    for damaged in (model, state):
        whole = damaged.read_bytes()
        for length in (0, 5, len(whole) // 2, len(whole) - 1):
            damaged.write_bytes(whole[:length])
            with pytest.raises(fcnproto.WeightsError, match=re.escape(damaged.name)) as caught:
                fresh.restore(state)
            assert "\n" not in str(caught.value)
            assert fresh.iter == 1
            assert equal(before[0], values(fresh)) and equal(before[1], fresh.optimizer.history)
        damaged.write_bytes(whole)
    fresh.restore(state)
    assert fresh.iter == 3 and equal(values(solver), values(fresh))


def test_history_of_an_old_state_with_four_axes(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(2)
    path = Path(solver.snapshot())
    state = caffe_pb2.SolverState.FromString(path.read_bytes())
    for blob in state.history:
        extents = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
        blob.ClearField("shape")
        blob.num, blob.channels, blob.height, blob.width = extents
    path.write_bytes(state.SerializeToString())
    (tmp_path / "snap_iter_2.resume.json").unlink()  # Caffe's own snapshots have none
    fresh = Solver(tmp_path / "solver.prototxt")
    fresh.restore(path)
    assert equal(fresh.optimizer.history, solver.optimizer.history)


def test_snapshot_and_restore_without_a_policy(tmp_path: Path) -> None:
    path = toy.write(tmp_path, lr_policy=None)
    state = Solver(path).snapshot()
    fresh = Solver(path)
    fresh.restore(state)
    with pytest.raises(fcnproto.SolverError, match="no lr_policy"):
        fresh.step(1)


def test_a_snapshot_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Solver(toy.write(tmp_path))
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fcnproto.solver.snapshots.write_state", full)
    with pytest.raises(OSError, match="No space"):
        solver.snapshot()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_useless_side_file_is_a_warning(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    state = solver.snapshot()
    for content, reason in (("{", "Expecting"), ('{"version": 9}', "version 1"), ('{"version": 1}', "iteration 1")):
        (tmp_path / "snap_iter_1.resume.json").write_text(content)
        with pytest.warns(fcnproto.FcnprotoWarning, match=f"can't be used.*{reason}"):
            Solver(tmp_path / "solver.prototxt").restore(state)


def test_resuming_on_other_data_is_a_warning(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    state = solver.snapshot()
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace('name: "src"', 'name: "elsewhere"'))
    other = Solver(tmp_path / "solver.prototxt")
    with pytest.warns(fcnproto.FcnprotoWarning, match="the data layers are others"):
        other.restore(state)
    other.step(1)
    assert other.iter == 2


def test_snapshot_diff_and_prefix_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy.write(tmp_path, snapshot_diff=True, snapshot_prefix="")
    solver = Solver(path)
    solver.step(1)
    assert solver.snapshot() == str(tmp_path / "solver_iter_1.solverstate")
    model = caffe_pb2.NetParameter()
    model.ParseFromString((tmp_path / "solver_iter_1.caffemodel").read_bytes())
    stored = {layer.name: layer for layer in model.layer}["ip"].blobs[0].diff
    np.testing.assert_array_equal(np.array(stored, np.float32), solver.optimizer.history[2].flatten().numpy())
    (tmp_path / "into").mkdir()
    other = Solver(toy.write(tmp_path, snapshot_prefix=f"{tmp_path}/into"))
    assert other.snapshot() == str(tmp_path / "into" / "solver_iter_0.solverstate")
    made = Solver(toy.write(tmp_path, snapshot_prefix="new/folder/snap", snapshot=5))
    monkeypatch.chdir(tmp_path / "into")
    assert made.snapshot() == "new/folder/snap_iter_0.solverstate"
    assert (tmp_path / "into" / "new" / "folder" / "snap_iter_0.caffemodel").exists()
    with pytest.raises(fcnproto.SolverError, match=r"solver\.prototxt is no folder that can be written to"):
        Solver(toy.write(tmp_path, snapshot_prefix=f"{tmp_path}/solver.prototxt/snap", snapshot=5))


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_snapshot_diff_is_the_last_update(tmp_path: Path, kind: str) -> None:
    """As in Caffe, whose update takes the diffs off the weights and leaves them: not the gradients."""
    momentum = None if kind in ("AdaGrad", "RMSProp") else 0.9
    form = caffe_pb2.SolverParameter.HDF5
    path = toy.write(tmp_path, type=kind, momentum=momentum, snapshot_diff=True, snapshot_format=form, weight_decay=0.1)
    solver = Solver(path)
    solver.step(2)
    before = {name: [blob.detach().clone() for blob in blobs] for name, blobs in solver.net.params.items()}
    solver.step(1)
    solver.snapshot()
    with h5py.File(tmp_path / "snap_iter_3.caffemodel.h5") as file:
        for name in ("conv", "ip"):
            for index, blob in enumerate(solver.net.params[name]):
                step = (before[name][index].double() - blob.detach().double()).numpy()
                stored = file[f"diff/{name}/{index}"][:]
                assert np.abs(stored - step).max() <= 1e-6 * max(1.0, float(blob.detach().abs().max())) and stored.any()


def test_weights_go_into_all_nets(tmp_path: Path) -> None:
    first = Solver(toy.write(tmp_path))
    first.net.save(tmp_path / "w.caffemodel")
    path = toy.write(tmp_path, weights=[f" {tmp_path}/w.caffemodel , "], random_seed=8, test_iter=[1], test_interval=5)
    second = Solver(path)
    for net in (second.net, second.test_nets[0]):
        assert torch.equal(net.params["conv"][0], first.net.params["conv"][0])


def test_what_the_first_snapshot_would_fail_of_is_said_at_the_start(tmp_path: Path) -> None:
    extra = 'layer { name: "a/b" type: "Power" bottom: "conv" top: "conv" }'
    fields = {"extra": extra, "snapshot_format": caffe_pb2.SolverParameter.HDF5}
    message = r'snap_iter_0\.caffemodel\.h5: layer "a/b" can\'t be saved in HDF5'
    with pytest.raises(fcnproto.WeightsError, match=message):
        Solver(toy.write(tmp_path, snapshot=5, **fields))
    solver = Solver(toy.write(tmp_path, **fields))
    with pytest.raises(fcnproto.WeightsError, match=message):
        solver.solve()
    assert solver.iter == 0
    toy.write(tmp_path, extra=extra, max_iter=1)
    Solver(tmp_path / "solver.prototxt").solve()
    assert (tmp_path / "snap_iter_1.caffemodel").exists()


@pytest.mark.parametrize(
    ("name", "prefix", "expected"),
    [
        ("my.solver.pt", None, "sub/my.solver_iter_0.solverstate"),
        ("solver", None, "sub/solver_iter_0.solverstate"),
        ("my.solver.pt", "sub", "sub/my.solver_iter_0.solverstate"),
        ("my.solver.pt", "sub/", "sub/my.solver_iter_0.solverstate"),
        ("my.solver.pt", "sub/x", "sub/x_iter_0.solverstate"),
    ],
)
def test_derived_prefixes(
    name: str, prefix: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caffe's rules: without a prefix the solver's path less its last extension; in a folder the solver's stem."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub", name).write_bytes(toy.write(tmp_path, snapshot_prefix=prefix).read_bytes())
    assert Solver(f"sub/{name}").snapshot() == expected
    state = caffe_pb2.SolverState.FromString(Path(expected).read_bytes())
    assert state.learned_net == expected.replace("solverstate", "caffemodel")


def test_no_prefix_and_no_file_to_take_it_from(tmp_path: Path) -> None:
    message = read_solver(toy.write(tmp_path, snapshot_prefix=None))
    solver = Solver(message)
    with pytest.raises(fcnproto.SolverError, match="no snapshot_prefix"):
        solver.solve()
    assert solver.iter == 0
    message.snapshot = 3
    with pytest.raises(fcnproto.SolverError, match="no snapshot_prefix"):
        Solver(message)


def test_a_restored_run_repeats_the_test_of_its_iteration(tmp_path: Path) -> None:
    class Tests(Listener):
        def __init__(self) -> None:
            self.found: list[tuple[int, list[float]]] = []

        def tested(self, solver: Solver, index: int, scores: Any) -> None:
            self.found.append((solver.iter, scores["loss"]))

    whole, resumed = Tests(), Tests()
    path = toy.write(tmp_path, max_iter=4, snapshot=2, test_iter=[2], test_interval=2)
    first = Solver(path)
    first.listeners.append(whole)
    first.solve()
    second = Solver(path)
    second.listeners.append(resumed)
    second.solve(tmp_path / "snap_iter_2.solverstate")
    assert [iteration for iteration, _ in whole.found] == [0, 2, 4]
    assert resumed.found == whole.found[1:]
    assert equal(values(first), values(second))


@pytest.mark.parametrize("hdf5", [False, True])
def test_changed_files_are_refused(tmp_path: Path, hdf5: bool) -> None:
    """One bit of a value, which every check of structure lets pass; without checksums (as of Caffe's own) it does."""
    form = caffe_pb2.SolverParameter.HDF5 if hdf5 else caffe_pb2.SolverParameter.BINARYPROTO
    solver = Solver(toy.write(tmp_path, snapshot_format=form))
    solver.step(2)
    state = Path(solver.snapshot())
    model = state.with_name(state.name.replace("solverstate", "caffemodel"))
    values_in = {
        model: solver.net.params["conv"][0].detach().numpy().tobytes(),
        state: solver.optimizer.history[0].numpy().tobytes(),
    }
    for file, stored in values_in.items():
        whole = file.read_bytes()
        place = whole.index(stored)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(fcnproto.WeightsError, match=f"{file.name}: damaged or changed since .* other content"):
            Solver(tmp_path / "solver.prototxt").restore(state)
        file.write_bytes(whole)
    Solver(tmp_path / "solver.prototxt").restore(state)
    resume_file = tmp_path / "snap_iter_2.resume.json"
    resume_file.unlink()
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    Solver(tmp_path / "solver.prototxt").restore(state)


def test_what_reads_back_wrong_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    before = sorted(path.name for path in tmp_path.iterdir())
    write = snapshots.write_state

    def forgetful(path: Path, iteration: int, model: str, step: int, history: list[Any], hdf5: bool) -> None:
        write(path, iteration, model, step, [np.zeros_like(value) for value in history], hdf5)

    monkeypatch.setattr(snapshots, "write_state", forgetful)
    with pytest.raises(fcnproto.WeightsError, match="history blob 0 read back is not what was written"):
        solver.snapshot()
    assert sorted(path.name for path in tmp_path.iterdir()) == before and solver.last_snapshot is None


def test_the_latest_that_is_all_right(tmp_path: Path) -> None:
    path = toy.write(tmp_path, snapshot=1)
    with pytest.raises(fcnproto.SolverError, match=r"no snapshot .*snap_iter_\*\.solverstate to go on from$"):
        Solver(path).restore("latest")
    solver = Solver(path)
    solver.step(12)
    state = {number: tmp_path / f"snap_iter_{number}.solverstate" for number in (12, 11, 10, 9)}
    state[12].write_bytes(state[12].read_bytes()[:-1])
    (tmp_path / "snap_iter_11.caffemodel").unlink()
    model = tmp_path / "snap_iter_10.caffemodel"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    fresh = Solver(path)
    with pytest.warns(fcnproto.FcnprotoWarning, match="passed over") as told:
        fresh.restore("latest")
    assert fresh.iter == 9 and fresh.last_snapshot == str(state[9])
    reasons = [str(one.message) for one in told]
    for reason, words in zip(
        reasons, (state[12].name, "its model .* is neither", f"{model.name}: damaged"), strict=True
    ):
        assert re.search(words, reason)
    for name in tmp_path.glob("snap_iter_*.caffemodel"):
        name.unlink()
    with pytest.raises(fcnproto.SolverError, match="to go on from: .*neither"):
        Solver(path).restore("latest")


RESUME = "snap_iter_1.resume.json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"version": 1, "iteration": 1, "workers": [5]}',
        b'{"version": 1, "iteration": 1, "workers": [{}], "files": 3}',
        b'{"version": 1, "iteration": 1, "workers": [{}], "files": {"state": {"name": 1, "sha256": 2, "bytes": "x"}}}',
    ],
)
def test_damaged_side_files_are_one_warning(tmp_path: Path, content: bytes) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    state = solver.snapshot()
    (tmp_path / RESUME).write_bytes(content)
    with pytest.warns(fcnproto.FcnprotoWarning, match=f"{RESUME} can't be used") as told:
        Solver(tmp_path / "solver.prototxt").restore(state)
    assert len(told) == 1 and "\n" not in str(told[0].message)


def test_a_side_file_that_fits_in_part_changes_nothing(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    state = solver.snapshot()
    content = json.loads((tmp_path / RESUME).read_text())
    good = json.dumps(content)
    random = content["workers"][0]["random"]
    for change in (
        {"torch": {"dtype": "|u1", "shape": [3], "data": "AAAA"}},
        {"torch": {"dtype": "|O", "shape": [3], "data": "AAAA"}},
        {"torch": {"dtype": "|u1", "shape": [10**18], "data": "AAAA"}},
        {"numpy": 5},
        {"python": "x"},
    ):
        content["workers"][0]["random"] = {**random, **change}
        (tmp_path / RESUME).write_text(json.dumps(content))
        fresh = Solver(tmp_path / "solver.prototxt")
        before = torch.get_rng_state()
        with pytest.warns(fcnproto.FcnprotoWarning, match="can't be used"):
            fresh.restore(state)
        assert torch.equal(before, torch.get_rng_state())
    (tmp_path / RESUME).write_text(good)
    Solver(tmp_path / "solver.prototxt").restore(state)


@pytest.mark.parametrize(
    "content", ["", "{", "5", "[5]", '["ab"]', '[["../x", "y"]]', '[["a", "b"]]', "[[1, 2]]", "[" * 99999]
)
def test_a_damaged_list_of_renames(tmp_path: Path, content: str) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    state = solver.snapshot()
    (tmp_path / ".snap_iter_1.solverstate.pending").write_text(content)
    with pytest.raises(fcnproto.WeightsError, match=r"snap_iter_1\.solverstate\.pending: .*delete it") as caught:
        Solver(tmp_path / "solver.prototxt").restore(state)
    assert "\n" not in str(caught.value)
