"""Shift-and-stitch and filter rarefaction give the same scores at every position."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from golden_cases import deviation
from test_surgery_weights import randomise

import fcnproto
from fcnproto import surgery
from fcnproto.errors import GraphError, UsageError
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L


def begin(pad: int = 0, **settings: Any) -> tuple[NetSpec, Any]:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 2, 20, 20]})
    net.conv1 = L.Convolution(net.data, num_output=4, kernel_size=3, pad=pad, **settings)
    net.relu1 = L.ReLU(net.conv1, in_place=True)
    return net, net.relu1


def vgg() -> NetSpec:
    """Two convolutions and a pooling by 2, three times over, then a fully connected 3x3."""
    net, top = begin(pad=24)
    for stage in range(3):
        top = net[f"pool{stage}"] = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
        top = net[f"conv{stage}_2"] = L.Convolution(top, num_output=5, kernel_size=2 if stage else 3)
        top = net[f"relu{stage}_2"] = L.ReLU(top, in_place=True)
    top = net.fc6 = L.Convolution(top, num_output=6, kernel_size=3)
    net.score = L.Convolution(top, num_output=3, kernel_size=1)
    return net


def alexnet() -> NetSpec:
    """A strided first layer, overlapping poolings, normalisation across channels, groups."""
    net, top = begin(pad=15, stride=2)
    top = net.pool1 = L.Pooling(top, pool="MAX", kernel_size=3, stride=2)
    top = net.norm1 = L.LRN(top, local_size=3, alpha=0.1)
    top = net.conv2 = L.Convolution(top, num_output=4, kernel_size=3, group=2)
    top = net.pool2 = L.Pooling(top, pool="MAX", kernel_size=3, stride=2)
    net.score = L.Convolution(top, num_output=3, kernel_size=2)
    return net


def averages_and_branches() -> NetSpec:
    """Average poolings by 2 and 3, a strided convolution behind them, a residual and a joined branch."""
    net, top = begin()
    top = net.pool1 = L.Pooling(top, pool="AVE", kernel_size=2, stride=3)
    net.conv2 = L.Convolution(top, num_output=4, kernel_size=1)
    top = net.sum = L.Eltwise(top, net.conv2, operation="SUM")
    top = net.pool2 = L.Pooling(top, pool="AVE", kernel_size=2, stride=2)
    net.left = L.Convolution(top, num_output=3, kernel_size=1)
    net.right = L.Convolution(top, num_output=2, kernel_size=1, dilation=1)
    top = net.joined = L.Concat(net.left, net.right)
    net.score = L.Convolution(top, num_output=3, kernel_size=2, dilation=2)
    return net


def single_position_pooling() -> NetSpec:
    """Subsampling alone: windows of one position."""
    net, top = begin(pad=4)
    top = net.pool1 = L.Pooling(top, pool="MAX", kernel_size=1, stride=2)
    top = net.pool2 = L.Pooling(top, pool="MAX", kernel_size=1, stride=2)
    net.score = L.Convolution(top, num_output=3, kernel_size=2)
    return net


@pytest.mark.parametrize("build", [vgg, alexnet, averages_and_branches, single_position_pooling])
@pytest.mark.parametrize("size", [(28, 28), (31, 34)])
def test_both_ways_agree_at_every_position(build: Any, size: tuple[int, int]) -> None:
    definition = build().to_proto()
    net = randomise(fcnproto.load(definition), 1)
    rare_definition, report = surgery.rarefy(definition)
    rare = fcnproto.load(rare_definition)
    surgery.transplant(rare, net)
    data = torch.randn(2, 2, *size)
    with torch.no_grad():
        expected, coarse = rare(data)["score"], net(data)["score"]
    stitched = surgery.shift_and_stitch(net, data)
    height, width = (min(pair) for pair in zip(stitched.scores.shape[2:], expected.shape[2:], strict=True))
    assert height > 2 * coarse.shape[2] and width > 2 * coarse.shape[3]
    assert deviation(stitched.scores[:, :, :height, :width], expected[:, :, :height, :width]) <= 1e-5
    first = net.layer("conv1").param.convolution_param.pad
    if list(first) != [0]:  # a padded net: every pixel of the image has its scores
        both = (stitched.per_pixel(*size), surgery.Dense(expected, stitched.offset).per_pixel(*size))
        assert deviation(*both) <= 1e-5 and both[0].shape == (2, 3, *size)
    assert report.layers("changed") and torch.isfinite(stitched.scores).all()


def drawn(rng: random.Random) -> tuple[NetSpec, int]:
    """A net of random windows with its stride (up to 27)."""
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 2, 64, 64]})
    top, stride = net.data, 1
    for index in range(rng.randint(2, 4)):
        step = rng.choice([1, 2, 2, 3]) if stride <= 8 else 1
        window = {"kernel_size": rng.randint(1, 5), "stride": step}
        if index == 0 or rng.random() < 0.5:
            pad = rng.choice([0, 7, 20]) if index == 0 else 0
            top = L.Convolution(top, num_output=3, pad=pad, dilation=rng.choice([1, 1, 2]), **window)
        else:
            top = L.Pooling(top, pool=rng.choice(["MAX", "AVE"]), **window)
        net[f"layer{index}"] = top
        stride *= step
    net.score = L.Convolution(top, num_output=2, kernel_size=rng.randint(1, 3))
    return net, stride


@pytest.mark.parametrize("seed", range(12))
def test_both_ways_agree_for_random_nets_and_sizes(seed: int) -> None:
    rng = random.Random(seed)
    spec, stride = drawn(rng)
    definition = spec.to_proto()
    net = randomise(fcnproto.load(definition), seed)
    rare = fcnproto.load(surgery.rarefy(definition)[0])
    surgery.transplant(rare, net)
    data = torch.randn(1, 2, rng.randint(70, 90), rng.randint(70, 90))
    with torch.no_grad():
        expected = rare(data)["score"]
    found = surgery.shift_and_stitch(net, data)
    height, width = (min(pair) for pair in zip(found.scores.shape[2:], expected.shape[2:], strict=True))
    assert height > stride and width > stride
    assert deviation(found.scores[:, :, :height, :width], expected[:, :, :height, :width]) <= 1e-5


def test_an_image_smaller_than_the_net_sees() -> None:
    net = fcnproto.load(averages_and_branches().to_proto())
    with pytest.raises(UsageError, match="no positions for an image of 9x9"):
        surgery.shift_and_stitch(net, torch.randn(1, 2, 9, 9))


def test_padding_further_inside_differs_at_the_border_alone() -> None:
    net, top = begin(pad=1)
    top = net.pool1 = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    top = net.conv2 = L.Convolution(top, num_output=4, kernel_size=3, pad=1)
    top = net.pool2 = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    net.score = L.Convolution(top, num_output=3, kernel_size=1)
    definition = net.to_proto()
    coarse = randomise(fcnproto.load(definition), 2)
    rare = fcnproto.load(surgery.rarefy(definition)[0])
    surgery.transplant(rare, coarse)
    data = torch.randn(1, 2, 24, 24)
    with torch.no_grad():
        expected = rare(data)["score"]
    found = surgery.shift_and_stitch(coarse, data).scores[:, :, : expected.shape[2], : expected.shape[3]]
    inner = (slice(None), slice(None), slice(4, 16), slice(4, 16))
    assert deviation(found[inner], expected[inner]) <= 1e-5 < deviation(found, expected)


def test_scores_of_pixels() -> None:
    """A net that hands its input through at half the resolution: stitched, it is the input again."""
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 1, 6, 6]})
    net.pool = L.Pooling(net.data, pool="MAX", kernel_size=1, stride=2)
    data = torch.randn(1, 1, 6, 8)
    dense = surgery.shift_and_stitch(fcnproto.load(net.to_proto()), data)
    assert dense.offset == (0.0, 0.0)
    torch.testing.assert_close(dense.per_pixel(6, 8), data)
    with pytest.raises(UsageError, match="more padding"):
        dense.per_pixel(7, 8)


def test_up_to_a_blob() -> None:
    net = vgg()
    net.upscore = L.Deconvolution(net.score, num_output=3, kernel_size=16, stride=8)
    definition = net.to_proto()
    with pytest.raises(GraphError, match=r"'upscore' \(Deconvolution\) can't be made dense; name a blob before it"):
        surgery.rarefy(definition)
    assert surgery.rarefy(definition, "score")[0].layer[-1].name == "score"
    with pytest.raises(GraphError, match="no blob 'nothing'"):
        surgery.rarefy(definition, "nothing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "MAX", "kernel_size": 3, "stride": 2, "pad": 1}, "padding behind a stride"),
        ({"pool": "MAX", "global_pooling": True}, "needs one kernel_size"),
        ({"pool": "MAX", "kernel_size": 2, "stride_h": 2, "stride_w": 1}, "needs one kernel_size"),
        ({"pool": "STOCHASTIC", "kernel_size": 2, "stride": 2}, "only MAX and AVE"),
    ],
)
def test_what_cannot_be_spread_out(settings: dict[str, Any], message: str) -> None:
    net, top = begin(stride=2)
    net.pool = L.Pooling(top, **settings)
    with pytest.raises(GraphError, match=message):
        surgery.rarefy(net.to_proto())
