"""The published nets at full width beside OpenCV's dnn, with random weights: each takes seconds and 2 GB of memory."""

from __future__ import annotations

import math

import pytest
import torch

import fcnproto
from fcnproto.parity import compare, opencv_reference, random_inputs


def drawn_net(name: str) -> fcnproto.Net:
    """A net of the zoo with weights that keep values in range: He's for convolutions, bilinear upsampling."""
    torch.manual_seed(0)
    net = fcnproto.load(fcnproto.zoo.path(name, "deploy"))
    for layer in net.layers:
        if layer.type == "Convolution":
            weight = layer.blob(0).detach()
            weight.normal_(0, math.sqrt(2 / weight[0].numel()))
            if len(layer.blob_names) > 1:
                layer.blob(1).detach().uniform_(-0.5, 0.5)
        elif layer.type == "Deconvolution":
            weight = layer.blob(0).detach()
            size = weight.shape[-1]
            reach = (size + 1) // 2
            centre = reach - 1 if size % 2 else reach - 0.5
            tent = 1 - (torch.arange(size) - centre).abs() / reach
            weight.zero_()
            for channel in range(len(weight)):
                weight[channel, channel if weight.shape[1] > 1 else 0] = tent[:, None] * tent
        elif layer.type == "Scale" and layer.blob_names:
            layer.blob(0).detach().fill_(0.01)
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", fcnproto.zoo.names())
def test_net_beside_opencv(name: str) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = drawn_net(name)
    with torch.no_grad():
        report = compare(net, opencv_reference(net, random_inputs(net, (96, 64))), tolerance=1e-5)
    assert report.agrees, report.departure
    assert not report.not_compared
    for entry in report.entries:
        if entry.name in net.outputs:
            assert entry.measures is not None
            assert entry.measures.argmax == 1.0
