"""The data sets on miniature trees: the published layers' numbers, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_published_layers import IDS, MEAN, SIZE, bgr, labels, nyud, picture, save_image, save_list, save_mat, sbdd
from torch.utils.data import DataLoader

import fcnproto
from fcnproto import zoo
from fcnproto.data import datasets, published
from fcnproto.data.masks import read_colours, read_mask
from fcnproto.errors import DataError, UsageError

__all__ = ["nyud", "sbdd"]  # fixtures


def save_palette(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([value for colour in zoo.palette() for value in colour])
    image.save(path)


def test_sbd_feeds_a_net(sbdd: Path) -> None:
    data = datasets.SBD(sbdd / "sbdd", "val")
    assert len(data) == 4 and data.ids == IDS and data.classes == {"label": 21}
    item = data[1]
    np.testing.assert_allclose(item["data"], bgr(sbdd / "sbdd" / "img" / "two.jpg", MEAN)[0], atol=1e-5)
    np.testing.assert_array_equal(item["label"][0], labels(1, 21))
    fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
    spec = sources.inputs({"data": (1, 3, 8, 8), "label": (1, 1, 8, 8)})
    net = fcnproto.load(fcn.fcn32s(spec, 21, (2, 2, 2, 2, 2, 2)).to_proto())
    for batch in DataLoader(data, batch_size=1):
        assert torch.isfinite(net.loss(net(**batch)))
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("nested", [False, True])
def test_voc(tmp_path: Path, year: int, nested: bool) -> None:
    root = tmp_path / f"VOC{year}"
    save_list(root / "ImageSets" / "Segmentation" / "val.txt", IDS[:2])
    for index, id in enumerate(IDS[:2]):
        save_image(root / "JPEGImages" / f"{id}.jpg", picture(index), quality=95)
        values = labels(index, 21)
        values[0, 0] = 255
        save_palette(root / "SegmentationClass" / f"{id}.png", values)
    data = datasets.VOC(tmp_path if nested else root, "val", year)
    assert data[0]["label"][0, 0, 0] == 255
    np.testing.assert_array_equal(data[1]["label"][0].flatten()[1:], labels(1, 21).flatten()[1:])
    np.testing.assert_allclose(data[0]["data"], bgr(root / "JPEGImages" / "one.jpg", MEAN)[0], atol=1e-5)
    save_palette(root / "SegmentationClass" / "one.png", np.full(SIZE, 21))
    with pytest.raises(DataError, match=r"one\.png: has label 21, expected 0 to 20, or 255 for void"):
        data[0]
    save_palette(root / "SegmentationClass" / "one.png", np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"one\.png: is 4x3, but .*one\.jpg is 12x9"):
        data[0]
    (root / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(DataError, match=r"one\.jpg: no such file"):
        data[0]
    with pytest.raises(UsageError, match="2007 to 2012, not 2013"):
        datasets.VOC(tmp_path, "val", 2013)
    with pytest.raises(DataError, match=r"none\.txt: not a readable list of images"):
        datasets.VOC(root, "none", year)


def test_nyud(nyud: Path) -> None:
    data = datasets.NYUD(nyud / "nyud", "test", ["hha", "depth", "label"])
    item = data[0]
    assert list(item) == ["hha", "depth", "label"] and data.classes == {"label": 40}
    np.testing.assert_allclose(item["depth"][0], np.log((picture(2)[:, :, 1] + 1.0) * 50) - 7.844, atol=1e-5)
    assert item["hha"].shape == (3, *SIZE)
    assert datasets.NYUD(nyud / "nyud", "test", ["color"]).classes == {}
    save_mat(nyud / "nyud" / "segmentation" / "img_5001.mat", segmentation=np.full(SIZE, 41, np.uint8))
    with pytest.raises(DataError, match=r"img_5001\.mat: has label 40, expected 0 to 39"):
        data[0]


def test_sift_flow(tmp_path: Path) -> None:
    scenes = published.SIFTFlowSegDataLayer.scenes
    save_list(tmp_path / "test.txt", ["coast"])
    save_image(tmp_path / "Images" / scenes / "coast.jpg", picture(1), quality=95)
    save_mat(tmp_path / "SemanticLabels" / scenes / "coast.mat", S=labels(0, 34))
    save_mat(tmp_path / "GeoLabels" / scenes / "coast.mat", S=labels(1, 4))
    item = datasets.SIFTFlow(tmp_path, "test")[0]
    np.testing.assert_array_equal(item["sem"][0], (labels(0, 34).astype(int) - 1) % 256)
    np.testing.assert_array_equal(item["geo"][0], (labels(1, 4).astype(int) - 1) % 256)
    names = zoo.info("siftflow-fcn8s").classes
    assert [names[index] for index in datasets.SIFTFlow.absent_in_test] == ["cow", "desert", "moon"]


def test_pascal_context(tmp_path: Path) -> None:
    voc, context = tmp_path / "VOC2010", tmp_path / "context"
    save_list(voc / "ImageSets" / "Main" / "val.txt", ["one"])
    save_image(voc / "JPEGImages" / "one.jpg", picture(0), quality=95)
    context.mkdir()
    (context / "labels.txt").write_text("1: accordion\n2: aeroplane\n3: table\n")
    (context / "59_labels.txt").write_text("1: aeroplane\n2: diningtable\n")
    stored = labels(0, 4)
    save_mat(context / "trainval" / "one.mat", LabelMap=stored)
    data = datasets.PASCALContext(context, tmp_path, "val")
    np.testing.assert_array_equal(data[0]["label"][0], np.array([0, 0, 1, 2])[stored])


def folder(root: Path, kind: str = "grey") -> tuple[Path, Path]:
    for index, name in enumerate(["a", "deep/b"]):
        save_image(root / "images" / f"{name}.jpg", picture(index), quality=95)
        values = np.where(labels(index, 4) == 3, 255, labels(index, 4))
        path = root / "masks" / f"{name}.png"
        if kind == "grey":
            save_image(path, values.astype(np.uint8))
        elif kind == "palette":
            save_palette(path, values)
        else:
            table = np.zeros((256, 3), np.uint8)
            table[[0, 1, 2, 255]] = [[0, 0, 0], [255, 0, 0], [18, 52, 86], [9, 9, 9]]
            save_image(path, table[values])
    return root / "images", root / "masks"


@pytest.mark.parametrize("kind", ["grey", "palette", "colour"])
def test_image_folder(tmp_path: Path, kind: str) -> None:
    images, masks = folder(tmp_path, kind)
    colours = None
    if kind == "colour":
        (tmp_path / "colours.txt").write_text(
            "// red is a ball\nsky 0 0 0\n1: ball, 255, 0, 0\nold tree #123456\nvoid 9 9 9\n"
        )
        colours, names = read_colours(tmp_path / "colours.txt")
        assert names == ("sky", "ball", "old tree")
    data = datasets.ImageFolder(images, masks, 3, colours=colours, mean=(1, 2, 3))
    assert data.ids == ["a", "deep/b"]
    for index in range(2):
        expected = labels(index, 4).astype(int)
        np.testing.assert_array_equal(data[index]["label"][0], np.where(expected == 3, 255, expected))
    np.testing.assert_allclose(data[0]["data"], bgr(images / "a.jpg", (1, 2, 3))[0], atol=1e-5)
    assert datasets.ImageFolder(images, masks, 3, ids=["deep/b"], colours=colours).ids == ["deep/b"]


def test_image_folder_names_what_is_wrong(tmp_path: Path) -> None:
    images, masks = folder(tmp_path)
    with pytest.raises(DataError, match=r"a\.png: has label 2, expected 0 to 1"):
        datasets.ImageFolder(images, masks, 2)[0]
    save_image(masks / "a.png", picture(0))
    with pytest.raises(DataError, match=r"a\.png: a mask's pixels are labels .* mode is RGB; give a table"):
        datasets.ImageFolder(images, masks, 3)[0]
    with pytest.raises(DataError, match=r"a\.png: colour \(\d+, \d+, \d+\) at row \d+, column \d+ is not in the table"):
        read_mask(masks / "a.png", {(1, 1, 1): 0})
    (masks / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.jpg: has no mask called 'a' in .*masks \(1 of 2 images have none\)"):
        datasets.ImageFolder(images, masks, 3)
    with pytest.raises(DataError, match="no such folder"):
        datasets.ImageFolder(images, tmp_path / "none", 3)
    save_image(images / "a.png", picture(0))
    with pytest.raises(DataError, match=r"a\.png: has the same name as .*a\.jpg"):
        datasets.ImageFolder(images, masks, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky 0 0\n", r"colours\.txt:1: expected `name red green blue`"),
        ("sky 0 0 256\n", r":1: expected"),
        ("sky 0 0 0\nsea 0 0 0\n", r":2: colour \(0, 0, 0\) stands for two classes"),
        ("sky 0 0 0\n", "two classes or more"),
        ("sky 0 0 0\n#000001\n", ":2: the class of '#000001' has no name"),
    ],
)
def test_bad_tables_of_colours(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "colours.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_colours(tmp_path / "colours.txt")


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
def test_binary_masks(tmp_path: Path, mode: str) -> None:
    truth = np.zeros((4, 5), np.uint8)
    truth[1:3, 2:] = 1
    image = Image.fromarray(truth * 255)
    if mode == "P":
        image = Image.fromarray(truth * 255).convert("P")
        image.putpalette([0, 0, 0] * 255 + [255, 255, 255])
    else:
        image = image.convert(mode)
    image.save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png", binary=True) == truth).all()
    Image.fromarray(truth).save(tmp_path / "labels.png")
    assert (read_mask(tmp_path / "labels.png", binary=True) == truth).all()


def test_binary_masks_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(
        DataError, match=r"grey\.png: a binary mask's values are 0 and 255, .* its values are 0, 128, 255"
    ):
        read_mask(tmp_path / "grey.png", binary=True)
    Image.fromarray(np.array([[[255, 0, 0]]], np.uint8)).save(tmp_path / "red.png")
    with pytest.raises(DataError, match="it has colours"):
        read_mask(tmp_path / "red.png", binary=True)
