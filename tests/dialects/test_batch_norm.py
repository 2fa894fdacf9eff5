"""BatchNorm of forks: NVIDIA's averages with scale and shift, Intel's relu, statistics that are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded
from torch import Tensor

import fcnproto
from fcnproto.errors import FcnprotoWarning, LayerError
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import make_source, run_source, state_for
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

SHAPE = (3, 4, 2, 5)
NVIDIA = 'type: "BatchNorm" batch_norm_param { eps: 1e-7 moving_average_fraction: 0.75 scale_bias: true %s }'
HEAD = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 4 dim: 2 dim: 5 } } }\n'


def normalised(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + eps)


def affine(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    scale, shift = (layer.blob(index).detach().numpy()[:, None, None] for index in (3, 4))  # type: ignore[operator]
    return x * scale + shift


def test_nvidia_by_the_batch_and_by_its_averages() -> None:
    layer = make_layer(NVIDIA % "", SHAPE, train=True, dtype=torch.float64)
    assert layer.blob_names == ["mean", "variance", "scale_factor", "weight", "bias"]
    assert [(spec.lr_mult, spec.decay_mult) for spec in layer.param.param] == [(0, 0)] * 3 + [(1, 1)] * 2
    kept: list[np.ndarray] = []
    for seed in range(3):
        x = seeded(*SHAPE, seed=seed) + seed
        values = x.numpy()
        batch = [values.mean((0, 2, 3)), values.var((0, 2, 3))]
        assert_close(layer(x), affine(layer, normalised(values, *batch)), 1e-9, f"pass {seed}")
        kept = [0.75 * old + 0.25 * new for old, new in zip(kept, batch, strict=True)] if kept else batch
    for index in (0, 1):
        assert_close(layer.blob(index), kept[index], 1e-12, f"average {index}")
    layer.eval()
    assert_close(layer(x), affine(layer, normalised(values, *kept)), 1e-9, "by averages")
    layer.train()
    assert torch.autograd.gradcheck(layer, seeded(*SHAPE).requires_grad_(), fast_mode=True, nondet_tol=1e-9)


@pytest.mark.parametrize("field", ["scale_filler", "bias_filler"])
def test_a_filler_says_that_there_is_a_scale(field: str) -> None:
    text = f'type: "BatchNorm" batch_norm_param {{ {field} {{ type: "constant" value: 3 }} }}'
    assert len(make_layer(text, SHAPE).blob_shapes) == 5


def test_first_values_of_nvidias_blobs() -> None:
    text = f'{HEAD} layer {{ name: "n" bottom: "x" top: "n" {NVIDIA % "use_global_stats: true"} }}'
    with pytest.warns(FcnprotoWarning, match="the phase decides"):
        net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    assert [float(blob.detach().flatten()[0]) for blob in net.params["n"]] == [0, 0, 1, 1, 0]


def test_the_dialect_alone_makes_averages_of_three_blobs() -> None:
    text = HEAD + 'layer { name: "n" type: "BatchNorm" bottom: "x" top: "n" }'
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), phase="train", dialect="nvidia")
    x = seeded(*SHAPE, dtype=torch.float32)
    net(x=x)
    assert len(net.params["n"]) == 3
    assert_close(net.params["n"][1], x.numpy().var((0, 2, 3)), 1e-6, "variance")
    assert float(net.params["n"][2]) == 1


def test_intels_fields() -> None:
    text = 'type: "BatchNorm" batch_norm_param { use_weight_bias: true bias_filler { value: 1 } relu: true }'
    with pytest.warns(FcnprotoWarning, match="bias_filler has no effect"):
        layer = make_layer(text, SHAPE, train=True)
    x = seeded(*SHAPE)
    plain = make_layer('type: "BatchNorm"', SHAPE, train=True)
    assert len(layer.blob_shapes) == 3
    assert_close(layer(x), plain(x).clamp(min=0).numpy(), 1e-12, "values")


@pytest.mark.parametrize("nvidia", [False, True])
def test_statistics_that_are_left_alone(nvidia: bool) -> None:
    settings = "update_global_stats: false" + (" scale_bias: true" if nvidia else "")
    layer = make_layer(f'type: "BatchNorm" batch_norm_param {{ {settings} }}', SHAPE, train=True)
    x = seeded(*SHAPE, dtype=torch.float32)
    expected = normalised(x.numpy(), x.numpy().mean((0, 2, 3)), x.numpy().var((0, 2, 3)))
    assert_close(layer(x), affine(layer, expected) if nvidia else expected, 1e-5, "values")
    assert not layer.blob(0).any() and not layer.blob(1).any()


CONVOLUTION = (
    'layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 1 } }'
)


@pytest.mark.parametrize(
    "settings", ["scale_bias: true", "relu: true", "update_global_stats: false", "scale_bias: true relu: true"]
)
def test_optimized_and_exported(settings: str) -> None:
    text = f'{HEAD} {CONVOLUTION} layer {{ name: "n" type: "BatchNorm" bottom: "c" top: "n" batch_norm_param {{ {settings} }} }}'
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter))
    with torch.no_grad():
        for blob in (*net.params["c"], *net.params["n"]):
            blob.uniform_(0.5, 1.5)
    x = seeded(*SHAPE, dtype=torch.float32)

    def module(phase: str) -> torch.nn.Module:
        made = run_source(make_source(net, blob_shapes(net, {"x": SHAPE}), "w"))
        made.load_state_dict(state_for(net, made))
        return made.train(phase == "train")

    for phase in ("test", "train"):
        exported = module(phase)
        net.train(phase == "train")
        found: Tensor = exported(x)
        assert_close(found, net(x=x)["n"].detach().numpy(), 1e-6, f"exported, {phase}")
    net.eval()
    assert_close(fcnproto.optimize(net)(x=x)["n"], net(x=x)["n"].detach().numpy(), 1e-6, "optimized")


def test_a_softmax_of_another_kind_is_refused() -> None:
    assert make_layer('type: "Softmax" softmax_param { normalize_type: "Softmax" }', SHAPE)
    with pytest.raises(LayerError, match='only "Softmax" is known'):
        make_layer('type: "Softmax" softmax_param { normalize_type: "L1" }', SHAPE)


@pytest.mark.parametrize(
    ("layer", "field"),
    [
        ('type: "Accuracy" accuracy_param { min_is_better: true }', "accuracy_param.min_is_better"),
        (
            'type: "InnerProduct" inner_product_param { num_output: 1 weight_filler { type: "constant" alpha: 2 } }',
            "alpha has no effect on fillers of type 'constant'",
        ),
    ],
)
def test_fields_without_effect_draw_a_warning(layer: str, field: str) -> None:
    text = HEAD + 'layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 3 dim: 1 dim: 2 dim: 5 } } }'
    bottoms = 'bottom: "x"' + (' bottom: "y"' if "Accuracy" in layer else "")
    with pytest.warns(FcnprotoWarning, match=field):
        fcnproto.load(parse(f'{text} layer {{ name: "it" {bottoms} top: "it" {layer} }}', caffe_pb2.NetParameter))


@pytest.mark.parametrize("phase", ["test", "train"])
@pytest.mark.parametrize(
    "settings",
    [
        "slope_filler { value: 1 } momentum: 0.75",
        "frozen: true",
        "bn_mode: LEARN",
        "bn_mode: INFERENCE",
        "decay: 0.25 var_eps: 0.001",
        "decay: 0.25 moving_average: false",
    ],
)
def test_bn_is_exported(settings: str, phase: str) -> None:
    text = HEAD + f'layer {{ name: "n" type: "BN" bottom: "x" top: "n" bn_param {{ {settings} }} }}'
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), phase=phase)
    with torch.no_grad():
        for blob in net.params["n"]:
            blob.uniform_(0.5, 1.5)
    module = run_source(make_source(net, blob_shapes(net, {"x": SHAPE}), "w"))
    module.load_state_dict(state_for(net, module))
    module.train(phase == "train")
    for seed in range(2):  # the second time by what the first left
        x = seeded(*SHAPE, seed=seed, dtype=torch.float32)
        assert_close(module(x), net(x=x)["n"].detach().numpy(), 1e-6, f"pass {seed}")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), module.state_dict().values(), strict=True))
