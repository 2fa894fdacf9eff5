"""Every pass of `optimize` by itself: it changes the plan as it says, and no output."""

from __future__ import annotations

from collections import Counter

import golden_cases
import pytest
import torch
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto.net.plan import Plan
from fcnproto.passes.keeping import Watch
from fcnproto.passes.rewriting import PASSES, rewrite
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

BIAS = 'weight_filler { type: "msra" } bias_filler { type: "gaussian" }'
NET = f"""
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 dim: 29 dim: 37 }} }} }}
layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param {{ num_output: 16 kernel_size: 3 pad: 40 {BIAS} }} }}
layer {{ name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }}
layer {{ name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param {{ num_output: 16 kernel_size: 3 pad: 1 {BIAS} }} }}
layer {{ name: "norm2" type: "BatchNorm" bottom: "conv2" top: "conv2" }}
layer {{ name: "scale2" type: "Scale" bottom: "conv2" top: "conv2" scale_param {{ bias_term: true filler {{ type: "gaussian" }} bias_filler {{ type: "gaussian" }} }} }}
layer {{ name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }}
layer {{ name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "drop2" type: "Dropout" bottom: "pool2" top: "pool2" }}
layer {{ name: "score" type: "Convolution" bottom: "pool2" top: "score" convolution_param {{ num_output: 5 kernel_size: 1 {BIAS} }} }}
layer {{ name: "up2" type: "Deconvolution" bottom: "score" top: "up2" convolution_param {{ num_output: 5 kernel_size: 4 stride: 2
  bias_term: false weight_filler {{ type: "bilinear" }} }} }}
layer {{ name: "skip" type: "Convolution" bottom: "pool1" top: "skip" convolution_param {{ num_output: 5 kernel_size: 1 {BIAS} }} }}
layer {{ name: "up2c" type: "Crop" bottom: "up2" bottom: "skip" top: "up2c" crop_param {{ axis: 2 offset: 1 }} }}
layer {{ name: "fuse" type: "Eltwise" bottom: "up2c" bottom: "skip" top: "fuse" }}
layer {{ name: "up" type: "Deconvolution" bottom: "fuse" top: "up" convolution_param {{ num_output: 5 kernel_size: 4 stride: 2
  bias_term: false weight_filler {{ type: "bilinear" }} }} }}
layer {{ name: "out" type: "Crop" bottom: "up" bottom: "data" top: "out" crop_param {{ axis: 2 offset: 41 }} }}
"""
# For every pass, how many modules of which kind it takes away from the plan and adds to it.
CHANGES = {
    "remove_dropout": {"Dropout": -1},
    "fold_padding": {
        "FoldedChain": 1,
        "Convolution": -3,
        "ReLU": -2,
        "Pooling": -2,
        "BatchNorm": -1,
        "Scale": -1,
        "Dropout": -1,
    },
    "convolutions": {"FastConvolution": 4, "Convolution": -4, "ReLU": -2, "BatchNorm": -1, "Scale": -1},
    "normalisation": {"FastNorm": 1, "BatchNorm": -1, "Scale": -1, "ReLU": -1},
    "pooling": {"FastPooling": 2, "Pooling": -2},
    "deconvolutions": {"FastDeconvolution": 2, "Deconvolution": -2, "Crop": -2},
    "onednn": {},
}


@pytest.fixture
def net() -> fcnproto.Net:
    torch.manual_seed(0)
    net = fcnproto.load(parse(NET, caffe_pb2.NetParameter))
    for tensor, value in zip(net.params["norm2"], (0.3, 1.7, 2.0), strict=True):  # mean, variance, their factor
        tensor.data.fill_(value)
    return net


def modules(plan: Plan) -> Counter[str]:
    return Counter(
        type(plan.module.get_submodule(str(node.target))).__name__
        for node in plan.module.graph.nodes
        if node.op == "call_module"
    )


def image(net: fcnproto.Net, batch: int = 1) -> Tensor:
    return torch.randn(batch, *net.source_shapes["data"][1:]) * 50


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("blobs", [(), ("conv1", "pool1", "score", "up2")], ids=["outputs", "blobs within too"])
@torch.no_grad()
def test_outputs_stay(net: fcnproto.Net, name: str, blobs: tuple[str, ...]) -> None:
    plan = net.plan("data", blobs)
    rewritten = rewrite(plan, Watch(), [name])[0]
    assert rewritten.keys == plan.keys
    for batch in (1, 2):
        x = image(net, batch)
        for ours, plain in zip(rewritten.module(x), plan.module(x), strict=True):
            assert deviation(ours, plain) <= 2e-6
            assert ours.is_contiguous()


@pytest.mark.parametrize("name", PASSES)
def test_the_plan_changes(net: fcnproto.Net, name: str) -> None:
    plan = net.plan("data")
    change = modules(rewrite(plan, Watch(), [name])[0])
    change.subtract(modules(plan))
    assert {kind: count for kind, count in change.items() if count} == CHANGES[name]


def test_no_pass_no_change(net: fcnproto.Net) -> None:
    plan = net.plan("data")
    assert modules(rewrite(plan, Watch(), [])[0]) == modules(plan)


def test_what_is_left_of_all_passes(net: fcnproto.Net) -> None:
    left = modules(rewrite(net.plan("data"), Watch())[0])
    assert left == {"FoldedChain": 1, "FusedConvolution": 1, "Ready": 1, "FastDeconvolution": 2, "Eltwise": 1}


def test_splits_are_no_work(net: fcnproto.Net) -> None:
    assert sum(layer.type == "Split" for layer in net.layers) == 3
    assert "Split" not in modules(net.plan("data")) and "Split" not in modules(rewrite(net.plan("data"), Watch())[0])


def test_dropout_is_kept_in_training(net: fcnproto.Net) -> None:
    plan = net.train().plan("data")
    assert modules(rewrite(plan, Watch(), ["remove_dropout"])[0])["Dropout"] == 1


@pytest.mark.parametrize("name", [n for n in golden_cases.names("fcn") if n.endswith("_forward")])
@torch.no_grad()
def test_published_nets_with_one_pass_at_a_time(name: str) -> None:
    case = golden_cases.load("fcn", name)
    net = case.net()
    plan = net.plan(list(case.keys("in")))
    x = [torch.from_numpy(case.keys("in")[blob]) for blob in plan.inputs]
    plain = plan.module(*x)
    for step in PASSES:
        for ours, value in zip(rewrite(plan, Watch(), [step])[0].module(*x), plain, strict=True):
            assert deviation(ours, value) <= 5e-6, step
