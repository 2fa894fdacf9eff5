"""Caffe's gradients where layers share memory: against recorded ones, what is said of them, and what stays as it was."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.solver import Solver

WARNING = "Caffe's gradient differs here"


def run(case: golden_cases.Case, exact: bool) -> tuple[Net, bool]:
    """The net of a recorded case after its passes, and whether loading it warned of its gradients."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = fcnproto.load(case.folder / "net.prototxt", phase="train", caffe_exact=exact)
    with torch.no_grad():
        for name, blobs in net.params.items():
            for index, blob in enumerate(blobs):
                blob.copy_(torch.from_numpy(case.arrays[f"param.{name}.{index}"]))
    inputs = {name: torch.from_numpy(case.arrays[f"in.{name}"]) for name in net.inputs}
    for _ in range(case.facts["passes"]):
        outputs = net(inputs)
        net.loss(outputs).backward()
    if exact:
        for name, value in case.keys("out").items():
            torch.testing.assert_close(outputs[name].detach(), torch.from_numpy(value), rtol=2e-5, atol=2e-5)
    return net, any(WARNING in str(warning.message) for warning in caught)


def departure(net: Net, case: golden_cases.Case) -> float:
    """The largest difference of a recorded gradient, by the layer's largest one (or 1e-4 of the net's)."""
    recorded = case.keys("gparam")
    largest = max(float(np.abs(value).max(initial=0)) for value in recorded.values())
    worst = 0.0
    for key, value in recorded.items():
        layer, _, index = key.rpartition(".")
        gradient = net.params[layer][int(index)].grad
        ours = np.zeros_like(value) if gradient is None else gradient.numpy()
        of_layer = max(
            float(np.abs(other).max(initial=0)) for name, other in recorded.items() if name.rpartition(".")[0] == layer
        )
        worst = max(worst, float(np.abs(ours - value).max(initial=0)) / max(of_layer, 1e-4 * largest, 1e-12))
    return worst


@pytest.mark.parametrize("name", golden_cases.names("memory"))
def test_recorded_gradients(name: str) -> None:
    case = golden_cases.Case("memory", name)
    exact, said = run(case, exact=True)
    assert departure(exact, case) < 1e-4
    assert not said
    net, said = run(case, exact=False)
    if departure(net, case) > 1e-3:
        assert said
    if not said:
        assert departure(net, case) < 1e-4


def net_of(layers: str, phase: str = "train", **options: bool) -> Net:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }\n'
    text += 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 3 '
    text += 'kernel_size: 3 weight_filler { type: "xavier" } } }\n'
    text += layers
    text += 'layer { name: "w" type: "InnerProduct" bottom: "c" top: "w" inner_product_param { num_output: 2 '
    text += 'weight_filler { type: "xavier" } } }\n'
    text += 'layer { name: "l" type: "Reduction" bottom: "w" top: "l" loss_weight: 1 }'
    return fcnproto.load(parse(text, caffe_pb2.NetParameter), phase=phase, **options)


def in_place(name: str, kind: str, more: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "c" top: "c" {more} }}\n'


QUIET = [
    ("ReLU", "Dropout"),
    ("ReLU",),
    ("ReLU", "ReLU"),
    ("PReLU", "Dropout"),
    ("PReLU", "Scale"),
    ("BatchNorm", "Scale", "ReLU"),
    ("BatchNorm", "Scale", "ReLU", "Dropout"),
    ("Dropout", "Bias"),
    ("TanH",),
    ("Sigmoid",),
    ("ELU",),
]


