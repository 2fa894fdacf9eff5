"""A training step of every published and every classic net, optimised, in a process that a write outside would end."""

from __future__ import annotations

import copy
import subprocess
import sys

import torch
from classic_nets import CLASSIC

import fcnproto
from fcnproto import zoo
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net

SIZE = (37, 45)
STEPS = 1


def classic(name: str) -> tuple[fcnproto.Net, dict[str, torch.Tensor]]:
    """A slim classic net for training, and its inputs."""
    build, shape = CLASSIC[name]
    net = NetSpec()
    net.data, net.label = L.Input(shape={"dim": list(shape)}), L.Input(shape={"dim": [shape[0]]})
    made = fcnproto.load(build(net), phase="train")
    return made, {"data": torch.randn(shape), "label": torch.arange(shape[0])}


def published(name: str) -> tuple[fcnproto.Net, dict[str, torch.Tensor]]:
    """A published net as it is trained, with a sixteenth of the channels, and its inputs."""
    definition = read_net(zoo.path(name, "train"))
    for layer in definition.layer:
        settings = layer.convolution_param
        if layer.type == "Convolution" and not layer.name.startswith("score"):
            settings.num_output = max(4, settings.num_output // 16) // settings.group * settings.group
        if layer.type in ("Convolution", "Deconvolution"):
            settings.weight_filler.CopyFrom(caffe_pb2.FillerParameter(type="msra"))
        if layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = 0  # an optimised net draws other numbers
    net = fcnproto.load(definition, phase="train")
    inputs = {}
    for top, (_, channels, *_) in net.source_shapes.items():
        image = top in ("data", "color", "hha", "depth")
        inputs[top] = torch.randn(1, channels, *SIZE) * 50 if image else torch.randint(0, 3, (1, 1, *SIZE))
    return net, inputs


def step(net: fcnproto.Net, inputs: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    """The loss of one step, and all gradients in a row."""
    net.zero_grad()
    loss = net.loss(net(inputs))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def take_steps() -> None:
    """All nets, one after the other: losses and gradients of the plain net, to what near ties of max poolings allow."""
    torch.set_num_threads(1)
    for name in [*CLASSIC, *zoo.names()]:
        torch.manual_seed(0)
        plain, inputs = (classic if name in CLASSIC else published)(name)
        fast = fcnproto.optimize(copy.deepcopy(plain))
        for _ in range(STEPS):
            (loss, slopes), (expected, wanted) = step(fast, inputs), step(plain, inputs)
            assert abs(loss - expected) <= 1e-5 * abs(expected), (name, loss, expected)
            assert float((slopes - wanted).norm()) <= 1e-3 * float(wanted.norm()), name
            assert float(wanted.norm()) > 0, name
        print(name)


def test_no_optimised_training_step_leaves_its_memory() -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; import {__name__} as own; own.take_steps()"
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-800:]
    assert run.stdout.splitlines() == [*CLASSIC, *zoo.names()]
    assert len(CLASSIC) + len(zoo.names()) >= 28
