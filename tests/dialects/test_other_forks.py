"""What another fork's layer or field of a known name means for a net: the layer holds its place, the rest computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

INPUT = """
layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 1 dim: 8 dim: 2 dim: 3 } } }
layer { name: "relu" type: "ReLU" bottom: "x" top: "z" }
"""


def load(text: str, strict: bool = False) -> fcnproto.Net:
    message = parse(INPUT + text, caffe_pb2.NetParameter, strict=strict)
    return fcnproto.load(message, strict=strict)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('type: "DetectionEvaluate" bottom: "x" bottom: "x" bottom: "x" top: "y"', "has 3 bottoms, expected 2"),
        ('type: "AnnotatedData" top: "a" top: "b" top: "c"', "has 3 tops, expected 1 to 2"),
        (
            'type: "PriorBox" bottom: "x" bottom: "x" top: "y" prior_box_param { min_size: 2 tf: true }',
            "tf of Synopsys",
        ),
        (
            'type: "AnnotatedData" top: "y" transform_param { noise_param { prob: 1 } noise_param { prob: 0 } }',
            "a further noise_param",
        ),
    ],
)
def test_the_layer_holds_its_place(text: str, why: str) -> None:
    with pytest.warns(fcnproto.FcnprotoWarning):
        net = load(f'layer {{ name: "new" {text} }}')
    assert why in net.layer("new").held
    assert net(x=torch.ones(1, 8, 2, 3))["z"].shape == (1, 8, 2, 3)
    with pytest.raises(fcnproto.Error):
        load(f'layer {{ name: "new" {text} }}', strict=True)


def test_caffes_own_types_have_caffes_counts() -> None:
    with pytest.raises(fcnproto.GraphError, match="has 2 bottoms, expected 1"):
        load('layer { name: "new" type: "Flatten" bottom: "x" bottom: "z" top: "y" }')
    with pytest.raises(fcnproto.GraphError, match="has 0 bottoms, expected at least 1"):
        load('layer { name: "new" type: "Convolution" top: "y" convolution_param { num_output: 1 kernel_size: 1 } }')


def test_an_engine_that_nobody_knows_chooses_nothing() -> None:
    net = load('layer { name: "c" type: "ReLU" bottom: "x" top: "y" relu_param { engine: MLSL } }')
    assert not net.unknown


def test_pixelshuffler_makes_positions_of_channels() -> None:
    net = load('layer { name: "p" type: "Reshape" bottom: "x" top: "y" reshape_param { pixelshuffler: 2 } }')
    x = np.random.default_rng(1).normal(size=(1, 8, 2, 3)).astype(np.float32)
    expected = np.zeros((1, 2, 4, 6), np.float32)
    for c in range(8):
        for h in range(2):
            for w in range(3):
                expected[0, c // 4, h * 2 + c // 2 % 2, w * 2 + c % 2] = x[0, c, h, w]
    assert (net(torch.from_numpy(x))["y"].numpy() == expected).all()
    with pytest.raises(fcnproto.LayerError, match="pixelshuffler 3 makes"):
        load('layer { name: "p" type: "Reshape" bottom: "x" top: "y" reshape_param { pixelshuffler: 3 } }')
