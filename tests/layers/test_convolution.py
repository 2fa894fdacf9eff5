"""Convolution, Deconvolution and Im2col against loops in numpy, for 0 to 4 spatial axes, and what they refuse."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.errors import LayerError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

Array = npt.NDArray[np.float64]
Axis = tuple[int, int, int, int, int]
"""Size, kernel, stride, pad and dilation along one spatial axis."""

AXIS = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))


def truncated(a: int, b: int) -> int:
    """Integer division as C does it."""
    return abs(a) // b * (1 if a >= 0 else -1)


def conv_size(axis: Axis) -> int:
    size, kernel, stride, pad, dilation = axis
    return truncated(size + 2 * pad - (dilation * (kernel - 1) + 1), stride) + 1


def deconv_size(axis: Axis) -> int:
    size, kernel, stride, pad, dilation = axis
    return stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad


def reads(axes: list[Axis], positions: list[int], sizes: list[int]) -> Iterator[tuple[Any, Any, Any]]:
    """(tap, position, place) index triples with place = position * stride + tap * dilation - pad inside of `sizes`."""
    for tap in itertools.product(*(range(axis[1]) for axis in axes)):
        for position in itertools.product(*map(range, positions)):
            place = tuple(p * a[2] + t * a[4] - a[3] for p, t, a in zip(position, tap, axes, strict=True))
            if all(0 <= i < n for i, n in zip(place, sizes, strict=True)):
                yield tap, position, place


def naive_conv(x: Array, weight: Array, axes: list[Axis], groups: int) -> Array:
    out = [conv_size(axis) for axis in axes]
    y = np.zeros((x.shape[0], weight.shape[0], *out))
    inputs, outputs = x.shape[1] // groups, weight.shape[0] // groups
    for tap, position, place in reads(axes, out, list(x.shape[2:])):
        for g in range(groups):
            part = x[(slice(None), slice(g * inputs, (g + 1) * inputs), *place)]
            rows = slice(g * outputs, (g + 1) * outputs)
            y[(slice(None), rows, *position)] += part @ weight[(rows, slice(None), *tap)].T
    return y


def naive_deconv(x: Array, weight: Array, axes: list[Axis], groups: int) -> Array:
    out = [deconv_size(axis) for axis in axes]
    inputs, outputs = x.shape[1] // groups, weight.shape[1]
    y = np.zeros((x.shape[0], outputs * groups, *out))
    for tap, position, place in reads(axes, list(x.shape[2:]), out):
        for g in range(groups):
            rows = slice(g * inputs, (g + 1) * inputs)
            part = x[(slice(None), rows, *position)] @ weight[(rows, slice(None), *tap)]
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *place)] += part
    return y


def naive_im2col(x: Array, axes: list[Axis]) -> Array:
    kernel, out = [axis[1] for axis in axes], [conv_size(axis) for axis in axes]
    y = np.zeros((*x.shape[:2], *kernel, *out))
    for tap, position, place in reads(axes, out, list(x.shape[2:])):
        y[(slice(None), slice(None), *tap, *position)] = x[(slice(None), slice(None), *place)]
    return y.reshape(x.shape[0], x.shape[1] * int(np.prod(kernel)), *out)


def window_text(axes: list[Axis]) -> str:
    names = ("kernel_size", "stride", "pad", "dilation")
    return " ".join(f"{name}: {axis[i]}" for axis in axes for i, name in enumerate(names, 1))


def on_meta(layer: torch.nn.Module, *shapes: tuple[int, ...]) -> Any:
    bottoms = (torch.empty(shape, device="meta", dtype=torch.float64) for shape in shapes)
    return copy.deepcopy(layer).to("meta")(*bottoms)


@given(axes=st.lists(AXIS, max_size=4), groups=st.integers(1, 2), batch=st.integers(0, 2), bias=st.booleans())
@settings(max_examples=100, deadline=None)
def test_convolution(axes: list[Axis], groups: int, batch: int, bias: bool) -> None:
    shape = (batch, 2 * groups, *(axis[0] for axis in axes))
    text = (
        f'type: "Convolution" convolution_param {{ num_output: {3 * groups} group: {groups} '
        f"bias_term: {str(bias).lower()} {window_text(axes)} }}"
    )
    layer = make_layer(text, shape, dtype=torch.float64)
    sizes = [conv_size(axis) for axis in axes]
    x = seeded(*shape)
    if min(sizes, default=1) < 0:
        with pytest.raises(LayerError, match="larger input"):
            layer(x)
        return
    y = layer(x)
    assert y.shape == (batch, 3 * groups, *sizes) == on_meta(layer, shape).shape
    expected = naive_conv(x.numpy(), layer.weight.detach().numpy(), axes, groups)
    if bias:
        expected += layer.bias.detach().numpy().reshape(-1, *[1] * len(axes))
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@given(axes=st.lists(AXIS, max_size=4), groups=st.integers(1, 2), bias=st.booleans())
@settings(max_examples=100, deadline=None)
def test_deconvolution(axes: list[Axis], groups: int, bias: bool) -> None:
    axes = [(min(axis[0], 4), *axis[1:]) for axis in axes]
    shape = (2, 2 * groups, *(axis[0] for axis in axes))
    text = (
        f'type: "Deconvolution" convolution_param {{ num_output: {3 * groups} group: {groups} '
        f"bias_term: {str(bias).lower()} {window_text(axes)} }}"
    )
    layer = make_layer(text, shape, dtype=torch.float64)
    assert layer.weight.shape[:2] == (2 * groups, 3)
    sizes = [deconv_size(axis) for axis in axes]
    x = seeded(*shape)
    if min(sizes, default=1) < 0:
        with pytest.raises(LayerError, match="output size"):
            layer(x)
        return
    y = layer(x)
    assert y.shape == (2, 3 * groups, *sizes) == on_meta(layer, shape).shape
    expected = naive_deconv(x.numpy(), layer.weight.detach().numpy(), axes, groups)
    if bias:
        expected += layer.bias.detach().numpy().reshape(-1, *[1] * len(axes))
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@given(axes=st.lists(AXIS, max_size=4))
@settings(max_examples=50, deadline=None)
def test_im2col(axes: list[Axis]) -> None:
    shape = (2, 3, *(axis[0] for axis in axes))
    layer = make_layer(f'type: "Im2col" convolution_param {{ {window_text(axes)} }}', shape)
    x = seeded(*shape)
    if min((conv_size(axis) for axis in axes), default=1) < 0:
        with pytest.raises(LayerError, match="larger input"):
            layer(x)
        return
    y = layer(x)
    assert y.shape == on_meta(layer, shape).shape
    np.testing.assert_array_equal(y.numpy(), naive_im2col(x.numpy(), axes))


def test_kernel_larger_than_padded_input() -> None:
    """Size 4, kernel 5: with stride 2 Caffe's truncating division still gives 1 x 1, with stride 1 an empty blob."""
    text = 'type: "Convolution" convolution_param { num_output: 1 kernel_size: 5 bias_term: false stride: %d }'
    layer = make_layer(text % 2, (1, 1, 4, 4), dtype=torch.float64)
    x = seeded(1, 1, 4, 4)
    torch.testing.assert_close(layer(x), (layer.weight[:, :, :4, :4] * x).sum().reshape(1, 1, 1, 1))
    assert make_layer(text % 1, (1, 1, 4, 4), dtype=torch.float64)(x).shape == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (
            'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 2 }',
            (2, 2, 5, 4),
        ),
        ('type: "Convolution" convolution_param { num_output: 2 kernel_size: 5 stride: 3 }', (1, 1, 4, 6)),
        ('type: "Convolution" convolution_param { num_output: 2 }', (3, 2)),
        ('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 axis: 2 dilation: 2 }', (2, 2, 2, 4, 3)),
        ('type: "Convolution" convolution_param { num_output: 2 kernel_size: 2 group: 2 }', (1, 2, 2, 3, 2, 3)),
        (
            'type: "Deconvolution" convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 2 }',
            (2, 2, 3, 2),
        ),
        ('type: "Deconvolution" convolution_param { num_output: 2 kernel_size: 2 pad: 1 }', (1, 2, 2, 3, 2, 3)),
        ('type: "Deconvolution" convolution_param { num_output: 2 axis: -1 }', (3, 2)),
        ('type: "Im2col" convolution_param { kernel_size: 2 pad: 1 stride: 2 dilation: 2 }', (2, 2, 4, 5)),
    ],
)
def test_gradients(text: str, shape: tuple[int, ...]) -> None:
    layer = make_layer(text, shape, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: torch.Tensor, *blobs: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, blobs, strict=True)), (x,))

    torch.autograd.gradcheck(run, (seeded(*shape).requires_grad_(), *layer.parameters()))


