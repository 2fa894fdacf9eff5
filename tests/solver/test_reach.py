"""Which nets can be trained by several workers without looking for parameters that no gradient reaches."""

from __future__ import annotations

import golden_cases
import pytest
import torch

import fcnproto
from fcnproto.net.examples import draw_inputs
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse
from fcnproto.solver import Options, distributed
from fcnproto.solver.engine import Engine
from fcnproto.solver.reach import all_get_gradients

HEAD = """
layer { name: "in" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } shape { dim: 2 dim: 1 dim: 4 dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" PROPAGATE
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "msra" } } }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "BOTTOM" bottom: "label" top: "loss" }'
SECOND = """layer { name: "second" type: "Convolution" bottom: "conv" top: "second" PARAM
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "msra" } } }
"""
NETS = {
    "plain": HEAD + LOSS.replace("BOTTOM", "conv"),
    "deep": HEAD
    + 'layer { name: "r" type: "ReLU" bottom: "conv" top: "conv" }'
    + SECOND
    + LOSS.replace("BOTTOM", "second"),
    "shared": HEAD.replace("PROPAGATE", 'param { name: "w" } param { name: "b" }')
    + SECOND.replace("PARAM", 'param { name: "w" } param { name: "b" }')
    + LOSS.replace("BOTTOM", "second"),
    "frozen": HEAD
    + SECOND.replace("PARAM", "param { lr_mult: 0 } param { lr_mult: 0 }")
    + LOSS.replace("BOTTOM", "conv"),
    "beside": HEAD + SECOND + LOSS.replace("BOTTOM", "conv"),
    "silenced": HEAD + SECOND + 'layer { name: "q" type: "Silence" bottom: "second" }' + LOSS.replace("BOTTOM", "conv"),
    "threshold": HEAD
    + 'layer { name: "t" type: "Threshold" bottom: "conv" top: "step" }'
    + SECOND.replace('bottom: "conv"', 'bottom: "step"')
    + LOSS.replace("BOTTOM", "second"),
    "cut": HEAD + SECOND.replace("PARAM", "propagate_down: false") + LOSS.replace("BOTTOM", "second"),
    "unweighted": HEAD + LOSS.replace("BOTTOM", "conv").replace('top: "loss"', 'top: "loss" loss_weight: 0'),
}


def without_gradient(net: fcnproto.Net) -> bool:
    shapes = {"data": (2, 3, 4, 4), "label": (2, 1, 4, 4)}
    inputs = {name: torch.from_numpy(value) for name, value in draw_inputs(net, shapes).items()}
    loss = net.loss(net(inputs))
    if loss.requires_grad:
        loss.backward()
    return any(entry.tensor.requires_grad and entry.tensor.grad is None for entry in net.learnable)


@pytest.mark.parametrize("name", NETS)
def test_as_torch_finds(name: str) -> None:
    text = NETS[name].replace("PROPAGATE", "").replace("PARAM", "")
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), phase="train")
    assert all_get_gradients(net) == (not without_gradient(net))
    assert all_get_gradients(net) == (name in ("plain", "deep", "shared", "frozen"))


@pytest.mark.parametrize("name", [name for name in golden_cases.names("fcn") if name.endswith("_train")])
def test_published_nets_need_no_look(name: str) -> None:
    net = golden_cases.load("fcn", name).net(phase="train")
    assert all_get_gradients(net)


class Own(fcnproto.Pointwise):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_of_a_users_own_layer_nobody_knows() -> None:
    fcnproto.register_layer("OwnForReach")(Own)
    layer = 'layer { name: "own" type: "OwnForReach" bottom: "conv" top: "own" }'
    text = (HEAD + layer + LOSS.replace("BOTTOM", "own")).replace("PROPAGATE", "")
    assert not all_get_gradients(fcnproto.load(parse(text, caffe_pb2.NetParameter), phase="train"))


@pytest.mark.parametrize("name", ["plain", "beside"])
def test_workers_look_only_where_they_must(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def parallel(module: torch.nn.Module, **options: object) -> torch.nn.Module:
        given.update(options)
        return module

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", parallel)
    text = NETS[name].replace("PROPAGATE", "").replace("PARAM", "")
    Engine(fcnproto.load(parse(text, caffe_pb2.NetParameter), phase="train"), Options())
    assert given["find_unused_parameters"] is (name == "beside") and given["gradient_as_bucket_view"] is True
