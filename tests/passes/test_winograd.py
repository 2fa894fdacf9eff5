"""Winograd's convolution against the direct one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from golden_cases import deviation

import fcnproto
from fcnproto.net.memory import Room
from fcnproto.passes import winograd
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (8, 13), (22, 3)])
@pytest.mark.parametrize("pad", [(1, 1), (0, 0), (0, 2), (3, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_and_padding(size: tuple[int, int], pad: tuple[int, int], batch: int) -> None:
    if any(n + 2 * p < 3 for n, p in zip(size, pad, strict=True)):
        return
    torch.manual_seed(0)
    x, weight, bias = torch.randn(batch, 5, *size).double(), torch.randn(7, 5, 3, 3).double(), torch.randn(7).double()
    transformed = winograd.transform_weight(weight)
    for b in (bias, None):
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            assert (
                deviation(winograd.convolve(given, transformed, b, pad, Room()), F.conv2d(x, weight, b, 1, pad))
                <= 1e-13
            )


@pytest.mark.parametrize("channels", [256, 512])
def test_rounding_is_that_of_a_direct_convolution(channels: int) -> None:
    """The usual points (0, 1, -1, 2, -2) give five times as much."""
    torch.manual_seed(0)
    x, weight = (
        torch.randn(1, channels, 20, 24).relu(),
        torch.randn(channels, channels, 3, 3) * (2 / 9 / channels) ** 0.5,
    )
    exact = F.conv2d(x.double(), weight.double(), None, 1, 1)
    assert (
        deviation(winograd.convolve(x, winograd.transform_weight(weight), None, (1, 1), Room()).double(), exact) <= 3e-6
    )


@torch.no_grad()
def test_wide_layers_of_an_optimized_net(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = 'type: "Convolution" convolution_param { num_output: 256 kernel_size: 3 pad: 1 weight_filler { type: "msra" } bias_filler { type: "gaussian" } }'
    relu = 'layer {{ name: "r{0}" type: "ReLU" bottom: "c{0}" top: "c{0}" }}'
    layers = "\n".join(
        f'layer {{ name: "c{i}" bottom: "{"c" + str(i - 1) if i else "x"}" top: "c{i}" {wide} }}' + relu.format(i)
        for i in range(4)
    )
    text = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 30 dim: 30 } } }\n' + layers
    )
    torch.manual_seed(0)
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    fast, calls = fcnproto.optimize(net), []
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *a: calls.append(1) or convolve(*a))
    for size, expected in [
        ((30, 33), 3),
        ((7, 9), 0),
    ]:  # the first layer has too few channels, a small map too few tiles
        x = torch.randn(1, 3, *size)
        calls.clear()
        ours = fast(x)["c3"]
        assert len(calls) == expected
        assert deviation(ours, net(x)["c3"]) <= 5e-6
    net.params["c2"][0].data.mul_(1.5)
    assert deviation(fast(torch.ones(1, 3, 30, 30))["c3"], net(torch.ones(1, 3, 30, 30))["c3"]) <= 5e-6
    with torch.enable_grad():
        calls.clear()
        fast(x)
        assert not calls


WIDE = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 128 dim: 40 dim: 60 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 128 kernel_size: 3 pad: 1
  weight_filler { type: "msra" } bias_filler { type: "gaussian" } } }
"""


def test_memory_kept_in_one_mode_serves_in_the_others() -> None:
    torch.manual_seed(0)
    net = fcnproto.load(parse(WIDE, caffe_pb2.NetParameter))
    fast = fcnproto.optimize(net)
    for k, mode in enumerate((torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode)):
        x = torch.randn(1, 128, 40 + 40 * k, 60)  # larger each time, so that more memory is taken
        with mode():
            ours = fast(x)["c"]
        assert deviation(ours.detach().clone(), net(x)["c"].detach()) <= 5e-6


def test_one_net_called_by_several_threads() -> None:
    torch.manual_seed(0)
    net = fcnproto.load(parse(WIDE, caffe_pb2.NetParameter))
    fast = fcnproto.optimize(net)
    images = [torch.randn(1, 128, 40 + k, 60) for k in range(4)]

    def work(x: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [fast(x)["c"] for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for x, results in zip(images, pool.map(work, images), strict=True):
            plain = net(x)["c"].detach()
            assert all(deviation(y, plain) <= 5e-6 for y in results)
