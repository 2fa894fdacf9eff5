"""Three TF32 products for one of float32: emulated, with the bounds that follow from how numbers are split."""

from __future__ import annotations

import golden_cases
import pytest
import torch
import torch.nn.functional as F
from golden_cases import deviation
from torch import Tensor

import fcnproto
from fcnproto import precision
from fcnproto.passes import splitting

UNIT = 2.0**-11  # half the distance of numbers in TF32, relative to them


def rounded(x: Tensor) -> Tensor:
    """As a GPU rounds the factors of a TF32 product: to the nearest number of 11 bits."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def numbers(*shape: int, seed: int) -> Tensor:
    """Of very different sizes and both signs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-12, 12, shape, generator=generator))


def test_split() -> None:
    x = torch.cat([numbers(10000, seed=0), torch.tensor([0.0, -0.0, 1.0, 1 + UNIT, -1 - UNIT, 2**-120, 3e38])])
    high, low = splitting.split(x)
    assert torch.equal(high + low, x) and torch.equal(rounded(high), high.double())
    assert bool((low.abs() <= UNIT * x.abs()).all())
    nearest = (x.double() - rounded(x)).abs()
    assert torch.equal(low.double().abs(), nearest)
    turned = numbers(2, 3, 4, 5, seed=1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(sum(splitting.split(turned)), turned)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [1, 2])
def test_products_within_their_bound(groups: int) -> None:
    """What remains when sums are exact: the rounding of factors."""
    x, weight = numbers(2, 8, 9, 7, seed=2), numbers(6, 8 // groups, 3, 3, seed=3)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x.double(), weight.double(), None, 2, 1, 1, groups)

    exact, size = convolve(x, weight), convolve(x.abs(), weight.abs())
    factors = splitting.tripled(x, groups), splitting.tripled_weight(weight)
    assert factors[0].shape == (2, 24, 9, 7) and factors[1].shape == (6, 24 // groups, 3, 3)
    ours = (convolve(*map(rounded, factors)) - exact).abs() / size
    plain = (convolve(rounded(x), rounded(weight)) - exact).abs() / size
    assert float(ours.max()) <= splitting.BOUND
    assert float(plain.max()) > 100 * splitting.BOUND  # a convolution in TF32 alone is another matter


@torch.no_grad()
@pytest.mark.parametrize("name", ["voc_fcn8s_forward"])
def test_whole_nets_agree_with_caffe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with factors rounded as there: every convolution of the net, against the recording."""
    case = golden_cases.load("fcn", name)
    net = case.net()
    calls = []

    def convolve(layer: object, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(layer)
        window, groups = layer.window, layer.groups  # type: ignore[attr-defined]
        factors = [rounded(each).float() for each in (splitting.tripled(x, groups), splitting.tripled_weight(weight))]
        return splitting.convolve(*factors, bias, window.stride, window.pad, window.dilation, groups)

    monkeypatch.setattr("fcnproto.layers.convolution.Convolution.compute", convolve)
    inputs = {key: torch.from_numpy(value) for key, value in case.keys("in").items()}
    outputs = case.keys("out")
    found = net(inputs, blobs=list(outputs))
    assert calls
    for key, value in found.items():
        assert deviation(value, torch.from_numpy(outputs[key])) <= 1e-4, key


def test_a_name_like_the_others() -> None:
    assert precision.canonical("tf32x3") == "tf32x3" and precision.PRECISIONS["tf32x3"] == torch.float32
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    assert fcnproto.optimize(net, precision="tf32x3").precision == "tf32x3"
    with precision.computing("tf32x3", torch.device("cuda")), precision.in_force(torch.device("cuda")):
        assert precision.chosen() == "tf32x3"
        assert not torch.backends.cudnn.allow_tf32  # what isn't split is strict


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu_as_float32(graphs: bool) -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    image = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 50
    expected = net(data=image)["score"].numpy()
    fast = fcnproto.optimize(net.to("cuda"), precision="tf32x3", cuda_graphs=graphs)
    for _ in range(3):
        assert deviation(fast(data=image.cuda())["score"].cpu(), expected) <= 1e-5
