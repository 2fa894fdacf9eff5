"""MobileNet-SSD, the whole net as it is published, beside OpenCV's dnn with random weights."""

from __future__ import annotations

import math
from pathlib import Path

import golden_cases
import numpy as np
import pytest
import torch

import fcnproto
from fcnproto.parity import compare, opencv_reference, random_inputs

CLASSES = 21
# Outputs and stride of the depthwise separable blocks.
BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
# Channels of the 1x1 and the 3x3 convolution of the further blocks.
FURTHER = [(256, 512), (128, 256), (128, 256), (64, 128)]
# What is detected from: layer, sizes of the priors, ratios.
HEADS = [
    ("conv11", "min_size: 60", "aspect_ratio: 2"),
    ("conv13", "min_size: 105 max_size: 150", "aspect_ratio: 2 aspect_ratio: 3"),
    ("conv14_2", "min_size: 150 max_size: 195", "aspect_ratio: 2 aspect_ratio: 3"),
    ("conv15_2", "min_size: 195 max_size: 240", "aspect_ratio: 2 aspect_ratio: 3"),
    ("conv16_2", "min_size: 240 max_size: 285", "aspect_ratio: 2 aspect_ratio: 3"),
    ("conv17_2", "min_size: 285 max_size: 300", "aspect_ratio: 2 aspect_ratio: 3"),
]


def convolution(name: str, bottom: str, outputs: int, settings: str, active: bool = True) -> str:
    text = (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: {outputs} {settings} }} }}\n"
    )
    return text + (f'layer {{ name: "{name}/relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n' if active else "")


def layer(name: str, kind: str, bottoms: list[str], settings: str = "") -> str:
    words = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {words} top: "{name}" {settings} }}\n'


def mobilenet_ssd() -> str:
    text = 'name: "MobileNet-SSD"\n'
    text += (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 300 dim: 300 } } }\n'
    )
    text += convolution("conv0", "data", 32, "kernel_size: 3 stride: 2 pad: 1")
    below, channels = "conv0", 32
    for number, (outputs, stride) in enumerate(BLOCKS, 1):
        name = f"conv{number}"
        text += convolution(f"{name}/dw", below, channels, f"kernel_size: 3 pad: 1 stride: {stride} group: {channels}")
        text += convolution(name, f"{name}/dw", outputs, "kernel_size: 1")
        below, channels = name, outputs
    for number, (narrow, wide) in enumerate(FURTHER, 14):
        text += convolution(f"conv{number}_1", below, narrow, "kernel_size: 1")
        text += convolution(f"conv{number}_2", f"conv{number}_1", wide, "kernel_size: 3 stride: 2 pad: 1")
        below = f"conv{number}_2"
    for source, sizes, ratios in HEADS:
        count = 3 if "max_size" not in sizes else 6
        for kind, size in (("loc", 4), ("conf", CLASSES)):
            name = f"{source}_mbox_{kind}"
            text += convolution(name, source, count * size, "kernel_size: 1", active=False)
            text += layer(f"{name}_perm", "Permute", [name], "permute_param { order: 0 order: 2 order: 3 order: 1 }")
            text += layer(f"{name}_flat", "Flatten", [f"{name}_perm"])
        settings = f"{sizes} {ratios} flip: true clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
        text += layer(f"{source}_mbox_priorbox", "PriorBox", [source, "data"], f"prior_box_param {{ {settings} }}")
    for name, ending, axis in (
        ("mbox_loc", "loc_flat", 1),
        ("mbox_conf", "conf_flat", 1),
        ("mbox_priorbox", "priorbox", 2),
    ):
        bottoms = [f"{source}_mbox_{ending}" for source, _, _ in HEADS]
        text += layer(name, "Concat", bottoms, f"concat_param {{ axis: {axis} }}")
    text += layer("rows", "Reshape", ["mbox_conf"], f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }}")
    text += layer("softmax", "Softmax", ["rows"], "softmax_param { axis: 2 }") + layer("flat", "Flatten", ["softmax"])
    settings = f"num_classes: {CLASSES} nms_param {{ nms_threshold: 0.45 top_k: 100 }} keep_top_k: 100"
    return text + layer(
        "detection_out",
        "DetectionOutput",
        ["mbox_loc", "flat", "mbox_priorbox"],
        f"detection_output_param {{ {settings} code_type: CENTER_SIZE confidence_threshold: 0.25 }}",
    )


def test_mobilenet_ssd_beside_opencv(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    (tmp_path / "net.prototxt").write_text(mobilenet_ssd())
    torch.manual_seed(0)
    net = fcnproto.load(tmp_path / "net.prototxt")
    for own in net.layers:
        if own.type == "Convolution":
            weight = own.blob(0).detach()
            weight.normal_(0, math.sqrt(2 / weight[0].numel()))
            own.blob(1).detach().uniform_(-0.1, 0.1)
            if own.name.endswith(("_loc", "_conf")):
                weight.mul_(0.025)
    inputs = random_inputs(net)
    reference = opencv_reference(net, inputs)
    found = reference.blobs.pop("detection_out")
    with torch.no_grad():
        report = compare(net, reference, tolerance=1e-4)  # as through all whole nets
    assert report.agrees, report.departure
    assert {"mbox_loc", "mbox_conf", "mbox_priorbox", "flat"} <= {entry.name for entry in report.entries}
    ours = net(data=torch.from_numpy(np.float32(inputs["data"])))["detection_out"].detach().numpy()
    assert ours.shape == found.shape and ours.shape[2] > 20
    # Of rows with the same image and label each has its own among OpenCV's, in whichever order near ties are.
    for row in ours[0, 0]:
        same = found[0, 0][(found[0, 0, :, :2] == row[:2]).all(1)]
        assert np.abs(same - row).max(1).min() < 1e-4


@pytest.mark.parametrize("name", ["detout_corner", "detout_ssd"])
def test_detections_beside_opencv(name: str) -> None:
    """OpenCV fills up with rows of zeros and has an order of its own."""
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    case = golden_cases.load("dialects", name)
    with torch.no_grad():
        report = compare(case.net(), opencv_reference(case.net(), case.keys("in")), tolerance=1e-5)
    assert report.agrees, report.departure
    assert [entry.name for entry in report.entries if entry.measures] == ["out"]
