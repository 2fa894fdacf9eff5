"""Interp, Upsample, Unpooling and SegAccuracy of Caffe's forks: what the recordings don't show."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError
from fcnproto.graph import maps
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse


def bilinear(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Corners on corners, one position at a time."""
    y = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            down = i * (x.shape[2] - 1) / (height - 1) if height > 1 else 0.0
            right = j * (x.shape[3] - 1) / (width - 1) if width > 1 else 0.0
            a, b = int(down), int(right)
            c, d = min(a + 1, x.shape[2] - 1), min(b + 1, x.shape[3] - 1)
            p, q = down - a, right - b
            top = x[:, :, a, b] * (1 - q) + x[:, :, a, d] * q
            bottom = x[:, :, c, b] * (1 - q) + x[:, :, c, d] * q
            y[:, :, i, j] = top * (1 - p) + bottom * p
    return y


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("height: 9 width: 4", (9, 4)),
        ("shrink_factor: 3", (2, 3)),
        ("zoom_factor: 2 height: 3 width: 3", (9, 13)),
        ("shrink_factor: 2 zoom_factor: 3", (7, 10)),
        ("zoom_factor: 2 pad_beg: -1 pad_end: -2", (3, 7)),
    ],
)
def test_sizes_and_values_of_interp(settings: str, size: tuple[int, int]) -> None:
    x = seeded(2, 2, 5, 7)
    y = make_layer(f'type: "Interp" interp_param {{ {settings} }}', (2, 2, 5, 7), dtype=torch.float64)(x)
    inside = x[:, :, 1:3, 1:5] if "pad_beg" in settings else x
    assert tuple(y.shape[2:]) == size
    assert_close(y, bilinear(inside.numpy(), *size), 1e-12, "values")


def test_interp_takes_the_size_of_a_second_bottom() -> None:
    layer = make_layer('type: "Interp"', (1, 2, 5, 7), (1, 9, 3, 8))
    assert tuple(layer(torch.zeros(1, 2, 5, 7), torch.zeros(1, 9, 3, 8)).shape) == (1, 2, 3, 8)


def test_a_zoom_has_a_coordinate_map() -> None:
    def found(settings: str) -> maps.CoordMap | None:
        text = f'type: "Interp" bottom: "x" interp_param {{ {settings} }}'
        return maps.interp(parse(text, caffe_pb2.LayerParameter))

    assert found("zoom_factor: 8") == maps.CoordMap(1, (Fraction(8),), (Fraction(0),), windowed=True)
    assert found("zoom_factor: 2 pad_beg: -1 pad_end: -1") == maps.CoordMap(1, (Fraction(2),), (Fraction(-2),), True)
    assert found("height: 8 width: 8") is None and found("zoom_factor: 2 shrink_factor: 2") is None


def windows(method: str, x: np.ndarray, kernel: tuple[int, int], stride: int, size: tuple[int, int]) -> np.ndarray:
    y = np.zeros((*x.shape[:2], *size))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            down, right = min(i * stride + kernel[0], size[0]), min(j * stride + kernel[1], size[1])
            area = (down - i * stride) * (right - j * stride)
            value = x[:, :, i, j] / (area if method == "AVE" else 1)
            y[:, :, i * stride : down, j * stride : right] += value[:, :, None, None]
    return y


@pytest.mark.parametrize("method", ["AVE", "TILE"])
@pytest.mark.parametrize(("kernel", "stride", "size"), [((3, 2), 2, (7, 6)), ((2, 2), 3, (8, 7)), ((3, 3), 2, (6, 5))])
def test_unpooling_spreads_values(method: str, kernel: tuple[int, int], stride: int, size: tuple[int, int]) -> None:
    x = seeded(2, 3, 3, 3).requires_grad_()
    settings = f"unpool: {method} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride: {stride}"
    text = f'type: "Unpooling" unpooling_param {{ {settings} unpool_h: {size[0]} unpool_w: {size[1]} }}'
    layer = make_layer(text, (2, 3, 3, 3), dtype=torch.float64)
    y = layer(x)
    assert_close(y, windows(method, x.detach().numpy(), kernel, stride, size), 1e-12, "values")
    y.backward(torch.ones_like(y))
    assert_close(x.grad, np.ones((2, 3, 3, 3)), 1e-12, "gradient, the mean over each window for both")


