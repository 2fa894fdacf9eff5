"""The recipes of models/README.md, with slim nets on a miniature tree: transplant, train, and on to the finer net."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from test_published_nets import folder_of, slim, tree

import fcnproto
from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L
from fcnproto.schema.text import read_solver

__all__ = ["tree"]  # a fixture


def classifier(folder: Path) -> Path:
    """VGG16 as the classification net that it was, with the slim nets' widths; its weights."""
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, 224, 224]})
    top = net.data
    for stage, (width, depth) in enumerate(((2, 2), (2, 2), (4, 3), (8, 3), (8, 3)), start=1):
        for index in range(1, depth + 1):
            top = net[f"conv{stage}_{index}"] = L.Convolution(top, num_output=width, kernel_size=3, pad=1)
            top = net[f"relu{stage}_{index}"] = L.ReLU(top, in_place=True)
        top = net[f"pool{stage}"] = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    for name, width in (("fc6", 64), ("fc7", 64), ("fc8", 1000)):
        top = net[name] = L.InnerProduct(top, num_output=width)
    built = fcnproto.load(net.to_proto())
    torch.manual_seed(1)
    with torch.no_grad():
        for blobs in built.params.values():
            blobs[0].normal_(std=(2 / blobs[0][0].numel()) ** 0.5)
            blobs[1].fill_(0.1)
    built.save(folder / "vgg16.caffemodel")
    return folder / "vgg16.caffemodel"


def prepare(tree: Path, target: Path, name: str) -> Path:
    """The net's folder with slim files, its solver stopping (and writing its weights) after two steps."""
    folder = folder_of(tree, name, target)
    solver = slim(name, folder)
    solver.write_text(re.sub(r"max_iter: \d+", "max_iter: 2", solver.read_text()))
    return folder


def begin_and_train(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, str]:
    """The two commands, from the net's folder; the trained weights, and what the transplant said."""
    monkeypatch.chdir(folder)
    assert main(["surgery", "transplant", "train.prototxt", str(weights), "-o", "start.caffemodel"]) == 0
    said = capsys.readouterr().out
    assert main(["train", "--solver", "solver.prototxt", "--weights", "start.caffemodel", "--no-plot"]) == 0
    return folder / "snapshot" / "train_iter_2.caffemodel", said


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(1, 3, 66, 80, generator=torch.Generator().manual_seed(2)) * 50


def test_staged(
    tree: Path,
    tmp_path: Path,
    image: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, rates, scores = classifier(tmp_path), [], []
    for name in ("voc-fcn32s", "voc-fcn16s", "voc-fcn8s"):
        folder = prepare(tree, tmp_path, name)
        if name != "voc-fcn32s":  # scores that have been learned, where two steps at 1e-10 leave next to nothing
            net = fcnproto.load(scores[-1][0] / "train.prototxt", weights)
            with torch.no_grad():
                net.params["score_fr"][0].normal_(generator=torch.Generator().manual_seed(3))
                if "score_pool4" in net.params:
                    net.params["score_pool4"][0].normal_(generator=torch.Generator().manual_seed(4))
            net.save(weights)
            scores[-1] = (scores[-1][0], net(data=image, blobs=["score"])["score"].detach())
        weights, said = begin_and_train(folder, weights, monkeypatch, capsys)
        rates.append(read_solver(folder / "solver.prototxt").base_lr)
        scores.append((folder, torch.empty(0)))
        start = fcnproto.load(folder / "train.prototxt", folder / "start.caffemodel")
        if name == "voc-fcn32s":
            assert "coerced  fc6: blob 0 (64, 392) -> (64, 8, 7, 7)" in said and "dropped  fc8" in said
            assert "kept     score_fr" in said and "made     upscore: bilinear" in said
            assert not start.params["score_fr"][0].any()
            continue
        new = "score_pool4" if name == "voc-fcn16s" else "score_pool3"
        assert f"kept     {new}" in said and not start.params[new][0].any()
        # The finer net begins with the coarser one's scores, but for interpolating in two steps instead of one.
        before, now = scores[-2][1], start(data=image, blobs=["score"])["score"].detach()
        assert float((now - before).abs().mean() / before.abs().mean()) < 0.1
        assert float((now.argmax(1) == before.argmax(1)).float().mean()) > 0.9
    assert rates == pytest.approx([1e-10, 1e-12, 1e-14])


@pytest.mark.parametrize("name", ["voc-fcn8s-atonce", "voc-fcn32s-fixed"])
def test_from_the_classifier_at_once(
    tree: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(tree, tmp_path, name)
    trained, said = begin_and_train(folder, classifier(tmp_path), monkeypatch, capsys)
    start = fcnproto.load(folder / "train.prototxt", folder / "start.caffemodel")
    end = fcnproto.load(folder / "train.prototxt", trained)
    moved = {layer for layer, blobs in end.params.items() if not blobs[0].equal(start.params[layer][0])}
    if name == "voc-fcn32s-fixed":
        assert moved == {"score_fr"}
    else:
        # All scores begin at zero, so in the first step nothing below them gets a gradient.
        assert moved >= {"score_fr", "score_pool4", "score_pool3"} and not any(one.startswith("up") for one in moved)
        assert start.params["scale_pool4"][0].unique().item() == pytest.approx(0.01)
        assert start.params["scale_pool3"][0].unique().item() == pytest.approx(0.0001)
    assert "coerced  fc6" in said


def test_the_recipes_are_those_of_the_records() -> None:
    """models/README.md's table against the nets' records and solvers."""
    text = (Path(__file__).parents[2] / "models" / "README.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| FCN")
    ]
    assert len(rows) == 7
    names = {"voc-fcn32s": "FCN-32s", "voc-fcn16s": "FCN-16s"}
    for _, begins, name, rate in rows:
        before = zoo.info(name).initial_weights
        assert [names.get(one, one) for one in before] == [begins]
        solver = read_solver(zoo.path(name, "solver"))
        assert solver.base_lr == pytest.approx(float(rate.split(",")[0]))
        assert solver.iter_size == (20 if "20 images" in rate else 1)
