"""Surgery on weights: transplanting, interpolation, score layers, early and late fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import assert_close

import fcnproto
from fcnproto import surgery, zoo
from fcnproto.errors import UsageError, WeightsError
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L

fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
SLIM = (4, 8, 16, 32, 32, 32)


def randomise(net: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.copy_(torch.randn(blob.shape, generator=generator))
    return net


def classification_net(classes: int = 10) -> Any:
    """Convolution, pooling and two inner products: a VGG in the small, on 8x8 images."""
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, 8, 8]})
    net.conv = L.Convolution(net.data, num_output=4, kernel_size=3, pad=1)
    net.pool = L.Pooling(net.conv, pool="MAX", kernel_size=2, stride=2)
    net.fc6 = L.InnerProduct(net.pool, num_output=6)
    net.fc7 = L.InnerProduct(net.fc6, num_output=5)
    net.fc8 = L.InnerProduct(net.fc7, num_output=classes)
    return randomise(fcnproto.load(net.to_proto()))


def conv_net(bias: bool = True) -> Any:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, 8, 8]})
    net.conv = L.Convolution(net.data, num_output=4, kernel_size=3, pad=1, bias_term=bias)
    net.pool = L.Pooling(net.conv, pool="MAX", kernel_size=2, stride=2)
    net.fc6 = L.Convolution(net.pool, num_output=6, kernel_size=4)
    net.fc7 = L.Convolution(net.fc6, num_output=5, kernel_size=1)
    net.score = L.Convolution(net.fc7, num_output=3, kernel_size=1)
    return fcnproto.load(net.to_proto())


@pytest.mark.parametrize("from_file", [False, True])
def test_transplant_coerces_inner_products(tmp_path: Path, from_file: bool) -> None:
    old, new = classification_net(), conv_net()
    source: Any = old
    if from_file:
        source = tmp_path / "old.caffemodel"
        old.save(source)
    report = surgery.transplant(new, source)
    data = torch.randn(1, 3, 8, 8)
    expected, found = old(data, blobs=["fc7"])["fc7"], new(data, blobs=["fc7"])["fc7"]
    assert_close(found[:, :, 0, 0], expected.detach().numpy(), 1e-5, "fc7")
    assert report.layers("copied") == ["conv"]
    assert report.layers("coerced") == ["fc6", "fc7"]
    assert report.layers("dropped") == ["fc8"]
    assert report.layers("kept") == ["score"]
    assert "coerced  fc6: blob 0 (6, 64) -> (6, 4, 4, 4)" in report.lines()
    assert not new.params["score"][0].any()


def test_transplant_drops_surplus_blobs_and_keeps_missing_ones() -> None:
    old = classification_net()
    report = surgery.transplant(conv_net(bias=False), old)
    assert "dropped  conv: blob 1 (4,): the net's layer has no such blob" in report.lines()
    new = randomise(conv_net(), 3)
    before = new.params["conv"][1].clone()
    report = surgery.transplant(new, conv_net(bias=False))
    assert "kept     conv: blob 1 (4,): the source's layer has no such blob" in report.lines()
    torch.testing.assert_close(new.params["conv"][1], before)


def test_transplant_never_cuts_or_repeats() -> None:
    old, new = classification_net(), conv_net()
    before = new.params["conv"][0].clone()
    with pytest.raises(
        WeightsError, match=r"layer 'fc8', blob 0 has shape \(10, 5\), the net's 'score' \(3, 5, 1, 1\)"
    ):
        surgery.transplant(new, old, renamed={"fc8": "score"})
    torch.testing.assert_close(new.params["conv"][0], before)  # nothing is written where something doesn't fit
    report = surgery.transplant(new, old, leave_out=["conv"])
    assert "dropped  conv: left out as asked" in report.lines()
    with pytest.raises(WeightsError, match="no layer 'fc9'"):
        surgery.transplant(new, old, leave_out=["fc9"])
    with pytest.raises(WeightsError, match=r"none of its layers .* with the suffix 'x'"):
        surgery.transplant(new, old, "x")


def test_equal_counts_alone_do_not_make_shapes_fit() -> None:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 4, 8, 8]})
    net.conv = L.Convolution(net.data, num_output=3, kernel_size=3)  # (3, 4, 3, 3) has as many values as (4, 3, 3, 3)
    with pytest.raises(WeightsError, match=r"layer 'conv', blob 0 has shape \(4, 3, 3, 3\)"):
        surgery.transplant(fcnproto.load(net.to_proto()), conv_net())


def test_bilinear_filter() -> None:
    np.testing.assert_allclose(surgery.bilinear_filter(4)[1], np.array([0.25, 0.75, 0.75, 0.25]) * 0.75)
    np.testing.assert_allclose(surgery.bilinear_filter(3)[1], [0.5, 1, 0.5])
    assert surgery.bilinear_filter(63).max() == 1


def upsampling_net(kernel: int, stride: int, group: int = 1, outputs: int = 3, name: str = "upscore") -> Any:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, 5, 6]})
    settings = {"num_output": outputs, "kernel_size": kernel, "stride": stride, "group": group, "bias_term": False}
    net[name] = L.Deconvolution(net.data, **settings)
    return fcnproto.load(net.to_proto())


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (16, 8), (3, 2)])
def test_interpolate_is_bilinear(kernel: int, stride: int, group: int) -> None:
    net = randomise(upsampling_net(kernel, stride, group))
    report = surgery.interpolate(net)
    assert report.layers("made") == ["upscore"]
    data = torch.randn(1, 3, 5, 6)
    found = net(data)["upscore"]
    align = kernel % 2 == 1
    size = ((5 - 1) * stride + 1, (6 - 1) * stride + 1) if align else (5 * stride, 6 * stride)
    expected = torch.nn.functional.interpolate(data, size=size, mode="bilinear", align_corners=align)
    # Inside the outer ring, where all that the kernel reads is there.
    margin = (found.shape[2] - expected.shape[2]) // 2
    inner = found[:, :, margin : margin + size[0], margin : margin + size[1]]
    cut = 0 if align else stride // 2
    view = (slice(None), slice(None), slice(cut, size[0] - cut), slice(cut, size[1] - cut))
    torch.testing.assert_close(inner[view], expected[view], rtol=1e-5, atol=1e-5)


def test_interpolate_refuses_what_it_cannot_fill() -> None:
    with pytest.raises(UsageError, match="as many outputs as inputs"):
        surgery.interpolate(upsampling_net(4, 2, outputs=2))
    with pytest.raises(UsageError, match="no Deconvolution"):
        surgery.interpolate(conv_net(), ["conv"])
    assert not surgery.interpolate(upsampling_net(4, 2, name="deconv")).steps


def score_net(classes: int, width: int = 5) -> Any:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, width, 4, 4]})
    net.score = L.Convolution(net.data, num_output=classes, kernel_size=1)
    return fcnproto.load(net.to_proto())


def test_expand_score_keeps_the_old_classes() -> None:
    old, new = randomise(score_net(3)), randomise(score_net(5), 1)
    before = [blob.clone() for blob in new.params["score"]]
    report = surgery.expand_score(new, "score", old)
    for index in range(2):
        torch.testing.assert_close(new.params["score"][index][:3], old.params["score"][index])
        torch.testing.assert_close(new.params["score"][index][3:], before[index][3:])
    assert list(report.lines()) == [
        "copied   score: 3 of 5 classes from score (3 classes)",
        "kept     score: the values of 2 new classes",
    ]
    with pytest.raises(WeightsError, match="has 5 classes, the net's only 3"):
        surgery.expand_score(old, "score", new)
    with pytest.raises(WeightsError, match=r"shape \(3, 5, 1, 1\), the net's 'score' \(5, 7, 1, 1\)"):
        surgery.expand_score(score_net(5, 7), "score", old)


def test_transfer_classes_by_number() -> None:
    old, new = randomise(score_net(4)), score_net(3)
    surgery.transfer_classes(new, "score", old, {0: 0, 2: 3})
    torch.testing.assert_close(new.params["score"][0][[0, 2]], old.params["score"][0][[0, 3]])
    assert not new.params["score"][0][1].any()
    with pytest.raises(UsageError, match="class 4 -> 1"):
        surgery.transfer_classes(new, "score", old, {1: 4})


def deploy(build: Any, shapes: dict[str, tuple[int, ...]], **options: Any) -> Any:
    return fcnproto.load(build(sources.inputs(shapes), widths=SLIM, **options).to_proto())


def test_early_fusion() -> None:
    color = randomise(deploy(fcn.fcn32s, {"data": (1, 3, 32, 32)}, classes=6))
    net = deploy(fcn.fcn32s_early_fusion, {"color": (1, 3, 32, 32), "depth": (1, 1, 32, 32)}, classes=6)
    report = surgery.early_fusion(net, color)
    old, new = color.params["conv1_1"], net.params["conv1_1_bgrd"]
    torch.testing.assert_close(new[0][:, :3], old[0])
    torch.testing.assert_close(new[0][:, 3], old[0].mean(dim=1))
    torch.testing.assert_close(new[1], old[1])
    torch.testing.assert_close(net.params["fc6"][0], color.params["fc6"][0])
    assert report.layers("made") == ["conv1_1_bgrd", "upscore"] and not report.layers("kept")
    torch.testing.assert_close(net.params["upscore"][0][2, 2].double(), torch.from_numpy(surgery.bilinear_filter(64)))


def test_late_fusion() -> None:
    shapes = {"data": (1, 3, 32, 32)}
    color, hha = (randomise(deploy(fcn.fcn32s, shapes, classes=6), seed) for seed in (1, 2))
    net = deploy(fcn.fcn32s_late_fusion, {"color": (1, 3, 32, 32), "hha": (1, 3, 32, 32)}, classes=6)
    report = surgery.late_fusion(net, {"color": color, "hha": hha})
    for name in ("conv1_1", "fc7", "score_fr"):
        torch.testing.assert_close(net.params[f"{name}color"][0], color.params[name][0])
        torch.testing.assert_close(net.params[f"{name}hha"][0], hha.params[name][0])
    assert (
        not report.layers("kept") and report.layers("dropped") == ["upscore"] and report.layers("made") == ["upscore"]
    )