@pytest.mark.parametrize("kinds", QUIET, ids="-".join)
def test_chains_that_are_right_in_caffe_are_silent(kinds: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net_of("".join(in_place(f"a{i}", kind) for i, kind in enumerate(kinds)))


LOUD = [
    ("ReLU", "BatchNorm"),
    ("ReLU", "Scale"),
    ("TanH", "Dropout"),
    ("Sigmoid", "Scale"),
    ("ELU", "ReLU"),
    ("LRN", "Dropout"),
    ("Power",),
    ("Log",),
    ("BNLL",),
    ("Softmax", "Bias"),
]


@pytest.mark.parametrize("kinds", LOUD, ids="-".join)
def test_one_warning_names_the_layer_and_the_way(kinds: tuple[str, ...]) -> None:
    layers = "".join(in_place(f"a{i}", kind) for i, kind in enumerate(kinds))
    with pytest.warns(FcnprotoWarning, match=WARNING) as caught:
        net_of(layers)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert f"'a0' ({kinds[0]})" in text
    assert "caffe_exact=True" in text
    if len(kinds) == 2:
        assert "overwrites" in text


def test_nothing_is_said_where_nothing_learns_by_it() -> None:
    layers = in_place("t", "TanH") + in_place("s", "Scale", "param { lr_mult: 0 }")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net_of(layers, phase="test")
    text = layers.replace('bottom: "c" top: "c"', 'bottom: "x" top: "x"')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fcnproto.load(
            parse(
                'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
                + text
                + 'layer { name: "w" type: "InnerProduct" bottom: "x" top: "w" inner_product_param { num_output: 2 } }\n'
                + 'layer { name: "l" type: "Reduction" bottom: "w" top: "l" loss_weight: 1 }',
                caffe_pb2.NetParameter,
            ),
            phase="train",
        )


def gradient(net: Net, called: object, x: torch.Tensor) -> torch.Tensor:
    net.zero_grad()
    net.loss(called(x)).backward()  # type: ignore[operator]
    found = net.params["c"][0].grad
    assert found is not None
    return found.clone()


def test_copies_and_optimized_nets_keep_caffes_gradient() -> None:
    layers = in_place("t", "TanH") + in_place("s", "Scale", "scale_param { filler { value: 1.7 } }")
    net, x = net_of(layers, caffe_exact=True), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with pytest.warns(FcnprotoWarning, match=WARNING):
        true = net_of(layers)
    true.load_state_dict(net.state_dict())
    wanted = gradient(net, net, x)
    assert (gradient(true, true, x) - wanted).abs().max() > 0.01 * wanted.abs().max()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(gradient(twin, twin, x), wanted)
    torch.testing.assert_close(gradient(net, fcnproto.optimize(net), x), wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(net(x)["l"], true(x)["l"])


SOLVER = """
net_param {
  layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 4 dim: 3 } data_filler { value: 0.5 } } }
  layer { name: "c" type: "InnerProduct" bottom: "x" top: "c"
          inner_product_param { num_output: 3 weight_filler { type: "constant" value: 0.4 } } }
  layer { name: "t" type: "TanH" bottom: "c" top: "c" }
  layer { name: "s" type: "Scale" bottom: "c" top: "c" scale_param { filler { value: 1.5 } } }
  layer { name: "l" type: "Reduction" bottom: "c" top: "l" loss_weight: 1 }
}
base_lr: 0.1 lr_policy: "fixed" max_iter: 1 snapshot_after_train: false solver_mode: CPU
"""


def test_the_solver_and_train_copy_it(tmp_path: Path) -> None:
    """One step: dW = x * sum of 1.5 * (1 - y^2) over the batch, with y the top's memory, 1.5 * tanh(0.6)."""
    updates = {}
    for exact in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solver = Solver(parse(SOLVER, caffe_pb2.SolverParameter), caffe_exact=exact)
        solver.step(1)
        updates[exact] = 0.4 - float(solver.net.params["c"][0][0, 0].detach())
    y = np.tanh(0.6)
    assert updates[False] == pytest.approx(0.1 * 4 * 0.5 * 1.5 * (1 - y**2), rel=1e-5)
    assert updates[True] == pytest.approx(0.1 * 4 * 0.5 * 1.5 * (1 - (1.5 * y) ** 2), rel=1e-5)
    solver_file = tmp_path / "solver.prototxt"
    text = SOLVER.replace("snapshot_after_train: false", f'snapshot_prefix: "{tmp_path}/s"')
    solver_file.write_text(text)
    assert main(["train", "--solver", str(solver_file), "--caffe-exact", "--no-plot"]) == 0
    net = fcnproto.load(parse(SOLVER, caffe_pb2.SolverParameter).net_param, tmp_path / "s_iter_1.caffemodel")
    assert 0.4 - float(net.params["c"][0][0, 0].detach()) == pytest.approx(updates[True], rel=1e-4)


def test_train_refuses_to_rewrite_such_nets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solver_file = tmp_path / "solver.prototxt"
    solver_file.write_text(SOLVER)
    assert main(["train", "--solver", str(solver_file), "--caffe-exact", "--optimize"]) == 2
    assert "--caffe-exact keeps the net as it is" in capsys.readouterr().err
