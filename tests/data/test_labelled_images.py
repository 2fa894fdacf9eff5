"""DenseImageData, ImageSegData and ImageLabelmapData: images with images of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_layers import assert_resumes, batches, make_source
from PIL import Image

import fcnproto
from fcnproto.data.images import resize_bilinear
from fcnproto.errors import DataError, FcnprotoWarning, LayerError

COUNT, HEIGHT, WIDTH = 4, 10, 14
FIELDS = {"DenseImageData": "dense_image_data_param"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "im").mkdir()
    for index in range(COUNT):
        image, labels = pair(index)
        Image.fromarray(image).save(tmp_path / "im" / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / "im" / f"{index}_labels.png")
    (tmp_path / "list.txt").write_text("".join(f"{k}.png  {k}_labels.png\n\n" for k in range(COUNT)))
    return tmp_path


def pair(index: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image and its labels, which say the red value by halves."""
    image = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return image, image[:, :, 0] // 2


def source(kind: str, folder: Path, settings: str = "batch_size: 2", transform: str = "", **options: Any) -> Any:
    more = options.pop("more", "")
    return make_source(
        f'type: "{kind}" top: "d" top: "l" {more} {FIELDS.get(kind, "image_data_param")} {{ source: "list.txt" '
        f'root_folder: "im/" {settings} }} transform_param {{ {transform} }}',
        folder,
        **options,
    )


def bgr(index: int) -> np.ndarray:
    return pair(index)[0].transpose(2, 0, 1)[::-1].astype(np.float32)


@pytest.mark.parametrize("kind", ["DenseImageData", "ImageSegData"])
def test_images_and_labels_in_order(kind: str, folder: Path) -> None:
    layer = source(kind, folder, "batch_size: 3", "mean_value: 10 mean_value: 20 mean_value: 30 scale: 0.5")
    assert layer.top_shapes([]) == [(3, 3, HEIGHT, WIDTH), (3, 1, HEIGHT, WIDTH)]
    means = np.array([10, 20, 30])[:, None, None]
    for step, (data, labels) in enumerate(batches(layer, 2)):
        for place in range(3):
            index = (3 * step + place) % COUNT
            np.testing.assert_array_equal(data[place], (bgr(index) - means) / 2)
            np.testing.assert_array_equal(labels[place, 0], pair(index)[1])
    assert_resumes(lambda: source(kind, folder, "batch_size: 3 shuffle: true"))


def test_labels_are_resized_by_the_nearest_pixel(folder: Path) -> None:
    (data, labels), *_ = batches(source("DenseImageData", folder, "batch_size: 1 new_height: 5 new_width: 9"), 1)
    image, expected = pair(0)
    rows, columns = np.arange(5) * 2, (np.arange(9) * (14 / 9)).astype(int)
    np.testing.assert_array_equal(labels[0, 0], expected[rows][:, columns])
    np.testing.assert_array_equal(data[0], resize_bilinear(image[:, :, ::-1], 5, 9).transpose(2, 0, 1))


@pytest.mark.parametrize("crop", ["crop_size: 6", "crop_h: 6 crop_w: 6", "crop_height: 6 crop_width: 6"])
@pytest.mark.parametrize("kind", ["ImageSegData", "ImageLabelmapData"])
def test_images_and_labels_are_cropped_and_mirrored_alike(kind: str, crop: str, folder: Path) -> None:
    if kind == "ImageLabelmapData" and "width" in crop:
        return
    layer = source(kind, folder, "batch_size: 4", f"{crop} mirror: true", train=True)
    assert layer.top_shapes([]) == [(4, 3, 6, 6), (4, 1, 6, 6)]
    corners = set()
    for data, labels in batches(layer, 5):
        red = data[:, 2] // 2
        np.testing.assert_array_equal(labels[:, 0], red if kind == "ImageSegData" else red > 127)
        corners |= set(red[:, 0, 0])
    assert len(corners) > 8


def test_in_the_test_phase_the_centre_is_cropped(folder: Path) -> None:
    data, labels = batches(source("ImageSegData", folder, "batch_size: 1", "crop_size: 6"), 1)[0]
    np.testing.assert_array_equal(labels[0, 0], pair(0)[1][2:8, 4:10])
    np.testing.assert_array_equal(data[0], bgr(0)[:, 2:8, 4:10])


