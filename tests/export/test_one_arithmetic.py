"""What a module computes where numbers are odd is what the net computes: the module runs the layers' own functions."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import golden_cases
import pytest
import torch

import fcnproto
from fcnproto.export import convert
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import endpoints, make_source, run_source, state_for
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

HEAD = 'layer { name: "in" type: "Input" top: "x" input_param { shape { %s } } }\n'
LABELS = 'layer { name: "l" type: "Input" top: "t" input_param { shape { dim: 2 } } }\n'
IMAGE = HEAD % "dim: 2 dim: 3 dim: 8 dim: 8"
ROWS = HEAD % "dim: 2 dim: 3" + LABELS
GLOBAL = """
layer { name: "g" type: "Pooling" bottom: "x" top: "g" pooling_param { pool: AVE global_pooling: true } }
layer { name: "y" type: "BatchNorm" bottom: "g" top: "y" }
"""


def both(text: str, phase: str = "test") -> tuple[fcnproto.Net, torch.nn.Module]:
    """A net and its module with the same values."""
    torch.manual_seed(0)
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), phase=phase)
    names, _ = endpoints(net, losses=True)
    shapes = blob_shapes(net, {name: net.source_shapes[name] for name in names})  # type: ignore[misc]
    source = make_source(net, shapes, "w.safetensors", losses=True)
    module = run_source(source)
    module.load_state_dict(state_for(net, module))
    return net, module.train(phase == "train")


def same(text: str, *values: torch.Tensor, phase: str = "test", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The one output of both, which must be equal to the last bit, NaN included."""
    net, module = both(text, phase)
    net, module = net.to(dtype), module.to(dtype)
    (expected,) = net(dict(zip(net.inputs, values, strict=True))).values()
    found = module(*(value.to(dtype) if i == 0 else value for i, value in enumerate(values)))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_normalisation_of_one_value_a_channel(batch: int) -> None:
    same(IMAGE + GLOBAL, torch.randn(batch, 3, 8, 8), phase="train")


def test_nets_with_one_value_a_channel_are_converted(tmp_path: Path) -> None:
    net = fcnproto.load(parse(IMAGE.replace("dim: 2", "dim: 1", 1) + GLOBAL, caffe_pb2.NetParameter), phase="train")
    assert "in eval() and in train()" in convert(net, tmp_path / "net.py").checked


POOLINGS = ["kernel_size: 3 stride: 2 pad: 1", "kernel_size: 2 stride: 3", "kernel_size: 3 stride: 1", "kernel_size: 2"]


@pytest.mark.parametrize("settings", POOLINGS)
@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_pooling_of_what_is_no_number(settings: str, value: float) -> None:
    x = torch.full((1, 3, 8, 8), value)
    x[0, 0, 0, 0] = 1
    for method in ("MAX", "AVE"):
        text = (
            f'layer {{ name: "p" type: "Pooling" bottom: "x" top: "y" pooling_param {{ pool: {method} {settings} }} }}'
        )
        found = same(IMAGE + text, x)
        assert method == "AVE" or found[0, 0, 0, 0] == max(1, value if value == math.inf else 1)


LOSSES = ["SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "Accuracy"]


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_of_an_empty_batch(kind: str) -> None:
    text = f'layer {{ name: "y" type: "{kind}" bottom: "x" bottom: "t" top: "y" }}'
    same(ROWS + text, torch.ones(0, 3), torch.ones(0))


@pytest.mark.parametrize("kind", ["EuclideanLoss", "SigmoidCrossEntropyLoss"])
def test_losses_of_pairs(kind: str) -> None:
    text = HEAD % "dim: 2 dim: 3" + HEAD.replace('"x"', '"t"').replace('"in"', '"l"') % "dim: 2 dim: 3"
    text += f'layer {{ name: "y" type: "{kind}" bottom: "x" bottom: "t" top: "y" }}'
    same(text, torch.ones(0, 3), torch.ones(0, 3))
    same(text, torch.full((2, 3), 300.0), torch.zeros(2, 3, dtype=torch.float16), dtype=torch.float16)


@pytest.mark.parametrize(
    "layer",
    [
        'type: "LRN"',
        'type: "MVN"',
        'type: "Reduction" reduction_param { operation: SUMSQ axis: 1 }',
        'type: "BatchNorm"',
        'type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }',
        'type: "Pooling" pooling_param { kernel_size: 3 stride: 2 pad: 2 }',
        'type: "SPP" spp_param { pyramid_height: 2 pool: AVE }',
        'type: "ArgMax" argmax_param { top_k: 2 }',
        'type: "Power" power_param { scale: 0 shift: -1 power: 0.5 }',
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_values_in_half_precision(layer: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 300
    same(IMAGE + f'layer {{ name: "y" {layer} bottom: "x" top: "y" }}', x.to(dtype), dtype=dtype)


def test_copied_functions_name_nothing_of_the_package() -> None:
    seen: set[str] = set()
    of_each_kind = {name.split("_")[0]: name for name in golden_cases.names("layers")}
    for name in of_each_kind.values():
        case = golden_cases.load("layers", name)
        net, inputs = case.net(), {key: value.shape for key, value in case.keys("in").items()}
        try:
            names, _ = endpoints(net, losses=True)
            shapes = blob_shapes(net, {key: inputs[key] for key in names})
            source = make_source(net, shapes, "w.safetensors", losses=True)
        except (fcnproto.Error, KeyError):  # has no inputs, or can't be said
            continue
        tree = ast.parse(source.text)
        seen |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not words & {"fcnproto", "caffe_pb2", "Layer"}
        assert all("fcnproto" not in ast.unparse(node) for node in tree.body[1:])
    assert len(seen) > 20
