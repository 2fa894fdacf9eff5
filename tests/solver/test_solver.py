"""The training loop: Caffe's log lines, tests, several nets, callbacks, resume, requests, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
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
from fcnproto import precision
from fcnproto.errors import UsageError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.solver import DivergedError, Listener, Options, Request, Solver


def test_log_lines_are_what_caffes_parsers_look_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = Solver(toy.write(tmp_path, display=5, average_loss=2, test_iter=[3], test_interval=6))
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.solve()
    text = "\n".join(messages(caplog))
    number = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
    losses = re.findall(rf"Iteration (\d+)(?: \({number} iter/s, {number}s/5 iters\))?, loss = ({number})", text)
    assert [int(iteration) for iteration, _ in losses] == [0, 5, 10]
    assert re.findall(rf"Iteration (\d+), lr = ({number})", text) == [("0", "0.01"), ("5", "0.01"), ("10", "0.01")]
    assert re.findall(r"Iteration (\d+), Testing net \(#(\d)\)", text) == [("0", "0"), ("6", "0"), ("12", "0")]
    assert len(re.findall(rf"    Train net output #0: loss = {number} \(\* 1 = {number} loss\)", text)) == 3
    assert len(re.findall(rf"    Test net output #0: accuracy = {number}\n", text)) == 3
    assert len(re.findall(rf"    Test net output #1: loss = {number} \(\* 1 = {number} loss\)", text)) == 3
    assert "Solving toy" in text
    shown = [float(loss) for _, loss in losses]
    expected = [solver.losses[0], *((solver.losses[i] + solver.losses[i - 1]) / 2 for i in (5, 10))]
    np.testing.assert_allclose(shown, expected, rtol=1e-5)


def test_lines_have_glogs_prefix(tmp_path: Path) -> None:
    import io
    import logging

    from fcnproto.solver.log import LOGGER, log_to

    stream = io.StringIO()
    handler = log_to(stream)
    try:
        Solver(toy.write(tmp_path, display=1)).step(1)
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)
    lines = stream.getvalue().splitlines()
    assert lines
    assert all(re.match(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] ", line) for line in lines)


def test_smoothing_starts_afresh_with_each_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = Solver(toy.write(tmp_path, display=1, average_loss=3))
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        for _ in range(3):
            solver.step(1)
    shown = [float(m.split(", loss = ")[1]) for m in messages(caplog) if ", loss = " in m]
    np.testing.assert_allclose(shown, solver.losses, rtol=1e-5)


def test_tests_average_over_their_batches_and_keep_their_place(tmp_path: Path) -> None:
    results: list[tuple[int, dict[str, list[float]]]] = []

    class Keep(Listener):
        def tested(self, solver: Solver, index: int, scores: Any) -> None:
            results.append((solver.iter, scores))

    path = toy.write(tmp_path, shuffle=False, test_iter=[4], test_interval=2, test_compute_loss=True, max_iter=2)
    solver = Solver(path)
    solver.listeners.append(Keep())
    own = [tensor.clone() for tensor in solver.test_nets[0].params["conv"]]
    assert not torch.equal(own[0], solver.net.params["conv"][0])
    solver.solve()
    assert [iteration for iteration, _ in results] == [0, 2]
    assert solver.test_nets[0].params["conv"][0] is solver.net.params["conv"][0]
    # 6 batches of 4 in the file: the second test began at the fifth.
    reference = fcnproto.load(tmp_path / "net.prototxt", tmp_path / "snap_iter_2.caffemodel", phase="test")
    with torch.no_grad():
        batches = [reference() for _ in range(8)][4:]
    for name in ("accuracy", "loss"):
        expected = np.mean([float(batch[name]) for batch in batches])
        assert results[1][1][name][0] == pytest.approx(expected, rel=1e-5)


def test_test_initialization_false(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = Solver(toy.write(tmp_path, test_iter=[1], test_interval=2, test_initialization=False))
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.step(3)
    tested = [m for m in messages(caplog) if "Testing net" in m]
    assert tested == ["Iteration 2, Testing net (#0)"]


def test_states_choose_the_layers_of_each_net(tmp_path: Path) -> None:
    net = """
      state { stage: "filed" }
      layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 1 } } }
      layer { name: "a" type: "Power" bottom: "data" top: "a" include { stage: "filed" stage: "trained" } }
      layer { name: "b" type: "Power" bottom: "data" top: "b" include { phase: TEST min_level: 2 } }
      layer { name: "c" type: "Power" bottom: "data" top: "c" include { phase: TEST stage: "one" } }
    """
    (tmp_path / "net.prototxt").write_text(net)
    text = """net: "net.prototxt" base_lr: 1 lr_policy: "fixed" test_interval: 1 test_iter: 1 test_iter: 1
      train_state { stage: "trained" } test_state { level: 2 } test_state { stage: "one" }"""
    (tmp_path / "solver.prototxt").write_text(text)
    solver = Solver(tmp_path / "solver.prototxt")
    names = [[layer.name for layer in net.layers] for net in (solver.net, *solver.test_nets)]
    assert [[name for name in each if name in "abc"] for each in names] == [["a"], ["b"], ["c"]]


def test_order_of_test_nets(tmp_path: Path) -> None:
    for name in ("generic", "first", "second"):
        (tmp_path / f"{name}.prototxt").write_text(
            f'name: "{name}" layer {{ name: "d" type: "DummyData" top: "d" dummy_data_param {{ shape {{ dim: 1 }} }} }}'
        )
    param = parse(
        """net: "generic.prototxt" test_net: "first.prototxt" test_net: "second.prototxt" test_interval: 5
        test_iter: 1 test_iter: 1 test_iter: 1 test_iter: 1 base_lr: 1 lr_policy: "fixed"
        test_net_param { name: "inline"
          layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } } }
        """,
        caffe_pb2.SolverParameter,
    )
    solver = Solver(param, path=tmp_path / "solver.prototxt")
    assert [net.graph.name for net in solver.test_nets] == ["inline", "first", "second", "generic"]


def test_callbacks_see_the_iteration_and_the_gradients(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, iter_size=2))
    seen: list[Any] = []
    solver.add_callback(
        lambda: seen.append((solver.iter, solver.net.params["ip"][0].grad is None, len(solver.losses))),
        lambda: seen.append((solver.iter, float(solver.net.params["ip"][0].grad.abs().sum()) > 0, len(solver.losses))),
    )
    solver.step(2)
    assert seen == [(0, True, 0), (0, True, 2), (1, True, 2), (1, True, 4)]


def test_inputs_of_a_call_bypass_the_data_layer(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, shuffle=False, extra="", iter_size=2))
    data, label = torch.ones(2, 2, 6, 6), np.array([1, 2])
    solver.step(2, data=data, label=label)
    assert solver.losses[0] == solver.losses[1] and solver.losses[2] == solver.losses[3]
    assert solver.net.data_layers()[0].get_position()["offset"] == 0  # type: ignore[operator]


def test_step_ignores_max_iter_and_solve_does_not(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, max_iter=3, snapshot_after_train=False))
    solver.step(5)
    assert solver.iter == 5
    solver.solve()
    assert solver.iter == 5 and not list(tmp_path.glob("snap*"))


def test_requests_stop_and_snapshot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = Solver(toy.write(tmp_path, test_iter=[1], test_interval=4, test_initialization=False))
    asked: list[int] = []

    def request() -> Request:
        asked.append(solver.iter)
        return {2: Request.SNAPSHOT, 3: Request.STOP}.get(solver.iter, Request.NONE)

    solver.request = request
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.solve()
    assert solver.iter == 3 and asked == [1, 2, 3]
    assert {file.name for file in tmp_path.glob("*.solverstate")} == {
        "snap_iter_2.solverstate",
        "snap_iter_3.solverstate",
    }
    assert messages(caplog)[-1] == "Optimization stopped early."
    solver.request = lambda: Request.NONE
    solver.step(1)
    assert solver.iter == 4


def test_a_stop_during_a_test_ends_the_step_before_the_iteration(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, test_iter=[50], test_interval=4))
    solver.request = lambda: Request.STOP
    solver.step(5)
    assert solver.iter == 0 and solver.losses == []


def test_random_seed_makes_runs_repeatable(tmp_path: Path) -> None:
    path = toy.write(tmp_path)
    runs = []
    for _ in range(2):
        solver = Solver(path)
        solver.step(3)
        runs.append(values(solver))
    assert equal(*runs)
    first = Solver(path).net.params["conv"][0]
    assert not torch.equal(first, Solver(toy.write(tmp_path, random_seed=6)).net.params["conv"][0])


def test_steps_of_multistep_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    solver = Solver(toy.write(tmp_path, lr_policy="multistep", gamma=0.1, stepvalue=[1, 3]))
    with caplog.at_level("INFO", logger="fcnproto.solver"):
        solver.step(4)
    lines = [line for line in messages(caplog) if "MultiStep" in line]
    assert lines == ["MultiStep Status: Iteration 1, step = 1", "MultiStep Status: Iteration 3, step = 2"]


def test_lr_is_the_rate_used_last(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, lr_policy="multistep", gamma=0.1, stepvalue=[1, 2]))
    assert solver.lr == solver.lr == pytest.approx(0.01)
    rates = []
    for _ in range(3):
        solver.step(1)
        rates += [solver.lr, solver.lr]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


class TestDivergence:
    """Losses that are no number."""

    def test_names_the_parameter(self, tmp_path: Path) -> None:
        solver = Solver(toy.write(tmp_path))
        solver.step(2)
        state = solver.snapshot()
        with torch.no_grad():
            solver.net.params["conv"][1][1] = math.nan
        with pytest.raises(DivergedError) as caught:
            solver.step(1)
        error = caught.value
        assert (error.iteration, error.layer, error.blob, error.snapshot) == (2, "conv", "parameter blob 1", state)
        assert state in str(error) and "layer 'conv'" in str(error)
        with pytest.raises(DivergedError, match="parameters are not finite"):
            solver.snapshot()
        assert pickle.loads(pickle.dumps(error)).layer == "conv"

    def test_names_the_blob(self, tmp_path: Path) -> None:
        power = 'layer { name: "root" type: "Power" bottom: "conv" top: "root" power_param { power: 0.5 shift: -9 } }'
        path = toy.write(tmp_path, extra=power)
        text = (tmp_path / "net.prototxt").read_text().replace('bottom: "conv" top: "ip"', 'bottom: "root" top: "ip"')
        (tmp_path / "net.prototxt").write_text(text)
        solver = Solver(path)
        before = values(solver)
        with pytest.raises(DivergedError) as caught:
            solver.step(1)
        assert (caught.value.layer, caught.value.blob) == ("root", "blob 'root'")
        assert equal(before, values(solver))
        assert "there is no snapshot" in str(caught.value)

    def test_names_the_data(self, tmp_path: Path) -> None:
        solver = Solver(toy.write(tmp_path))
        with pytest.raises(DivergedError, match=r"began in input 'data'\. Training"):
            solver.step(1, data=torch.full((2, 2, 6, 6), math.inf), label=torch.zeros(2))
        with h5py.File(tmp_path / "rows.h5", "r+") as file:
            file["data"][:] = math.inf
        with pytest.raises(DivergedError, match="began in blob 'data' of layer 'src'"):
            Solver(tmp_path / "solver.prototxt").step(1)

    def test_explosion(self, tmp_path: Path) -> None:
        grows = 'layer { name: "mean" type: "Reduction" bottom: "conv" top: "mean" loss_weight: 1 }'
        solver = Solver(toy.write(tmp_path, extra=grows))
        solver.step(20)
        with torch.no_grad():
            solver.net.params["conv"][0].fill_(1e12)
        with pytest.raises(DivergedError, match="exploded") as caught:
            solver.step(1)
        assert caught.value.layer == "conv"


def test_no_policy_is_an_error_at_the_first_step(tmp_path: Path) -> None:
    path = toy.write(tmp_path)
    path.write_text(path.read_text().replace('lr_policy: "fixed"', ""))
    solver = Solver(path)
    with pytest.raises(fcnproto.SolverError, match="no lr_policy"):
        solver.step(1)


def test_batchnorm_sums_are_not_decayed(tmp_path: Path) -> None:
    extra = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }'
    solver = Solver(toy.write(tmp_path, extra=extra, weight_decay=0.5))
    reference = copy.deepcopy(solver.net)
    solver.step(1, data=torch.ones(2, 2, 6, 6), label=torch.zeros(2))
    reference(data=torch.ones(2, 2, 6, 6), label=torch.zeros(2))
    assert all(torch.equal(a, b) for a, b in zip(solver.net.params["bn"], reference.params["bn"], strict=True))
    assert [entry.layer for entry in solver.net.learnable].count("bn") == 3
    assert len(solver.optimizer.history) == len(solver.net.learnable)


@pytest.mark.parametrize("options", [Options(channels_last=True), Options("bfloat16"), Options("float16")])
def test_options_train_about_alike(tmp_path: Path, options: Options) -> None:
    path = toy.write(tmp_path, shuffle=False, extra="")
    plain, other = Solver(path), Solver(path, options=options)
    plain.step(6)
    other.step(6)
    assert all(tensor.dtype == torch.float32 for tensor in values(other))
    if options.precision == "fp16":  # the first steps may be left out until the loss scale fits
        assert other.losses[0] == pytest.approx(plain.losses[0], rel=0.01) and np.isfinite(other.losses).all()
        assert len(set(other.losses)) == 6
    else:
        np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-5 if options.precision == "float32" else 0.05)
    assert not options.channels_last or other.net.params["conv"][0].is_contiguous(memory_format=torch.channels_last)


def test_compiling_falls_back_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: Any, **settings: Any) -> Any:
        def call(*inputs: Any) -> Any:
            raise RuntimeError("no compiler found\nat all")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    path = toy.write(tmp_path, shuffle=False, extra="")
    plain, compiled = Solver(path), Solver(path, options=Options(compile=True))
    plain.step(3)
    with pytest.warns(fcnproto.FcnprotoWarning, match="going on without it: no compiler found$"):
        compiled.step(3)
    assert equal(values(plain), values(compiled))


def test_tf32_on_the_cpu_is_warned_of(tmp_path: Path) -> None:
    path = toy.write(tmp_path)
    with pytest.warns(fcnproto.FcnprotoWarning, match="tf32 has no effect on the CPU"):
        relaxed = Solver(path, options=Options("tf32"), device="cpu")
    strict = Solver(path, device="cpu")
    for solver, expected in ((relaxed, "tf32"), (strict, "highest"), (relaxed, "tf32")):
        seen: list[str] = []
        watched = solver.net.layer("conv").register_forward_hook(
            lambda *_, found=seen: found.append(precision.chosen())
        )
        solver.step(1)
        watched.remove()
        assert seen == [expected]


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="float8"):
        Options("float8")


def test_the_trained_net_can_be_copied_and_pickled(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path))
    solver.step(1)
    twin = pickle.loads(pickle.dumps(solver.net))
    assert torch.equal(twin.params["ip"][0], solver.net.params["ip"][0])


def test_the_rewritten_net_trains_alike(tmp_path: Path) -> None:
    path = toy.write(tmp_path, shuffle=False, extra="", test_iter=[1], test_interval=3)
    plain, fast = Solver(path), Solver(path, options=Options(optimize=True))
    plain.step(6)
    fast.step(6)
    np.testing.assert_allclose(fast.losses, plain.losses, rtol=1e-4)
    for ours, reference in zip(values(fast), values(plain), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    with pytest.raises(fcnproto.SolverError, match="choose one"):
        Options(compile=True, optimize=True)
