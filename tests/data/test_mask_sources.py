"""Masks in every form that annotation tools give: read alike, by name, and told of in one line where they are damaged."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import fcnproto
from fcnproto.cli._main import main
from fcnproto.data.datasets import ImageFolder, ImageFolders, Images, Masks
from fcnproto.data.mask_sources import open_masks
from fcnproto.data.shapes import run_lengths
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Preprocessing

NAMES = ("background", "cat", "dog")
HEIGHT, WIDTH = 20, 30


def truth() -> np.ndarray:
    """A cat in a rectangle, a dog over a part of it."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[4:12, 5:15] = 1
    labels[8:16, 10:20] = 2
    return labels


def labelme(folder: Path) -> Path:
    # labelme's rectangles hold both of their corners' pixels.
    shapes = [
        {"label": "cat", "shape_type": "polygon", "points": [[5, 4], [14, 4], [14, 11], [5, 11]]},
        {"label": "dog", "shape_type": "rectangle", "points": [[19, 15], [10, 8]]},
    ]
    content = {"version": "5.0", "shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH, "imagePath": "a.jpg"}
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def coco(folder: Path) -> Path:
    pytest.importorskip("pycocotools")
    dog = truth() == 2
    runs = np.flatnonzero(np.diff(np.concatenate([[0], dog.T.ravel().astype(int), [0]]))).tolist()
    edges = [0, *runs, dog.size]
    content = {
        "images": [{"id": 7, "file_name": "train/a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[5, 4, 15, 4, 15, 12, 5, 12]]},
            {
                "id": 2, "image_id": 7, "category_id": 3, "iscrowd": 1,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": np.diff(edges).tolist()},
            },
        ],
    }  # fmt: skip
    (folder / "all.json").write_text(json.dumps(content))
    return folder / "all.json"


def cvat(folder: Path) -> Path:
    pytest.importorskip("pycocotools")
    (folder / "annotations.xml").write_text(
        f"""<?xml version="1.0"?><annotations><version>1.1</version>
        <image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">
        <box label="dog" xtl="10" ytl="8" xbr="20" ybr="16" z_order="1"/>
        <polygon label="cat" points="5.00,4.00;15.00,4.00;15.00,12.00;5.00,12.00" z_order="0"/>
        </image></annotations>"""
    )
    return folder


def voc(folder: Path) -> Path:
    boxes = (("cat", 6, 5, 15, 12), ("dog", 11, 9, 20, 16))
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for name, left, top, right, bottom in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    (folder / "a.xml").write_text(f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>")
    return folder


def picture(folder: Path) -> Path:
    Image.fromarray(truth()).save(folder / "a_mask.png")
    return folder


def array(folder: Path) -> Path:
    np.save(folder / "a.npy", truth().astype(np.int64))
    return folder


def matlab(folder: Path) -> Path:
    scipy = pytest.importorskip("scipy.io")
    scipy.savemat(folder / "a.mat", {"mymap": truth().astype(float)}, do_compression=True)
    return folder


FORMS = [labelme, coco, cvat, voc, picture, array, matlab]
Form = Callable[[Path], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for masks, with the image a.jpg in a folder beside it."""
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    (tmp_path / "masks").mkdir()
    return tmp_path / "masks"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_labels(form: Form, folder: Path) -> None:
    source = open_masks(form(folder), NAMES)
    np.testing.assert_array_equal(source.read("a", (HEIGHT, WIDTH)), truth())
    data = ImageFolder(folder.parent / "images", form(folder), len(NAMES), names=NAMES)
    np.testing.assert_array_equal(data[0]["label"][0].numpy(), truth())
    with pytest.raises(DataError, match="40x20" if form not in (picture, array, matlab) else "no mask|30x20|a"):
        source.read("a" if form not in (picture, array, matlab) else "b", (HEIGHT, 40))


@pytest.mark.parametrize("form", FORMS)
def test_images_and_masks_in_one_folder(form: Form, folder: Path) -> None:
    if form in (coco, array, matlab):
        return
    form(folder.parent / "images")
    both = folder.parent / "images"
    data = ImageFolder(both, both, len(NAMES), names=NAMES)
    assert data.ids == ["a"]
    np.testing.assert_array_equal(data[0]["label"][0].numpy(), truth())


@pytest.mark.parametrize("form", FORMS)
def test_score_takes_them(form: Form, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, predictions = form(folder), folder.parent / "predictions"
    predictions.mkdir()
    wrong = truth()
    wrong[:2] = 1
    Image.fromarray(wrong).save(predictions / "a_labels.png")
    classes = ["--classes", str(folder.parent / "classes.txt")]
    assert main(["score", "folders", str(predictions), str(place), *classes]) == 0
    assert f"pixel accuracy {1 - 60 / 600:.4f}" in capsys.readouterr().out
    net = folder.parent / "net.prototxt"
    net.write_text(
        'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: [1, 3, 8, 8] } } } layer { name: "s" '
        'type: "Convolution" bottom: "data" top: "score" convolution_param { num_output: 3 kernel_size: 1 } }'
    )
    fcnproto.load(net).save(folder.parent / "w.caffemodel")
    words = ["--images", str(folder.parent / "images"), "--masks", str(place), *classes]
    assert main(["score", "net", str(net), str(folder.parent / "w.caffemodel"), *words]) == 0
    share = (truth() == 0).mean()  # all scores are equal: background
    assert f"pixel accuracy {share:.4f}" in capsys.readouterr().out
    assert main(["check", str(net), *words]) in (0, 1)
    assert "unreadable" not in capsys.readouterr().out


def test_unlabelled_pixels(folder: Path) -> None:
    """Label 0 where that is called background, else void."""
    labelme(folder)
    labels = open_masks(folder, ("dog", "cat")).read("a")
    np.testing.assert_array_equal(labels, np.array([255, 1, 0], np.uint8)[truth()])


def test_shapes_of_labelme(folder: Path) -> None:
    """As PIL draws them, which labelme uses."""
    png = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], np.uint8) * 255).save(png, "PNG")
    shapes: list[dict[str, Any]] = [
        {"label": "cat", "shape_type": "circle", "points": [[8.5, 8], [11, 8]]},
        {"label": "cat", "shape_type": "linestrip", "points": [[2, 2], [20, 3], [20, 17]]},
        {"label": "dog", "shape_type": "point", "points": [[25, 10]]},
        {"label": "dog", "shape_type": "mask", "points": [[3, 15], [4, 16]], "mask": base64.b64encode(png.getvalue()).decode()},
        {"label": "__ignore__", "points": [[0, 0], [3.5, 0], [0, 4]]},
    ]  # fmt: skip
    (folder / "a.json").write_text(json.dumps({"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH}))
    expected = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(expected)
    draw.ellipse((6, 5.5, 11, 10.5), 1, 1)
    draw.line([(2, 2), (20, 3), (20, 17)], 1, 10)
    draw.ellipse((20, 5, 30, 15), 2, 2)
    expected.putpixel((3, 15), 2)
    expected.putpixel((3, 16), 2)
    expected.putpixel((4, 16), 2)
    draw.polygon([(0, 0), (3.5, 0), (0, 4)], 255, 255)
    np.testing.assert_array_equal(open_masks(folder, NAMES).read("a"), np.asarray(expected))


def test_coco_as_pycocotools_has_it(tmp_path: Path) -> None:
    """Polygons with fractions, several of them, and both forms of run lengths, against pycocotools' own decoding."""
    mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(1)
    for _ in range(20):
        size = tuple(random.integers(5, 60, 2).tolist())
        outlines = [(random.random((5, 2)) * size[::-1]).ravel().tolist() for _ in range(2)]
        packed = mask.merge(mask.frPyObjects(outlines, *size))
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"image_id": 1, "category_id": 1, "segmentation": outlines}],
        }
        (tmp_path / "c.json").write_text(json.dumps(content))
        found = open_masks(tmp_path / "c.json", NAMES).read("a")
        np.testing.assert_array_equal(found, mask.decode(packed))
        np.testing.assert_array_equal(run_lengths(packed["counts"].decode(), size), mask.decode(packed))


def test_cvat_masks_and_ellipses(folder: Path) -> None:
    pytest.importorskip("pycocotools")
    cvat(folder)
    path = folder / "annotations.xml"
    text = path.read_text().replace(
        "</image>",
        '<mask label="dog" rle="1, 2, 3" left="0" top="18" width="3" height="2"/>'
        '<ellipse label="cat" cx="25" cy="5" rx="3" ry="2" z_order="2"/><points label="cat" points="1,1"/></image>',
    )
    path.write_text(text)
    with pytest.warns(fcnproto.FcnprotoWarning, match="1 lines, points"):
        labels = open_masks(folder, NAMES).read("a")
    expected = truth()
    expected[18, 1:3] = 2
    inside = labels[:8, 20:]
    assert (labels[:, :20] == expected[:, :20]).all() and abs((inside == 1).sum() - np.pi * 6) < 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"shapes": [{"label": "cta", "points": [[0,0],[1,1],[2,0]]}], "imageHeight": 9, "imageWidth": 9}', 'none of the classes; did you mean "cat"'),
        ("a.json", '{"shapes": [{"label": "cat", "points": [[0,0],[1e9,1],[2,0]]}], "imageHeight": 9, "imageWidth": 9}', "is none of an image of 9x9"),
        ("a.json", '{"shapes": [{"label": "cat", "points": [[0,0]]}], "imageHeight": 9, "imageWidth": 9}', "3 are needed"),
        ("a.json", '{"shapes": [], "imageHeight": 99999, "imageWidth": 99999}', "its image is 99999x99999"),
        ("a.json", '{"shapes": [', "can't be read as JSON"),
        ("a.json", "{}", "no file of labelme's"),
        ("c.json", '{"images": [{"id": 1}], "annotations": []}', "not as COCO's files are"),
        ("c.json", '{"images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}], "annotations": [{"image_id": 1, "category_id": 1, "segmentation": {"size": [9, 9], "counts": [9]}}], "categories": [{"id": 1, "name": "cat"}]}', "don't make up the 9 x 9"),
        ("c.json", '{"images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}], "annotations": [{"image_id": 1, "category_id": 1, "segmentation": {"size": [9, 9], "counts": "ooooo"}}], "categories": [{"id": 1, "name": "cat"}]}', "run lengths"),
        ("a.xml", '<!DOCTYPE x [<!ENTITY y "z">]><annotation>&y;</annotation>', "defines entities"),
        ("a.xml", "<annotation><object><name>cat</name></object></annotation>", "neither a polygon nor a box"),
        ("annotations.xml", '<annotations><image name="a" width="x" height="3"/></annotations>', "width='x'"),
        ("a.npy", "no array", "a.npy"),
    ],
)  # fmt: skip
def test_damaged_files_are_told_in_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        open_masks(tmp_path, NAMES).read("a", None if "99999" in text else (9, 9))
    assert message in str(caught.value) and name in str(caught.value)


