"""InnerProduct and Embed against numpy, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    place=st.floats(0, 0.99),
    from_end=st.booleans(),
    transpose=st.booleans(),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_inner_product(shape: list[int], place: float, from_end: bool, transpose: bool, bias: bool) -> None:
    axis = int(place * len(shape))
    text = (
        f'type: "InnerProduct" inner_product_param {{ num_output: 3 axis: {axis - len(shape) if from_end else axis} '
        f"transpose: {str(transpose).lower()} bias_term: {str(bias).lower()} }}"
    )
    layer = make_layer(text, shape, dtype=torch.float64)
    x = seeded(*shape)
    inputs = math.prod(shape[axis:])
    weight = layer.weight.detach().numpy()
    assert weight.shape == ((inputs, 3) if transpose else (3, inputs))
    expected = x.numpy().reshape(*shape[:axis], inputs) @ (weight if transpose else weight.T)
    if bias:
        expected = expected + layer.bias.detach().numpy()
    y = layer(x)
    assert y.shape == (*shape[:axis], 3)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transpose", ["true", "false"])
def test_gradients(transpose: str) -> None:
    layer = make_layer(
        f'type: "InnerProduct" inner_product_param {{ num_output: 3 transpose: {transpose} }}',
        (2, 2, 2),
        dtype=torch.float64,
    )

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    torch.autograd.gradcheck(run, (seeded(2, 2, 2).requires_grad_(), layer.weight, layer.bias))


def test_other_input_count_is_refused() -> None:
    layer = make_layer('type: "InnerProduct" inner_product_param { num_output: 3 }', (2, 3, 4))
    assert layer(torch.zeros(5, 4, 3)).shape == (5, 3)
    with pytest.raises(LayerError, match="12 inputs from axis 1"):
        layer(torch.zeros(2, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_embed_truncates_indices_of_any_dtype(dtype: torch.dtype) -> None:
    layer = make_layer('type: "Embed" embed_param { num_output: 2 input_dim: 5 }', (2, 3), dtype=torch.float64)
    index = np.array([[0, 4, 1.7], [2, 2.99, 3]])
    y = layer(torch.from_numpy(index).to(dtype))
    expected = layer.weight.detach().numpy()[index.astype(int)] + layer.bias.detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-15)
    y.sum().backward()
    assert layer.weight.grad[:, 0].tolist() == [1, 1, 2, 1, 1] and layer.bias.grad.tolist() == [6, 6]


@pytest.mark.parametrize("index", [-1, 5])
def test_embed_refuses_an_index_out_of_range(index: int) -> None:
    layer = make_layer('type: "Embed" embed_param { num_output: 2 input_dim: 5 }', (1,))
    with pytest.raises(LayerError, match=r"outside of 0\.\.4"):
        layer(torch.tensor([index]))


@pytest.mark.parametrize(
    "text",
    [
        'type: "InnerProduct"',
        'type: "Embed" embed_param { num_output: 2 }',
        'type: "Embed" embed_param { input_dim: 2 }',
    ],
)
def test_missing_sizes_are_refused(text: str) -> None:
    with pytest.raises(LayerError, match="must be given and positive"):
        make_layer(text, (2, 3))
