"""Golden files of every kind of net, and what is said of those that don't fit or contradict themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_cases
import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.cli._main import main
from fcnproto.parity import Recording, compare, float64_reference, read_recording
from fcnproto.parity.ties import near_ties
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

NOTHING_RECORDED = {"dropout_train_contract", "hdf5_output"}
WRONG_IN_CAFFE = {"clip_inplace", "power_inplace"}
"""Their recorded gradients are not those of the forward pass."""


def parity(case: golden_cases.Case, *options: str) -> int:
    """The command on a recorded case, with its phase, level and stages."""
    state = ["--phase", case.facts["phase"].lower(), "--level", str(case.facts.get("level", 0)), "--allow-python"]
    for stage in case.facts.get("stages", ()):
        state += ["--stage", stage]
    golden = [] if "--golden" in options else ["--golden", str(case.folder / "data.npz")]
    return main(["parity", str(case.folder / "net.prototxt"), *golden, *state, *options])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in ("layers", "fcn") for name in golden_cases.names(group)]
)
def test_every_golden_case(group: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = 1 if name in NOTHING_RECORDED | WRONG_IN_CAFFE else 0
    assert parity(golden_cases.load(group, name)) == expected
    captured = capsys.readouterr()
    if name in NOTHING_RECORDED:
        assert "nothing to compare in it" in captured.err
    elif name in WRONG_IN_CAFFE:
        assert "first in input gradient 'x'" in captured.out


@pytest.mark.parametrize("name", ["hdf5_data", "dummy_data_two_tops", "rules_two_stages", "data_lmdb_plain"])
def test_nets_with_data_of_their_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "lmdb" in name:
        pytest.importorskip("lmdb", reason="lmdb is not installed")
    assert parity(golden_cases.load("layers", name)) == 0
    assert "agrees with" in capsys.readouterr().out


def test_recorded_data_are_inputs() -> None:
    # A Caffe whose data layer read its own data base has no inputs; the layer's tops are among the blobs.
    text = """
    layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "nowhere" batch_size: 2 } }
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    """
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), shapes={"data": (2, 4), "label": (2,)})
    with torch.no_grad():
        net.params["ip"][0].copy_(torch.arange(12.0).reshape(3, 4) / 10)
    data, label = np.ones((2, 4), np.float32), np.array([0, 2], np.float32)
    made = float64_reference(net, {"data": data, "label": label})
    recording = Recording("a train net", blobs={"data": data, "label": label, **made.blobs})
    recording.param_gradients = made.param_gradients
    report = compare(net, recording)
    assert report.agrees
    assert [entry.name for entry in report.entries] == ["ip", "loss", "ip.1", "ip.0"]
    assert report.unknown == []


def changed(key: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({key: change(arrays[key])})


BAD = {
    "no data": (lambda arrays: arrays.pop("in.x"), "it has no in.x"),
    "other axes": (
        lambda arrays: arrays.update({"in.x": arrays["in.x"].ravel(), "gin.x": arrays["gin.x"].ravel()}),
        "can't be run on its inputs: .*got shape",
    ),
    "gout of another shape": (changed("gout.y", lambda v: v[..., :-1]), r"gout.y has shape .*, out.y .*: they must be"),
    "gin of another shape": (changed("gin.x", lambda v: v[..., :-1]), r"gin.x has shape .*, in.x .*: they must be"),
    "gout of no blob": (lambda arrays: arrays.update({"gout.z": np.zeros(1)}), "'gout.z' is no blob of the net"),
    "no gout": (lambda arrays: arrays.pop("gout.y"), "nothing that they start from: give gout.<blob>"),
    "text": (changed("out.y", lambda v: np.array(["a"])), "'out.y' holds no numbers"),
    "complex": (changed("out.y", lambda v: v.astype(complex)), "'out.y' holds no numbers"),
    "too many parameters": (lambda arrays: arrays.update({"gparam.conv.7": np.zeros(1)}), "has 2 parameter blobs"),
    "parameter of another size": (changed("param.conv.0", lambda v: v[:-1]), "param.conv.0 does not fit"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_do_not_fit(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = BAD[name]
    case = golden_cases.load("layers", "conv_group")
    arrays = dict(case.arrays)
    change(arrays)
    np.savez(tmp_path / "g.npz", **arrays)
    assert parity(case, "--golden", str(tmp_path / "g.npz")) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert str(tmp_path / "g.npz") in error
    assert re.search(expected, error)


def test_numbers_that_are_not_finite_depart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = golden_cases.load("layers", "conv_group")
    arrays = dict(case.arrays)
    arrays["gparam.conv.0"] = np.full_like(arrays["gparam.conv.0"], np.nan)
    np.savez(tmp_path / "g.npz", **arrays)
    page, numbers = tmp_path / "r.html", tmp_path / "r.json"
    assert parity(case, "--golden", str(tmp_path / "g.npz"), "--html", str(page), "--json", str(numbers)) == 1
    assert "not finite" in capsys.readouterr().out
    assert "NaN" not in numbers.read_text().replace('"nan"', "")


def test_keys_of_another_net_are_named() -> None:
    case = golden_cases.load("layers", "conv_group")
    recording = read_recording(case.folder / "data.npz")
    recording.param_gradients["other.0"] = recording.input_gradients["z"] = np.zeros(3)
    assert compare(case.net(), recording).unknown == ["gin.z", "gparam.other.0"]


POOLED = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 4 dim: 4 } } }
layer { name: "pool2" type: "Pooling" bottom: "x" top: "pool2" pooling_param { kernel_size: 2 stride: 2 } }
"""


def test_near_ties_explain_gradients_that_depart() -> None:
    # The two largest values of a window are one step of float32 apart; the reference has them the other way round.
    net = fcnproto.load(parse(POOLED, caffe_pb2.NetParameter))
    image = torch.zeros(1, 4, 4, 4)
    image[0, 0, :2, :2] = torch.tensor([[1.0, 1.0 + 2e-7], [0.2, 0.1]])
    other = image.clone()
    other[0, 0, 0, :2] = image[0, 0, 0, :2].flip(0)
    made = float64_reference(net, {"x": other.numpy()}, with_gradients=True)
    recording = Recording("another", {"x": image.numpy()}, {}, made.blobs, made.output_gradients, made.input_gradients)
    departure = compare(net, recording).departure
    assert departure is not None
    assert departure.entry.kind == "input gradient"
    assert "the blobs agree, but 1 of 16 windows of pool2 are near ties" in departure.looks_like
    assert "precision" not in departure.looks_like
    # The same gradients where no window is a near tie are not explained away.
    recording.inputs["x"] = (image * torch.tensor([1.0, 1.5, 1.0, 1.0])).numpy()
    recording.blobs = float64_reference(net, recording.inputs).blobs
    departure = compare(net, recording).departure
    assert departure is not None
    assert departure.looks_like.startswith("the blobs agree, the gradients alone depart")


def test_near_ties_of_a_relu_and_a_maximum(tmp_path: Path) -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
    layer { name: "relu" type: "ReLU" bottom: "x" top: "y" }
    layer { name: "most" type: "Eltwise" bottom: "x" bottom: "y" top: "most" eltwise_param { operation: MAX } }
    """
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    said = near_ties(net, {"x": torch.tensor([[1.0, -1e-7, 0.0, -2.0]])}, ["most"], 0.0)
    assert said == "1 of 4 values of relu, 1 of 4 places of most are near ties"
    assert near_ties(net, {"x": torch.tensor([[1.0, -1.0, 0.0, 2.0]])}, ["most"], 0.0) == ""
