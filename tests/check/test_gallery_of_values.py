"""The gallery where values matter: of weights, of filters, and of the records of databases."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sick_nets import DUMMY, LOSS, SCORE, SOLVER, examined, grave, one, write
from test_gallery_of_files import DOWN, MEAN, up

import fcnproto
from fcnproto import surgery
from fcnproto.data.writing import new_database
from fcnproto.schema import caffe_pb2


def test_weights(tmp_path: Path) -> None:
    fat = SCORE.replace("num_output: 3", "num_output: 40").replace("score", "wide")
    thin = SCORE.replace('bottom: "data"', 'bottom: "wide"')
    net = write(tmp_path, DUMMY + fat + thin + LOSS)
    loaded = fcnproto.load(tmp_path / "net.prototxt", phase="train")
    loaded.save(tmp_path / "all.caffemodel")
    assert not grave(examined(net, tmp_path / "all.caffemodel"))
    other = tmp_path / "other"
    write(other, DUMMY + SCORE + LOSS)
    first = fcnproto.load(other / "net.prototxt", phase="train")
    first.save(other / "score.caffemodel")
    misfit = one(examined(net, other / "score.caffemodel"), "old-classes")
    assert misfit.level == "suspect" and "(3, 3, 3, 3)" in misfit.seen
    write(other, DUMMY + SCORE.replace('name: "score"', 'name: "mine"') + LOSS)
    fcnproto.load(other / "net.prototxt", phase="train").save(other / "mine.caffemodel")
    assert one(examined(net, other / "mine.caffemodel"), "few-weights").level == "suspect"
    write(other, DUMMY + fat.replace('name: "wide"', 'name: "mine"') + thin + LOSS)
    few = one(examined(other / "net.prototxt", tmp_path / "all.caffemodel"), "few-weights")
    assert "1 of 2 layers" in few.seen and "'mine'" in few.seen


def test_databases_that_share_images(tmp_path: Path) -> None:
    """An image of the training database that is validated on, too; one database for both is what is meant."""
    pytest.importorskip("lmdb")
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 255, 3 * 16 * 16).astype(np.uint8).tobytes() for _ in range(5)]
    for name, images_of in (("train", pixels[:3]), ("apart", pixels[3:]), ("shared", [pixels[3], pixels[1]])):
        with new_database(str(tmp_path / name)) as target:
            for index, data in enumerate(images_of):
                datum = caffe_pb2.Datum(channels=3, height=16, width=16, data=data, label=index)
                target.put(f"{index:08}".encode(), datum.SerializeToString())
    layer = (
        f'layer {{ name: "PHASE" type: "Data" top: "data" top: "class" include {{ phase: PHASE }} transform_param {{ {MEAN} }}\n'
        '  data_param { source: "SOURCE" backend: LMDB batch_size: 1 } }\n'
    )
    score = (
        'layer { name: "score" type: "InnerProduct" bottom: "data" top: "score"\n'
        '  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }\n'
    )
    for source, sick in (("train", False), ("apart", False), ("shared", True)):
        both = layer.replace("PHASE", "TRAIN").replace("SOURCE", "train")
        both += layer.replace("PHASE", "TEST").replace("SOURCE", source)
        net = both + score + LOSS.replace('"label"', '"class"')
        findings = examined(write(tmp_path, net, SOLVER + "test_interval: 10 test_iter: 3\n"))
        assert [finding.code for finding in grave(findings)] == ["duplicates"] * sick
        if sick:
            assert "00000001 of shared" in one(findings, "duplicates").seen


def test_a_file_of_other_classes_fills_the_rest(tmp_path: Path) -> None:
    """Weights one layer of which doesn't fit: that is said alone, all others are copied."""
    body = SCORE.replace("score", "body") + SCORE.replace('bottom: "data"', 'bottom: "body"')
    bare = re.sub(r"weight_filler { [^}]* }", "", body)
    relu = 'layer { name: "r" type: "ReLU" bottom: "body" top: "body" }\n'
    write(tmp_path / "old", DUMMY + body.replace('top: "score"\n  convolution_param { num_output: 3', 'top: "score"\n  convolution_param { num_output: 7') + LOSS)  # fmt: skip
    fcnproto.load(tmp_path / "old" / "net.prototxt", phase="train").save(tmp_path / "old.caffemodel")
    net = DUMMY + bare.replace('layer { name: "score"', relu + 'layer { name: "score"') + LOSS
    findings = examined(write(tmp_path, net), tmp_path / "old.caffemodel")
    assert [finding.code for finding in grave(findings)] == ["old-classes"]
    finding = one(findings, "old-classes")
    assert "'score'" in finding.seen and "(7, 3, 3, 3)" in finding.seen and finding.layers == ("score",)


@pytest.mark.parametrize(
    ("kernel", "stride", "filler", "level"),
    [
        (64, 32, 'type: "bilinear"', None),
        (63, 32, "interpolated", None),
        (63, 32, 'type: "bilinear"', None),
        (32, 32, 'type: "bilinear"', "fault"),
        (4, 4, "value: 1", None),
        (4, 4, 'type: "bilinear"', "fault"),
    ],
)
def test_gain_is_reckoned_from_the_values(
    kernel: int, stride: int, filler: str, level: str | None, tmp_path: Path
) -> None:
    """A kernel of 63 for a stride of 32 interpolates as well as one of 64, where its values are right."""
    text = up(kernel, 0, 'type: "bilinear"' if filler == "interpolated" else filler).replace(
        "stride: 2", f"stride: {stride}"
    )
    down = DOWN.replace("kernel_size: 2 stride: 2", f"kernel_size: {stride} stride: {stride}")
    size = DUMMY.replace("dim: 16 dim: 16", "dim: 64 dim: 64")
    crop = 'layer { name: "crop" type: "Crop" bottom: "wide" bottom: "data" top: "score" crop_param { offset: 0 } }\n'
    net = size + down + text.replace('top: "score"', 'top: "wide"').replace('name: "score"', 'name: "up"') + crop + LOSS
    path = write(tmp_path, net, None)
    loaded = fcnproto.load(path, phase="train")
    if filler == "interpolated":
        surgery.interpolate(loaded)
    found = [finding.level for finding in examined(loaded) if finding.code == "upsampling-gain"]
    assert found == ([level] if level else [])
