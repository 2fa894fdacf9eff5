"""ENet's SpatialDropoutLayer, told by its module's name, against what its text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

NET = """
layer {{ name: "data" type: "Input" top: "x" input_param {{ shape {{ dim: 3 dim: 50 dim: 2 dim: 2 }} }} }}
layer {{ name: "drop" type: "Python" bottom: "x" top: "y"
  python_param {{ module: "spatial_dropout" layer: "SpatialDropoutLayer" param_str: "{text}" }} }}
"""


def make(text: str, phase: str = "test") -> fcnproto.Net:
    return fcnproto.load(parse(NET.format(text=text), caffe_pb2.NetParameter), phase=phase)


@pytest.mark.parametrize("phase", ["train", "test"])
def test_its_own_phase_counts(phase: str) -> None:
    x = torch.rand(3, 50, 2, 2) + 1
    kept = make("{'phase': 'TEST', 'p': '0.2'}", phase)(x)["y"]
    np.testing.assert_allclose(kept.numpy(), x.numpy() / 0.8, rtol=1e-6)
    torch.manual_seed(3)
    dropped = (make("{'phase': 'TRAIN', 'p': '0.2'}", phase)(x)["y"] / x).numpy()
    assert (dropped == dropped[:, :, :1, :1]).all() or np.allclose(dropped, dropped[:, :, :1, :1], rtol=1e-6)
    first = dropped[:, :, 0, 0]
    assert 0.1 < (first == 0).mean() < 0.3
    np.testing.assert_allclose(first[first != 0], 1.25, rtol=1e-6)


@pytest.mark.parametrize("text", ["{'phase': 'TEST'}", "{'phase': 'BOTH', 'p': 0.1}", "{'phase': 'TEST', 'p': 1}"])
def test_texts_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(fcnproto.LayerError, match="param_str"):
        make(text)


def test_a_scale_behind_what_is_unknown_waits() -> None:
    net = fcnproto.load(
        parse(
            """
layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 3 dim: 3 } } }
layer { name: "new" type: "NobodyKnows" bottom: "x" top: "y" }
layer { name: "scale" type: "Scale" bottom: "y" top: "y" }
layer { name: "relu" type: "ReLU" bottom: "x" top: "z" }
""",
            caffe_pb2.NetParameter,
        ),
        phase="train",
    )
    assert [entry.name for entry in net.unknown] == ["new", "scale"]
    assert (net(torch.ones(1, 2, 3, 3))["z"] == 1).all()


def test_polygons_are_refused_by_the_layer_alone() -> None:
    net = fcnproto.load(
        parse(
            """
layer { name: "l" type: "Input" top: "l" top: "c" top: "p"
  input_param { shape { dim: 1 dim: 24 } shape { dim: 1 dim: 4 } shape { dim: 1 dim: 2 dim: 8 } } }
layer { name: "out" type: "DetectionOutput" bottom: "l" bottom: "c" bottom: "p" top: "out"
  detection_output_param { num_classes: 2 use_polygon: true nms_param { nms_threshold: 0.5 } } }
""",
            caffe_pb2.NetParameter,
        )
    )
    with pytest.raises(fcnproto.GraphError, match="use_polygon"):
        net(l=torch.zeros(1, 24), c=torch.zeros(1, 4), p=torch.zeros(1, 2, 8))