def test_the_size_of_unpooling_where_none_is_given() -> None:
    layer = make_layer('type: "Unpooling" unpooling_param { kernel_size: 3 stride: 2 }', (1, 1, 4, 5))
    assert layer.top_shapes([(1, 1, 4, 5)]) == [(1, 1, 9, 11)]
    layer = make_layer('type: "Unpooling" unpooling_param { kernel_size: 1 stride: 3 }', (1, 1, 4, 5))
    assert tuple(layer(torch.zeros(1, 1, 4, 5)).shape) == (1, 1, 13, 16)


def test_masks_put_values_back_and_gradients_too() -> None:
    x, mask = seeded(1, 1, 2, 2).requires_grad_(), torch.tensor([[[[5.0, 5.0], [0.0, 15.0]]]])
    layer = make_layer('type: "Upsample"', (1, 1, 2, 2), (1, 1, 2, 2))
    y = layer(x, mask)
    assert y.flatten()[[0, 5, 15]].tolist() == [x[0, 0, 1, 0], x[0, 0, 0, 1], x[0, 0, 1, 1]]
    weights = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
    (y * weights).sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [5, 5, 0, 15]
    with pytest.raises(LayerError, match="the mask holds 16, outside"):
        layer(x, mask + 1)


def test_segaccuracy_counts_as_its_definition_says() -> None:
    scores = seeded(2, 4, 3, 3, dtype=torch.float32)
    labels = torch.randint(0, 3, (2, 1, 3, 3), generator=torch.Generator().manual_seed(2)).float()
    labels[0, 0, 0] = 9
    layer = make_layer(
        'type: "SegAccuracy" seg_accuracy_param { ignore_label: 9 ignore_label: 7 }', (2, 4, 3, 3), (2, 1, 3, 3)
    )
    found, truth = scores.argmax(1).numpy().ravel(), labels.numpy().ravel()
    kept = truth != 9
    found, truth = found[kept], truth[kept]
    recall = [float((found[truth == c] == c).mean()) for c in range(4) if (truth == c).any()]
    iu = []
    for c in range(4):
        union = ((found == c) | (truth == c)).sum()
        iu.append(((found == c) & (truth == c)).sum() / union if union else 1.0)
    expected = np.float32([(found == truth).mean(), np.mean(recall), np.mean(iu)]).reshape(1, 1, 1, 3)
    assert_close(layer(scores, labels), expected, 1e-6, "measures")
    with pytest.raises(LayerError, match="labels from 0 to 4 for 4 classes"):
        layer(scores, torch.where(labels == 2, 4.0, labels))


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "Interp"', [(1, 1, 2, 2)], "give height and width"),
        ('type: "Interp" interp_param { height: 3 }', [(1, 1, 2, 2)], "give height and width"),
        ('type: "Interp" interp_param { zoom_factor: 0 }', [(1, 1, 2, 2)], "zoom_factor 0 must be positive"),
        ('type: "Interp" interp_param { zoom_factor: 2 pad_beg: 1 }', [(1, 1, 2, 2)], "only 0 and less"),
        ('type: "Interp" interp_param { zoom_factor: 2 pad_beg: -2 }', [(1, 1, 2, 2)], "would have the size"),
        ('type: "Upsample" upsample_param { upsample_h: 4 }', [(1, 1, 2, 2)], "upsample_h belong to SegNet"),
        ('type: "Upsample" upsample_param { upsample_h: 4 }', [(1, 1, 2, 2)] * 2, "give both upsample_h and"),
        ('type: "Upsample"', [(1, 1, 2, 2), (1, 1, 2, 3)], "a mask of its shape"),
        ('type: "Unpooling"', [(1, 1, 2, 2)], "give either kernel_size"),
        ('type: "Unpooling" unpooling_param { kernel_size: 2 pad: 1 }', [(1, 1, 2, 2)], "only a pad of 0"),
        ('type: "SegAccuracy"', [(1, 3, 2, 2), (1, 1, 2, 3)], "need a label for each position"),
    ],
)
def test_what_is_refused(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError) as caught:
        make_layer(text, *shapes)
    assert words in str(caught.value)
