"""`fcnproto surgery`: files in, files out, and a line for every layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L
from fcnproto.schema.text import write_message

fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
SLIM = (4, 8, 8, 8, 8, 8)


def write_net(path: Path, net: NetSpec) -> Path:
    write_message(path, net.to_proto())
    return path


def save_random(model: Path, weights: Path) -> fcnproto.Net:
    net = fcnproto.load(model)
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.normal_(std=0.2)
    net.save(weights)
    return net


def classifier(folder: Path) -> tuple[Path, Path, fcnproto.Net]:
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, 16, 16]})
    net.conv1_1 = L.Convolution(net.data, num_output=4, kernel_size=3, pad=1)
    net.pool = L.Pooling(net.conv1_1, pool="MAX", kernel_size=2, stride=2)
    net.fc6 = L.InnerProduct(net.pool, num_output=8)
    net.fc8 = L.InnerProduct(net.fc6, num_output=5)
    model = write_net(folder / "classes.prototxt", net)
    return model, folder / "classes.caffemodel", save_random(model, folder / "classes.caffemodel")


def test_convolutionalise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights, old = classifier(tmp_path)
    prototxt, caffemodel = tmp_path / "map.prototxt", tmp_path / "map.caffemodel"
    options = ["-o", str(prototxt), "--output-weights", str(caffemodel)]
    assert main(["surgery", "convolutionalise", str(model), str(weights), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "changed  fc6: InnerProduct -> Convolution, kernel 8x8" in lines
    assert "coerced  fc6: blob 0 (8, 256) -> (8, 4, 8, 8)" in lines
    data = torch.randn(1, 3, 16, 16)
    new = fcnproto.load(prototxt, caffemodel)
    torch.testing.assert_close(new(data)["fc8"][:, :, 0, 0], old(data)["fc8"], rtol=1e-4, atol=1e-4)
    assert main(["surgery", "convolutionalise", str(model), str(weights), "-o", str(prototxt)]) == 2
    options = ["-o", str(prototxt), "--classes", "3", "--label", "--pad", "20"]
    assert main(["surgery", "convolutionalise", str(model), *options]) == 0
    trained = fcnproto.load(prototxt)
    assert trained.outputs == ["loss"]
    assert trained(data=torch.randn(1, 3, 30, 41), blobs=["score"])["score"].shape == (1, 3, 30, 41)


def test_transplant_and_set_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"data": (1, 3, 32, 32)}
    coarse = write_net(tmp_path / "32s.prototxt", fcn.fcn32s(sources.inputs(shapes), 4, SLIM))
    fine = write_net(tmp_path / "16s.prototxt", fcn.fcn16s(sources.inputs(shapes), 4, SLIM))
    old = save_random(coarse, tmp_path / "32s.caffemodel")
    output = tmp_path / "16s.caffemodel"
    assert main(["surgery", "transplant", str(fine), str(tmp_path / "32s.caffemodel"), "-o", str(output)]) == 0
    text = capsys.readouterr().out
    assert "copied   score_fr" in text and "kept     score_pool4" in text and "made     upscore16" in text
    assert "dropped  upscore" in text and "kept     upscore2" not in text
    # The finer net starts with the coarser one's scores, enlarged in two steps.
    data = torch.randn(shapes["data"])
    started = fcnproto.load(fine, output)(data, blobs=["score_fr", "fuse_pool4", "upscore2"])
    torch.testing.assert_close(started["score_fr"], old(data, blobs=["score_fr"])["score_fr"])
    torch.testing.assert_close(started["fuse_pool4"], started["upscore2"])
    changed = tmp_path / "seven.prototxt"
    options = ["--classes", "7", "-o", str(changed), "--output-weights", str(tmp_path / "seven.caffemodel")]
    assert main(["surgery", "set-classes", str(fine), str(output), *options]) == 0
    text = capsys.readouterr().out
    assert "changed  score_fr: 4 -> 7 classes" in text and "kept     score_fr" in text and "dropped  score_fr" in text
    net = fcnproto.load(changed, tmp_path / "seven.caffemodel")
    torch.testing.assert_close(net.params["fc7"][0], old.params["fc7"][0])
    command = ["surgery", "expand-score", str(changed), str(output), "score_fr", "-o", str(tmp_path / "e.caffemodel")]
    assert main([*command, "--weights", str(tmp_path / "seven.caffemodel")]) == 0
    expanded = fcnproto.load(changed, tmp_path / "e.caffemodel").params["score_fr"][0]
    torch.testing.assert_close(expanded[:4], old.params["score_fr"][0])
    assert not expanded[4:].any()
    assert main(["surgery", "set-classes", str(fine), "--classes", "x", "-o", str(changed)]) == 2


def test_fusion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = (1, 3, 32, 32)
    single = write_net(tmp_path / "32s.prototxt", fcn.fcn32s(sources.inputs({"data": image}), 4, SLIM))
    early = fcn.fcn32s_early_fusion(sources.inputs({"color": image, "depth": (1, 1, 32, 32)}), 4, SLIM)
    late = fcn.fcn32s_late_fusion(sources.inputs({"color": image, "hha": image}), 4, SLIM)
    weights = tmp_path / "32s.caffemodel"
    old = save_random(single, weights)
    model, output = write_net(tmp_path / "early.prototxt", early), tmp_path / "out.caffemodel"
    assert main(["surgery", "early-fusion", str(model), str(weights), "-o", str(output)]) == 0
    assert "made     conv1_1_bgrd: from conv1_1, (4, 3, 3, 3) -> (4, 4, 3, 3)" in capsys.readouterr().out
    model = write_net(tmp_path / "late.prototxt", late)
    streams = ["--stream", f"color={weights}", "--stream", f"hha={weights}"]
    assert main(["surgery", "late-fusion", str(model), *streams, "-o", str(output)]) == 0
    assert "copied   fc6hha: from fc6, " in capsys.readouterr().out
    net = fcnproto.load(model, output)
    data = torch.randn(image)
    reference = fcnproto.load(single, weights)
    torch.testing.assert_close(net.params["score_frhha"][0], old.params["score_fr"][0])
    joined = net(color=data, hha=data, blobs=["score_fused"])["score_fused"]
    torch.testing.assert_close(joined, reference(data, blobs=["score_fr"])["score_fr"], rtol=1e-4, atol=1e-4)


def test_interpolate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_net(tmp_path / "n.prototxt", fcn.fcn32s(sources.inputs({"data": (1, 3, 32, 32)}), 4, SLIM))
    assert main(["surgery", "interpolate", str(model), "-o", str(tmp_path / "n.caffemodel")]) == 0
    assert capsys.readouterr().out == "made     upscore: bilinear interpolation, kernel 64x64\n"
    assert main(["surgery", "interpolate", str(model), "-o", str(tmp_path / "x.caffemodel"), "--layer", "fc6"]) == 2
