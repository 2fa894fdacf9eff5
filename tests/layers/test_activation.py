"""Element-wise layers against their formulas, at the places where the formula has a corner, and by differences."""

from __future__ import annotations

import math

import pytest
import torch
from layer_maker import make_layer, seeded
from torch import Tensor

from fcnproto.errors import LayerError

SIGMOID_1 = 1 / (1 + math.exp(-1))

# Layer, input, output, gradient: worked out by hand from the formulas of Caffe's layers.
POINTS = [
    ('type: "AbsVal"', -2.0, 2.0, -1.0),
    ('type: "AbsVal"', 0.0, 0.0, 0.0),
    ('type: "BNLL"', 0.0, math.log(2), 0.5),
    ('type: "BNLL"', 60.0, 60.0, 1.0),
    ('type: "BNLL"', 30.0, 30.0 + math.log1p(math.exp(-30)), 1 / (1 + math.exp(-30))),
    ('type: "BNLL"', -60.0, math.exp(-60), math.exp(-60)),
    ('type: "Clip" clip_param { min: -1 max: 2 }', -1.0, -1.0, 1.0),
    ('type: "Clip" clip_param { min: -1 max: 2 }', 2.0, 2.0, 1.0),
    ('type: "Clip" clip_param { min: -1 max: 2 }', 2.5, 2.0, 0.0),
    ('type: "ELU" elu_param { alpha: 0.5 }', 0.0, 0.0, 0.5),
    ('type: "ELU" elu_param { alpha: 0.5 }', -1.0, 0.5 * (math.exp(-1) - 1), 0.5 * math.exp(-1)),
    ('type: "ELU"', 3.0, 3.0, 1.0),
    ('type: "Exp" exp_param { base: 2 scale: 3 shift: 1 }', 1.0, 16.0, 48 * math.log(2)),
    ('type: "Exp" exp_param { shift: 2 }', -2.0, 1.0, 1.0),
    ('type: "Log" log_param { base: 10 scale: 50 shift: 50 }', 1.0, 2.0, 50 / (100 * math.log(10))),
    ('type: "Log"', 1.0, 0.0, 1.0),
    ('type: "Power" power_param { power: 3 scale: 2 shift: 1 }', 1.0, 27.0, 54.0),
    ('type: "Power" power_param { power: 0 }', 5.0, 1.0, 0.0),
    ('type: "Power" power_param { power: 2 scale: 0 shift: 3 }', math.inf, 9.0, 0.0),
    ('type: "Power" power_param { power: 3 }', 0.0, 0.0, 0.0),
    ('type: "Power" power_param { power: 0.5 }', 4.0, 2.0, 0.25),
    ('type: "Power" power_param { scale: 2 shift: -1 }', 4.0, 7.0, 2.0),
    ('type: "ReLU"', 0.0, 0.0, 0.0),
    ('type: "ReLU" relu_param { negative_slope: 0.25 }', 0.0, 0.0, 0.25),
    ('type: "ReLU" relu_param { negative_slope: 0.25 }', -4.0, -1.0, 0.25),
    ('type: "ReLU" relu_param { negative_slope: -0.5 }', -4.0, 2.0, -0.5),
    ('type: "Sigmoid"', 1.0, SIGMOID_1, SIGMOID_1 * (1 - SIGMOID_1)),
    ('type: "Swish"', 1.0, SIGMOID_1, SIGMOID_1 * (2 - SIGMOID_1)),
    ('type: "Swish" swish_param { beta: 2 }', 0.5, 0.5 * SIGMOID_1, SIGMOID_1 + SIGMOID_1 * (1 - SIGMOID_1)),
    ('type: "TanH"', 1.0, math.tanh(1), 1 - math.tanh(1) ** 2),
]


@pytest.mark.parametrize(("text", "x", "y", "slope"), POINTS)
def test_value_and_gradient_at_a_point(text: str, x: float, y: float, slope: float) -> None:
    layer = make_layer(text, (1, 2))
    bottom = torch.tensor([[x, 1.0]], dtype=torch.float64, requires_grad=True)
    top = layer(bottom)
    top[0, 0].backward()
    assert bottom.grad is not None
    assert top[0, 0].item() == pytest.approx(y, rel=1e-12, abs=1e-40)
    assert bottom.grad[0, 0].item() == pytest.approx(slope, rel=1e-12, abs=1e-40)


