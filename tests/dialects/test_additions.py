"""Fields that forks add to Caffe's own ReLU, Eltwise and Dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded
from torch import Tensor

import fcnproto
from fcnproto.errors import LayerError
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import make_source, run_source
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

HEAD = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'


def exported(text: str, *values: Tensor, phase: str = "test") -> Tensor:
    """What the module says of one layer with bottoms x, y, z."""
    names = "xyz"[: len(values)]
    head = "".join(HEAD.replace('"x"', f'"{name}"') for name in names)
    bottoms = "".join(f' bottom: "{name}"' for name in names)
    text = f'{head} layer {{ name: "it" top: "it" {bottoms} {text} }}'
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), phase=phase)
    source = make_source(net, blob_shapes(net, dict.fromkeys(names, (2, 3, 4, 5))), "w", losses=False)
    result: Tensor = run_source(source).train(phase == "train")(*values)
    return result


@pytest.mark.parametrize(
    ("settings", "ceiling", "slope"),
    [
        ("relu6: true", 6, 0),
        ("maximum: 2.5", 2.5, 0),
        ("relu6: true maximum: 7.5 negative_slope: 0.25", 6, 0.25),
        ("maximum: 0.5 relu6: true", 0.5, 0),
        ("maximum: -1", np.inf, 0),
        ("relu6: false", np.inf, 0),
    ],
)
def test_ceilings_of_relu(settings: str, ceiling: float, slope: float) -> None:
    text = f'type: "ReLU" relu_param {{ {settings} }}'
    x = (seeded(2, 3, 4, 5) * 5).requires_grad_()
    y = make_layer(text, (2, 3, 4, 5))(x)
    values = x.detach().numpy()
    assert_close(y, np.minimum(np.where(values > 0, values, slope * values), ceiling), 1e-12, "values")
    y.sum().backward()
    assert_close(x.grad, np.where(values > 0, values < ceiling, slope), 1e-12, "gradient")
    assert torch.equal(exported(text, x.float()), y.float())


def test_at_the_ceiling_no_gradient_passes() -> None:
    x = torch.tensor([5.0, 6.0, 7.0, float("nan")]).requires_grad_()
    y = make_layer('type: "ReLU" relu_param { relu6: true }', (4,))(x)
    y[:3].sum().backward()
    assert x.grad is not None
    assert x.grad[:3].tolist() == [1, 0, 0]
    assert y[3].isnan()


def test_a_capped_relu_is_not_fused_as_a_plain_one() -> None:
    text = """layer { name: "c" type: "Convolution" bottom: "x" top: "c"
        convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "constant" value: 9 } } }
      layer { name: "r" type: "ReLU" bottom: "c" top: "c" relu_param { maximum: 3.5 } }"""
    net = fcnproto.load(parse(HEAD + text, caffe_pb2.NetParameter))
    found = fcnproto.optimize(net)(x=torch.ones(1, 3, 4, 5))["c"]
    assert found.unique().tolist() == [3.5]


def test_min_of_eltwise_gives_the_gradient_to_the_winner() -> None:
    bottoms = [seeded(2, 3, 4, 5, seed=seed).requires_grad_() for seed in range(3)]
    with torch.no_grad():
        bottoms[1][0] = bottoms[0][0]
        bottoms[2][1] = torch.minimum(bottoms[0][1], bottoms[1][1])
    text = 'type: "Eltwise" eltwise_param { operation: MIN }'
    y = make_layer(text, *[(2, 3, 4, 5)] * 3)(*bottoms)
    y.sum().backward()
    first, second, third = (bottom.detach().numpy() for bottom in bottoms)
    assert_close(y, np.minimum(np.minimum(first, second), third), 0, "values")
    winner = np.where(first < second, 0, 1)
    winner = np.where(third < np.minimum(first, second), 2, winner)
    for index, bottom in enumerate(bottoms):
        assert_close(bottom.grad, (winner == index).astype(float), 0, f"gradient {index}")
    assert torch.equal(exported(text, *(bottom.float() for bottom in bottoms)), y.float())


def test_div_of_eltwise() -> None:
    text = 'type: "Eltwise" eltwise_param { operation: DIV }'
    layer, (a, b) = make_layer(text, *[(2, 3, 4, 5)] * 2), (seeded(2, 3, 4, 5), seeded(2, 3, 4, 5, seed=1) + 5)
    assert_close(layer(a, b), (a / b).numpy(), 1e-15, "values")
    assert torch.autograd.gradcheck(layer, (a.requires_grad_(), b.requires_grad_()), fast_mode=True)
    assert torch.equal(exported(text, a.float(), b.float()), a.float() / b.float())
    with pytest.raises(LayerError, match="two bottoms, got 3"):
        make_layer(text, *[(2, 3)] * 3)
    with pytest.raises(LayerError, match="coeff goes with SUM only"):
        make_layer('type: "Eltwise" eltwise_param { operation: MIN coeff: 1 coeff: 1 }', *[(2, 3)] * 2)


def test_dropout_that_scales_in_the_test_phase() -> None:
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 scale_train: false }'
    x = torch.ones(2, 3, 4, 5)
    assert make_layer(text, (2, 3, 4, 5))(x).unique().tolist() == [0.75]
    assert sorted(make_layer(text, (2, 3, 4, 5), train=True)(x).unique().tolist()) == [0, 1]
    assert exported(text, x).unique().tolist() == [0.75]
    assert sorted(exported(text, x, phase="train").unique().tolist()) == [0, 1]
    net = parse(f'{HEAD} layer {{ name: "d" bottom: "x" top: "d" {text} }}', caffe_pb2.NetParameter)
    assert fcnproto.optimize(fcnproto.load(net))(x=x)["d"].unique().tolist() == [0.75]


def test_dropout_that_draws_in_the_test_phase_too() -> None:
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.5 sample_weights_test: true }'
    x = torch.ones(2, 3, 4, 5)
    layer = make_layer(text, (2, 3, 4, 5))
    assert sorted(layer(x).unique().tolist()) == [0, 2]
    assert layer.draws_numbers() and not layer.is_pointwise(layer.param)
    assert sorted(exported(text, x).unique().tolist()) == [0, 2]
    net = parse(f'{HEAD} layer {{ name: "d" bottom: "x" top: "d" {text} }}', caffe_pb2.NetParameter)
    assert sorted(fcnproto.optimize(fcnproto.load(net))(x=x)["d"].unique().tolist()) == [0, 2]
