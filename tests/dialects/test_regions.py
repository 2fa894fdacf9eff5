"""ROIPooling, PSROIPooling and ROIAlign of Caffe's forks against loops over cells in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError


def c_round(x: float) -> int:
    return math.floor(x + 0.5) if x >= 0 else -math.floor(0.5 - x)


def random_regions(count: int, images: int, size: int, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    rows = np.zeros((count, 5))
    rows[:, 0] = draw.integers(0, images, count)
    rows[:, 1:] = draw.uniform(-size / 4, size * 1.3, (count, 4))
    whole = rows[:, 1:3] > rows[:, 3:5]
    swapped = np.where(whole, rows[:, 3:5], rows[:, 1:3])
    rows[: count - 2, 3:5] = np.maximum(rows[:, 1:3], rows[:, 3:5])[
        : count - 2
    ]  # the last two may end before they begin
    rows[: count - 2, 1:3] = swapped[: count - 2]
    return torch.from_numpy(rows)


def pooled(x: np.ndarray, row: list[float], scale: float, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Largest values and, for each, its place in the plane (first in row-major order; -1 where the cell is empty)."""
    left, top, right, bottom = (c_round(value * scale) for value in row[1:])
    wide, high = max(right - left + 1, 1), max(bottom - top + 1, 1)
    values, places = np.zeros((x.shape[1], *size)), np.full((x.shape[1], *size), -1)
    for p in range(size[0]):
        for q in range(size[1]):
            y0, y1 = math.floor(p * (high / size[0])) + top, math.ceil((p + 1) * (high / size[0])) + top
            x0, x1 = math.floor(q * (wide / size[1])) + left, math.ceil((q + 1) * (wide / size[1])) + left
            y0, y1 = (min(max(v, 0), x.shape[2]) for v in (y0, y1))
            x0, x1 = (min(max(v, 0), x.shape[3]) for v in (x0, x1))
            if y1 <= y0 or x1 <= x0:
                continue
            for c in range(x.shape[1]):
                cell = x[int(row[0]), c, y0:y1, x0:x1]
                at = int(cell.argmax())
                values[c, p, q] = cell.flat[at]
                places[c, p, q] = (y0 + at // (x1 - x0)) * x.shape[3] + x0 + at % (x1 - x0)
    return values, places


@pytest.mark.parametrize("scale", [0.0625, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_of_each_cell_and_its_gradient(scale: float, ties: bool) -> None:
    x = seeded(2, 3, 11, 14)
    x = (x.round() if ties else x).requires_grad_()
    rows = random_regions(25, 2, round(14 / scale), seed=4)
    text = f'type: "ROIPooling" roi_pooling_param {{ pooled_h: 3 pooled_w: 4 spatial_scale: {scale} }}'
    layer = make_layer(text, (2, 3, 11, 14), (25, 5), dtype=torch.float64)
    top = layer(x, rows)
    weights = seeded(*top.shape, seed=9)
    (top * weights).sum().backward()
    expected, gradient = np.zeros(top.shape), np.zeros((2, 3, 11 * 14))
    for r, row in enumerate(rows.tolist()):
        expected[r], places = pooled(x.detach().numpy(), row, scale, (3, 4))
        ends = [c_round(value * scale) for value in row[1:]]
        if ends[2] < ends[0] or ends[3] < ends[1]:
            continue
        for c, p, q in np.ndindex(places.shape):
            if places[c, p, q] >= 0:
                gradient[int(row[0]), c, places[c, p, q]] += float(weights[r, c, p, q])
    assert_close(top, expected, 1e-12, "values")
    assert_close(x.grad, gradient.reshape(2, 3, 11, 14), 1e-12, "gradient")


def test_regions_of_one_cell_and_of_none() -> None:
    layer = make_layer('type: "ROIPooling" roi_pooling_param { pooled_h: 7 pooled_w: 7 }', (1, 1, 5, 5), (1, 5))
    x = torch.arange(25.0).view(1, 1, 5, 5)
    assert layer(x, torch.tensor([[0.0, 2, 3, 2, 3]])).unique().tolist() == [17]
    assert layer(x, torch.tensor([[0.0, 7, 7, 9, 9]])).unique().tolist() == [0]
    assert tuple(layer(x, torch.zeros(0, 5)).shape) == (0, 1, 7, 7)


def test_halves_are_rounded_away_from_zero() -> None:
    """Regions that begin at 8 and 24 with a scale of 1/16: 0.5 and 1.5 become 1 and 2."""
    layer = make_layer(
        'type: "ROIPooling" roi_pooling_param { pooled_h: 1 pooled_w: 1 spatial_scale: 0.0625 }', (1, 1, 4, 4), (1, 5)
    )
    x = -torch.arange(16.0).view(1, 1, 4, 4)
    assert layer(x, torch.tensor([[0.0, 8, 24, 48, 48]])).item() == -9


def test_means_of_position_sensitive_cells() -> None:
    x, rows = seeded(2, 18, 9, 12).requires_grad_(), random_regions(12, 2, 48, seed=7)
    text = 'type: "PSROIPooling" psroi_pooling_param { spatial_scale: 0.25 output_dim: 2 group_size: 3 }'
    layer = make_layer(text, (2, 18, 9, 12), (12, 5), dtype=torch.float64)
    top = layer(x, rows)
    expected = np.zeros((12, 2, 3, 3))
    for r, row in enumerate(rows.tolist()):
        left, up = c_round(row[1]) * 0.25, c_round(row[2]) * 0.25
        wide, high = (max((c_round(row[3 + i]) + 1) * 0.25 - start, 0.1) for i, start in enumerate((left, up)))
        for d, p, q in np.ndindex(2, 3, 3):
            y0, y1 = math.floor(p * high / 3 + up), math.ceil((p + 1) * high / 3 + up)
            x0, x1 = math.floor(q * wide / 3 + left), math.ceil((q + 1) * wide / 3 + left)
            cell = x.detach().numpy()[
                int(row[0]), (d * 3 + p) * 3 + q, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)
            ]
            expected[r, d, p, q] = cell.mean() if cell.size else 0
    assert_close(top, expected, 1e-9, "values")
    assert torch.autograd.gradcheck(
        lambda t: layer(t, rows), [x], fast_mode=True
    )  # along random directions: x is large


def test_gradients_of_the_grid() -> None:
    x, rows = seeded(2, 2, 6, 7).requires_grad_(), random_regions(6, 2, 40, seed=3)
    text = 'type: "ROIAlign" roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 pad_ratio: 0.1 }'
    layer = make_layer(text, (2, 2, 6, 7), (6, 5), dtype=torch.float64)
    assert tuple(layer(x, rows).shape) == (6, 2, 3, 4)
    assert torch.autograd.gradcheck(lambda t: layer(t, rows), [x])


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "ROIPooling"', [(1, 2, 3, 4), (5, 5)], "must be given and positive"),
        ('type: "ROIPooling" roi_pooling_param { pooled_h: 1 pooled_w: 1 }', [(1, 2, 3, 4), (5, 4)], "regions (R, 5)"),
        ('type: "PSROIPooling"', [(1, 2, 3, 4), (5, 5)], "spatial_scale must be given"),
        ('type: "ROIAlign" roi_align_param { pooled_h: 1 pooled_w: 1 }', [(1, 2, 3, 4), (5, 5)], "another layer's"),
    ],
)
def test_what_is_refused(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError) as caught:
        make_layer(text, *shapes)
    assert words in str(caught.value)


def test_a_region_of_no_image() -> None:
    layer = make_layer('type: "ROIPooling" roi_pooling_param { pooled_h: 1 pooled_w: 1 }', (1, 1, 2, 2), (1, 5))
    with pytest.raises(LayerError, match="a region is of image 1; the features are of 1"):
        layer(torch.zeros(1, 1, 2, 2), torch.tensor([[1.0, 0, 0, 1, 1]]))
