"""DataAugmentation, and a net of FlowNet2-C's shape, an eighth as wide, from two images to the flow in their size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.errors import FcnprotoWarning

SIZE, INNER = (100, 60), (128, 64)
"""(width, height) of the images, and what the net works in: multiples of 64."""


def layer(kind: str, name: str, bottoms: str, tops: str = "", settings: str = "") -> str:
    ends = [f'bottom: "{one}"' for one in bottoms.split()] + [f'top: "{one}"' for one in (tops or name).split()]
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(ends)} {settings} }}\n'


def convolution(
    name: str, bottoms: str, count: int, kernel: int, stride: int = 1, tops: str = "", relu: bool = True
) -> str:
    settings = f"num_output: {count} kernel_size: {kernel} stride: {stride} pad: {(kernel - 1) // 2}"
    text = layer(
        "Convolution", name, bottoms, tops, f'convolution_param {{ {settings} weight_filler {{ type: "msra" }} }}'
    )
    outs = (tops or name).split() if relu else []
    return text + "".join(layer("ReLU", f"relu_{out}", out, out, "relu_param { negative_slope: 0.1 }") for out in outs)


def up(name: str, bottom: str, count: int, relu: bool) -> str:
    settings = f'num_output: {count} kernel_size: 4 stride: 2 pad: 1 weight_filler {{ type: "msra" }}'
    text = layer("Deconvolution", name, bottom, "", f"convolution_param {{ {settings} }}")
    return text + (layer("ReLU", f"relu_{name}", name, name, "relu_param { negative_slope: 0.1 }") if relu else "")


def resized(name: str, bottom: str, size: tuple[int, int]) -> str:
    settings = f"resample_param {{ width: {size[0]} height: {size[1]} type: LINEAR antialias: true }}"
    return layer("Resample", name, bottom, "", settings)


def flow_net(width: int = 8) -> str:
    text = ""
    for k in (0, 1):
        shape = f"input_param {{ shape {{ dim: [1, 3, {SIZE[1]}, {SIZE[0]}] }} }}"
        text += f'layer {{ name: "img{k}" type: "Input" top: "img{k}" {shape} }}\n'
        text += layer("Eltwise", f"img{k}s", f"img{k}", "", f"eltwise_param {{ operation: SUM coeff: {1 / 255} }}")
        mean = "augmentation_param { augment_during_test: true recompute_mean: 2 mean_per_pixel: false }"
        text += layer("DataAugmentation", f"img{k}_nomean", f"img{k}s", "", mean)
        text += resized(f"img{k}_resized", f"img{k}_nomean", INNER)
    before = "img0_resized img1_resized"
    for index, (count, kernel) in enumerate(((64, 7), (128, 5), (256, 5)), 1):
        tops = f"conv{index}a conv{index}b"
        text += convolution(f"conv{index}", before, count // width, kernel, 2, tops)
        before = tops
    settings = "pad: 20 kernel_size: 1 max_displacement: 20 stride_1: 1 stride_2: 2"
    text += layer("Correlation", "corr", before, "", f"correlation_param {{ {settings} }}")
    text += layer("ReLU", "relu_corr", "corr", "corr", "relu_param { negative_slope: 0.1 }")
    text += convolution("conv_redir", "conv3a", 32 // width, 1) + layer("Concat", "both", "conv_redir corr")
    text += convolution("conv3_1", "both", 256 // width, 3)
    last = "conv3_1"
    for index, count in ((4, 512), (5, 512), (6, 1024)):
        text += convolution(f"conv{index}", last, count // width, 3, 2)
        text += convolution(f"conv{index}_1", f"conv{index}", count // width, 3)
        last = f"conv{index}_1"
    beside = {5: "conv5_1", 4: "conv4_1", 3: "conv3_1", 2: "conv2a"}
    text += convolution("flow6", last, 2, 3, relu=False)
    for index, count in ((5, 512), (4, 256), (3, 128), (2, 64)):
        text += up(f"deconv{index}", last, count // width, True) + up(f"up{index}", f"flow{index + 1}", 2, False)
        text += layer("Concat", f"concat{index}", f"{beside[index]} deconv{index} up{index}")
        text += convolution(f"flow{index}", f"concat{index}", 2, 3, relu=False)
        last = f"concat{index}"
    text += layer("Eltwise", "flow20", "flow2", "", "eltwise_param { operation: SUM coeff: 20 }")
    text += resized("flow_resized", "flow20", SIZE)
    scale = f"diag_val: {SIZE[0] / INNER[0]} diag_val: {SIZE[1] / INNER[1]}"
    settings = f'num_output: 2 kernel_size: 1 weight_filler {{ type: "diagonal" {scale} }} bias_term: false'
    return text + layer("Convolution", "flow", "flow_resized", "", f"convolution_param {{ {settings} }}")


def test_it_computes_in_the_size_of_the_images(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(flow_net())
    torch.manual_seed(1)
    net = fcnproto.load(tmp_path / "net.prototxt")
    assert not net.unknown
    images = {f"img{k}": seeded(1, 3, SIZE[1], SIZE[0], seed=k).abs() * 80 for k in (0, 1)}
    with torch.no_grad():
        flow = net(images, blobs=["corr", "flow_resized"])
    assert flow["corr"].shape == (1, 441, 8, 16) and flow["flow"].shape == (1, 2, SIZE[1], SIZE[0])
    assert bool(flow["flow"].isfinite().all()) and float(flow["flow"].std()) > 0
    wanted = flow["flow_resized"] * torch.tensor([SIZE[0] / INNER[0], SIZE[1] / INNER[1]]).view(1, 2, 1, 1)
    assert_close(flow["flow"], wanted.numpy(), 1e-6, "flow")
    # The means of one size go with weights to nets for images of another.
    net.save(tmp_path / "w.caffemodel")
    other = flow_net().replace(f"dim: [1, 3, {SIZE[1]}, {SIZE[0]}]", "dim: [1, 3, 40, 72]")
    (tmp_path / "other.prototxt").write_text(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FcnprotoWarning)
        smaller = fcnproto.load(tmp_path / "other.prototxt", tmp_path / "w.caffemodel")
    assert torch.equal(smaller.params["img0_nomean"][2], net.params["img0_nomean"][2])


def test_the_mean_of_the_first_images() -> None:
    shape = (2, 3, 4, 5)
    by_pixel = make_layer('type: "DataAugmentation" augmentation_param { recompute_mean: 2 }', shape)
    by_channel = make_layer(
        'type: "DataAugmentation" augmentation_param { recompute_mean: 2 mean_per_pixel: false }', shape
    )
    batches = [seeded(*shape, seed=k).double().numpy() for k in range(3)]
    for count, batch in enumerate(batches, 1):
        seen = np.mean([one.mean(0) for one in batches[: min(count, 2)]], axis=0)
        x = torch.from_numpy(batch).float()
        assert_close(by_pixel(x), batch - seen, 1e-6, "by pixel")
        assert_close(by_channel(x), batch - seen.mean((1, 2), keepdims=True), 1e-6, "by channel")
    given = make_layer('type: "DataAugmentation" augmentation_param { mean: [1, 2, 3] mean_per_pixel: false }', shape)
    assert_close(given(x), batch - np.array([1, 2, 3]).reshape(1, 3, 1, 1), 1e-6, "given")
    assert torch.equal(make_layer('type: "DataAugmentation" augmentation_param { }', shape)(x), x)


def test_crops_hold_their_place(tmp_path: Path) -> None:
    text = 'layer { name: "i" type: "Input" top: "i" input_param { shape { dim: [1, 3, 8, 8] } } }' + layer(
        "DataAugmentation", "a", "i", "", "augmentation_param { crop_width: 4 crop_height: 4 mirror { prob: 0.5 } }"
    )
    (tmp_path / "net.prototxt").write_text(text)
    with pytest.warns(FcnprotoWarning, match="crops and random changes"):
        net = fcnproto.load(tmp_path / "net.prototxt")
    assert [one.name for one in net.unknown] == ["a"]
