"""The layer types of Caffe's forks beside OpenCV's dnn: each that it knows once, and those that it lacks."""

from __future__ import annotations

import warnings

import pytest
import torch
from fork_layers import LAYERS, OF_REGIONS, REFUSED, net_of

import fcnproto
from fcnproto.errors import DataError
from fcnproto.parity import compare, opencv_reference, random_inputs
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

X = ("x", (1, 4, 6, 8))
KNOWN = {
    "Permute": ([X], "permute_param { order: 0 order: 2 order: 3 order: 1 }"),
    "Normalize": ([X], "norm_param { across_spatial: false channel_shared: false scale_filler { value: 3 } }"),
    "Normalize, across_spatial": ([X], "norm_param { scale_filler { value: 2 } }"),
    "ReLU6": ([X], ""),
    "ShuffleChannel": ([X], "shuffle_channel_param { group: 2 }"),
    "Reorg": ([X], "reorg_param { stride: 2 }"),
    "Interp": ([X], "interp_param { height: 11 width: 13 }"),
    "ConvolutionDepthwise": ([X], "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }"),
    "ROIPooling": ([X, ("rois", (3, 5))], "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.0625 }"),
    "PSROIPooling": (
        [X, ("rois", (3, 5))],
        "psroi_pooling_param { output_dim: 1 group_size: 2 spatial_scale: 0.0625 }",
    ),
    "Correlation": ([X, ("y", (1, 4, 6, 8))], "correlation_param { pad: 2 kernel_size: 1 max_displacement: 2 }"),
    "FlowWarp": ([X, ("flow", (1, 2, 6, 8))], ""),
    "Resample": ([X], "resample_param { width: 16 height: 12 type: NEAREST antialias: false }"),
    "Mish": ([X], ""),
    "PriorBoxClustered": (
        [X, ("image", (1, 3, 60, 80))],
        "prior_box_param { width: [8, 30, 11] height: [9, 5, 40] step: 10 clip: true variance: [0.1, 0.1, 0.2, 0.2] }",
    ),
    "HardSigmoid": ([X], ""),
    "HardSwish": ([X], ""),
}

"""By type, with what tells its forms apart behind a comma: inputs and settings. Axpy is missing because OpenCV 4.14
multiplies another bottom than the forks' recordings do; PriorBox and DetectionOutput are in test_parity_ssd.py."""

OTHERWISE = {"Axpy", "DataAugmentation", "DepthToSpace", "PriorBox", "DetectionOutput", "Proposal"}
"""Types that OpenCV has, and means otherwise or needs more bottoms for; of Proposal it gives as many rows as may be, rows
of nothing too."""
MISSING = sorted({*LAYERS, *OF_REGIONS, *REFUSED} - {name.partition(",")[0] for name in KNOWN} - OTHERWISE)
"""All others of the forks' types, which OpenCV can't make."""


def made(name: str) -> fcnproto.Net:
    inputs, settings = KNOWN[name]
    text = "".join(
        f'layer {{ name: "{top}" type: "Input" top: "{top}" input_param {{ shape {{ '
        + "".join(f"dim: {extent} " for extent in shape)
        + "} } } "
        for top, shape in inputs
    )
    bottoms = "".join(f'bottom: "{top}" ' for top, _ in inputs)
    text += f'layer {{ name: "it" type: "{name.partition(",")[0]}" {bottoms} top: "it" {settings} }}'
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = fcnproto.Net(parse(text, caffe_pb2.NetParameter), "test")
    for layer in net.layers:
        for blob in layer.blob_names:
            getattr(layer, blob).data.add_(torch.rand(getattr(layer, blob).shape) * 0.5)
    return net


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_type_beside_opencv(name: str) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = made(name)
    report = compare(net, opencv_reference(net, random_inputs(net)), tolerance=1e-5)
    assert report.agrees, report.departure
    assert "it" in [entry.name for entry in report.entries if entry.measures is not None]


@pytest.mark.parametrize("name", MISSING)
def test_a_type_that_opencv_lacks_is_said_to_be(name: str) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    net = net_of([name])
    with pytest.raises(DataError, match=rf'OpenCV .* can.t run .*"{name}"|OpenCV knows none of the net.s layers'):
        opencv_reference(net, random_inputs(net))
