"""BoxOutput, BoxGroupOutput and DecodeBBox against plain loops, by every setting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError

Row = list[float]
MEAN, STD = [0.1, -0.1, 0.05, 0.2], [0.3, 0.2, 0.5, 0.4]
NORMALISED = (
    "bbox_reg_param {"
    + " ".join(f" {name}: {v}" for name, values in (("bbox_mean", MEAN), ("bbox_std", STD)) for v in values)
    + " }"
)


def overlap(a: Row, b: Row, mode: str, one: float) -> float:
    x, y = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    apart = y <= 0 or (x < 0 if one else x <= 0)
    shared = 0 if apart else (x + one) * (y + one)
    sizes = [(c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b)]
    return shared / {"IOU": sum(sizes) - shared, "IOMU": min(sizes), "IOFU": sizes[0]}[mode]


def suppressed(rows: list[Row], settings: dict[str, Any], one: float) -> list[Row]:
    rows.sort(key=lambda row: -row[4])
    kept: list[Row] = []
    for row in rows[: settings.get("max_nms_num") or None]:
        if all(overlap(k, row, settings.get("nms_type", "IOU"), one) <= settings.get("iou_thr", 0.5) for k in kept):
            kept.append(row)
    return kept[: settings.get("max_post_nms_num") or None]


def corner(values: np.ndarray, field: tuple[float, float], place: tuple[int, int], stride: int, bounds: Row) -> Row:
    """x1, y1, width, height."""
    x, y, w, h = (v * s + m for v, s, m in zip(values, STD, MEAN, strict=True))
    x, y = (max(-1 / bounds[0], min(1 / bounds[0], v)) for v in (x, y))
    w, h = (math.exp(max(-math.log(bounds[1]), min(math.log(bounds[1]), v))) for v in (w, h))
    w, h = w * field[0], h * field[1]
    return [x * field[0] + (place[1] + 0.5) * stride - w / 2, y * field[1] + (place[0] + 0.5) * stride - h / 2, w, h]


def text_of(settings: dict[str, Any]) -> str:
    return " ".join(f'{k}: "{v}"' if isinstance(v, str) else f"{k}: {v}" for k, v in settings.items())


SETTINGS: list[dict[str, Any]] = [
    {"fg_thr": 0.1, "min_size": 12, "max_nms_num": 25, "max_post_nms_num": 9},
    {"fg_thr": -5, "iou_thr": 0.8, "nms_type": "IOMU", "field_xyr": 1.5, "field_whr": 3},
    {"iou_thr": 0.6, "nms_type": "IOFU", "field_whr": 1.2, "min_size": 0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_box_output(settings: dict[str, Any]) -> None:
    fields, strides = [(20, 24), (40, 30)], [8, 16]
    scales = " ".join(f"field_w: {w} field_h: {h}" for w, h in fields) + " downsample_rate: 8 downsample_rate: 16"
    shapes = [(2, 7, 4, 5), (2, 7, 2, 3)]
    text = f'type: "BoxOutput" box_output_param {{ {text_of(settings)} {scales} }} {NORMALISED}'
    layer = make_layer(text, *shapes, tops=2)
    maps = [seeded(*shape, seed=i + 1) for i, shape in enumerate(shapes)]
    rois, scored = layer(*maps)
    bounds = [settings.get("field_xyr", 2), settings.get("field_whr", 2)]
    expected = []
    for n in range(2):
        rows = []
        for m, field, stride in zip(maps, fields, strides, strict=True):
            x = m[n].numpy()
            for i, j in np.ndindex(*x.shape[1:]):
                left, top, w, h = corner(x[3:, i, j], field, (i, j), stride, bounds)
                left, top = max(left, 0), max(top, 0)
                w, h = min(w, x.shape[2] * stride - left), min(h, x.shape[1] * stride - top)
                score = max(x[1:3, i, j]) - x[0, i, j]
                if score >= settings.get("fg_thr", 0) and min(w, h) >= settings.get("min_size", 15):
                    rows.append([left, top, left + w, top + h, score])
        expected += [[n, *row] for row in suppressed(rows, settings, 0)]
    assert rois.shape == (len(expected), 5, 1, 1) and scored.shape == (len(expected), 6, 1, 1) and len(expected) > 3
    assert_close(scored.flatten(1), np.array(expected), 1e-6, "rows")
    assert torch.equal(rois, scored[:, :5])


@pytest.mark.parametrize("settings", SETTINGS)
def test_box_group_output(settings: dict[str, Any]) -> None:
    fields, strides = [[(20, 24), (32, 40)], [(44, 40)]], [8, 16]
    settings = {**settings, "fg_thr": settings.get("fg_thr", 0) + 0.3}
    groups = "".join(
        f"box_group_param {{ stride: {s} " + " ".join(f"field_w: {w} field_h: {h}" for w, h in group) + " }"
        for s, group in zip(strides, fields, strict=True)
    )
    shapes = [(4, 3, 4, 5), (4, 4, 4, 5), (2, 3, 2, 3), (2, 4, 2, 3)]
    text = f'type: "BoxGroupOutput" box_group_output_param {{ {text_of(settings)} {groups} }} {NORMALISED}'
    layer = make_layer(text, *shapes, tops=2)
    bottoms = [seeded(*shape, seed=i + 1) for i, shape in enumerate(shapes)]
    bottoms[0], bottoms[2] = bottoms[0].sigmoid(), bottoms[2].sigmoid()
    rois, scored = layer(*bottoms)
    bounds = [settings.get("field_xyr", 2), settings.get("field_whr", 2)]
    expected = []
    for n in range(2):
        rows = []
        for g, (group, stride) in enumerate(zip(fields, strides, strict=True)):
            for k, field in enumerate(group):
                at = n * len(group) + k
                scores, values = bottoms[2 * g][at, 0].numpy(), bottoms[2 * g + 1][at].numpy()
                for i, j in np.ndindex(*scores.shape):
                    left, top, w, h = corner(values[:, i, j], field, (i, j), stride, bounds)
                    right = min(left + w - 1, scores.shape[1] * stride)
                    row = [max(left, 0), max(top, 0), right, min(top + h - 1, scores.shape[0] * stride)]
                    score = 1 - scores[i, j]
                    small = min(row[2] - row[0], row[3] - row[1]) + 1 < settings.get("min_size", 15)
                    if score >= settings["fg_thr"] and not small:
                        rows.append([*row, score])
        expected += [[n, *row] for row in suppressed(rows, settings, 1)]
    assert rois.shape == (len(expected), 5, 1, 1) and len(expected) > 3
    assert_close(scored.flatten(1), np.array(expected), 1e-6, "rows")
    assert torch.equal(rois, scored[:, :5])


def test_no_box_at_all() -> None:
    scales = "field_w: 20 field_h: 20 downsample_rate: 8"
    layer = make_layer(f'type: "BoxOutput" box_output_param {{ fg_thr: 99 {scales} }}', (1, 6, 2, 2), tops=2)
    rois, scored = layer(seeded(1, 6, 2, 2))
    assert rois.flatten().tolist() == [0, 1, 1, 10, 10] and scored.flatten().tolist() == [0] * 6


def test_of_equal_scores_box_output_takes_the_later() -> None:
    scales = "field_w: 20 field_h: 20 downsample_rate: 40 iou_thr: 1"
    layer = make_layer(f'type: "BoxOutput" box_output_param {{ {scales} }}', (1, 6, 1, 3))
    assert layer(torch.zeros(1, 6, 1, 3))[:, 1].flatten().tolist() == [90, 50, 10]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("matched", [False, True])
def test_decode(train: bool, matched: bool) -> None:
    if matched and not train:
        with pytest.raises(LayerError, match="third bottom in TRAIN alone"):
            make_layer('type: "DecodeBBox"', (5, 8), (5, 5), (5, 6))
        return
    shapes = [(5, 8), (5, 5, 1, 1), (5, 6)][: 2 + matched]
    layer = make_layer(f'type: "DecodeBBox" {NORMALISED} decode_bbox_param {{ gt_iou_thr: 0.8 }}', *shapes, train=train)
    values = seeded(5, 8)
    priors = torch.tensor([[0, 1, 2, 30, 40], [1, 5, 5, 3, 9], [0, 2, 2, 9, 9], [2, 0, 0, 5, 5], [0, 4, 4, 8, 9.0]])
    overlaps = torch.zeros(5, 6)
    overlaps[:, 5] = torch.tensor([0.5, 0.5, 0.8, 0.79, 0.9])
    made = layer(values, priors.double().reshape(shapes[1]), *[overlaps] * matched)
    expected = []
    for value, prior, found in zip(values.numpy()[:, 4:], priors.tolist(), overlaps[:, 5].tolist(), strict=True):
        x, y, w, h = (v * s + m for v, s, m in zip(value, STD, MEAN, strict=True))
        width, height = prior[3] - prior[1] + 1, prior[4] - prior[2] + 1
        cx, cy = (prior[1] + prior[3]) / 2 + x * width, (prior[2] + prior[4]) / 2 + y * height
        width, height = width * math.exp(w), height * math.exp(h)
        row = [prior[0], cx - (width - 1) / 2, cy - (height - 1) / 2]
        row += [row[1] + width - 1, row[2] + height - 1]
        inverted = row[1] > row[3] or row[2] > row[4]
        if not (train and inverted) and not (matched and found >= np.float32(0.8)):
            expected.append(row)
    assert len(expected) == (2 if matched else 4 if train else 5)
    assert made.shape == (len(expected), 5, 1, 1)
    assert_close(made.flatten(1), np.array(expected), 1e-6, "rows")


def test_nothing_left_to_train_on() -> None:
    layer = make_layer('type: "DecodeBBox"', (1, 8), (1, 5), train=True)
    with pytest.raises(LayerError, match="no box is left"):
        layer(torch.zeros(1, 8), torch.tensor([[0.0, 9, 9, 1, 1]]))


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "DecodeBBox"', [(2, 4), (2, 5)], r"needs predictions \(R, 8\)"),
        ('type: "DecodeBBox" bbox_reg_param { bbox_mean: 1 bbox_std: 1 }', [(2, 8), (2, 5)], "four of bbox_mean"),
        ('type: "BoxOutput"', [(1, 6, 2, 2)], "give field_w, field_h and downsample_rate"),
        ('type: "BoxOutput" box_output_param { nms_type: "IOX" }', [(1, 6, 2, 2)], "expected one of IOU"),
        ('type: "BoxOutput" box_output_param { field_whr: 0.5 }', [(1, 6, 2, 2)], "field_whr at least 1"),
        (
            'type: "BoxOutput" box_output_param { field_w: 1 field_h: 1 downsample_rate: 1 }',
            [(1, 5, 2, 2)],
            "of two classes or more",
        ),
        ('type: "BoxGroupOutput"', [(1, 2, 2, 2), (1, 4, 2, 2)], "two bottoms for each of the 0"),
        (
            'type: "BoxGroupOutput" box_group_output_param { box_group_param { field_w: 1 } }',
            [(1, 2, 2, 2), (1, 4, 2, 2)],
            "a field_w for each field_h",
        ),
        (
            'type: "BoxGroupOutput" box_group_output_param { box_group_param { field_w: 1 field_h: 1 stride: 1 } }',
            [(1, 2, 2, 2), (1, 5, 2, 2)],
            "needs probabilities",
        ),
    ],
)
def test_what_does_not_go(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(text, *shapes)
