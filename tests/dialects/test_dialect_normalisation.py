"""Normalize and BN of Caffe's forks: which layer a text means, and what the recordings don't show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.errors import LayerError, UsageError

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } } '


def test_true_gradients_where_the_forks_have_them() -> None:
    x = seeded(2, 3, 4, 5).requires_grad_()
    for text in (
        'type: "Normalize" norm_param { across_spatial: false channel_shared: true }',
        'type: "Normalize" norm_param { add_eps_before_sqrt: false eps: 0.3 }',
        'type: "Normalize" normalize_param { normalize_type: "L1" }',
        'type: "BN" bn_param { bn_mode: LEARN }',
        'type: "BN" bn_param { momentum: 0.5 }',
    ):
        assert torch.autograd.gradcheck(make_layer(text, (2, 3, 4, 5), dtype=torch.float64), [x]), text


@pytest.mark.parametrize("across", [False, True])
def test_the_gradient_of_ssd_with_a_scale_for_each_channel(across: bool) -> None:
    """s_c * (dy - x * sum(x * dy) / norm^2) / norm, in float64 with NumPy."""
    text = f'type: "Normalize" norm_param {{ channel_shared: false across_spatial: {str(across).lower()} eps: 0.125 }}'
    layer = make_layer(text, (2, 3, 4, 5), dtype=torch.float64)
    x, dy = seeded(2, 3, 4, 5).requires_grad_(), seeded(2, 3, 4, 5, seed=1)
    layer(x).backward(dy)
    axes = (1, 2, 3) if across else (1,)
    data, gradient = x.detach().numpy(), dy.numpy()
    norm = np.sqrt((data**2).sum(axes, keepdims=True) + 0.125)
    scale = layer.blob(0).detach().numpy().reshape(1, 3, 1, 1)
    expected = scale * (gradient - data * (data * gradient).sum(axes, keepdims=True) / norm**2) / norm
    assert_close(x.grad, expected, 1e-12, "gradient of x")
    assert_close(layer.blob(0).grad, (gradient * data / norm).sum((0, 2, 3)), 1e-12, "gradient of the scale")


@pytest.mark.parametrize("text", ["scale_filler { value: 1 }", "var_eps: 0.0001", "decay: 0.9", "moving_average: true"])
def test_what_bn_means_by_its_fields_or_the_dialect(text: str, tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT + f'layer {{ name: "b" type: "BN" bottom: "x" top: "y" bn_param {{ {text} }} }}')
    assert len(fcnproto.load(path).params["b"]) == (2 if "filler" in text else 4)
    assert len(fcnproto.load(path, dialect="imcl").params["b"]) == 4


def test_ctpn_counts_no_average_unless_told() -> None:
    layer = make_layer('type: "BN" bn_param { var_eps: 0 }', (2, 3, 4, 5), train=True)
    x = seeded(2, 3, 4, 5, dtype=torch.float32)
    layer(x)
    assert_close(layer.blob(2).flatten(), 0.95 * x.mean((0, 2, 3)), 1e-6, "mean")
    layer = make_layer('type: "BN" bn_param { var_eps: 0 }', (2, 3, 4, 5), train=True)
    layer.dialect = "ctpn"
    layer(x)
    assert not layer.blob(2).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('type: "BN" bn_param { frozen: true bn_mode: LEARN }', "mixes the fields of several forks"),
        ('type: "Normalize" norm_param { } normalize_param { }', "both given"),
        ('type: "Normalize" normalize_param { normalize_type: "L3" }', 'expected "L1" or "L2"'),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(LayerError) as caught:
        make_layer(text, (2, 3, 4, 5))
    assert words in str(caught.value)


def test_an_unknown_dialect_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT)
    with pytest.raises(UsageError, match="dialect='sssd': expected one of"):
        fcnproto.load(path, dialect="sssd")
