"""Eltwise, Reduction, ArgMax, Scale and Bias against numpy, and what they refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded

from fcnproto.errors import FcnprotoWarning, LayerError

SHAPE = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def test_eltwise_sum_with_coefficients() -> None:
    a, b, c = (seeded(2, 3, seed=i) for i in range(3))
    layer = make_layer('type: "Eltwise" eltwise_param { coeff: [1, -0.5, 2] }', *[(2, 3)] * 3)
    torch.testing.assert_close(layer(a, b, c), a - 0.5 * b + 2 * c)


def test_eltwise_leaves_its_bottoms_alone() -> None:
    for operation in ("SUM", "PROD", "MAX"):
        a, b = seeded(2, 3), seeded(2, 3, seed=1)
        make_layer(f'type: "Eltwise" eltwise_param {{ operation: {operation} }}', (2, 3), (2, 3))(a, b)
        assert torch.equal(a, seeded(2, 3)) and torch.equal(b, seeded(2, 3, seed=1))


@given(values=st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_eltwise_max_gives_the_gradient_to_one_winner(values: list[tuple[int, ...]]) -> None:
    """Of equal values bottom 1 beats bottom 0, and bottoms 2 and 3 need to be strictly greater."""
    bottoms = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in zip(*values, strict=True)]
    layer = make_layer('type: "Eltwise" eltwise_param { operation: MAX }', *(b.shape for b in bottoms))
    layer(*bottoms).sum().backward()
    for i, row in enumerate(values):
        winner = 0 if row[0] > row[1] else 1
        for k in (2, 3):
            winner = k if row[k] > row[winner] else winner
        assert [float(b.grad[i]) for b in bottoms] == [float(k == winner) for k in range(4)]


def test_eltwise_product_gradients() -> None:
    def gradients(stable: str, x: torch.Tensor) -> list[torch.Tensor]:
        bottoms = [x.clone().requires_grad_(), torch.full_like(x, 3.0, requires_grad=True), x.clone().requires_grad_()]
        text = f'type: "Eltwise" eltwise_param {{ operation: PROD stable_prod_grad: {stable} }}'
        y = make_layer(text, *[x.shape] * 3)(*bottoms)
        torch.testing.assert_close(y.detach(), 3 * x * x)
        y.sum().backward()
        return [b.grad for b in bottoms]  # type: ignore[misc]

    x = torch.tensor([2.0, -1.0])
    for stable in ("true", "false"):
        for ours, expected in zip(gradients(stable, x), (3 * x, x * x, 3 * x), strict=True):
            torch.testing.assert_close(ours, expected)
    assert gradients("true", torch.zeros(1))[0].item() == 0
    assert math.isnan(gradients("false", torch.zeros(1))[0].item())


@given(shape=SHAPE, place=st.floats(0, 0.99), coeff=st.sampled_from([1, -0.5]))
@settings(max_examples=40, deadline=None)
def test_reduction(shape: list[int], place: float, coeff: float) -> None:
    axis = int(place * len(shape))
    x = seeded(*shape)
    rows = x.numpy().reshape(*shape[:axis], -1)
    expected = {
        "SUM": rows.sum(-1),
        "ASUM": np.abs(rows).sum(-1),
        "SUMSQ": (rows**2).sum(-1),
        "MEAN": rows.mean(-1),
    }
    for operation, values in expected.items():
        text = f'type: "Reduction" reduction_param {{ operation: {operation} axis: {axis} coeff: {coeff} }}'
        y = make_layer(text, shape)(x)
        assert y.shape == tuple(shape[:axis])
        np.testing.assert_allclose(y.numpy(), values * coeff, rtol=1e-12, atol=1e-13)


def test_reduction_of_half_precision() -> None:
    x = torch.full((2, 1000), 100.0, dtype=torch.float16)
    assert make_layer('type: "Reduction" reduction_param { operation: SUMSQ }', x.shape)(x).item() == 2e7
    mean = make_layer('type: "Reduction" reduction_param { operation: MEAN axis: 1 }', x.shape)(x)
    assert mean.dtype == torch.float16 and mean.tolist() == [100, 100]


def best(values: Sequence[float], count: int) -> list[int]:
    """Indices in descending order of (value, index)."""
    return sorted(range(len(values)), key=lambda i: (values[i], i), reverse=True)[:count]


@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 6), min_size=1, max_size=4), top_k=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_argmax_prefers_the_larger_index(rows: list[tuple[int, ...]], top_k: int) -> None:
    x = torch.tensor(rows, dtype=torch.float32)
    expected = np.array([best(row, top_k) for row in rows])
    values = np.take_along_axis(x.numpy(), expected, 1)
    layer = make_layer(f'type: "ArgMax" argmax_param {{ top_k: {top_k} }}', x.shape)
    np.testing.assert_array_equal(layer(x).numpy(), expected[:, None])
    np.testing.assert_array_equal(layer(x.double().reshape(-1, 3, 2)).numpy(), expected[:, None])
    both = make_layer(f'type: "ArgMax" argmax_param {{ top_k: {top_k} out_max_val: true }}', x.shape)
    np.testing.assert_array_equal(both(x).numpy(), np.stack([expected, values], 1))
    assert both(x.reshape(-1, 1, 3, 2)).shape == (len(rows), 2, top_k, 1)
    assert both(x.half().reshape(-1, 1, 3, 2, 1)).shape == (len(rows), 2, top_k, 1, 1)
    along = f'type: "ArgMax" argmax_param {{ top_k: {top_k} axis: -2 %s }}'
    columns = x.t().reshape(6, len(rows))
    np.testing.assert_array_equal(make_layer(along % "", columns.shape)(columns).numpy(), expected.T)
    np.testing.assert_array_equal(make_layer(along % "out_max_val: true", columns.shape)(columns).numpy(), values.T)
    meta = copy.deepcopy(layer)(torch.empty(2, 6, device="meta"))
    assert meta.shape == (2, 1, top_k) and not layer(x.clone().requires_grad_()).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("top_k", [1, 3])
def test_argmax_of_equal_values_on_the_gpu(top_k: int) -> None:
    x = seeded(4, 1000).round()
    layer = make_layer(f'type: "ArgMax" argmax_param {{ top_k: {top_k} }}', x.shape)
    expected = [[best(row, top_k)] for row in x.tolist()]
    assert layer(x.cuda()).tolist() == layer(x).tolist() == expected


@given(shape=SHAPE, place=st.floats(0, 0.99), axes=st.integers(-1, 5), given_as_bottom=st.booleans())
@settings(max_examples=60, deadline=None)
def test_scale_and_bias(shape: list[int], place: float, axes: int, given_as_bottom: bool) -> None:
    axis = int(place * len(shape))
    axes = min(axes, len(shape) - axis)
    end = len(shape) if axes == -1 else axis + axes
    covered = tuple(shape[axis:end])
    x, operand = seeded(*shape), seeded(*covered, seed=1)
    aligned = operand.numpy().reshape([n if axis <= i < end else 1 for i, n in enumerate(shape)])
    bottoms = (x, operand) if given_as_bottom else (x,)
    shapes = [bottom.shape for bottom in bottoms]
    settings_text = f"axis: {axis - len(shape)} num_axes: {axes}"
    text = f'type: "Scale" scale_param {{ {settings_text} bias_term: true }}'
    scale = make_layer(text, *shapes, dtype=torch.float64)
    bias = make_layer(f'type: "Bias" bias_param {{ {settings_text} }}', *shapes, dtype=torch.float64)
    assert scale.blob_names == (["bias"] if given_as_bottom else ["weight", "bias"])
    assert scale.blob_shapes == [covered] * len(scale.blob_names)
    with torch.no_grad():
        if not given_as_bottom:
            scale.weight.copy_(operand)
            bias.bias.copy_(operand)
        scale.bias.copy_(2 * operand)
        np.testing.assert_allclose(scale(*bottoms).numpy(), x.numpy() * aligned + 2 * aligned, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(bias(*bottoms).numpy(), x.numpy() + aligned, rtol=1e-13)


def test_fillers_of_scale() -> None:
    """Without a filler Scale is 1; an empty one is Caffe's constant 0."""

    def value(text: str) -> float:
        return make_layer(f'type: "Scale" scale_param {{ {text} }}', (2, 3)).blob_fillers[0].value

    assert value("") == 1 and value("filler {}") == 0 and value("filler { value: 0.5 }") == 0.5


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ('type: "Eltwise" eltwise_param { coeff: [2, -1] }', [(2, 3), (2, 3)]),
        ('type: "Eltwise" eltwise_param { operation: PROD }', [(2, 3), (2, 3), (2, 3)]),
        ('type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }', [(2, 3), (2, 3), (2, 3)]),
        ('type: "Eltwise" eltwise_param { operation: MAX }', [(2, 3), (2, 3)]),
        ('type: "Reduction" reduction_param { operation: ASUM axis: 1 }', [(2, 3)]),
        ('type: "Reduction" reduction_param { operation: SUMSQ coeff: 0.5 }', [(2, 3)]),
        ('type: "Reduction" reduction_param { operation: MEAN axis: -1 }', [(2, 3)]),
        ('type: "Scale" scale_param { axis: 0 }', [(2, 3, 2), (2, 3)]),
        ('type: "Scale" scale_param { bias_term: true }', [(2, 3, 2)]),
        ('type: "Bias"', [(2, 3, 2), (3,)]),
        ('type: "Bias" bias_param { num_axes: 0 }', [(2, 3, 2)]),
    ],
)
def test_gradients(text: str, shapes: list[tuple[int, ...]]) -> None:
    layer = make_layer(text, *shapes, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        blobs = dict(zip(names, tensors[len(shapes) :], strict=True))
        return torch.func.functional_call(layer, blobs, tensors[: len(shapes)])

    bottoms = [seeded(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    torch.autograd.gradcheck(run, (*bottoms, *layer.parameters()))


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('type: "Eltwise"', [(2, 3), (2, 1)], "one shape"),
        ('type: "Eltwise" eltwise_param { coeff: 1 }', [(2, 3), (2, 3)], "1 coeff values for 2"),
        ('type: "Eltwise" eltwise_param { operation: PROD coeff: [1, 1] }', [(2, 3), (2, 3)], "SUM only"),
        ('type: "Reduction" reduction_param { axis: 2 }', [(2, 3)], "axis 2 is outside"),
        ('type: "ArgMax" argmax_param { top_k: 4 }', [(2, 3)], r"top_k 4 must be in 1\.\.3"),
        ('type: "ArgMax" argmax_param { top_k: 0 }', [(2, 3)], "top_k 0"),
        ('type: "ArgMax" argmax_param { axis: 2 }', [(2, 3)], "axis 2 is outside"),
        ('type: "Scale"', [(2, 3), (2,)], "does not match"),
        ('type: "Scale" scale_param { num_axes: 2 }', [(2, 3)], "exceeds"),
        ('type: "Scale" scale_param { num_axes: -2 }', [(2, 3)], "num_axes -2"),
        ('type: "Bias"', [(2, 3), (3, 1)], "does not match"),
        ('type: "Bias" bias_param { axis: 2 }', [(2, 3)], "axis 2 is outside"),
    ],
)
def test_refusals(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(text, *shapes)(*(torch.zeros(shape) for shape in shapes))


def test_scale_refuses_other_channels_at_a_call() -> None:
    with pytest.raises(LayerError, match=r"shape \(3,\) of the scale does not match"):
        make_layer('type: "Scale"', (2, 3))(torch.zeros(2, 4))


def test_coefficients_without_effect_draw_a_warning() -> None:
    with pytest.warns(FcnprotoWarning, match="coeff has no effect"):
        make_layer('type: "Eltwise" eltwise_param { operation: MAX coeff: [1, 2] }', (2,), (2,))