def test_spellings_agree() -> None:
    def window(text: str) -> Any:
        return make_layer(f'type: "Convolution" convolution_param {{ num_output: 1 {text} }}', (1, 1, 9, 9)).window

    pairs = window("kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0")
    lists = window("kernel_size: [3, 2] stride: [2, 1] pad: [1, 0]")
    assert pairs == lists
    assert window("kernel_size: 3 pad_h: 1").pad == (1, 0)
    assert window("kernel_size: 3").stride == (1, 1) and window("kernel_size: 3").dilation == (1, 1)
    assert window("kernel_size: 3 dilation: 2").extent == (5, 5)


def test_weights_are_shared_by_several_bottoms() -> None:
    text = 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 }'
    layer = make_layer(text, (1, 1, 5, 5), (1, 1, 5, 5), tops=2, dtype=torch.float64)
    a, b = seeded(1, 1, 5, 5), seeded(1, 1, 5, 5, seed=1)
    tops = layer(a, b)
    assert len(list(layer.parameters())) == 2
    torch.testing.assert_close(torch.cat(tops), make_layer(text, (2, 1, 5, 5), dtype=torch.float64)(torch.cat([a, b])))


def test_other_size_at_each_call() -> None:
    layer = make_layer('type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 }', (1, 1, 5, 5))
    assert layer(torch.zeros(2, 1, 8, 4)).shape == (2, 2, 6, 2)


