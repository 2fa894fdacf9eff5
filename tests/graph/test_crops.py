"""Crop layers without an offset, as in nets of 2015: the warning, and the aligned reading."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fcnproto
import fcnproto.graph.crops as crops_module
from fcnproto.errors import FcnprotoWarning, UsageError
from fcnproto.netspec import NetSpec, Top, crop
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


def up(x: Top, factor: int) -> Top:
    settings = {"num_output": 2, "kernel_size": 2 * factor, "stride": factor, "bias_term": False}
    return L.Deconvolution(x, convolution_param=settings)


def net_of_2015(pointwise: str = "ReLU", **settings: object) -> tuple[caffe_pb2.NetParameter, list[list[int]]]:
    """A net with two fused scores whose crops have lost their offsets, and what these were."""
    spec = NetSpec()
    spec.data = L.Input(shape={"dim": [1, 3, 64, 80]})
    spec.conv1 = L.Convolution(spec.data, num_output=2, kernel_size=3, pad=40)
    spec.act = getattr(L, pointwise)(spec.conv1, **settings)
    spec.pool1 = L.Pooling(spec.act, pool=0, kernel_size=2, stride=2)
    spec.fc = L.Convolution(spec.pool1, num_output=2, kernel_size=6, stride=2)
    spec.up2 = up(spec.fc, 2)
    spec.pool1c = crop(spec.pool1, spec.up2)
    spec.fuse = L.Eltwise(spec.up2, spec.pool1c)
    spec.up1 = up(spec.fuse, 2)
    spec.score = crop(spec.up1, spec.data)
    param = spec.to_proto()
    offsets = []
    for layer in param.layer:
        if layer.type == "Crop":
            offsets.append(list(layer.crop_param.offset))
            layer.ClearField("crop_param")
    return param, offsets


def crops(net: fcnproto.Net) -> list[list[int]]:
    return [list(node.param.crop_param.offset) for node in net.graph.nodes if node.type == "Crop"]


def test_one_warning_names_both_numbers() -> None:
    param, offsets = net_of_2015()
    with pytest.warns(FcnprotoWarning, match="Crop layers without an offset") as caught:
        net = fcnproto.load(param)
    assert len(caught) == 1
    text = str(caught[0].message)
    for name, (offset, *_) in zip(("pool1c", "score"), offsets, strict=True):
        assert offset > 0
        assert f"'{name}' 0 where the map says {offset}" in text
    assert crops(net) == [[], []]


@pytest.mark.parametrize(("pointwise", "settings"), [("ReLU", {}), ("Swish", {}), ("Clip", {"min": 0, "max": 6})])
def test_aligned_takes_the_offsets_of_the_coordinate_map(pointwise: str, settings: dict[str, object]) -> None:
    param, offsets = net_of_2015(pointwise, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = fcnproto.load(param, crop="aligned")
    assert crops(net) == offsets
    given = fcnproto.load(param, crop="aligned")
    for layer, values in zip((layer for layer in param.layer if layer.type == "Crop"), offsets, strict=True):
        layer.crop_param.offset.extend(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = fcnproto.load(param)
    told.load_state_dict(given.state_dict())
    x = torch.rand(1, 3, 64, 80)
    torch.testing.assert_close(given(x)["score"], told(x)["score"], rtol=0, atol=0)


def test_nothing_is_said_where_the_offset_is_zero_given_or_unknown() -> None:
    text = """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 8 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: 3 %s } }
        layer { name: "k" type: "Crop" bottom: "c" bottom: "x" top: "k" %s }"""
    for convolution, settings in (("pad: 1", ""), ("pad: 3", "crop_param { offset: 0 }"), ("pad: 2 dilation: 2", "")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fcnproto.load(parse(text % (convolution, settings), caffe_pb2.NetParameter))


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match="expected 'caffe' or 'aligned'"):
        fcnproto.load(net_of_2015()[0], crop="middle")


def test_the_command_line_takes_both_crops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fcnproto.cli import _options
    from fcnproto.cli._main import main

    assert _options.CROPS == crops_module.CHOICES
    model = tmp_path / "net.prototxt"
    model.write_text(str(net_of_2015()[0]))
    outputs = []
    for arguments in ([], ["--crop", "aligned"]):
        torch.manual_seed(3)
        assert main(["summary", str(model), *arguments]) == 0
        said = capsys.readouterr()
        assert ("Crop layers without an offset" in said.err) == (not arguments)
        array = tmp_path / f"out{len(outputs)}.npz"
        np.savez(tmp_path / "in.npz", data=np.ones((1, 3, 64, 80), np.float32))
        assert main(["run", str(model), "--input", str(tmp_path / "in.npz"), "-o", str(array), *arguments]) == 0
        capsys.readouterr()
        outputs.append(np.load(array)["score"].shape)
    assert outputs == [(1, 2, 64, 80)] * 2
    assert main(["run", str(model), "--crop", "aligned", "--crop", "caffe"]) == 2
    assert "at most one of caffe and aligned" in capsys.readouterr().err


def test_the_offsets_of_an_edge_detector_of_2015() -> None:
    """HED: five side outputs of VGG-16, whose first convolution is padded by 35, each cropped to the image."""
    spec = NetSpec()
    spec.data = L.Input(shape={"dim": [1, 3, 64, 64]})
    x = spec.data
    for stage in range(5):
        if stage:
            x = L.Pooling(x, pool=0, kernel_size=2, stride=2)
        x = L.Convolution(x, num_output=2, kernel_size=3, pad=35 if stage == 0 else 1)
        x = L.Convolution(L.ReLU(x), num_output=2, kernel_size=3, pad=1)
        side = L.Convolution(x, num_output=1, kernel_size=1)
        if stage:
            factor = 2**stage
            settings = {"num_output": 1, "kernel_size": 2 * factor, "stride": factor, "bias_term": False}
            side = L.Deconvolution(side, convolution_param=settings)
        setattr(spec, f"crop{stage + 1}", L.Crop(side, spec.data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = fcnproto.load(spec.to_proto(), crop="aligned")
    assert crops(net) == [[34], [35], [36], [38], [42]]
    assert tuple(net(torch.zeros(1, 3, 64, 64))["crop5"].shape) == (1, 1, 64, 64)
