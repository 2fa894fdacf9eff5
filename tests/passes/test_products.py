"""Convolutions as one matrix product against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from golden_cases import deviation

import fcnproto
from fcnproto.layers.convolution import Convolution
from fcnproto.passes import products
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

SETTINGS = [
    "kernel_size: 7",
    "kernel_size: 5 pad: 2 bias_term: false",
    "kernel_size: 1",
    "kernel_size: 1 stride: 2 pad: 1",
    "kernel_h: 6 kernel_w: 5 stride_h: 2 stride_w: 3 pad_h: 1 pad_w: 4 dilation: 2 dilation: 1",
    "kernel_size: 7 stride: 2 pad: 3 dilation: 2",
]


def layer_of(settings: str, channels: int = 6, outputs: int = 10) -> Convolution:
    text = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: {channels} dim: 19 dim: 23 }} }} }}
      layer {{ name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param {{ num_output: {outputs} {settings}
        weight_filler {{ type: "msra" }} {'bias_filler { type: "gaussian" }' if "bias_term" not in settings else ""} }} }}"""
    torch.manual_seed(0)
    (layer,) = (layer for layer in fcnproto.load(parse(text, caffe_pb2.NetParameter)).layers if layer.name == "c")
    assert isinstance(layer, Convolution)
    return layer


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("few_at_once", [True, False])
def test_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch, settings: str, batch: int, onednn: bool, few_at_once: bool
) -> None:
    layer = layer_of(settings)
    if few_at_once:
        monkeypatch.setattr(products, "_BYTES_AT_ONCE", 40_000)
    monkeypatch.setattr(products.onednn, "works", lambda: onednn)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(batch, 6, 19, 23).contiguous(memory_format=memory_format)
        plain = layer(x)
        with torch.no_grad():
            ours = products.convolve(layer, x, plain.shape[2:], layer.blob(0), layer.optional_blob(1))
        assert ours.shape == plain.shape and deviation(ours, plain.detach()) <= 1e-6


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients(settings: str) -> None:
    layer = layer_of(settings).double()
    x = torch.randn(2, 6, 19, 23, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    ours = products.convolve(layer, x, plain.shape[2:], layer.blob(0), layer.optional_blob(1))
    direction = torch.randn_like(plain)
    wanted = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, wanted, direction), torch.autograd.grad(plain, wanted, direction), strict=True
    ):
        assert deviation(a, b) <= 1e-12


def test_which_layers_it_suits() -> None:
    x = torch.zeros(1, 512, 17, 22)
    wide = layer_of("kernel_size: 7", 512, 1024)
    assert products.suits(wide, x, (11, 16))
    assert not products.suits(wide, x, (40, 40))  # many positions, all windows laid out at once for autograd
    with torch.no_grad():
        assert products.suits(wide, x, (40, 40))  # in parts
    narrow = layer_of("kernel_size: 7", 185, 128)
    assert products.suits(narrow, x, (8, 16)) and not products.suits(narrow, x, (8, 16), batch=2)
    assert not products.suits(narrow, x, (23, 41))  # what its windows see is more than its weights
    assert products.suits(layer_of("kernel_size: 1", 1024, 1024), x, (11, 16))
    assert not products.suits(layer_of("kernel_size: 1", 1024, 21), x, (11, 16))  # few weights
    assert not products.suits(layer_of("kernel_size: 3", 512, 512), x, (11, 16))
    assert not products.suits(layer_of("kernel_size: 7 group: 2", 512, 128), x, (11, 16))
