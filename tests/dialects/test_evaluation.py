"""DetectionEvaluate beside what its recordings show: boxes in pixels, several images, states between calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer

from fcnproto.dialects.evaluation import overlaps, to_image
from fcnproto.errors import LayerError
from fcnproto.schema import caffe_pb2

Resize = caffe_pb2.ResizeParameter


def evaluate(settings: str, detections: list[list[float]], truth: list[list[float]], layer: Any = None) -> torch.Tensor:
    found, objects = torch.tensor(detections)[None, None], torch.tensor(truth)[None, None]
    if layer is None:
        text = f'type: "DetectionEvaluate" detection_evaluate_param {{ num_classes: 3 {settings} }}'
        layer = make_layer(text, found.shape, objects.shape)
    top: torch.Tensor = layer(found, objects)
    return top[0, 0]


TRUTH = [
    [0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0],
    [0, 1, 1, 0.6, 0.6, 0.9, 0.9, 1],
    [2, 2, 0, 0.2, 0.2, 0.4, 0.4, 0],
    [-1, -1, -1, -1, -1, -1, -1, -1],
    [0, 2, 0, 0.1, 0.1, 0.5, 0.5, 0],  # after the row of -1 nothing counts
]
FOUND = [
    [0, 1, 0.5, 0.1, 0.1, 0.5, 0.5],
    [0, 1, 0.9, 0.1, 0.1, 0.5, 0.45],
    [0, 1, 0.3, 0.6, 0.6, 0.9, 0.9],
    [0, 2, 0.8, 0.1, 0.1, 0.5, 0.5],
    [1, -1, -1, -1, -1, -1, -1],  # an image without detections
    [2, 2, 0.7, 0.2, 0.2, 0.4, 0.41],
]


@pytest.mark.parametrize("difficult", [True, False])
def test_rows(difficult: bool) -> None:
    """The better of two on one object is right, the other wrong; one on a difficult object is neither where difficult
    ones don't count; one of a class without objects is wrong."""
    rows = evaluate(f"evaluate_difficult_gt: {str(difficult).lower()}", FOUND, TRUTH)
    expected = [
        [-1, 1, 2 if difficult else 1, -1, -1],
        [-1, 2, 1, -1, -1],
        [0, 1, 0.9, 1, 0],
        [0, 1, 0.5, 0, 1],
        [0, 1, 0.3, 1 if difficult else 0, 0],
        [0, 2, 0.8, 0, 1],
        [2, 2, 0.7, 1, 0],
    ]
    assert_close(rows, np.float32(expected), 1e-7, "rows")


def test_boxes_in_pixels(tmp_path: Path) -> None:
    """In an image of 2 x 2 pixels the last pixel counts: half a box more is an overlap of 2/3 of 4 pixels."""
    (tmp_path / "sizes.txt").write_text("a 100 100\nb 2 2\n")
    truth = [[0, 1, 0, 0, 0, 0.5, 0.5, 0], [1, 1, 0, 0, 0, 0.5, 0.5, 0]]
    found = [[0, 1, 0.9, 0, 0, 1, 0.5], [1, 1, 0.9, 0, 0, 1, 0.5]]
    rows = evaluate(f'name_size_file: "{tmp_path}/sizes.txt" overlap_threshold: 0.6', found, truth)
    assert rows[2:, 3:].tolist() == [[0, 1], [1, 0]]


def test_sizes_are_taken_in_turn(tmp_path: Path) -> None:
    (tmp_path / "sizes.txt").write_text("a 100 100\nb 2 2\nc 100 100\n")
    text = f'name_size_file: "{tmp_path}/sizes.txt" num_classes: 3 overlap_threshold: 0.6'
    layer = make_layer(f'type: "DetectionEvaluate" detection_evaluate_param {{ {text} }}', (1, 1, 1, 7), (1, 1, 1, 8))
    hits = [
        evaluate("", [[0, 1, 0.9, 0, 0, 1, 0.5]], [[0, 1, 0, 0, 0, 0.5, 0.5, 0]], layer)[2, 3].item() for _ in range(5)
    ]
    assert hits == [0, 1, 0, 0, 1]


@pytest.mark.parametrize(("height", "width"), [(100, 300), (300, 100)])
def test_padded_inputs_map_back(height: int, width: int) -> None:
    """A net input of 50 x 60 that holds the image with borders: a box drawn in it is that of the image."""
    pixels = torch.tensor([[10.0, 20, 90, 80]])
    scale = min(60 / width, 50 / height)
    border = torch.tensor([(60 - width * scale) / 2, (50 - height * scale) / 2]).repeat(2)
    boxes = (pixels * scale + border) / torch.tensor([60.0, 50, 60, 50])
    resize = Resize(resize_mode=Resize.FIT_LARGE_SIZE_AND_PAD, height=50, width=60)
    found, areas = to_image(boxes, height, width, resize)
    assert_close(found, pixels.numpy(), 1e-6, "boxes")
    assert_close(areas, np.float32([81 * 61]), 1e-6, "areas")


def test_scaled_small_sides() -> None:
    resize = Resize(resize_mode=Resize.FIT_SMALL_SIZE, height=50, width=60, height_scale=40, width_scale=30)
    found, areas = to_image(torch.tensor([[0.5, 0.5, 1, 2]]), 60, 20, resize)
    assert found.tolist() == [[15, 20, 20, 60]] and areas.tolist() == [200]
    resize = Resize(resize_mode=Resize.FIT_SMALL_SIZE, height=50, width=60)
    assert to_image(torch.tensor([[0.5, 0.5, 1, 2]]), 60, 20, resize)[0].tolist() == [[10, 30, 20, 60]]


def test_boxes_apart_share_a_pixel_in_pixels() -> None:
    a, b = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[5.0, 5, 6, 6], [1, 1, 2, 2]])
    four = torch.tensor([4.0, 4])
    assert_close(overlaps(a, four[:1], b, four, 1), np.float32([[1 / 7, 1 / 7]]), 1e-6, "overlaps")
    assert overlaps(a, torch.ones(1), b, torch.ones(2), 0).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("overlap_threshold: 0", "overlap_threshold must be above 0"),
        ('name_size_file: "nowhere.txt"', "name_size_file 'nowhere.txt' is not a file"),
        ("resize_param { height: 3 }", "needs a height and a width"),
    ],
)
def test_what_is_refused(settings: str, words: str) -> None:
    with pytest.raises(LayerError) as caught:
        evaluate(settings, FOUND, TRUTH)
    assert words in str(caught.value)


def test_damaged_sizes(tmp_path: Path) -> None:
    (tmp_path / "sizes.txt").write_text("a 100\n")
    with pytest.raises(LayerError, match="expected lines of name, height, width"):
        evaluate(f'name_size_file: "{tmp_path}/sizes.txt"', FOUND, TRUTH)


def test_the_background_is_neither_found_nor_true() -> None:
    with pytest.raises(LayerError, match="the truth holds the background label"):
        evaluate("", FOUND, [[0, 0, 0, 0.1, 0.1, 0.5, 0.5, 0]])
    with pytest.raises(LayerError, match="detections have the background label"):
        evaluate("", [[0, 0, 0.5, 0.1, 0.1, 0.5, 0.5]], TRUTH)
