"""The recordings of the original Caffe through `caffe.Net` and its solvers: every layer, shared memory, trajectories."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pytest
from golden_cases import assert_close

import fcnproto.pycaffe as caffe

TOLERANCE = 1e-5
LOOSER = {"batchnorm_single_pixel_batch": 1e-3}  # pure cancellation, see tests/layers/test_golden.py


def made(case: golden_cases.Case) -> caffe.Net:
    """The case's net with the recorded parameters."""
    facts = case.facts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = caffe.Net(
            case.folder / "net.prototxt",
            getattr(caffe, facts.get("phase", "TRAIN")),
            level=facts.get("level", 0),
            stages=facts.get("stages"),
        )
    for key, value in case.keys("param").items():
        layer, index = key.rsplit(".", 1)
        net.params[layer][int(index)].data.flat = value
    return net


def put(net: caffe.Net, values: dict[str, Any], side: str = "data") -> None:
    """Write arrays into blobs, in their shapes."""
    for name, value in values.items():
        blob = net.blobs[name]
        if side == "data":
            blob.reshape(*value.shape)
        getattr(blob, side)[...] = value


def layer_names() -> list[str]:
    """The recorded layers that are nets with inputs to write to, or with data of their own."""
    return [name for name in golden_cases.names("layers") if name != "dropout_train_contract"]


@pytest.mark.parametrize("held", [False, True], ids=["graph", "again"])
@pytest.mark.parametrize("name", layer_names())
def test_layer(name: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = golden_cases.load("layers", name)
    net, tolerance = made(case), LOOSER.get(name, TOLERANCE)
    if memory := case.keys("memory"):
        net.set_input_arrays(memory["data"], memory["label"])
    for step in range(case.facts.get("pre_steps", 0)):
        put(net, case.keys(f"pre.{step}"))
        net.forward()
    put(net, case.keys("in"))
    net.forward()
    for blob, value in case.keys("out").items():
        assert_close(net.blobs[blob].data, value, tolerance, f"blob {blob}")
    for key, value in case.keys("param_after").items():
        layer, index = key.rsplit(".", 1)
        assert_close(net.params[layer][int(index)].data, value, tolerance, f"parameter {key} after forward")
    if not case.facts.get("backward"):
        return
    # Who holds arrays of the blobs may have written into them: the layers are run again on what is there.
    arrays = [blob.data for blob in net.blobs.values()] if held else []
    put(net, {name: value for name, value in case.keys("gout").items() if name in net.blobs}, "diff")
    net.backward()
    for blob, value in case.keys("gin").items():
        assert_close(net.blobs[blob].diff, value, tolerance, f"gradient of {blob}")
    for key, value in case.keys("gparam").items():
        layer, index = key.rsplit(".", 1)
        ours, scale = net.params[layer][int(index)].diff, np.abs(case.arrays[f"gparam.{layer}.0"]).max()
        if np.abs(value).max() < 1e-4 * scale:  # its terms cancel, and what was recorded is rounding
            assert np.abs(ours - value).max() <= tolerance * scale, key
            continue
        assert_close(ours.reshape(value.shape), value, tolerance, f"gradient of parameter {key}")
    assert len(arrays) == held * len(net.blobs)


@pytest.mark.parametrize("name", golden_cases.names("memory")[::3])
def test_shared_memory(name: str) -> None:
    case = golden_cases.load("memory", name)
    net = made(case)
    for _ in range(case.facts["passes"]):
        put(net, case.keys("in"))
        net.forward()
        net.backward()
    for blob, value in case.keys("out").items():
        np.testing.assert_allclose(net.blobs[blob].data, value, rtol=2e-5, atol=2e-5)
    recorded = case.keys("gparam")
    largest = max(float(np.abs(value).max(initial=0)) for value in recorded.values())
    for key, value in recorded.items():
        layer, _, index = key.rpartition(".")
        ours = net.params[layer][int(index)].diff
        scale = max(
            float(np.abs(other).max(initial=0)) for one, other in recorded.items() if one.rpartition(".")[0] == layer
        )
        worst = float(np.abs(ours.reshape(value.shape) - value).max(initial=0)) / max(scale, 1e-4 * largest, 1e-12)
        assert worst <= 2e-5, f"gradient of {key}: {worst:.3g}"


@pytest.mark.parametrize("name", [name for name in golden_cases.names("solver") if name != "fcn32s_heavy"])
def test_trajectory(name: str) -> None:
    case = golden_cases.load("solver", name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solver = caffe.get_solver(case.folder / "solver.prototxt")
    for key, value in case.keys("param").items():
        layer, index = key.rsplit(".", 1)
        solver.net.params[layer][int(index)].data.flat = value
    if "memory.data" in case.arrays:
        solver.net.set_input_arrays(case.arrays["memory.data"], case.arrays["memory.label"])
    for iteration in range(1, case.facts["iterations"] + 1):
        solver.step(1)
        for key, value in case.keys(f"iter.{iteration}.param").items():
            layer, index = key.rsplit(".", 1)
            blob = solver.net.params[layer][int(index)]
            assert_close(blob.data, value, TOLERANCE, f"{key} after iteration {iteration}")
    assert solver.iter == case.facts["iterations"]
