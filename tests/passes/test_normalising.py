"""BatchNorm, Scale and an activation as one product and sum: the plain layers' numbers, or the plain layers."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import deviation

import fcnproto
from fcnproto.passes.normalising import FastNorm
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


def norm(name: str, bottom: str, scale: str = "bias_term: true", more: str = "") -> str:
    text = f'layer {{ name: "{name}" type: "BatchNorm" bottom: "{bottom}" top: "{name}" }}\n'
    if scale:
        filled = 'filler { type: "gaussian" } bias_filler { type: "gaussian" }'
        text += f'layer {{ name: "{name}_s" type: "Scale" bottom: "{name}" top: "{name}" scale_param {{ {scale} {filled} }} }}\n'
    return text + (f'layer {{ name: "{name}_a" bottom: "{name}" top: "{name}" {more} }}\n' if more else "")


NET = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 8 dim: 9 dim: 7 } } }\n'
    + norm("a", "data", more='type: "ReLU"')
    + 'layer { name: "c" type: "Convolution" bottom: "a" top: "c" convolution_param { num_output: 12 kernel_size: 3 weight_filler { type: "msra" } } }\n'
    + 'layer { name: "cat" type: "Concat" bottom: "c" bottom: "c" top: "cat" }\n'
    + norm("b", "cat", scale="", more='type: "ReLU" relu_param { negative_slope: 0.3 }')
    + norm("d", "cat", scale="bias_term: false", more='type: "Clip" clip_param { min: -1 max: 2 }')
    + 'layer { name: "fc" type: "InnerProduct" bottom: "b" top: "fc" inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }\n'
    + norm("e", "fc")
)


@pytest.fixture
def net() -> fcnproto.Net:
    torch.manual_seed(5)
    net = fcnproto.load(parse(NET, caffe_pb2.NetParameter))
    for name in "abde":
        mean, variance, factor = net.params[name]
        mean.data.normal_(), variance.data.uniform_(0.5, 2), factor.data.fill_(2)
    return net


def norms(fast: fcnproto.passes.OptimizedNet) -> list[FastNorm]:
    return [module for module in fast._find_plan(("data",), ("cat",)).module.modules() if isinstance(module, FastNorm)]


@torch.no_grad()
def test_the_numbers_of_the_plain_layers(net: fcnproto.Net) -> None:
    fast, x = fcnproto.optimize(net), torch.randn(2, 8, 9, 7)
    expected, found = net(data=x, blobs=["cat"]), fast(data=x, blobs=["cat"])
    assert set(found) == set(expected) == {"cat", "d", "e"}
    assert max(deviation(found[name], expected[name]) for name in expected) <= 2e-6
    following = [tuple(layer.type for layer in each.following) for each in norms(fast)]
    assert following == [("ReLU",), ("ReLU",), ("Clip",), ()]
    assert all(each._kept.value is not None for each in norms(fast))


@torch.no_grad()
def test_changed_statistics_are_noticed(net: fcnproto.Net) -> None:
    fast, x = fcnproto.optimize(net), torch.randn(2, 8, 9, 7)
    for name in ("a", "a_s", "b", "d", "d_s", "e"):
        for blob in net.params[name]:
            blob.data.numpy()[...] *= 1.5
            assert deviation(fast(data=x, blobs=["cat"])["e"], net(data=x)["e"]) <= 2e-6


@pytest.mark.parametrize("mean", [3e3, math.inf, math.nan])
@torch.no_grad()
def test_large_means_lose_no_digits(net: fcnproto.Net, mean: float) -> None:
    """x * gain - mean * gain is off by 1e-4 where the mean is 3000 deviations."""
    fast, x = fcnproto.optimize(net), torch.randn(2, 8, 9, 7)
    net.params["a"][0].data[3] = 2 * mean
    x[:, 3] += min(mean, 1e4)
    expected, found = net(data=x, blobs=["a"]), fast(data=x, blobs=["a"])
    assert norms(fast)[0]._kept.value is None
    for name in ("a", "e"):
        assert torch.equal(found[name].isnan(), expected[name].isnan())
    if math.isfinite(mean):
        assert torch.equal(found["a"], expected["a"])


def test_gradients_are_the_plain_ones(net: fcnproto.Net) -> None:
    fast, x = fcnproto.optimize(net), torch.randn(2, 8, 9, 7, requires_grad=True)
    wanted = [x, *net.parameters()]
    ours = torch.autograd.grad(fast(data=x)["e"].square().sum(), wanted, allow_unused=True)
    plain = torch.autograd.grad(net(data=x)["e"].square().sum(), wanted, allow_unused=True)
    for found, expected in zip(ours, plain, strict=True):
        assert (found is None) == (expected is None)
        assert found is None or deviation(found, expected) <= 1e-5
