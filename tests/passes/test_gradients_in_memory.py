"""Training with channels innermost stays within its memory, and as exact as with channels outermost."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from golden_cases import deviation

import fcnproto
from fcnproto.layers.memory_order import channels_outermost
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

# Bottoms (batch, channels, rows, columns) and convolutions whose gradients wrote outside their memory.
CASES = [
    ((1, 4, 210, 236), "num_output: 16 kernel_size: 1 stride: 2"),
    ((2, 4, 56, 56), "num_output: 16 kernel_size: 1 stride: 2"),
    ((2, 3, 33, 21), "num_output: 32 kernel_size: 1 stride: 3"),
    ((2, 7, 32, 17), "num_output: 19 kernel_size: 1 stride_h: 4 stride_w: 1"),
    ((2, 3, 9, 64), "num_output: 8 kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 2"),
    ((2, 12, 29, 28), "num_output: 12 group: 3 kernel_size: 2 stride: 3"),
    ((2, 5, 40, 42), "num_output: 5 group: 5 kernel_size: 1 stride: 2"),
    ((1, 1, 160, 160), "num_output: 3 kernel_size: 1 stride: 2"),
]


def net_of(shape: tuple[int, ...], settings: str, kind: str = "Convolution") -> fcnproto.Net:
    """A 3x3 convolution, whose top has channels innermost when optimised, and the layer of `kind` after it."""
    dims = " ".join(f"dim: {n}" for n in shape)
    filler = 'weight_filler { type: "msra" }'
    text = f"""
      layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}
      layer {{ name: "a" type: "Convolution" bottom: "x" top: "a" convolution_param {{ num_output: {shape[1]} kernel_size: 3
        pad: 1 {filler} }} }}
      layer {{ name: "b" type: "{kind}" bottom: "a" top: "b" convolution_param {{ {settings} {filler} }} }}
      layer {{ name: "l" type: "Reduction" bottom: "b" top: "l" loss_weight: 1 }}"""
    torch.manual_seed(0)
    return fcnproto.load(parse(text, caffe_pb2.NetParameter), phase="train")


def laid_out(net: fcnproto.Net, how: str) -> fcnproto.Net:
    """A copy of the net that works with channels innermost in one of the ways that users have."""
    twin = copy.deepcopy(net)
    return fcnproto.optimize(twin) if how == "optimize" else twin.to(memory_format=torch.channels_last)


WORK = """
import sys; sys.path[:0] = {path!r}
import torch
from test_gradients_in_memory import CASES, laid_out, net_of
torch.set_num_threads(1)
for shape, settings in CASES:
    for how in ("optimize", "memory_format"):
        net = laid_out(net_of(shape, settings), how)
        for _ in range(3):
            x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
            net.loss(net(x=x)).backward()
print("survived")
"""


def test_gradients_of_strided_convolutions_stay_in_their_memory() -> None:
    """In a process of its own, which a write outside would end."""
    run = subprocess.run(
        [sys.executable, "-c", WORK.format(path=sys.path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-500:]
    assert run.stdout == "survived\n"


@pytest.mark.parametrize("how", ["optimize", "memory_format"])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_strided_gradients_are_given_channels_outermost(monkeypatch: pytest.MonkeyPatch, how: str, kind: str) -> None:
    """On every processor, whatever this one's does."""
    seen: list[tuple[bool, ...]] = []

    def watched(inner: object) -> object:
        def call(x: torch.Tensor, weight: torch.Tensor, bias: object, stride: tuple[int, ...], *rest: object) -> object:
            if max(stride) > 1:
                seen.append(tuple(t.stride() == torch.empty(t.shape).stride() for t in (x, weight)))
            return inner(x, weight, bias, stride, *rest)  # type: ignore[operator]

        return call

    monkeypatch.setattr(F, "conv2d", watched(F.conv2d))
    monkeypatch.setattr(F, "conv_transpose2d", watched(F.conv_transpose2d))
    for shape, settings in [*CASES[1:], ((2, 1, 9, 8), "num_output: 2 kernel_size: 2 stride: 2")]:
        if kind == "Deconvolution":
            settings = settings.replace("kernel_size: 1", "kernel_size: 3").replace("num_output: 16", "num_output: 4")
        net = laid_out(net_of((shape[0], shape[1], 12, 13), settings, kind), how)
        net.loss(net(x=torch.randn(shape[0], shape[1], 12, 13))).backward()
    assert seen == [(True, True)] * 8


@pytest.mark.parametrize("how", ["optimize", "memory_format"])
def test_numbers_stay(how: str) -> None:
    for shape, settings in CASES[1:]:
        net = net_of(shape, settings)
        twin, x = laid_out(net, how), torch.randn(shape)
        for each in (net, twin):
            each.loss(each(x=x)).backward()
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            assert deviation(b.grad, a.grad) <= 1e-5, settings


def test_strides_of_axes_of_extent_one() -> None:
    for shape in ((2, 1, 4, 5), (3, 4, 1, 1), (1, 4, 1, 5), (1, 1, 1, 1)):
        innermost = torch.randn(shape).to(memory_format=torch.channels_last)
        plain = channels_outermost(innermost)
        assert torch.equal(plain, innermost)
        assert plain.stride() == torch.empty(shape).stride()


NORM = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 300 dim: 300 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 16 kernel_size: 3 pad: 1
  weight_filler { type: "msra" } } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "b" type: "BatchNorm" bottom: "c" top: "b" }
"""


@pytest.mark.parametrize("how", ["optimize", "memory_format"])
@pytest.mark.parametrize(("spread", "mean"), [(255, -110), (10, 100)], ids=["image", "bright, low contrast"])
def test_batch_statistics_are_as_exact_as_in_the_plain_net(how: str, spread: float, mean: float) -> None:
    torch.manual_seed(0)
    net = fcnproto.load(parse(NORM, caffe_pb2.NetParameter), phase="train")
    exact, twin, x = copy.deepcopy(net).double(), laid_out(net, how), torch.rand(1, 3, 300, 300) * spread + mean
    expected = exact(x=x.double())["b"]
    assert deviation(twin(x=x)["b"].detach(), expected.detach()) <= 1e-6
    for ours, statistic in zip(twin.buffers(), exact.buffers(), strict=True):
        assert deviation(ours, statistic) <= 1e-6
    slope = torch.randn(expected.shape)
    (twin(x=x)["b"] * slope).sum().backward()
    (expected * slope.double()).sum().backward()
    for a, b in zip(twin.parameters(), exact.parameters(), strict=True):
        if b.grad is not None and float(b.grad.abs().max()) > 1e-3:  # the bias's is zero
            assert deviation(a.grad, b.grad) <= 1e-4
