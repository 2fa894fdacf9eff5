"""The demonstration: printed metrics, the check against stored numbers, the picture."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import fcnproto
from fcnproto import demo, zoo
from fcnproto.errors import DataError, Error
from fcnproto.scenes.scenes import CLASSES, Scene, draw_scene


@pytest.fixture
def net() -> fcnproto.Net:
    return fcnproto.load(zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights"))


def test_the_demo_prints_its_metrics_and_writes_a_picture(tmp_path, capsys):
    result = demo.run_demo(tmp_path / "new" / "folder")
    lines = capsys.readouterr().out.splitlines()
    names = ["pixel accuracy", "mean accuracy", "mean IU", "frequency weighted IU"]
    assert [line.rsplit(" ", 1)[0] for line in lines] == names
    assert all(re.fullmatch(r"[a-zA-Z ]+ 0\.\d{4}", line) for line in lines)
    assert lines[2] == f"mean IU {result.mean_iu:.4f}"
    assert result.mean_iu >= 0.80
    with Image.open(tmp_path / "new" / "folder" / "demo.png") as image:
        assert image.width > 4 * 256 and image.height > 2 * 256
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {tuple(colour) for colour in zoo.palette(len(CLASSES))} <= colours


def test_published_scores_are_those_of_the_committed_net(net):
    """A part of the scenes that model.json speaks of."""
    (score,) = zoo.info("fcn-mini").scores
    assert "200 unseen drawn scenes (seed 3)" in score.data
    assert score.metrics["mean IU"] >= 0.8
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for index in range(12):
        scene = draw_scene((3, index))
        matrix += demo.confusion_matrix(scene.label, demo.scores(net, scene.image).argmax(0), len(CLASSES))
    assert demo.metrics(matrix).pixel_accuracy == pytest.approx(score.metrics["pixel accuracy"], abs=0.03)


def test_the_score_map_is_that_of_the_training(net):
    assert demo.check_score(net) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_score_map_is_that_of_the_training_on_cuda(net):
    assert demo.check_score(net.to("cuda")) < 1e-5


def test_another_score_map_is_an_error(net):
    with torch.no_grad():
        net.params["conv3_2"][0].mul_(1.01)
    with pytest.raises(Error, match=r"fcn-mini: the score map differs .* at most 1e-04 is expected"):
        demo.check_score(net)


def test_a_score_map_of_no_numbers_is_an_error(net):
    with torch.no_grad():
        net.params["score_fr"][1].fill_(float("nan"))
    with pytest.raises(Error, match="the score map differs"):
        demo.check_score(net)


def test_score_sample_files(tmp_path):
    with pytest.raises(DataError, match=r"missing.npz: not a readable score sample"):
        demo.ScoreSample.read(tmp_path / "missing.npz")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"damaged.npz: not a readable score sample"):
        demo.ScoreSample.read(tmp_path / "damaged.npz")
    image, score = np.zeros((4, 4, 3), np.uint8), np.array([[[1.0, -4.0], [0.0, 2.0]]], np.float32)
    np.savez(tmp_path / "good.npz", image=image, score=score, step=2)
    sample = demo.ScoreSample.read(tmp_path / "good.npz")
    whole = np.zeros((1, 4, 4), np.float32)
    whole[:, ::2, ::2] = score + np.array([[[0.0, 0.0], [0.0, 1.0]]])
    assert sample.deviation(whole) == pytest.approx(1 / 4)
    with pytest.raises(Error, match=r"shape \(1, 3, 3\)"):
        sample.deviation(np.zeros((1, 6, 6), np.float32))


def test_the_picture_shows_image_truth_prediction_and_overlay_side_by_side():
    image = np.full((64, 48, 3), 90, np.uint8)
    truth, prediction = np.zeros((64, 48), np.uint8), np.zeros((64, 48), np.uint8)
    truth[10:30], prediction[12:30] = 1, 2
    pixels = np.asarray(demo.picture([(Scene(image, truth), prediction)], ("nothing", "one", "two")))
    palette = zoo.palette(3)
    row, columns = 28 + 20, [8 + 24 + index * 56 for index in range(4)]
    shown = [tuple(int(value) for value in pixels[row, column]) for column in columns]
    assert shown[:3] == [(90, 90, 90), palette[1], palette[2]]
    assert shown[3] not in shown[:3]
    assert pixels.shape[1] > 4 * 56


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        demo.save_picture(tmp_path / "file" / "demo.png", Image.new("RGB", (2, 2)))
