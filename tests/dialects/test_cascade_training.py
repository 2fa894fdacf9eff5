"""The training layers of mscnn and cascade-rcnn against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.dialects.fields import objects_of
from fcnproto.errors import DataError, LayerError
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

MEAN, STD = [0.1, -0.1, 0.05, 0.2], [0.3, 0.2, 0.5, 0.4]
NORMALISED = " ".join(f"bbox_mean: {m} bbox_std: {s}" for m, s in zip(MEAN, STD, strict=True))
FIELDS = [(20, 24), (32, 40)]
STRIDE = 8


def text_of(settings: dict[str, Any]) -> str:
    return " ".join(f'{k}: "{v}"' if isinstance(v, str) else f"{k}: {str(v).lower()}" for k, v in settings.items())


def labels_of(count: int, classes: int, seed: int = 3) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return objects_of(classes, STRIDE, [28.0])(draw, (count, 6, 5, 6)).astype(np.float32)


def overlap(a: list[float], b: list[float], one: float) -> float:
    """Of boxes x, y, width, height."""
    extent = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    common = 0 if min(extent) <= 0 or min(extent) < one else extent[0] * extent[1]
    return common / (a[2] * a[3] + b[2] * b[3] - common) if min(*a[2:], *b[2:]) > 0 else 0


def target(label: np.ndarray, field: tuple[float, float], place: tuple[int, int]) -> list[float]:
    x, y, w, h = label[1:5]
    raw = [(x - (place[1] + 0.5) * STRIDE) / field[0], (y - (place[0] + 0.5) * STRIDE) / field[1]]
    raw += [math.log(max(w, 2) / field[0]), math.log(max(h, 2) / field[1])]
    return [(v - m) / s for v, m, s in zip(raw, MEAN, STD, strict=True)]


def bounded(values: np.ndarray, reach: float, ratio: float) -> list[float]:
    found = []
    for i, value in enumerate(values):
        most, part = (1 / reach, slice(0, 2)) if i < 2 else (math.log(ratio), slice(2, 4))
        mean, std = sum(MEAN[part]) / 2, math.sqrt(math.prod(STD[part]))
        found.append(min(max(value, (-most - mean) / std), (most - mean) / std))
    return found


class Expected:
    """The loss and its gradients, place by place, of what is kept (M, H, W)."""

    def __init__(self, scores: Any, boxes: Any, labels: Any, kept: Any, found: Any, weights: Any, **how: Any) -> None:
        self.classes, self.boxes = 0.0, 0.0
        self.of_scores, self.of_boxes = np.zeros(scores.shape), np.zeros(boxes.shape)
        counted = kept & (labels[:, 0] != how.get("ignore", -9))
        counts = max(counted.sum(), 1), max(4 * found.sum(), 1)
        for m, i, j in np.ndindex(*kept.shape):
            label = min(int(labels[m, 0, i, j]), 1 if how.get("objectness") else 99)
            if counted[m, i, j]:
                odds = np.exp(scores[m, :, i, j] - scores[m, :, i, j].max())
                odds /= odds.sum()
                self.classes -= math.log(odds[label]) * weights[m, i, j] / counts[0]
                self.of_scores[m, :, i, j] = (odds - np.eye(len(odds))[label]) * weights[m, i, j] / counts[0]
            if found[m, i, j]:
                values = boxes[m, :, i, j]
                values = bounded(values, *how["bounds"]) if how.get("bounds") else values
                aim = target(labels[m, :, i, j], how["fields"][m % len(how["fields"])], (i, j))
                for k, difference in enumerate(np.subtract(values, aim)):
                    small = abs(difference) < 1 or not how.get("smooth", True)
                    self.boxes += (difference**2 / 2 if small else abs(difference) - 0.5) / counts[1]
                    self.of_boxes[m, k, i, j] = (difference if small else np.sign(difference)) / counts[1]


def balanced(weights: np.ndarray, positive: np.ndarray, kept: np.ndarray, multiple: float) -> np.ndarray:
    part, count = 1 / (1 + multiple), kept.sum()
    sums = weights[positive & kept].sum(), weights[~positive & kept].sum()
    return weights * np.where(positive, part * count / sums[0], (1 - part) * count / sums[1])


@pytest.mark.parametrize("mode", ["all", "bootstrap"])
@pytest.mark.parametrize("extra", [{}, {"iou_weighted": True, "pos_neg_weighted": True, "bb_smooth": False}])
@pytest.mark.parametrize("objectness", [False, True])
def test_the_loss_of_mscnn(mode: str, extra: dict[str, Any], objectness: bool) -> None:
    classes = 2 if objectness else 3
    settings = {"cls_num": classes, "field_w": 20, "field_h": 24, "downsample_rate": STRIDE, "lambda": 0.6, **extra}
    settings |= {"sample_mode": mode, "bg_multiple": 2, "field_whr": 1.5, "objectness": objectness}
    layer = make_layer(
        f'type: "DetectionLoss" detection_loss_param {{ {text_of(settings)} }} bbox_reg_param {{ {NORMALISED} }} '
        + ("" if objectness else "loss_param { ignore_label: 2 }"),
        (2, classes + 4, 5, 6),
        (2, 6, 5, 6),
    )
    x, labels = seeded(2, classes + 4, 5, 6).requires_grad_(), labels_of(2, 3)
    top = layer(x, torch.from_numpy(labels))
    values = x.detach().double().numpy()
    positive = labels[:, 0] != 0
    free = (labels[:, 0] == 0) & (labels[:, 5] < 0.5)
    if mode == "bootstrap":
        hard = np.zeros_like(free)
        for n in range(2):
            for k in range(1, classes):
                own = np.minimum(labels[n, 0], 1) == k if objectness else labels[n, 0] == k
                places = sorted(zip(*free[n].nonzero(), strict=True), key=lambda at: -values[n, k, at[0], at[1]])
                for at in places[: max(4, 2 * own.sum())]:
                    hard[n, at[0], at[1]] = True
        free = hard
    weights = np.ones(positive.shape)
    if extra:
        weights = balanced(np.where(positive, labels[:, 5], 1).astype(float), positive, positive | free, 2)
    ignore = -9 if objectness else 2
    expected = Expected(
        values[:, :classes], values[:, classes:], labels, positive | free, positive & (labels[:, 0] != ignore), weights,
        fields=FIELDS[:1], bounds=(2, 1.5), smooth=not extra, ignore=ignore, objectness=objectness,
    )  # fmt: skip
    assert top.shape == (1, 1, 1, 2)
    part = 0.6 * expected.boxes
    assert_close(top.flatten(), np.array([expected.classes + part, part]), 1e-5, "loss")
    top.sum().backward()
    assert x.grad is not None
    gradient = np.concatenate([expected.of_scores, 0.6 * expected.of_boxes], 1)
    assert_close(x.grad, gradient, 1e-5, "gradient")


@pytest.mark.parametrize("ranking", ["conf_loss", "conf_prob"])
@pytest.mark.parametrize(
    ("extra", "bounds"),
    [
        ({}, None),
        ({"field_xyr": 1.5, "field_whr": 2, "pos_neg_weighted": True, "batch_size": 24}, (1.5, 2)),
        ({"bbox_loss_type": "Euclidean_L2", "batch_size": 1000}, None),
    ],
)
def test_the_loss_of_groups(ranking: str, extra: dict[str, Any], bounds: tuple[float, float] | None) -> None:
    settings = {"cls_num": 3, "stride": STRIDE, "lambda": 0.7, "bg_multiple": 3, "neg_mining_type": "bootstrap"}
    settings |= {"neg_ranking_type": ranking, **extra}
    fields = " ".join(f"field_w: {w} field_h: {h}" for w, h in FIELDS)
    shapes = [(4, 3, 5, 6), (4, 4, 5, 6), (4, 6, 5, 6)]
    layer = make_layer(
        f'type: "DetectionGroupLoss" detection_group_loss_param {{ {text_of(settings)} {fields} }} '
        f"bbox_reg_param {{ {NORMALISED} }}",
        *shapes,
    )
    x, predicted = (seeded(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes[:2]))
    labels = labels_of(4, 3)
    if extra.get("batch_size") == 24:  # fewer objects than the batch has room for
        labels[:, 0] *= np.random.default_rng(1).random(labels[:, 0].shape) < 0.3
    top = layer(x, predicted, torch.from_numpy(labels))
    scores, boxes = x.detach().double().numpy(), predicted.detach().double().numpy()
    odds = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    own = np.take_along_axis(odds, labels[:, :1].astype(int), 1)[:, 0]
    rank = -np.log(own) if ranking == "conf_loss" else 1 - odds[:, 0]
    kept = labels[:, 0] > 0
    for n in range(2):
        rows = [(rank[m, i, j], m, i, j) for m in (2 * n, 2 * n + 1) for i, j in np.ndindex(5, 6)
                if labels[m, 0, i, j] == 0 and labels[m, 5, i, j] < 0.5]  # fmt: skip
        objects = int(kept[2 * n : 2 * n + 2].sum())
        assert objects <= 6 or extra.get("batch_size") != 24
        count = extra["batch_size"] - objects if "batch_size" in extra else max(3 * objects, 5)
        for _, m, i, j in sorted(rows, reverse=True)[:count]:
            kept[m, i, j] = True
    positive = labels[:, 0] > 0
    weights = np.ones(kept.shape)
    weights = balanced(weights, positive, kept, 3) if "pos_neg_weighted" in extra else weights
    expected = Expected(
        scores, boxes, labels, kept, positive & kept, weights, fields=FIELDS, bounds=bounds,
        smooth="bbox_loss_type" not in extra,
    )  # fmt: skip
    part = 0.7 * expected.boxes
    assert_close(top.flatten(), np.array([expected.classes + part, part]), 1e-5, "loss")
    top.sum().backward()
    assert x.grad is not None and predicted.grad is not None
    assert_close(x.grad, expected.of_scores, 1e-5, "gradient of scores")
    assert_close(predicted.grad, 0.7 * expected.of_boxes, 1e-5, "gradient of boxes")


@pytest.mark.parametrize("mode", ["random", "mixture"])
def test_chance_chooses_among_places_without_an_object(mode: str) -> None:
    settings = f'cls_num: 2 field_w: 20 field_h: 24 downsample_rate: 8 sample_mode: "{mode}" bg_multiple: 1'
    layer = make_layer(f'type: "DetectionLoss" detection_loss_param {{ {settings} }}', (1, 6, 5, 6), (1, 6, 5, 6))
    group = make_layer(
        f'type: "DetectionGroupLoss" detection_group_loss_param {{ cls_num: 2 field_w: 20 field_h: 24 stride: 8 '
        f'neg_mining_type: "{mode}" batch_size: 10 bg_multiple: 1 }}',
        (1, 2, 5, 6),
        (1, 4, 5, 6),
        (1, 6, 5, 6),
    )
    labels = torch.from_numpy(labels_of(1, 2))
    labels[0, 0, 0] = 1
    draws = set()
    for seed in range(3):
        torch.manual_seed(seed)
        x = seeded(1, 6, 5, 6).requires_grad_()
        layer(x, labels).sum().backward()
        assert x.grad is not None
        used = x.grad[0, :2].abs().sum(0) > 0
        assert bool(used[labels[0, 0] > 0].all()) and not bool(used[(labels[0, 0] == 0) & (labels[0, 5] >= 0.5)].any())
        y = seeded(1, 2, 5, 6).requires_grad_()
        group(y, seeded(1, 4, 5, 6), labels).sum().backward()
        assert y.grad is not None
        assert int((y.grad[0].abs().sum(0) > 0).sum()) == 10
        draws.add((used.numpy().tobytes(), y.grad.numpy().tobytes()))
    assert len(draws) == 3


@pytest.mark.parametrize("grouped", [False, True])
def test_accuracies(grouped: bool) -> None:
    fields = FIELDS if grouped else FIELDS[:1]
    sizes = " ".join(f"field_w: {w} field_h: {h}" for w, h in fields)
    kind = "DetectionGroupAccuracy" if grouped else "DetectionAccuracy"
    name = "detection_group_accuracy_param" if grouped else "detection_accuracy_param"
    more = f"stride: {STRIDE}" if grouped else f"downsample_rate: {STRIDE} top_k: 2"
    shapes = [(2, 3, 5, 6), (2, 4, 5, 6)] if grouped else [(2, 7, 5, 6)]
    layer = make_layer(
        f'type: "{kind}" {name} {{ cls_num: 3 field_whr: 3 field_xyr: 1.5 bg_threshold: 0.4 {sizes} {more} }} '
        f"bbox_reg_param {{ {NORMALISED} }} loss_param {{ ignore_label: 2 }}",
        *shapes,
        (2, 6, 5, 6),
        tops=2,
    )
    bottoms = [seeded(*shape, seed=i) for i, shape in enumerate(shapes)]
    labels = labels_of(2, 3)
    shares, whole = layer(*bottoms, torch.from_numpy(labels))
    both = torch.cat(bottoms, 1).double().numpy()
    right: list[bool] = []
    of_objects: list[bool] = []
    overlaps: list[float] = []
    for n, i, j in np.ndindex(2, 5, 6):
        label = int(labels[n, 0, i, j])
        if label == 2 or (label == 0 and labels[n, 5, i, j] >= 0.4):
            continue
        best = np.argsort(-both[n, :3, i, j])[: 1 if grouped else 2]
        right.append(label in best)
        if label:
            of_objects.append(label in best)
            field = fields[n % len(fields)]
            x, y, w, h = (v * s + m for v, s, m in zip(both[n, 3:, i, j], STD, MEAN, strict=True))
            x, y = (min(max(v, -1 / 1.5), 1 / 1.5) for v in (x, y))
            w, h = (
                math.exp(min(max(v, -math.log(3)), math.log(3))) * side for v, side in ((w, field[0]), (h, field[1]))
            )
            box = [x * field[0] + (j + 0.5) * STRIDE - w / 2, y * field[1] + (i + 0.5) * STRIDE - h / 2, w, h]
            own = labels[n, 1:5, i, j].astype(float)
            overlaps.append(overlap(box, [own[0] - own[2] / 2, own[1] - own[3] / 2, own[2], own[3]], int(grouped)))
    assert_close(shares.flatten(), np.array([np.mean(right), np.mean(of_objects)]), 1e-6, "shares")
    assert_close(whole.flatten(), np.array([np.mean(overlaps)]), 1e-5, "overlap")
    labels[:, 0] = 2
    assert [float(v) for v in layer(*bottoms, torch.from_numpy(labels))[0].flatten()] == [-1, -1]


OBJECTS = torch.tensor([[0, 10, 10, 49, 39, 1, 0], [0, 60, 20, 99, 79, 2, 0], [1, 5, 5, 44, 54, 2, 0], [-1] + [9] * 6])
REGIONS = torch.tensor(
    [
        [0, 12, 8, 50, 41],
        [0, 55, 25, 95, 70],
        [0, 30, 10, 69, 39],
        [1, 8, 5, 50, 50],
        [1, 12, 8, 50, 41],
        [1, 90, 90, 99, 99],
    ]
).float()


@pytest.mark.parametrize("aware", [True, False])
def test_what_regions_are_to_be(aware: bool) -> None:
    settings = "cls_num: 3 batch_size: 12 fg_fraction: 0.75 num_img_per_batch: 2 bg_thr_lw: 0.05 bbox_thr_hg: 0.9"
    layer = make_layer(
        f'type: "ProposalTarget" proposal_target_param {{ {settings} iou_weighted: true }} '
        f"bbox_reg_param {{ cls_aware: {str(aware).lower()} {NORMALISED} }}",
        tuple(REGIONS.shape),
        (4, 7),
        tops=7,
    )
    rois, label, targets, inside, outside, matches, weights = (
        top.flatten(1) for top in layer(REGIONS, OBJECTS.float())
    )
    every = torch.cat([REGIONS, OBJECTS[:3, :5]]).numpy().astype(float)
    rows = []
    for row in every:
        box = [row[1], row[2], row[3] - row[1] + 1, row[4] - row[2] + 1]
        best = max(
            ((overlap(box, [o[1], o[2], o[3] - o[1] + 1, o[4] - o[2] + 1], 1), g)
             for g, o in enumerate(OBJECTS[:3].numpy().astype(float)) if o[0] == row[0]),
        )  # fmt: skip
        rows.append((row, *best))
    found = [row for row in rows if row[1] >= 0.5]
    low = [row for row in rows if 0.05 <= row[1] < 0.5]
    rest = [row for row in rows if row[1] < 0.05]
    assert len(found) == 7 and low and rest
    assert_close(rois, np.stack([row[0] for row in [*found, *low, *rest]]), 0, "regions")
    classes = [int(OBJECTS[g, 5]) for _, _, g in found]
    assert label.flatten().tolist() == classes + [0] * (len(rows) - len(found))
    wanted, weight = np.zeros((len(rows), 3 if aware else 2, 4)), np.zeros((len(rows), 3 if aware else 2, 4))
    for index, (row, share, g) in enumerate(found):
        own = OBJECTS[g].numpy().astype(float)
        size, extent = [row[3 + k] - row[1 + k] + 1 for k in (0, 1)], [own[3 + k] - own[1 + k] + 1 for k in (0, 1)]
        values = [(own[1 + k] + extent[k] / 2 - row[1 + k] - size[k] / 2) / size[k] for k in (0, 1)]
        values += [math.log(extent[k] / size[k]) for k in (0, 1)]
        at = classes[index] if aware else 1
        wanted[index, at] = [(v - m) / s for v, m, s in zip(values, MEAN, STD, strict=True)]
        weight[index, at] = share <= 0.9
        assert_close(matches[index], np.array([classes[index], *own[1:5], share]), 1e-6, "match")
    assert_close(targets, wanted.reshape(len(rows), -1), 1e-5, "targets")
    assert torch.equal(inside, outside)
    assert_close(inside, weight.reshape(len(rows), -1), 0, "weights")
    assert not matches[len(found) :].any()
    shares = np.array([row[1] for row in found])
    assert_close(weights.flatten()[: len(found)], shares * 0.75 * len(rows) / shares.sum(), 1e-5, "weights of objects")
    assert_close(weights.sum(), np.float64(len(rows)), 1e-5, "all weights")


def test_ignored_objects_and_chance() -> None:
    text = 'type: "ProposalTarget" proposal_target_param { cls_num: 3 num_img_per_batch: 2 %s }'
    layer = make_layer(text % "batch_size: -1 append_gtbox: false", (6, 5), (4, 7), tops=6)
    objects = OBJECTS.float()
    objects[0, 6] = 1
    rois, label = layer(REGIONS, objects)[:2]
    assert label.flatten().tolist() == [2, 2, 2, 0] and rois.flatten(1)[0].tolist() == REGIONS[1].tolist()
    layer = make_layer(text % "batch_size: 4 fg_fraction: 0.5", (6, 5), (4, 7), tops=6)
    assert {int((layer(REGIONS, OBJECTS.float())[1] > 0).sum()) for _ in range(5)} == {2}


@pytest.mark.parametrize(("dialect", "count"), [("mscnn", 9), ("cascade-rcnn", 1)])
def test_regions_are_drawn_where_there_are_none(dialect: str, count: int) -> None:
    settings = "cls_num: 3 batch_size: 9 img_width: 200 img_height: 150 pickup_discard: false append_gtbox: false"
    layer = make_layer(f'type: "ProposalTarget" proposal_target_param {{ {settings} }}', (1, 5), (1, 7), tops=6)
    layer.dialect = dialect
    rois, label = layer(torch.tensor([[0.0, 10, 10, 20, 20]]), torch.tensor([[0.0, 150, 100, 199, 149, 1, 0]]))[:2]
    assert rois.shape == (count, 5, 1, 1) and not label.any()
    assert float(rois[:, 3].max()) < 200 and float(rois[:, 4].max()) < 150


def test_the_hardest_regions_of_each_image() -> None:
    layer = make_layer(
        'type: "HardMining" hard_mining_param { num_roi_per_image: 2 num_image: 3 }', (7,), (7, 5), (7, 4), tops=2
    )
    costs = torch.tensor([3.0, 1, 2, 5, 4, 0, 6])
    rows = torch.zeros(7, 5)
    rows[:, 0] = torch.tensor([0, 0, 0, 0, 0, 1, 0])
    rows[:, 1] = torch.arange(7)
    first, second = layer(costs, rows, torch.arange(28.0).view(7, 4))
    assert first.flatten(1)[:, 1].tolist() == [
        0,
        2,
        3,
        4,
        5,
        6,
    ]  # two of image 0, one of image 1, the best that is left
    assert second.shape == (6, 4, 1, 1) and second[1, 0] == 8


def moved(box: list[float], values: list[float]) -> list[float]:
    size = [box[2] - box[0] + 1, box[3] - box[1] + 1]
    centre = [box[k] + size[k] / 2 + values[k] * size[k] for k in (0, 1)]
    size = [size[k] * math.exp(values[2 + k]) for k in (0, 1)]
    return [centre[0] - size[0] / 2, centre[1] - size[1] / 2, *size]


@pytest.mark.parametrize("aware", [True, False])
def test_how_right_boxes_are(aware: bool) -> None:
    classes = 3 if aware else 2
    layer = make_layer(
        f'type: "BboxAccuracy" bbox_reg_param {{ cls_aware: {str(aware).lower()} {NORMALISED} }}',
        (4, classes * 4, 1, 1),
        (4, 5, 1, 1),
        (4, 6, 1, 1),
        tops=2,
    )
    matches = torch.tensor([[1, 10, 10, 49, 39, 0.7], [2, 60, 20, 99, 79, 0.6], [0] * 6, [2, 5, 5, 44, 54, 0.98]])
    values = seeded(4, classes * 4, 1, 1)
    after, before = layer(values, REGIONS[:4].view(4, 5, 1, 1), matches.view(4, 6, 1, 1))
    own = [[float(m[1]), float(m[2]), float(m[3] - m[1] + 1), float(m[4] - m[2] + 1)] for m in matches[:2]]
    expected: list[list[float]] = [[], []]
    for index in (0, 1):
        at = int(matches[index, 0]) if aware else 1
        raw = values[index].flatten()[4 * at : 4 * at + 4].double().tolist()
        raw = [v * s + m for v, s, m in zip(raw, STD, MEAN, strict=True)]
        box = REGIONS[index, 1:].double().tolist()
        expected[0].append(overlap(moved(box, raw), own[index], 1))
        expected[1].append(overlap([*box[:2], box[2] - box[0] + 1, box[3] - box[1] + 1], own[index], 1))
    assert_close(after.flatten(), np.array([np.mean(expected[0])]), 1e-5, "after")
    assert_close(before.flatten(), np.array([np.mean(expected[1])]), 1e-5, "before")
    nothing = layer(values, REGIONS[:4].view(4, 5, 1, 1), torch.zeros(4, 6, 1, 1))
    assert [float(top) for top in nothing] == [-1, -1]


@pytest.mark.parametrize("most", [0, 5])
def test_what_a_second_stage_finds(most: int) -> None:
    draw = np.random.default_rng(2)
    boxes = np.concatenate([draw.uniform(0, 50, (9, 2)), draw.uniform(50, 90, (9, 2))], 1)
    regions = np.concatenate([np.zeros((9, 1)), boxes], 1).astype(np.float32)
    scores = draw.uniform(0, 1, (9, 3)).astype(np.float32)
    values = draw.normal(0, 0.3, (9, 12)).astype(np.float32)
    layer = make_layer(
        f'type: "FrcnnOutput" frcnn_output_param {{ conf_thr: 0.3 iou_thr: 0.4 max_det_num: {most} }} '
        f"bbox_reg_param {{ {NORMALISED} }}",
        (9, 3),
        (9, 12),
        (9, 5),
        (1, 2),
    )
    inputs = (torch.from_numpy(part) for part in (scores, values, regions, np.array([[80, 85]], np.float32)))
    top = layer(*inputs).flatten(1)
    expected: list[list[float]] = []
    for number in (1, 2):
        kept: list[list[float]] = []
        for index in np.argsort(-scores[:, number]):
            if scores[index, number] < 0.3:
                continue
            raw = [v * s + m for v, s, m in zip(values[index, 4 * number :], STD, MEAN, strict=False)]
            x, y, w, h = moved(regions[index, 1:].astype(float).tolist(), raw)
            box = [max(x, 0), max(y, 0), min(x + w - 1, 85), min(y + h - 1, 80)]
            sides = [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1]
            if all(overlap([k[1], k[2], k[3] - k[1] + 1, k[4] - k[2] + 1], sides, 1) <= 0.4 for k in kept):
                kept.append([0, *box, number, float(scores[index, number])])
        expected += kept
    if most:
        best = sorted(expected, key=lambda row: -row[6])[:most]
        expected = [row for row in expected if row in best]
    assert len(expected) > 4 and top[0].tolist() == [0, *[-1] * 6]
    assert_close(top[1:], np.array(expected), 1e-5, "rows")


def test_sources_say_their_shapes() -> None:
    fields = "stride: 8 field_w: 20 field_h: 24 stride: 16 field_w: 20 field_h: 24"
    text = f"""
    layer {{ name: "d" type: "DetectionData" top: "data" top: "a" top: "b" top: "gt" detection_data_param {{
      batch_size: 2 crop_height: 90 crop_width: 64 {fields} output_gt_boxes: true }} }}
    layer {{ name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param {{ num_output: 2 kernel_size: 1 }} }}
    layer {{ name: "e" type: "EvalData" top: "test" top: "objects" top: "size" eval_data_param {{
      batch_size: 1 resize_height: 100 resize_width: 200 }} }}
    layer {{ name: "i" type: "ImageGtData" top: "old" top: "labels" image_gt_data_param {{
      batch_size: 3 resize_height: 40 resize_width: 60 downsample_rate: 8 field_w: 9 field_h: 9 }} }}
    """
    net = fcnproto.Net(parse(text, caffe_pb2.NetParameter), "test")
    assert {name: None if shape is None else tuple(shape) for name, shape in net.source_shapes.items()} == {
        "data": (2, 3, 90, 64),
        "a": (2, 6, 11, 8),
        "b": (2, 6, 6, 4),
        "gt": (None, 8, 1, 1),
        "test": (1, 3, 96, 192),
        "objects": (None, 8, 1, 1),
        "size": (1, 2, 1, 1),
        "old": (3, 3, 40, 60),
        "labels": (3, 6, 5, 8),
    }
    with pytest.raises(DataError, match=r"'d' \(DetectionData\): reads lists .* give data, a, b, gt"):
        net(blobs=["c"])


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        (
            '"DetectionLoss" detection_loss_param { cls_num: 2 }',
            [(1, 6, 2, 2), (1, 6, 2, 2)],
            "fields and the distance",
        ),
        (
            '"DetectionLoss" detection_loss_param { cls_num: 2 field_w: 2 field_h: 2 downsample_rate: 1 }',
            [(1, 7, 2, 2), (1, 6, 2, 2)],
            r"needs scores \(N, 2, H, W\)",
        ),
        (
            '"DetectionGroupLoss" detection_group_loss_param { cls_num: 2 stride: 8 field_w: 2 field_w: 2 field_h: 3 }',
            [(2, 2, 2, 2), (2, 4, 2, 2), (2, 6, 2, 2)],
            "each field needs a field_w and a field_h",
        ),
        (
            '"DetectionGroupLoss" detection_group_loss_param { cls_num: 2 stride: 8 field_w: 2 field_h: 3 neg_mining_type: "a" }',
            [(2, 2, 2, 2), (2, 4, 2, 2), (2, 6, 2, 2)],
            "neg_mining_type is one of",
        ),
        ('"ProposalTarget" proposal_target_param { cls_num: 1 }', [(3, 5), (2, 7)], "counts the background"),
        ('"HardMining"', [(3,), (4, 5)], "needs costs"),
        (
            '"BboxAccuracy" bbox_reg_param { cls_aware: false }',
            [(3, 12), (3, 5), (3, 6)],
            r"needs predictions \(R, 8\)",
        ),
        ('"FrcnnOutput" frcnn_output_param { nms_type: "NONE" }', [(3, 2), (3, 8), (3, 5), (1, 2)], "nms_type"),
    ],
)
def test_what_does_not_go(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(f"type: {text}", *shapes)
