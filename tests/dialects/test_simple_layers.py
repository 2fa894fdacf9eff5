"""Layers of Caffe's forks that move values or act on each by itself: gradients, random slopes, settings that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layer_maker import make_layer

from fcnproto.errors import LayerError


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ('type: "ReLU6" relu6_param { negative_slope: 0.2 }', [(2, 3, 4)]),
        ('type: "HardSigmoid"', [(2, 3)]),
        ('type: "HardSwish"', [(2, 3)]),
        ('type: "Mish"', [(2, 3)]),
        ('type: "Permute" permute_param { order: 2 order: 0 }', [(2, 3, 4, 5)]),
        ('type: "Transpose" transpose_param { dim: 1 dim: 0 dim: 2 }', [(2, 3, 4)]),
        ('type: "Reverse" reverse_param { axis: -1 axis: 0 }', [(2, 3, 4)]),
        ('type: "Flip" flip_param { flip_height: true }', [(2, 3, 4, 5)]),
        ('type: "Squeeze" squeeze_param { axis: 1 axis: -1 }', [(2, 1, 3, 1)]),
        ('type: "ShuffleChannel" shuffle_channel_param { group: 2 }', [(2, 6, 3)]),
        ('type: "Reorg" reorg_param { stride: 2 }', [(2, 8, 4, 6)]),
        ('type: "Reorg" reorg_param { stride: 2 reverse: true }', [(1, 8, 2, 3)]),
        ('type: "Axpy"', [(2, 3, 1, 1), (2, 3, 2, 2), (2, 3, 2, 2)]),
        ('type: "Add"', [(2, 3), (2, 3), (2, 3)]),
        ('type: "ChannelNorm"', [(2, 3, 2, 2)]),
    ],
)
def test_gradients(text: str, shapes: list[tuple[int, ...]]) -> None:
    made = make_layer(text, *shapes)
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).mul(3).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(made, inputs)
    said = made.top_shapes([tuple(shape) for shape in shapes])
    assert said is None or [tuple(made(*inputs).shape)] == [tuple(shape) for shape in said]


def test_reorg_is_darknets_order_and_not_space_to_depth() -> None:
    """Against the rule written as a loop over positions."""
    count, channels, height, width, s = 1, 4, 4, 2, 2
    x = np.arange(count * channels * height * width, dtype=np.float32)
    few = channels // s**2
    y = np.zeros_like(x)
    view = x.reshape(count, few, height * s, width * s)
    position = 0
    for n in range(count):
        for k in range(channels):
            for j in range(height):
                for i in range(width):
                    y[position] = view[n, k % few, j * s + k // few // s, i * s + k // few % s]
                    position += 1
    made = make_layer('type: "Reorg" reorg_param { stride: 2 }', (1, 4, 4, 2))(torch.from_numpy(x).reshape(1, 4, 4, 2))
    assert tuple(made.shape) == (1, 16, 2, 1) and np.array_equal(made.numpy().ravel(), y)


def test_slopes_of_insanity_are_drawn_between_its_bounds() -> None:
    made = make_layer('type: "Insanity" insanity_param { lb: 2 ub: 4 }', (1000,), train=True)
    torch.manual_seed(0)
    y = made(torch.full((1000,), -1.0))
    assert float(y.min()) >= -0.5 and float(y.max()) <= -0.25 and y.unique().numel() > 900
    assert torch.equal(made(torch.ones(1000)), torch.ones(1000))


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "Permute" permute_param { order: 4 }', [(2, 3, 4, 5)], "axis 4 is not one of the 4 axes"),
        ('type: "Permute" permute_param { order: 1 order: 1 }', [(2, 3)], "given twice"),
        ('type: "Transpose" transpose_param { dim: 0 }', [(2, 3)], "must hold each of the 2 axes"),
        ('type: "Reverse" reverse_param { axis: 2 }', [(2, 3)], "axis 2 is outside of -2..1"),
        ('type: "Flip"', [(2, 3)], "(N, C, H, W) bottoms only"),
        ('type: "Squeeze" squeeze_param { axis: 1 }', [(2, 3)], "more than one value"),
        ('type: "ShuffleChannel" shuffle_channel_param { group: 4 }', [(2, 6)], "group 4 must divide"),
        ('type: "ShuffleChannel" shuffle_channel_param { group: 0 }', [(2, 6)], "group 0 must divide"),
        ('type: "Reorg"', [(1, 4, 2, 2)], "needs a stride"),
        ('type: "Reorg" reorg_param { stride: 3 }', [(1, 9, 2, 2)], "stride 3 must divide"),
        ('type: "Axpy"', [(2, 3), (2, 4, 1, 1), (2, 4, 1, 1)], "needs bottoms of shapes"),
        ('type: "Add"', [(2, 3), (2, 4)], "one shape"),
        ('type: "Insanity" insanity_param { lb: -1 ub: 2 }', [(2,)], "one sign"),
    ],
)
def test_what_is_refused(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError) as caught:
        make_layer(text, *shapes)
    assert words in str(caught.value)
