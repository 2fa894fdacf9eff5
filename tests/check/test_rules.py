"""The rules about a net before its training: what they find, and that the published nets are not blamed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import fcnproto
from fcnproto import surgery, zoo
from fcnproto.checking import Finding, rules
from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning
from fcnproto.net import Net
from fcnproto.schema.text import read_net

INPUTS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "%s" bottom: "label" top: "loss" }'


def convolution(
    name: str, bottom: str, filler: str = "", more: str = "", outputs: int = 4, kind: str = "Convolution"
) -> str:
    return (
        f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {more} convolution_param {{ '
        f"num_output: {outputs} {filler or 'kernel_size: 1'} }} }}\n"
    )


FILLED = 'kernel_size: 1 weight_filler { type: "xavier" }'
UPSAMPLING = "kernel_size: 4 stride: 2 pad: 1 bias_term: false"
RELU = 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }\n'


def built(folder: Path, body: str, loss: str | None = "b") -> Net:
    (folder / "n.prototxt").write_text(INPUTS + body + (LOSS % loss if loss is not None else ""))
    return fcnproto.load(folder / "n.prototxt", phase="train")


def codes(net: Net) -> dict[str, Finding]:
    return {finding.code: finding for finding in rules.before_training(net)}


def learns(net: Net, layer: str) -> bool:
    """Whether ten steps of gradient descent change the layer's weights."""
    before = net.params[layer][0].detach().clone()
    torch.manual_seed(0)
    for _ in range(10):
        net.zero_grad()
        out = net(data=torch.randn(1, 3, 8, 8), label=torch.randint(0, 4, (1, 1, 8, 8)))
        net.loss(out).backward()
        with torch.no_grad():
            for entry in net.learnable:
                if entry.lr_mult and entry.tensor.grad is not None:
                    entry.tensor.sub_(0.5 * entry.tensor.grad)
    return not torch.equal(before, net.params[layer][0])


@pytest.mark.parametrize(
    ("body", "dead"),
    [
        (convolution("a", "data") + RELU + convolution("b", "a", FILLED), ["a", "b"]),  # no slope where a is 0
        (convolution("a", "data") + convolution("b", "a"), ["a", "b"]),  # each waits for the other
        (convolution("a", "data", FILLED) + RELU + convolution("b", "a"), []),  # the published way: zero scores
        (convolution("a", "data") + convolution("b", "a", FILLED), []),
        (convolution("a", "data", 'kernel_size: 1 bias_filler { value: 0.1 }') + RELU + convolution("b", "a", FILLED), []),
        (convolution("a", "data") + 'layer { name: "s" type: "Sigmoid" bottom: "a" top: "s" }\n' + convolution("b", "s"), []),
        (convolution("a", "data") + RELU.replace("}", "relu_param { negative_slope: 0.1 } }")
         + convolution("b", "a", FILLED), []),
    ],
)  # fmt: skip
def test_what_never_learns(tmp_path: Path, body: str, dead: list[str]) -> None:
    """The analysis says what training shows."""
    net = built(tmp_path, body)
    found = codes(net).get("never-learns")
    for layer in ("a", "b"):
        assert learns(built(tmp_path, body), layer) is (layer not in dead)
    assert (found is None) is (not dead)
    if found is not None:
        assert all(repr(name) in found.where for name in dead) and found.level == "fault"
        assert "\n" not in str(found) and found.remedy in str(found)


def test_unfilled_upsampling(tmp_path: Path) -> None:
    """The published train.prototxt without surgery: the loss stays ln 4 for ever."""
    body = convolution("a", "data", FILLED.replace("1", "2", 1) + " stride: 2")
    net = built(tmp_path, body + convolution("b", "a", UPSAMPLING, "param { lr_mult: 0 }", kind="Deconvolution"))
    found = codes(net)
    assert set(found) == {"unfilled", "never-learns"}
    assert "'b'" in found["unfilled"].where and "'a'" in found["never-learns"].where
    assert "'b'" in found["never-learns"].seen
    with torch.no_grad():
        net.params["b"][0].normal_()
    assert not codes(net)