@pytest.mark.parametrize("text", sorted({text for text, *_ in POINTS}))
def test_gradient_is_the_derivative(text: str) -> None:
    x = seeded(3, 4).abs() + 0.1  # away from corners
    if "Log" not in text and "power: 0.5" not in text:
        x = torch.cat([x, -x])
    layer = make_layer(text, x.shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


@pytest.mark.parametrize("shared", [False, True])
def test_prelu(shared: bool) -> None:
    layer = make_layer(f'type: "PReLU" prelu_param {{ channel_shared: {str(shared).lower()} }}', (2, 3, 4))
    assert layer.blob_shapes == [() if shared else (3,)]
    assert layer.blob_fillers[0].value == 0.25
    x = torch.tensor([-2.0, 0.0, 3.0, -1.0]).repeat(2, 3, 1).requires_grad_()
    slope = layer.blob(0).detach().expand(3)
    top = layer(x)
    top.sum().backward()
    for c in range(3):
        torch.testing.assert_close(top[0, c].detach(), torch.tensor([-2 * slope[c], 0, 3, -slope[c]]))
        assert x.grad is not None
        torch.testing.assert_close(x.grad[1, c], torch.tensor([slope[c], slope[c], 1, slope[c]]))
    expected = torch.tensor(-18.0) if shared else torch.full((3,), -6.0)
    torch.testing.assert_close(layer.blob(0).grad, expected)


def test_prelu_gradient_is_the_derivative() -> None:
    layer = make_layer('type: "PReLU"', (2, 3, 4), dtype=torch.float64)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(run, (seeded(2, 3, 4).requires_grad_(), seeded(3, seed=1).requires_grad_()))


def test_threshold_is_strict_and_has_no_gradient() -> None:
    layer = make_layer('type: "Threshold" threshold_param { threshold: 0.5 }', (3,))
    top = layer(torch.tensor([0.25, 0.5, 0.75], requires_grad=True))
    assert top.tolist() == [0, 0, 1]
    assert top.dtype == torch.float32 and not top.requires_grad


def test_dropout_scales_what_it_keeps() -> None:
    torch.manual_seed(3)
    layer = make_layer('type: "Dropout" dropout_param { dropout_ratio: 0.7 }', (100, 400), train=True)
    x = torch.ones(100, 400, requires_grad=True)
    top = layer(x)
    top.sum().backward()
    kept = top != 0
    torch.testing.assert_close(top[kept].detach(), torch.full_like(top[kept], 1 / 0.3))
    assert kept.float().mean().item() == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(x.grad, top.detach())
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        ('type: "Clip" clip_param { min: 0 }', (2,), "clip_param.max is missing"),
        ('type: "Exp" exp_param { base: 0 }', (2,), "base 0 must be positive"),
        ('type: "Exp" exp_param { base: -2 }', (2,), "base -2 must be positive"),
        ('type: "Log" log_param { base: 1 }', (2,), "base 1 must be positive and not 1"),
        ('type: "Log" log_param { base: -3 }', (2,), "base -3 must be positive and not 1"),
        ('type: "PReLU"', (2,), "2 axes or more"),
        ('type: "Dropout" dropout_param { dropout_ratio: 1 }', (2,), "dropout_ratio 1 must be"),
        ('type: "Dropout" dropout_param { dropout_ratio: -0.5 }', (2,), "dropout_ratio -0.5 must be"),
    ],
)
def test_bad_settings_are_named(text: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(LayerError, match="layer 'it'") as error:
        make_layer(text, shape)
    assert words in str(error.value)


@pytest.mark.parametrize("text", [text for text, *_ in POINTS] + ['type: "PReLU"', 'type: "Threshold"'])
def test_input_is_not_changed(text: str) -> None:
    x = seeded(2, 3, dtype=torch.float32).abs()
    before = x.clone()
    make_layer(text, (2, 3), train=True)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", ["BNLL", "ELU", "Sigmoid", "Swish", "TanH"])
@pytest.mark.parametrize("place", [-80, -40, -15, -8, -2, 0, 2, 8, 15, 80])
def test_values_and_gradients_keep_their_digits_near_saturation(kind: str, place: int) -> None:
    layer = make_layer(f'type: "{kind}"', (1, 100))
    x = (seeded(1, 100) * 0.4 + place).float().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, wanted = layer(x), layer(exact)
    # The last digits of x itself are worth |x| of them in e^x.
    torch.testing.assert_close(y.double(), wanted, rtol=5e-7 * max(1, abs(place) / 8), atol=1e-37)
    y.sum().backward()
    wanted.sum().backward()
    # Sigmoid's and TanH's gradients are of their tops, in Caffe too: 1 - y has the digits that y leaves it.
    atol = 2e-7 if kind == "TanH" or (kind in ("Sigmoid", "Swish") and place > -1) else 1e-37
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2e-6 * max(1, abs(place) / 8), atol=atol)