@pytest.mark.parametrize(("dialect", "above", "left"), [(None, 0, 0), ("pspnet", 2, 1)])
def test_what_is_smaller_than_the_crop_is_padded(dialect: str | None, above: int, left: int, folder: Path) -> None:
    layer = source("ImageSegData", folder, "batch_size: 1 ignore_label: 99", "crop_h: 15 crop_w: 16 mean_value: 50")
    layer.dialect = dialect
    data, labels = batches(layer, 1)[0]
    expected, around = np.full((15, 16), 99), np.zeros((3, 15, 16))
    expected[above : above + HEIGHT, left : left + WIDTH] = pair(0)[1]
    around[:, above : above + HEIGHT, left : left + WIDTH] = bgr(0) - 50
    np.testing.assert_array_equal(labels[0, 0], expected)
    np.testing.assert_array_equal(data[0], around)


def test_the_sizes_of_images(folder: Path) -> None:
    layer = source("ImageSegData", folder, "batch_size: 2", "crop_h: 12 crop_w: 8", more='top: "s"')
    assert layer.top_shapes([])[2] == (2, 1, 1, 2)
    assert batches(layer, 1)[0][2].tolist() == [[[[HEIGHT, 8]]]] * 2


def test_labels_that_are_numbers_or_none(folder: Path) -> None:
    (folder / "list.txt").write_text("0.png 7\n1.png 300\n")
    _, labels = batches(source("ImageSegData", folder, "batch_size: 2 label_type: IMAGE"), 1)[0]
    assert [set(map(int, np.unique(item))) for item in labels] == [{7}, {255}]
    (folder / "list.txt").write_text("0.png\n")
    _, labels = batches(source("ImageSegData", folder, "batch_size: 1 label_type: NONE ignore_label: 9"), 1)[0]
    assert set(map(int, np.unique(labels))) == {9}


def test_edges_of_hed(folder: Path) -> None:
    edges = np.array([[0, 127, 128, 255]] * 2, dtype=np.uint8)
    Image.fromarray(edges).save(folder / "im" / "edges.png")
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(folder / "im" / "small.png")
    (folder / "list.txt").write_text("small.png edges.png\n")
    _, labels = batches(source("ImageLabelmapData", folder, "batch_size: 1"), 1)[0]
    np.testing.assert_array_equal(labels[0, 0], [[0, 0, 1, 1]] * 2)
    _, labels = batches(source("ImageLabelmapData", folder, "batch_size: 1 new_height: 4 new_width: 8"), 1)[0]
    np.testing.assert_array_equal(labels[0, 0], resize_bilinear(edges[:, :, None], 4, 8)[:, :, 0] > 127)


@pytest.mark.parametrize(
    ("kind", "settings", "transform", "message"),
    [
        ("DenseImageData", "batch_size: 1", "mirror: true", "can't be cropped or mirrored"),
        ("DenseImageData", "", "", "dense_image_data_param needs a batch_size"),
        ("ImageSegData", "batch_size: 1", 'mean_file: "m"', "give mean_value"),
        ("ImageSegData", "batch_size: 1", "crop_h: 3", "crop_h and crop_w together"),
        ("ImageLabelmapData", "batch_size: 1 new_height: 4", "", "give both of new_height and new_width"),
    ],
)
def test_refused_settings(kind: str, settings: str, transform: str, message: str, folder: Path) -> None:
    with pytest.raises(LayerError, match=message):
        source(kind, folder, settings, transform)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0.png 1_labels.png\n0.png\n", "list.txt:2: expected an image and its labels, found '0.png'"),
        ("\n", "the list of images is empty"),
        ("0.png nowhere.png\n", "image of labels 'im/nowhere.png' not found"),
        ("0.png other.png\n", r"other.png has \(3, 3\) labels for 0.png of \(10, 14\) pixels"),
    ],
)
def test_lists_that_cannot_be_read(lines: str, message: str, folder: Path) -> None:
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "im" / "other.png")
    (folder / "list.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        source("ImageSegData", folder, "batch_size: 1")()


def test_settings_of_segnet_that_nobody_reads(folder: Path) -> None:
    with pytest.warns(FcnprotoWarning, match="crop_width has no effect"):
        source("DenseImageData", folder, "batch_size: 1 crop_width: 3")


def test_a_net_trains_on_them(folder: Path) -> None:
    (folder / "net.prototxt").write_text("""
      layer { name: "d" type: "DenseImageData" top: "data" top: "label"
        dense_image_data_param { source: "list.txt" root_folder: "im/" batch_size: 2 } }
      layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 128 kernel_size: 1 } }
      layer { name: "loss" type: "SoftmaxWithLoss" bottom: "c" bottom: "label" top: "loss" }
    """)
    net = fcnproto.load(folder / "net.prototxt", phase="train")
    loss = net()["loss"]
    assert float(loss.detach()) == pytest.approx(np.log(128), rel=1e-4)
