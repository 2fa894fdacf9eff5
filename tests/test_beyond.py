"""The papers' nets that were never published as files: their definitions load, run and learn as the papers say."""

from __future__ import annotations

import pytest
import torch

import fcnproto
from fcnproto import surgery, zoo
from fcnproto.schema.text import read_net, read_solver

fcn, sources, googlenet = (zoo.definitions(name) for name in ("fcn", "sources", "googlenet"))
NAMES = [model.name for model in zoo.definitions("beyond").models()]
SLIM = (2, 2, 2, 2, 2, 4)


def test_names() -> None:
    assert NAMES == ["voc-fcn-googlenet", "voc-fcn32s-fixed"] and set(NAMES) <= set(zoo.names())


@pytest.mark.parametrize("name", NAMES)
def test_files_load(name: str) -> None:
    solver = read_solver(zoo.path(name, "solver"))
    assert (solver.train_net, list(solver.test_net)) == ("train.prototxt", ["val.prototxt"])
    info = zoo.info(name)
    assert len(info.classes) == 21 and info.weights_url is None and info.scores[0].verified
    for kind in ("train", "val", "deploy"):
        net = read_net(zoo.path(name, kind))
        assert [layer.name for layer in net.layer if layer.type == "Crop"] == ["score"]


def test_googlenet_runs_on_any_size_and_takes_the_classifiers_weights() -> None:
    shapes = {"data": (1, 3, 64, 64), "label": (1, 1, 64, 64)}
    net = fcnproto.load(fcn.fcn_googlenet(sources.inputs(shapes), 5, slimness=32).to_proto(), phase="train")
    spec = sources.inputs({"data": (1, 3, 224, 224)})
    googlenet.classifier(spec, googlenet.features(spec, spec.data, slimness=32), 10)
    classifier = fcnproto.load(spec.to_proto())
    with torch.no_grad():
        for blobs in classifier.params.values():
            blobs[0].normal_(std=0.1)
    report = surgery.transplant(net, classifier)
    assert report.layers("dropped") == ["loss3/classifier"]
    assert report.layers("kept") == ["score_fr", "upscore"]
    surgery.interpolate(net)
    for size in ((64, 64), (75, 50)):
        labels = torch.randint(0, 5, (1, 1, *size))
        out = net(data=torch.randn(1, 3, *size), label=labels, blobs=["score"])
        assert out["score"].shape == (1, 5, *size)
        assert float(net.loss(out).detach()) == pytest.approx(1.6094, abs=1e-3)  # ln 5: the scores begin at zero
    net.loss(out).backward()
    assert net.params["score_fr"][1].grad is not None


def test_googlenet_definition_has_the_published_sizes() -> None:
    spec = sources.inputs({"data": (1, 3, 224, 224)})
    googlenet.classifier(spec, googlenet.features(spec, spec.data))
    from fcnproto.inspect.summary import summarise

    summary = summarise(spec.to_proto())
    assert summary.parameters == 6_998_552  # the published GoogLeNet without its auxiliary classifiers
    shapes = {name: shape for layer in summary.layers for name, shape in layer.tops.items()}
    assert shapes["inception_3b/output"] == (1, 480, 28, 28) and shapes["inception_4e/output"] == (1, 832, 14, 14)
    assert shapes["inception_5b/output"] == (1, 1024, 7, 7)


def test_fixed_lets_the_score_layer_alone_learn() -> None:
    spec = sources.inputs({"data": (1, 3, 32, 32), "label": (1, 1, 32, 32)})
    net = fcnproto.load(fcn.fixed_features(fcn.fcn32s(spec, 5, SLIM).to_proto()), phase="train")
    assert {(entry.layer, entry.lr_mult) for entry in net.learnable if entry.lr_mult} == {
        ("score_fr", 1.0),
        ("score_fr", 2.0),
    }
    learning = {
        layer.name
        for layer in read_net(zoo.path("voc-fcn32s-fixed", "train")).layer
        if any(p.lr_mult for p in layer.param)
    }
    assert learning == {"score_fr"}