@pytest.mark.parametrize(("group", "found"), [("", True), ("group: 4", False)])
def test_ungrouped_bilinear(tmp_path: Path, group: str, found: bool) -> None:
    body = convolution("a", "data", FILLED.replace("1", "2", 1) + " stride: 2")
    filler = UPSAMPLING + ' weight_filler { type: "bilinear" } ' + group
    net = built(tmp_path, body + convolution("b", "a", filler, "param { lr_mult: 0 }", kind="Deconvolution"))
    out = net(data=torch.randn(1, 3, 8, 8), blobs=["b"])["b"]
    assert bool((out == out[:, :1]).all()) is found
    assert set(codes(net)) == ({"ungrouped-bilinear"} if found else set())
    if found:
        with torch.no_grad():
            net.params["b"][0].normal_()
        assert not codes(net)  # it is about the values, not about the filler's name


def test_no_loss(tmp_path: Path) -> None:
    (finding,) = rules.before_training(built(tmp_path, convolution("a", "data", FILLED), None))
    assert finding.code == "no-loss" and "no layer of it gives a loss" in str(finding)
    body = convolution("a", "data", FILLED, "param { lr_mult: 0 } param { lr_mult: 0 }")
    assert "depends on no parameter that is learned" in str(codes(built(tmp_path, body, "a"))["no-loss"])
    body = convolution("a", "data", FILLED) + convolution(
        "b", "data", FILLED, "param { lr_mult: 0 } param { lr_mult: 0 }"
    )
    assert set(codes(built(tmp_path, body))) == {"no-loss"}


LAYER = 'layer { name: "%s" type: "Data" top: "%s" data_param { source: "no" batch_size: 1 } transform_param { %s } }\n'


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("mirror: true", "crop_size: 12", True),
        ("crop_size: 12 mirror: true", "crop_size: 12 mirror: true", True),
        ("crop_size: 12 mirror: true", "scale: 0.5", False),
        ("mean_value: 104", "", False),
    ],
)
def test_two_data_layers(tmp_path: Path, first: str, second: str, found: bool) -> None:
    (tmp_path / "n.prototxt").write_text(LAYER % ("image", "image", first) + LAYER % ("truth", "truth", second))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        net = fcnproto.load(tmp_path / "n.prototxt", phase="train")
        assert [finding.code for finding in rules.unaligned_random(net)] == ["unaligned-random"] * found
        fcnproto.load(tmp_path / "n.prototxt")  # crops in the middle, mirrors nothing
    said = [str(one.message) for one in seen if "random crop or mirror" in str(one.message)]
    assert len(said) == found and all("'image', 'truth'" in line for line in said)


@pytest.mark.parametrize(
    "name", ["voc-fcn32s", "voc-fcn8s", "voc-fcn-alexnet", "siftflow-fcn16s", "nyud-fcn32s-color-d"]
)
def test_the_published_nets_are_not_blamed(name: str) -> None:
    """With weights in the layers that get some, zero scores and interpolation, as their solve.py began."""
    definition = read_net(zoo.path(name, "train"))
    for layer in definition.layer:  # slim
        if layer.type == "Convolution" and "score" not in layer.name:
            layer.convolution_param.num_output = 2
            layer.convolution_param.group = 1
    net = Net(definition, "train")
    assert set(codes(net)) == {"unfilled", "never-learns"}
    surgery.interpolate(net)
    with torch.no_grad():
        for layer, blobs in net.params.items():
            if "score" not in layer:
                blobs[0].normal_()
    assert not list(rules.before_training(net)) and not list(rules.unaligned_random(net))


def test_said_before_the_first_iteration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = convolution("a", "data") + RELU + convolution("b", "a", FILLED)
    source = (
        'layer { name: "d" type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 }'
        ' shape { dim: 1 dim: 1 dim: 8 dim: 8 } data_filler { type: "uniform" } data_filler { value: 1 } } }\n'
    )
    (tmp_path / "n.prototxt").write_text(source + body + LOSS % "b")
    (tmp_path / "s.prototxt").write_text(
        'net: "n.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 snapshot_after_train: false solver_mode: CPU'
        ' snapshot_prefix: "x"'
    )
    solver = fcnproto.Solver(tmp_path / "s.prototxt")
    with pytest.warns(FcnprotoWarning, match="layers 'a', 'b': the weights of layer 'a' .*no gradient ever"):
        solver.step(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver.step(1)  # once
    assert main(["train", "--solver", str(tmp_path / "s.prototxt"), "--no-progress", "--no-plot"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "never-learns" in line]
    assert len(lines) == 1 and lines[0].startswith("fcnproto: warning: solver: layers 'a', 'b': ")
