"""Fast Deconvolution, with and without a Crop after it, against the plain layers."""

from __future__ import annotations

import pytest
import torch
from golden_cases import deviation
from google.protobuf import text_format

import fcnproto
from fcnproto.passes.upsampling import FastDeconvolution
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

SETTINGS = [
    'kernel_size: 4 stride: 2 weight_filler { type: "bilinear" } bias_term: false',
    'kernel_size: 16 stride: 8 weight_filler { type: "bilinear" } bias_filler { type: "gaussian" }',
    'kernel_size: 7 stride: 3 pad: 2 weight_filler { type: "bilinear" } bias_filler { type: "gaussian" }',
    'kernel_h: 4 kernel_w: 6 stride_h: 2 stride_w: 3 pad_h: 1 pad_w: 0 weight_filler { type: "gaussian" }',
    'kernel_size: 3 stride: 1 dilation: 2 weight_filler { type: "bilinear" }',
    'kernel_size: 4 stride: 2 group: 5 weight_filler { type: "bilinear" } bias_term: false',
]


def net_of(settings: str, crop: bool) -> fcnproto.Net:
    reference = 'layer { name: "r" type: "Input" top: "r" input_param { shape { dim: 1 dim: 5 dim: 8 dim: 7 } } }'
    cut = 'layer { name: "k" type: "Crop" bottom: "y" bottom: "r" top: "k" crop_param { axis: 2 offset: 2 offset: 3 } }'
    text = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 5 dim: 8 dim: 7 }} }} }}
      {reference if crop else ""}
      layer {{ name: "d" type: "Deconvolution" bottom: "x" top: "y" convolution_param {{ num_output: 5 {settings} }} }}
      {cut if crop else ""}"""
    torch.manual_seed(0)
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    if "bilinear" in settings and net.params["d"][0].shape[1] > 1:  # Caffe's filler fills all pairs of channels
        keep_diagonal(net)
    return net


def keep_diagonal(net: fcnproto.Net) -> None:
    weight = net.params["d"][0].data
    for i in range(5):
        weight[i, [j for j in range(5) if j != i]] = 0


def inputs(net: fcnproto.Net, batch: int = 2, height: int = 8, width: int = 7) -> dict[str, torch.Tensor]:
    x = {"x": torch.randn(batch, 5, height, width)}
    return x | ({"r": torch.zeros(batch, 5, 8, 7)} if "r" in net.inputs else {})


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
@pytest.mark.parametrize("settings", SETTINGS)
@torch.no_grad()
def test_crops_along_some_axes_alone(settings: str, axis: int) -> None:
    net = net_of(settings, crop=False)
    height, width = net.layer("d").top_shapes([(1, 5, 8, 7)])[0][2:]  # type: ignore[index]
    text = text_format.MessageToString(net.layer("d").param)
    shapes = {1: (5, height - 1, width - 2), 2: (9, height - 1, width - 2), 3: (9, 1, width - 2), -1: (9, 1, width - 2)}
    reference = "".join(f" dim: {n}" for n in (1, *shapes[axis]))
    torch.manual_seed(0)
    cropped = fcnproto.load(
        parse(
            f"""
      layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 5 dim: 8 dim: 7 }} }} }}
      layer {{ name: "r" type: "Input" top: "r" input_param {{ shape {{ {reference} }} }} }}
      layer {{ {text} }}
      layer {{ name: "k" type: "Crop" bottom: "y" bottom: "r" top: "k" crop_param {{ axis: {axis} {"offset: 0" * (axis == 1)}
        {"offset: 1" * (axis != 1)} }} }}""",
            caffe_pb2.NetParameter,
        )
    )
    if "bilinear" in settings and cropped.params["d"][0].shape[1] > 1:
        keep_diagonal(cropped)
    values = {"x": torch.randn(1, 5, 8, 7), "r": torch.zeros(1, *shapes[axis])}
    plain, ours = cropped(values)["k"], fcnproto.optimize(cropped)(values)["k"]
    assert ours.shape == plain.shape
    assert deviation(ours, plain) <= 1e-6


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes of what was computed along lines."""
    sizes: list[tuple[int, ...]] = []
    inner = FastDeconvolution._along_lines

    def along(self: FastDeconvolution, x: torch.Tensor, *rest: object) -> torch.Tensor:
        y = inner(self, x, *rest)  # type: ignore[arg-type]
        sizes.append(tuple(y.shape))
        return y

    monkeypatch.setattr(FastDeconvolution, "_along_lines", along)
    return sizes


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("crop", [False, True])
@torch.no_grad()
def test_outputs(products: list[tuple[int, ...]], settings: str, crop: bool) -> None:
    net = net_of(settings, crop)
    fast = fcnproto.optimize(net)
    for batch, height, width in ((1, 8, 7), (2, 9, 12)):
        x = inputs(net, batch, height, width)
        (plain,), (ours,) = net(x).values(), fast(x).values()
        assert deviation(ours, plain) <= 1e-6
        assert ours.is_contiguous()
    one_line = "bilinear" in settings and "dilation" not in settings and "group" not in settings
    assert len(products) == (2 if one_line else 0)
    if one_line and crop:
        assert products[-1][2:] == (8, 7)  # not a row or a column more than the Crop keeps


@pytest.mark.parametrize("crop", [False, True])
@torch.no_grad()
def test_other_weights_take_the_general_way(products: list[tuple[int, ...]], crop: bool) -> None:
    net = net_of(SETTINGS[0], crop)
    fast, x = fcnproto.optimize(net), inputs(net)
    weight = net.params["d"][0].data
    original = weight.clone()

    def check(expected: int) -> None:
        products.clear()
        (plain,), (ours,) = net(x).values(), fast(x).values()
        assert deviation(ours, plain) <= 1e-6
        assert len(products) == expected

    check(1)
    weight[1, 1] *= 2  # channels differ
    check(0)
    weight.copy_(original)
    check(1)
    weight[range(5), range(5), 0, 3] += 0.01  # not a column times a row
    check(0)
    weight.copy_(original)
    weight[0, 1, 2, 2] = 0.5  # channels mix
    check(0)
    weight.zero_()
    (ours,) = fast(x).values()
    assert not ours.any()


def test_gradients_take_the_general_way(products: list[tuple[int, ...]]) -> None:
    net = net_of(SETTINGS[1], crop=True)
    x = inputs(net)
    x["x"].requires_grad_()
    (plain,), (ours,) = net(x).values(), fcnproto.optimize(net)(x).values()
    assert deviation(ours.detach(), plain.detach()) <= 1e-6
    wanted = [x["x"], *net.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), wanted), torch.autograd.grad(plain.square().sum(), wanted), strict=True
    ):
        assert deviation(a, b) <= 1e-5
    assert not products


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@torch.no_grad()
def test_values_that_are_no_numbers_stay_where_they_are(value: float) -> None:
    net = net_of(SETTINGS[0], crop=False)
    x = inputs(net)
    x["x"][0, 2, 3, 4] = value
    (plain,), (ours,) = net(x).values(), fcnproto.optimize(net)(x).values()
    assert torch.equal(plain.isfinite()[1], ours.isfinite()[1])
    assert int((~ours.isfinite()).sum()) == int((~plain[:, 2].isfinite()).sum()) == 16
