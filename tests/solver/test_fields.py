"""Every field of a solver file: what it changes is seen in a run, or the file is refused or warned of. None is silent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import solver_toy as toy
import torch

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse, read_solver
from fcnproto.solver import Solver

Param = caffe_pb2.SolverParameter
STEP = {"lr_policy": "step", "gamma": 0.5, "stepsize": 2}
INV = {"lr_policy": "inv", "gamma": 0.1, "power": 0.5}
MULTISTEP = {"lr_policy": "multistep", "gamma": 0.5, "stepvalue": [1, 2]}
STAGES = {"lr_policy": "multifixed", "stagelr": [0.1, 0.2], "stageiter": [1, 9]}
TESTED = {"test_iter": [1], "test_interval": 2}
NESTED = {"name": "nested", "layer": [{"name": "p", "type": "Parameter", "top": ["p"], "loss_weight": [1.0]}]}
NESTED["layer"][0]["parameter_param"] = {"shape": {"dim": [1]}}  # type: ignore[index]

# For each field: two settings of the solver that differ in it (None: not given), and what shows the difference.
CASES: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "train_net": ({"net": None}, "net.prototxt", "other.prototxt", "names"),
    "net": ({}, "net.prototxt", "other.prototxt", "names"),
    "train_net_param": ({"net": None}, NESTED, {**NESTED, "name": "more"}, "names"),
    "net_param": ({"net": None}, NESTED, {**NESTED, "name": "more"}, "names"),
    "test_net": ({"test_iter": [1], "test_interval": 1}, ["net.prototxt"], ["other.prototxt"], "test names"),
    "test_net_param": ({"test_iter": [1], "test_interval": 1}, [NESTED], [{**NESTED, "name": "more"}], "test names"),
    "test_iter": ({"test_interval": 1}, [1], [2], "log"),
    "test_interval": ({"test_iter": [1]}, 1, 2, "log"),
    "test_compute_loss": (TESTED, True, None, "log"),
    "test_initialization": (TESTED, False, None, "log"),
    "train_state": ({}, {"stage": ["big"]}, None, "weights"),
    "test_state": (TESTED, [{"stage": ["small"]}], None, "test layers"),
    "base_lr": ({}, 0.01, 0.02, "weights"),
    "lr_policy": ({"gamma": 0.5, "stepsize": 2}, "step", "sigmoid", "weights"),
    "gamma": (STEP, 0.5, 0.25, "weights"),
    "power": (INV, 0.5, 0.75, "weights"),
    "stepsize": (STEP, 1, 2, "weights"),
    "stepvalue": (MULTISTEP, [1, 2], [3], "weights"),
    "plateau_winsize": ({"lr_policy": "plateau", "gamma": 0.5}, [0], [100], "weights"),
    "stagelr": ({**STAGES, "base_lr": None}, [0.1, 0.2], [0.1, 0.3], "weights"),
    "stageiter": ({**STAGES, "base_lr": None}, [1, 9], [2, 9], "weights"),
    "max_iter": ({"lr_policy": "poly", "power": 1.0}, 10, 20, "weights"),
    "momentum": ({}, 0.9, None, "weights"),
    "momentum2": ({"type": "Adam"}, 0.9, None, "weights"),
    "delta": ({"type": "Adam"}, 0.1, None, "weights"),
    "rms_decay": ({"type": "RMSProp", "momentum": None}, 0.5, None, "weights"),
    "weight_decay": ({}, 0.1, None, "weights"),
    "regularization_type": ({"weight_decay": 0.1}, "L1", None, "weights"),
    "clip_gradients": ({}, 0.1, None, "weights"),
    "iter_size": ({}, 2, None, "weights"),
    "type": ({}, "Nesterov", None, "weights"),
    "solver_type": ({}, Param.NESTEROV, None, "weights"),
    "random_seed": ({}, 5, 6, "weights"),
    "weights": ({}, ["w.caffemodel"], None, "weights"),
    "display": ({}, 1, 2, "log"),
    "average_loss": ({"display": 1}, 2, None, "log"),
    "debug_info": ({"display": 1}, True, None, "log"),
    "snapshot": ({}, 1, 2, "files"),
    "snapshot_prefix": ({}, "one", "two", "files"),
    "snapshot_format": ({}, Param.HDF5, None, "files"),
    "snapshot_diff": ({"snapshot_format": Param.HDF5}, True, None, "diffs"),
    "snapshot_after_train": ({"max_iter": 2}, False, None, "files"),
}
# Fields that nothing can show here: the warning that says so.
WARNED = {
    "solver_mode": (Param.GPU, "GPU can't be followed"),
    "device_id": (3, "device_id 3"),
    "eval_type": ("detection", "eval_type not used"),
    "ap_version": ("11point", "ap_version not used"),
    "show_per_class_result": (True, "show_per_class_result not used"),
    "layer_wise_reduce": (False, "layer_wise_reduce: false not used"),
}


def test_each_field_has_a_case() -> None:
    assert {*CASES, *WARNED} == {field.name for field in Param.DESCRIPTOR.fields}


def _shown(folder: Path, what: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture) -> object:
    """Train 4 iterations in an empty folder; what `what` names of the run."""
    toy.write(folder, extra="", shuffle=False)
    net = (folder / "net.prototxt").read_text()
    wide = 'layer { name: "more" type: "Power" bottom: "conv" top: "conv" power_param { shift: 1 } include { stage: "big" } }'
    seen = 'layer { name: "seen" type: "Silence" bottom: "data" include { stage: "small" } }'
    net = net.replace('layer { name: "ip"', f'{wide} layer {{ name: "ip"') + seen
    (folder / "net.prototxt").write_text(net)
    (folder / "other.prototxt").write_text(net.replace('name: "toy"', 'name: "other"'))
    torch.manual_seed(3)
    fcnproto.load(folder / "net.prototxt", phase="train").save(folder / "w.caffemodel")
    toy.write_solver(folder, **{"max_iter": 4, **fields})
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level("INFO", logger="fcnproto.solver"):
        warnings.filterwarnings("error", category=fcnproto.FcnprotoWarning)
        warnings.filterwarnings(
            "ignore", message=".*(solver_type is deprecated|given: taken for|gradient differs here)"
        )
        solver = Solver(folder / "solver.prototxt")
        solver.solve()
    lines = [record.getMessage() for record in caplog.records if "Snapshotting" not in record.getMessage()]
    views: dict[str, Callable[[], object]] = {
        "names": lambda: solver.net.graph.name,
        "test names": lambda: [net.graph.name for net in solver.test_nets],
        "test layers": lambda: [[layer.name for layer in net.layers] for net in solver.test_nets],
        "weights": lambda: [entry.tensor.tolist() for entry in solver.net.learnable],
        "log": lambda: [line.split("(")[0] + line.partition("), ")[2] for line in lines],
        "files": lambda: sorted(path.name for path in folder.iterdir()),
        "diffs": lambda: "diff" in h5py.File(next(folder.glob("*.caffemodel.h5"))),
    }
    return views[what]()


@pytest.mark.parametrize("name", CASES)
def test_field_changes_the_run(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, one, other, what = CASES[name]
    runs = []
    for letter, value in (("a", one), ("b", other), ("c", other)):
        (tmp_path / letter).mkdir()
        monkeypatch.chdir(tmp_path / letter)
        runs.append(_shown(tmp_path / letter, what, {**settings, name: value}, caplog))
    assert runs[0] != runs[1]
    assert runs[1] == runs[2], "the difference is no sign, two equal runs differ as well"


@pytest.mark.parametrize("name", WARNED)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU solver_mode and device_id are followed")
def test_field_without_effect_here_is_warned_of(name: str, tmp_path: Path) -> None:
    value, message = WARNED[name]
    with pytest.warns(fcnproto.FcnprotoWarning, match=message):
        Solver(toy.write(tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"delta": 0.1}, "delta not used by type SGD"),
        ({"stepsize": 3, "gamma": 0.5}, "gamma, stepsize not used by lr_policy 'fixed'"),
        ({"regularization_type": "L1"}, "regularization_type not used without weight_decay"),
        ({"test_interval": 5}, "test_interval not used without test nets"),
        ({"test_initialization": False, "test_compute_loss": True}, "test_initialization, test_compute_loss not used"),
        ({"debug_info": True}, "debug_info not used without display"),
        ({"base_lr": 0.0}, "base_lr is 0, so nothing is learned"),
        ({"lr_policy": "step", "stepsize": 2}, "lr_policy 'step' reads gamma, not given"),
        ({"lr_policy": "inv"}, "lr_policy 'inv' reads gamma, power, not given"),
        ({"lr_policy": "multistep", "gamma": 0.5}, "reads stepvalue, not given"),
    ],
)
def test_fields_without_effect_are_warned_of(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.warns(fcnproto.FcnprotoWarning, match=message):
        Solver(toy.write(tmp_path, **fields))


def test_solving_without_max_iter_is_warned_of(tmp_path: Path) -> None:
    solver = Solver(toy.write(tmp_path, max_iter=None))
    with pytest.warns(fcnproto.FcnprotoWarning, match="max_iter is not given"):
        solver.solve()
    assert solver.iter == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"net": None}, "names no net to train"),
        ({"net": ""}, "net of the solver"),
        ({"train_net": "net.prototxt"}, "has net and train_net; give exactly one"),
        ({"net_param": {}, "train_net_param": {}}, "has net and net_param and train_net_param"),
        ({"type": "Momentum"}, "type 'Momentum' is unknown"),
        ({"lr_policy": "never"}, "lr_policy 'never' is unknown"),
        ({"lr_policy": "exp", "gamma": -0.1}, "gamma must be at least 0"),
        ({"lr_policy": "sigmoid", "gamma": 0.1}, "stepsize must be above 0, not 0"),
        ({"average_loss": 0}, "average_loss"),
        ({"display": -1}, "display must not be negative"),
        ({"iter_size": 0}, "iter_size must be at least 1"),
        ({"test_iter": [1]}, "no test_interval"),
        ({"test_iter": [-1], "test_interval": 1}, "test_iter must not be negative"),
        ({"test_iter": [1], "test_interval": 1, "test_state": [{}, {}]}, "2 test_state entries for 1 test nets"),
        ({"test_state": [{}]}, "1 test_state entries for 0 test nets"),
        ({"test_net": ["net.prototxt", "net.prototxt"], "test_iter": [1], "test_interval": 1}, "1 test_iter entries"),
        ({"net": None, "train_net": "net.prototxt", "test_iter": [1]}, "1 test_iter entries for 0 test nets"),
        ({"type": "AdaGrad"}, "AdaGrad has no momentum"),
        ({"type": "RMSProp"}, "RMSProp has no momentum"),
        ({"type": "RMSProp", "momentum": 0.0, "rms_decay": 1.0}, "rms_decay must be at least 0 and below 1"),
        ({"regularization_type": "L0", "weight_decay": 0.1}, "L1 or L2"),
        ({"net": "missing.prototxt"}, "missing.prototxt"),
        ({"weights": ["missing.caffemodel"]}, "missing.caffemodel"),
        ({"type": "SGD", "solver_type": Param.SGD}, "both solver_type .* and type"),
    ],
)
def test_refusals(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(fcnproto.Error, match=message) as caught:
        Solver(toy.write(tmp_path, **fields))
    assert "\n" not in str(caught.value)


def test_unknown_fields_are_told_or_refused(tmp_path: Path) -> None:
    path = toy.write(tmp_path)
    path.write_text(path.read_text() + "warmup: 3\n")
    with pytest.warns(fcnproto.FcnprotoWarning, match=r"solver\.prototxt: unknown fields .*SolverParameter\.warmup"):
        Solver(path)
    with pytest.raises(fcnproto.PrototxtError, match=r"solver\.prototxt:\d+:\d+: .*warmup"):
        Solver(path, strict=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SGD", "SGD"),
        ("NESTEROV", "Nesterov"),
        ("ADAGRAD", "AdaGrad"),
        ("RMSPROP", "RMSProp"),
        ("ADADELTA", "AdaDelta"),
        ("ADAM", "Adam"),
    ],
)
def test_the_old_enum_of_types(old: str, new: str, tmp_path: Path) -> None:
    path = toy.write(tmp_path, momentum=0.0)
    path.write_text(path.read_text() + f"solver_type: {old}\n")
    with pytest.warns(fcnproto.FcnprotoWarning, match="solver_type is deprecated"):
        assert read_solver(path).type == new
    message = parse(path.read_text(), Param, str(path))
    with pytest.warns(fcnproto.FcnprotoWarning, match="solver_type is deprecated"):
        solver = Solver(message)
    assert type(solver.optimizer).__name__ == new == solver.param.type
    assert message.HasField("solver_type")  # the caller's stays as it was


def test_train_state_level_gives_way_to_the_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fcnproto.cli._main import main

    path = toy.write(tmp_path, train_state={"level": 2}, max_iter=1)
    assert main(["train", "--solver", str(path), "--no-plot"]) == 0
    assert "warning: the solver's train_state.level 2 gives way to --level 0" in capsys.readouterr().err
    assert main(["train", "--solver", str(path), "--no-plot", "--level", "2"]) == 0
    assert "gives way" not in capsys.readouterr().err
