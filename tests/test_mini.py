"""fcn-mini: its definition, and the script that trains it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto import surgery, zoo
from fcnproto.scenes.scenes import CLASSES
from fcnproto.schema.text import format_message, read_net

FOLDER = Path(__file__).resolve().parents[1] / "models" / "fcn-mini"


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location("fcn_mini_training", FOLDER / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mini() -> ModuleType:
    return zoo.definitions("mini")


# What feeds a net, or judges it only.
SOURCES = ("Input", "Python", "Accuracy")


def layers_of(name: str) -> dict:
    return {layer.name: layer for layer in read_net(FOLDER / f"{name}.prototxt").layer}


def test_committed_files_are_what_the_definition_writes(mini):
    for kind, message in {**mini.nets(), **mini.solvers()}.items():
        assert format_message(message) in (FOLDER / f"{kind}.prototxt").read_text()


def test_classes_are_those_of_the_scenes(mini):
    assert tuple(mini.CLASSES) == CLASSES == zoo.info("fcn-mini").classes


@pytest.mark.parametrize("kind", ["train", "deploy"])
def test_topology_is_that_of_the_published_net(kind):
    """Names, types, connections, pads, kernels, strides and crop offsets of voc-fcn8s; only widths differ."""
    published = {layer.name: layer for layer in read_net(zoo.path("voc-fcn8s", kind)).layer}
    layers = {name: layer for name, layer in layers_of(kind).items() if layer.type not in SOURCES}
    assert list(layers) == [name for name in published if published[name].type not in SOURCES]
    for name, layer in layers.items():
        other = published[name]
        assert (layer.type, list(layer.bottom), list(layer.top)) == (other.type, list(other.bottom), list(other.top))
        for field in ("pad", "kernel_size", "stride", "bias_term"):
            assert getattr(layer.convolution_param, field) == getattr(other.convolution_param, field), (name, field)
        assert layer.crop_param == other.crop_param
        assert [param.lr_mult for param in layer.param] == [param.lr_mult for param in other.param]


def test_weights_are_small_and_upsample_bilinearly():
    file = zoo.path("fcn-mini", "weights")
    assert file.stat().st_size < 3_000_000
    net = fcnproto.load(zoo.path("fcn-mini", "deploy"), file)
    line = np.array([0.25, 0.75, 0.75, 0.25])
    for name in ("upscore2", "upscore_pool4"):
        weight = net.params[name][0].detach().numpy()
        expected = np.eye(len(CLASSES))[:, :, None, None] * np.outer(line, line)
        assert np.array_equal(weight, expected.astype(np.float32))


@pytest.mark.parametrize("architecture", ["fcn8s", "fcn16s", "fcn32s"])
def test_folding_is_exact_and_both_nets_see_a_pixel_at_the_same_place(mini, tmp_path, architecture):
    """Far from the edges, where padding has no say, the warm-up net and the folded net give the same scores."""
    torch.manual_seed(0)
    build = getattr(zoo.definitions("fcn"), architecture)
    definition, plain = (build(mini.scenes("TRAIN"), 11, mini.WIDTHS).to_proto() for _ in range(2))
    definition = mini.warm_up(definition)
    warm, net = fcnproto.load(definition, phase="train"), fcnproto.load(plain, phase="train")
    with torch.no_grad():
        for name, blobs in warm.params.items():
            if name.startswith("bn_"):
                blobs[2].fill_(2.0)
                blobs[0].normal_()
                blobs[1].uniform_(0.5, 4.0)
            elif name.startswith("scale_"):
                blobs[0].uniform_(0.5, 1.5)
                blobs[1].normal_(0, 0.2)
            else:
                blobs[0].normal_(0, (2 / blobs[0][0].numel()) ** 0.5)
    surgery.interpolate(warm)
    warm.save(tmp_path / "warm.caffemodel")
    _, folded, _ = surgery.fold_normalisation(definition, tmp_path / "warm.caffemodel")
    folded.save(tmp_path / "folded.caffemodel")
    surgery.transplant(net, tmp_path / "folded.caffemodel")
    image = 50 * torch.randn(1, 3, 640, 640)
    with torch.no_grad():
        first, second = (
            model.eval()(data=image, blobs=["score"])["score"][:, :, 288:352, 288:352] for model in (warm, net)
        )
    assert float((first - second).abs().max() / second.abs().max()) < 1e-4
    assert float(second.std()) > 0


def test_the_classifier_goes_into_the_fcn(tmp_path):
    """The same layers with the same windows, its inner products the FCN's convolutions."""
    net = fcnproto.load(FOLDER / "classifier-train.prototxt", phase="train")
    for name, blobs in net.params.items():
        if name.startswith("bn_"):
            blobs[2].fill_(1.0)
    net.save(tmp_path / "classifier.caffemodel")
    definition = read_net(FOLDER / "classifier-train.prototxt")
    _, folded, _ = surgery.fold_normalisation(definition, tmp_path / "classifier.caffemodel")
    folded.save(tmp_path / "folded.caffemodel")
    fcn = fcnproto.load(FOLDER / "train.prototxt", phase="train")
    report = surgery.transplant(fcn, tmp_path / "folded.caffemodel")
    convolutions = [name for name in fcn.params if name.startswith("conv")]
    assert report.layers("copied") == convolutions and report.layers("coerced") == ["fc6", "fc7"]
    settings, classifier = layers_of("train"), layers_of("classifier-train")
    for name in convolutions[1:]:
        for field in ("pad", "kernel_size", "stride"):
            ours, its = (getattr(layers[name].convolution_param, field) or [1] for layers in (settings, classifier))
            assert list(ours) == list(its), (name, field)


class Interrupted(Exception):
    """Stands for the user's Ctrl+C."""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_training_ends_like_one_that_was_not(training, tmp_path, monkeypatch, after):
    """Two steps a stage on few images, a snapshot after each; stopped after some commands, in the middle of the next."""
    folder = tmp_path / "nets"
    folder.mkdir()
    for file in FOLDER.glob("*.prototxt"):
        text = re.sub(r"'batch\\': \d+, \\'fresh\\': \d+", r"'batch\\': 2, \\'fresh\\': 1", file.read_text())
        text = re.sub(r"max_iter: \d+", "max_iter: 2", re.sub(r"snapshot: \d+", "snapshot: 1", text))
        (folder / file.name).write_text(re.sub("test_(net|iter|interval).*\n", "", text))
    monkeypatch.setattr(training, "HERE", folder)
    whole = fcnproto.load(folder / "deploy.prototxt", training.train(tmp_path / "whole")).state_dict()
    run, commands = subprocess.run, []

    def stop_early(command, **options):
        commands.append(command)
        if len(commands) <= after:
            return run(command, **options)
        if command[3] == "train":
            run([*command, "--iterations", "1"], **options)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", stop_early)
        with pytest.raises(Interrupted):
            training.train(tmp_path / "parts")
    parts = fcnproto.load(folder / "deploy.prototxt", training.train(tmp_path / "parts")).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
