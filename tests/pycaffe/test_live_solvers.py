"""pycaffe's solvers: what scripts do between steps, and the blobs that go on living."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fcnproto.pycaffe as caffe
from fcnproto.schema.state import open_state

NET = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "out" inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "out" bottom: "label" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" test_iter: 2 test_interval: 5 base_lr: 0.1 lr_policy: "fixed" {more} snapshot_prefix: "s/model" max_iter: 12 random_seed: 1'


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "solver.prototxt").write_text(SOLVER.format(more=""))
    return tmp_path


def feed(net: caffe.Net) -> None:
    rng = np.random.default_rng(2)
    net.blobs["data"].data[...] = rng.standard_normal((4, 3))
    net.blobs["label"].data[...] = net.blobs["data"].data[:, :2]


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_the_six(files: Path, kind: str) -> None:
    more = {"RMSProp": 'rms_decay: 0.9 type: "RMSProp"', "AdaDelta": 'momentum: 0.9 type: "AdaDelta" delta: 1e-2'}
    (files / "solver.prototxt").write_text(SOLVER.format(more=more.get(kind, f'type: "{kind}"')))
    solver = getattr(caffe, f"{kind}Solver")("solver.prototxt")
    assert solver.param.type == kind and type(caffe.get_solver("solver.prototxt")) is type(solver)
    feed(solver.net)
    feed(solver.test_nets[0])
    weights = solver.net.params["ip"][0].data
    first = weights.copy()
    solver.solve()
    assert solver.iter == 12 and (weights != first).any() and np.isfinite(weights).all()
    assert float(solver.net.blobs["loss"].data) > 0 and solver.net.params["ip"][0].diff.any()
    assert (files / "s" / "model_iter_12.solverstate").exists()
    assert np.shares_memory(solver.test_nets[0].params["ip"][0].data, weights)


def test_what_scripts_do_between_steps(files: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    net, bias = solver.net, solver.net.params["ip"][1].data
    feed(net)
    solver.step(1)
    loss = float(net.blobs["loss"].data)
    net.params["ip"][0].data[...] = [[1, 0, 0], [0, 1, 0]]  # the answer
    bias[...] = 0
    solver.step(1)
    assert float(net.blobs["loss"].data) < 1e-9 < loss and solver.iter == 2
    net.params["ip"][1].diff[...] = 2
    net.params["ip"][0].diff[...] = 0
    solver.apply_update()
    assert np.allclose(bias, -0.2) and solver.iter == 3
    net.clear_param_diffs()
    net.forward()
    net.backward()
    net.backward()
    twice = net.params["ip"][1].diff.copy()
    net.clear_param_diffs()
    net.backward()
    assert np.allclose(2 * net.params["ip"][1].diff, twice) and twice.any()
    twin = caffe.Net("net.prototxt", caffe.TRAIN)
    solver.share_weights(twin)
    assert np.shares_memory(twin.params["ip"][1].data, bias)


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
@pytest.mark.parametrize("more", ["", "clip_gradients: 0.1 weight_decay: 0.1 iter_size: 2"])
def test_diff_is_the_update_after_a_step(files: Path, kind: str, more: str) -> None:
    rates = "" if kind in ("AdaGrad", "RMSProp") else "momentum: 0.9"
    (files / "solver.prototxt").write_text(SOLVER.format(more=f'type: "{kind}" {rates} {more}'))
    frozen = 'name: "ip" type: "InnerProduct" param { lr_mult: 2 } param { lr_mult: 0 }'
    (files / "net.prototxt").write_text(NET.replace('name: "ip" type: "InnerProduct"', frozen))
    solver = caffe.get_solver("solver.prototxt")
    feed(solver.net)
    weight, bias = solver.net.params["ip"]
    held = weight.diff
    for _ in range(3):
        before = weight.data.copy()
        bias.diff[...] = 5
        solver.step(1)
        np.testing.assert_allclose(weight.diff, before - weight.data, rtol=1e-4, atol=1e-7)
        assert held.any() and np.shares_memory(held, weight.diff) and not bias.diff.any()


def test_callbacks(files: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    calls: list[str] = []

    def ready() -> None:
        calls.append("ready")
        solver.net.params["ip"][0].diff[...] = 0
        solver.net.params["ip"][1].diff[...] = 0

    solver.add_callback(lambda: calls.append("start"), ready)
    feed(solver.net)
    before = solver.net.params["ip"][0].data.copy()
    solver.step(2)
    assert calls == ["start", "ready"] * 2 and (solver.net.params["ip"][0].data == before).all()


def test_snapshots(files: Path) -> None:
    (files / "solver.prototxt").write_text(SOLVER.format(more="momentum: 0.9"))
    solver = caffe.SGDSolver("solver.prototxt")
    feed(solver.net)
    solver.step(3)
    solver.snapshot()
    solver.net.params["ip"][1].data[...] += 1
    with open_state(files / "s" / "model_iter_3.solverstate") as state:
        assert state.iter == 3
    solver.restore("s/model_iter_3.solverstate")
    solver.step(2)
    straight = caffe.SGDSolver("solver.prototxt")
    feed(straight.net)
    straight.step(5)
    for mine, other in zip(solver.net.params["ip"], straight.net.params["ip"], strict=True):
        assert np.allclose(mine.data, other.data, rtol=1e-6)
    with pytest.raises(RuntimeError, match="no such file"):
        caffe.SGDSolver("none.prototxt")


def test_nets_outlive_their_solver(files: Path) -> None:
    solver = caffe.SGDSolver("solver.prototxt")
    nets = [solver.net, *solver.test_nets]
    del solver
    assert len(nets) == 2 and all(np.isfinite(net.forward()["loss"]).all() for net in nets)
