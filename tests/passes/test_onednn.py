"""Convolutions and inner products by oneDNN's fused operators: the plain net's numbers, and the plain way where not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto.passes import onednn
from fcnproto.passes.fused import FusedConvolution, FusedProduct
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

FILL = 'weight_filler { type: "msra" } bias_filler { type: "gaussian" std: 1 }'


def convolution(name: str, bottom: str, outputs: int, more: str, fill: str = FILL) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} {more} {fill} }} }}\n"
    )


def layer(kind: str, top: str, *bottoms: str, more: str = "") -> str:
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms or (top,))
    return f'layer {{ name: "{kind}_{top}_{len(bottoms)}" type: "{kind}" {read} top: "{top}" {more} }}\n'


NET = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 21 dim: 17 } } }\n'
    + convolution("a", "data", 16, "kernel_size: 3 stride: 2 pad: 1")
    + layer("ReLU", "a")
    + convolution("wide", "a", 32, "kernel_size: 1 bias_term: false", 'weight_filler { type: "msra" }')
    + layer("BatchNorm", "wide")
    + layer("Scale", "wide", more="scale_param { bias_term: true }")
    + layer("ReLU", "wide", more="relu_param { relu6: true }")
    + convolution("deep", "wide", 32, "kernel_size: 3 pad: 1 group: 32")
    + layer("ReLU", "deep", more="relu_param { negative_slope: 0.2 }")
    + convolution("b", "deep", 16, "kernel_size: 1")
    + layer("Eltwise", "first", "b", "a")
    + layer("ReLU", "first")
    + convolution("c", "first", 16, "kernel_size: 3 pad: 2 dilation: 2")
    + layer("Eltwise", "second", "first", "c")
    + convolution("down", "second", 24, "kernel_size: 1 stride: 2")
    + convolution("side", "second", 24, "kernel_size: 3 stride: 2 pad: 1")
    + layer("Eltwise", "both", "down", "side")
    + layer("Clip", "both", more="clip_param { min: -20 max: 40 }")
    + layer("Eltwise", "weighted", "both", "both", more="eltwise_param { coeff: 1 coeff: 0.5 }")
    + layer("Pooling", "pooled", "weighted", more="pooling_param { pool: AVE kernel_size: 3 stride: 2 }")
)
HEAD = (
    f'layer {{ name: "fc" type: "InnerProduct" bottom: "pooled" top: "fc" inner_product_param {{ num_output: 9 {FILL} }} }}\n'
    + layer("ReLU", "fc")
    + f'layer {{ name: "score" type: "InnerProduct" bottom: "fc" top: "score" inner_product_param {{ num_output: 4 {FILL} }} }}\n'
)


def made(text: str) -> fcnproto.Net:
    torch.manual_seed(3)
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    for name, blobs in net.params.items():
        if name.startswith("BatchNorm"):
            for tensor, value in zip(blobs, (0.3, 1.7, 2.0), strict=True):  # mean, variance, their factor
                tensor.data.fill_(value)
    return net


@pytest.fixture
def net() -> fcnproto.Net:
    return made(NET + HEAD)


def image(batch: int = 1, size: tuple[int, int] = (21, 17)) -> Tensor:
    return torch.randn(batch, 3, *size)


def modules(fast: fcnproto.passes.OptimizedNet, kind: type) -> list[torch.nn.Module]:
    return [module for module in fast._find_plan(("data",), ()).module.modules() if isinstance(module, kind)]


@pytest.mark.skipif(not onednn.works(), reason="this build of torch has no oneDNN")
@torch.no_grad()
def test_everything_is_fused(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    fast(data=image())
    following = [tuple(each.type for each in module.following) for module in modules(fast, FusedConvolution)]
    fused = [(), (), ("Eltwise",), ("Eltwise", "Clip"), ("Eltwise", "ReLU"), ("ReLU",), ("ReLU",)]
    assert sorted(following) == fused
    assert all(module._ways.values() for module in modules(fast, FusedConvolution))
    assert {way for module in modules(fast, FusedConvolution) for way in module._ways.values()} == {"direct", "rows"}
    assert [len(module.following) for module in modules(fast, FusedProduct)] == [1, 0]


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_the_numbers_of_the_plain_net(net: fcnproto.Net, batch: int) -> None:
    fast = fcnproto.optimize(net)
    for blobs in ((), ("a", "first", "both"), ("b", "side")):
        x = image(batch)
        expected = net(data=x, blobs=blobs)
        for _ in range(2):
            found = fast(data=x, blobs=blobs)
            assert max(deviation(found[name], expected[name]) for name in expected) <= 2e-6
            assert all(value.is_contiguous() for value in found.values())


@torch.no_grad()
def test_other_sizes() -> None:
    net = made(NET)
    fast = fcnproto.optimize(net)
    for size in ((21, 17), (16, 16), (9, 40), (21, 17), (64, 33)):
        x = image(2, size)
        assert deviation(fast(data=x)["pooled"], net(data=x)["pooled"]) <= 2e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@torch.no_grad()
def test_what_is_no_number_stays_so(net: fcnproto.Net, value: float) -> None:
    fast = fcnproto.optimize(net)
    x = image()
    fast(data=x)
    x[0, 1, 5, 5] = value
    assert torch.equal(fast(data=x)["score"].isnan(), net(data=x)["score"].isnan())
    x = image()
    for name, index in (("b", 0), ("a", 1), ("fc", 0)):
        blob = net.params[name][index]
        before = blob.data.flatten()[2].item()
        blob.data.view(-1)[2] = value
        assert torch.equal(fast(data=x)["score"].isnan(), net(data=x)["score"].isnan())
        blob.data.view(-1)[2] = before
        assert deviation(fast(data=x)["score"], net(data=x)["score"]) <= 2e-6


@torch.no_grad()
def test_what_a_layer_makes_no_number_of_stays_so() -> None:
    """The logarithm of a negative value, two convolutions before the end."""
    text = NET[: NET.index('layer { name: "Eltwise_first_2"')] + layer("Log", "log", "b")
    text += convolution("next", "log", 8, "kernel_size: 1") + layer("ReLU", "next")
    net = made(text + convolution("last", "next", 8, "kernel_size: 1") + layer("ReLU", "last"))
    x = image()
    expected = net(data=x)["last"]
    assert bool(expected.isnan().any())
    assert torch.equal(fcnproto.optimize(net)(data=x)["last"].isnan(), expected.isnan())


@torch.no_grad()
def test_changed_weights_are_noticed(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    x = image()
    for name, blobs in net.params.items():
        fast(data=x)
        for blob in blobs:
            blob.data.numpy()[...] *= 1.5
        assert deviation(fast(data=x)["score"], net(data=x)["score"]) <= 2e-6, name


def test_gradients(net: fcnproto.Net) -> None:
    fast = fcnproto.optimize(net)
    x = image(2).requires_grad_()
    with torch.no_grad():
        fast(data=x)
    wanted = [x, *net.parameters()]
    ours = torch.autograd.grad(fast(data=x)["score"].square().sum(), wanted)
    plain = torch.autograd.grad(net(data=x)["score"].square().sum(), wanted)
    for found, expected in zip(ours, plain, strict=True):
        assert deviation(found, expected) <= 1e-5
    assert net(data=x)["score"].requires_grad


@pytest.mark.parametrize("reason", ["absent", "switched off", "float64", "autocast", "inference mode"])
@torch.no_grad()
def test_other_ways(net: fcnproto.Net, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = fcnproto.optimize(net)
    x = image()
    if reason == "absent":
        monkeypatch.setattr(onednn, "_OPERATORS", ("_no_such_operator",))
        onednn._gave_right_numbers.cache_clear()
    if reason == "float64":
        net.double(), fast.double()
        x = x.double()
    enabled = reason != "switched off"
    try:
        with (
            torch.backends.mkldnn.flags(enabled=enabled),
            torch.autocast("cpu", enabled=reason == "autocast"),
            torch.inference_mode() if reason == "inference mode" else torch.no_grad(),
        ):
            tolerance = 5e-2 if reason == "autocast" else 2e-6
            assert deviation(fast(data=x)["score"].float(), net(data=x)["score"].float()) <= tolerance
    finally:
        onednn._gave_right_numbers.cache_clear()
    if reason == "inference mode":
        assert deviation(fast(data=x)["score"], net(data=x)["score"]) <= 2e-6


def test_the_operators_are_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gives wrong numbers, or takes other arguments, is not used."""

    def wrong(*_: object) -> Tensor:
        raise TypeError("another signature")

    halved = ("multiply_by_rows", lambda left, rows: left @ rows.t() / 2)
    for name, stand_in in (("convolve", wrong), ("multiply", lambda x, w, *_: x @ w.t()), halved):
        with monkeypatch.context() as patched:
            patched.setattr(onednn, name, stand_in)
            onednn._gave_right_numbers.cache_clear()
            assert not onednn.works()
    onednn._gave_right_numbers.cache_clear()


def test_private_operators_and_threads_of_the_process_are_named_in_one_place_each() -> None:
    """Commands and the workers of a cluster set the threads of a process that is theirs."""
    root = Path(fcnproto.__file__).parent
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    for private, places in (
        ("ops.mkldnn", ["passes/onednn.py"]),
        ("set_num_threads", ["cli/_options.py", "cluster/engine.py", "passes/team.py"]),
    ):
        assert sorted(name for name, text in texts.items() if private in text) == places


@torch.no_grad()
def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    fast = fcnproto.optimize(made(NET))
    for size in ((21, 17), (64, 64)):
        fast(data=image(2, size))
        assert torch.get_num_threads() == before