def test_annotations_need_names(folder: Path) -> None:
    with pytest.raises(UsageError, match="names its classes; say with --classes"):
        open_masks(labelme(folder)).read("a")


def test_an_image_mask_layer_of_annotations(folder: Path) -> None:
    (folder / "split.txt").write_text("a\n")
    labelme(folder)
    options = {
        "images": str(folder.parent / "images"), "masks": str(folder), "split": str(folder / "split.txt"),
        "classes": 3, "mean": (0.0, 0.0, 0.0), "names": list(NAMES),
    }  # fmt: skip
    (folder / "n.prototxt").write_text(
        'layer { name: "d" type: "Python" top: "data" top: "label" python_param { module: "fcnproto_layers" '
        f'layer: "ImageMaskLayer" param_str: "{options!r}" }} }}'
    )
    net = fcnproto.load(folder / "n.prototxt")
    np.testing.assert_array_equal(net()["label"][0, 0].numpy(), truth())


def test_arrays_that_are_binary(folder: Path) -> None:
    np.save(folder / "a.npy", (truth() == 1) * np.uint8(255))
    np.testing.assert_array_equal(open_masks(folder, binary=True).read("a"), truth() == 1)
    how = Preprocessing("bgr")
    data = ImageFolders({"data": Images(folder.parent / "images", how)}, {"label": Masks(folder, 2, binary=True)})
    assert data[0]["label"].max() == 1