@pytest.mark.parametrize(
    ("settings_text", "shapes", "message"),
    [
        ("num_output: 2", [(1, 2, 5, 5)], "kernel_size is missing"),
        ("num_output: 2 kernel_size: [1, 2, 3]", [(1, 2, 5, 5)], "3 values of kernel_size for 2"),
        ("num_output: 2 kernel_size: 3 kernel_h: 2", [(1, 2, 5, 5)], "one of the two"),
        ("num_output: 2 kernel_h: 3", [(1, 2, 5, 5)], "must be positive"),
        ("num_output: 2 kernel_h: 3 kernel_w: 3", [(1, 2, 5)], "2 spatial axes"),
        ("num_output: 2 kernel_size: 3 stride_h: 2", [(1, 2, 5, 5)], "stride .* must be positive"),
        ("num_output: 2 kernel_size: 3 stride: 0", [(1, 2, 5, 5)], "stride .* must be positive"),
        ("num_output: 2 kernel_size: 3 dilation: 0", [(1, 2, 5, 5)], "dilation .* must be positive"),
        ("num_output: 2 kernel_size: 3 pad: 1 pad_w: 1", [(1, 2, 5, 5)], "pad is given together"),
        ("kernel_size: 3", [(1, 2, 5, 5)], "num_output"),
        ("num_output: 2 kernel_size: 3 group: 3", [(1, 2, 5, 5)], "multiples of group 3"),
        ("num_output: 3 kernel_size: 3 group: 2", [(1, 2, 5, 5)], "multiples of group 2"),
        ("num_output: 2 kernel_size: 3 group: 0", [(1, 2, 5, 5)], "multiples of group 0"),
        ("num_output: 2 kernel_size: 3 axis: 4", [(1, 2, 5, 5)], "axis 4 is outside"),
        ("num_output: 2 kernel_size: 3", [(1, 2, 5, 5), (1, 2, 5, 5)], "one top for each"),
        ("num_output: 4000000000 kernel_size: 3", [(1, 2, 5, 5)], "Caffe's limit"),
    ],
)
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_refused_settings(kind: str, settings_text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(f'type: "{kind}" convolution_param {{ {settings_text} }}', *shapes)


def test_refused_bottoms() -> None:
    text = 'type: "Convolution" convolution_param { num_output: 2 kernel_size: 3 }'
    layer = make_layer(text, (1, 2, 5, 5))
    with pytest.raises(LayerError, match="2 channels"):
        layer(torch.zeros(1, 3, 5, 5))
    with pytest.raises(LayerError, match="4 axes"):
        layer(torch.zeros(1, 2, 5))
    with pytest.raises(LayerError, match="one shape"):
        make_layer(text, (1, 2, 5, 5), (1, 2, 5, 5), tops=2)(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 6))


@pytest.mark.parametrize("optimised", [False, True])
def test_a_bottom_without_columns_is_all_padding(optimised: bool) -> None:
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 0 } } }
      layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 pad: 2
        bias_filler { type: "gaussian" } } }"""
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    net = fcnproto.optimize(net) if optimised else net
    top = net(x=torch.zeros(2, 3, 5, 0))["c"]
    assert top.shape == (2, 4, 7, 2)
    assert torch.equal(top, net.params["c"][1].view(1, 4, 1, 1).expand_as(top))
