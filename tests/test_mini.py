"""fcn-mini: its definition, and the script that trains it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import fcnproto
from fcnproto import zoo
from fcnproto.data.scenes import CLASSES, draw_scene
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


def layers_of(name: str) -> dict:
    return {layer.name: layer for layer in read_net(FOLDER / f"{name}.prototxt").layer}


def test_committed_files_are_what_the_definition_writes(mini):
    for kind, message in mini.nets().items():
        assert format_message(message) in (FOLDER / f"{kind}.prototxt").read_text()


def test_classes_are_those_of_the_scenes(mini):
    assert tuple(mini.CLASSES) == CLASSES == zoo.info("fcn-mini").classes


@pytest.mark.parametrize("kind", ["train", "deploy"])
def test_topology_is_that_of_the_published_net(kind):
    """Names, types, connections, pads, kernels, strides and crop offsets of voc-fcn8s; only widths differ."""
    published = {layer.name: layer for layer in read_net(zoo.path("voc-fcn8s", kind)).layer}
    layers = layers_of(kind)
    assert [name for name in layers if layers[name].type != "Input"] == [
        name for name in published if published[name].type not in ("Input", "Python")
    ]
    for name, layer in layers.items():
        if layer.type == "Input":
            continue
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


def test_folding_is_exact_and_both_nets_see_a_pixel_at_the_same_place(training):
    """Far from the edges, where padding has no say, the warm-up net and the folded net give the same scores."""
    torch.manual_seed(0)
    warm, net = training.load_net("warmup.prototxt"), training.load_net("train.prototxt")
    training.start_values(warm)
    training.start_values(net)
    with torch.no_grad():
        for name, blobs in warm.params.items():
            if name.startswith("bn_"):
                blobs[2].fill_(2.0)
                blobs[0].normal_()
                blobs[1].uniform_(0.5, 4.0)
            elif name.startswith("scale_"):
                blobs[0].uniform_(0.5, 1.5)
                blobs[1].normal_(0, 0.2)
            elif name.startswith("score"):
                blobs[0].normal_()
    training.fold(warm, net)
    image = 50 * torch.randn(1, 3, 576, 576)
    with torch.no_grad():
        first, second = (
            model.eval()(data=image, blobs=["score"])["score"][:, :, 256:320, 256:320] for model in (warm, net)
        )
    assert float((first - second).abs().max() / second.abs().max()) < 1e-4
    assert float(second.std()) > 0


def test_scenes_of_a_resumed_training_are_those_it_would_have_seen(training):
    through = training.SceneSource(9, batch=3, fresh=2, memory=5)
    batches = [through.next_batch(step) for step in range(5)]
    resumed = training.SceneSource(9, batch=3, fresh=2, memory=5)
    resumed.skip_to(4)
    data, label = resumed.next_batch(4)
    assert torch.equal(data, batches[4][0]) and torch.equal(label, batches[4][1])
    assert data.shape == (3, 3, 256, 256) and label.shape == (3, 1, 256, 256)
    assert torch.equal(data[0], training.preprocess(draw_scene((9, 8)).image))


def test_variations_keep_image_and_label_together(training):
    scene = draw_scene(3)
    marked = type(scene)(np.repeat(20 * scene.label[:, :, None], 3, axis=2), scene.label)
    for seed in range(8):
        varied = training.vary(np.random.default_rng(seed), marked)
        assert varied.image.shape == (256, 256, 3) and varied.label.shape == (256, 256)
        for index in np.unique(varied.label):
            values = varied.image[varied.label == index]
            assert (values == values[0]).all()


def test_preprocessing_is_blue_green_red_less_the_mean(training):
    image = np.zeros((2, 3, 3), np.uint8)
    image[:, :, 0] = 200
    assert training.preprocess(image)[:, 0, 0].tolist() == [-112.0, -112.0, 88.0]


@pytest.fixture
def short(training, monkeypatch):
    """A training of two steps a stage on two scenes a step, that saves after every step."""
    stages = [type(stage)(stage.net, 2, stage.rate, 1, stage.relative) for stage in training.STAGES]
    monkeypatch.setattr(training, "STAGES", stages)
    monkeypatch.setattr(training, "CHECK_SCENES", 1)
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    monkeypatch.setattr(training.SceneSource.__init__, "__defaults__", (2, 1, 4))
    return training


class Interrupted(Exception):
    """Stands for the user's Ctrl+C."""


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_training_ends_like_one_that_was_not(short, tmp_path, monkeypatch, after):
    torch.manual_seed(1)
    whole = short.train(tmp_path / "whole.tmp").state_dict()
    save, saves = short.save_checkpoint, []

    def save_and_stop(*arguments):
        save(*arguments)
        saves.append(arguments)
        if len(saves) == after:
            raise Interrupted

    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(short, "save_checkpoint", save_and_stop)
        with pytest.raises(Interrupted):
            short.train(tmp_path / "parts.tmp")
    torch.manual_seed(77)
    parts = short.train(tmp_path / "parts.tmp").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
