"""DetectionLoss and EvalDetection of the first YOLO against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError

Row = list[float]
SIDE, CLASSES, BOXES = 3, 4, 2
PLACES = SIDE * SIDE
COUNT = PLACES * (CLASSES + 5 * BOXES)
COMMON = f"side: {SIDE} num_class: {CLASSES} num_object: {BOXES}"


def overlap(a: Row, b: Row) -> float:
    w, h = (
        min(a[i] + a[2 + i] / 2, b[i] + b[2 + i] / 2) - max(a[i] - a[2 + i] / 2, b[i] - b[2 + i] / 2) for i in (0, 1)
    )
    shared = w * h if w > 0 and h > 0 else 0
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x = seeded(2, COUNT).abs().mul(0.5)
    labels = torch.zeros(2, 7, PLACES, dtype=torch.float64)
    boxes = torch.zeros(2, PLACES, 4, dtype=torch.float64)
    for n, place, label, difficult in ((0, 1, 2, 0), (0, 4, 0, 1), (0, 8, 0, 0), (1, 0, 3, 0), (1, 3, 1, 0)):
        labels[n, :3, place] = torch.tensor([difficult, 1.0, label], dtype=torch.float64)
        boxes[n, place] = torch.tensor([(place % 3 + 0.4) / 3, (place // 3 + 0.7) / 3, 0.3, 0.2 + 0.05 * place])
    boxes[1, 3] = torch.tensor([9.0, 9, 0.1, 0.1])  # no box overlaps this one
    labels[:, 3:] = boxes.reshape(2, 4, PLACES)
    return x, labels.reshape(2, 7 * PLACES)


def box_at(x: np.ndarray, place: int, k: int, sqrt: bool, within: bool) -> Row:
    """In fractions of the image."""
    at = (CLASSES + BOXES + 4 * k) * PLACES + place
    a, b, w, h = (float(x[at + i * PLACES]) for i in range(4))
    if within:
        a, b = (place % SIDE + a) / SIDE, (place // SIDE + b) / SIDE
    return [a, b, w * w, h * h] if sqrt else [a, b, w, h]


@pytest.mark.parametrize("sqrt", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_detection_loss(sqrt: bool, within: bool) -> None:
    settings = f"sqrt: {str(sqrt).lower()} constriant: {str(within).lower()}"
    text = f'type: "DetectionLoss" detection_loss_param {{ {COMMON} {settings} object_scale: 2 class_scale: 3 }}'
    layer = make_layer(text, (2, COUNT), (2, 7 * PLACES), train=True)
    values, labels = inputs()
    x, t = values.numpy(), labels.numpy()
    sums = dict.fromkeys(("class", "box", "object", "none"), 0.0)
    slope, objects = np.zeros_like(x), 0
    for n in range(2):
        for place in range(PLACES):
            for k in range(BOXES):
                at = (CLASSES + k) * PLACES + place
                sums["none"] += 0.5 * x[n, at] ** 2
                slope[n, at] = 0.5 * x[n, at]
            if not t[n, PLACES + place]:
                continue
            objects += 1
            for c in range(CLASSES):
                d = x[n, c * PLACES + place] - (c == t[n, 2 * PLACES + place])
                sums["class"] += 3 * d * d
                slope[n, c * PLACES + place] = 3 * d
            truth = t[n, 3 * PLACES + 4 * place : 3 * PLACES + 4 * place + 4].tolist()
            boxes = [box_at(x[n], place, k, sqrt, within) for k in range(BOXES)]
            found = [overlap(b, truth) for b in boxes]
            apart = [math.dist(b, truth) for b in boxes]
            best = int(np.argmax(found)) if max(found) > 0 else int(np.argmin(apart))
            at = (CLASSES + best) * PLACES + place
            sums["none"] -= 0.5 * x[n, at] ** 2
            sums["object"] += 2 * (x[n, at] - 1) ** 2
            slope[n, at] = 2 * (x[n, at] - max(found))
            if within:
                truth[:2] = [truth[0] * SIDE - place % SIDE, truth[1] * SIDE - place // SIDE]
            truth[2:] = [math.sqrt(v) if sqrt else v for v in truth[2:]]
            for i in range(4):
                at = (CLASSES + BOXES + 4 * best + i) * PLACES + place
                sums["box"] += 5 * (x[n, at] - truth[i]) ** 2
                slope[n, at] = 5 * (x[n, at] - truth[i])
    expected = (sums["class"] + sums["box"] + sums["object"]) / objects
    expected += sums["none"] / (PLACES * BOXES * 2 - objects)
    values.requires_grad_()
    loss = layer(values, labels)
    assert_close(loss, expected, 1e-12, "loss")
    (2 * loss).backward()
    assert_close(values.grad, slope / 2 * 2, 1e-12, "gradient")


@pytest.mark.parametrize("kind", ["OBJ", "PROB", "MULTIPLY"])
@pytest.mark.parametrize("nms", [-1, 0.3])
def test_eval_detection(kind: str, nms: float) -> None:
    text = f'type: "EvalDetection" eval_detection_param {{ {COMMON} threshold: 0.1 score_type: {kind} nms: {nms} }}'
    shapes = [(2, COUNT), (2, 7 * PLACES)]
    layer = make_layer(text, *shapes)
    values, labels = inputs()
    # Boxes near to the objects, of their classes, so that some are right, some found twice, some difficult.
    near = values.view(2, CLASSES + 5 * BOXES, PLACES)
    near[:, CLASSES + BOXES :] = seeded(2, 4 * BOXES, PLACES, seed=5).mul(0.1) + 0.55
    near[0, 0, 4:] += 5
    near[0, 2, :3] += 5
    x, t = values.numpy(), labels.numpy()
    expected = np.zeros((2, CLASSES + PLACES * BOXES * 4))
    seen = set()
    for n in range(2):
        objects = []
        for place in range(PLACES):
            if t[n, PLACES + place]:
                row = t[n, 3 * PLACES + 4 * place : 3 * PLACES + 4 * place + 4].tolist()
                objects.append((int(t[n, 2 * PLACES + place]), bool(t[n, place]), row))
                expected[n, objects[-1][0]] += not objects[-1][1]
        found = []
        for place in range(PLACES):
            scores = x[n, place : CLASSES * PLACES : PLACES]
            for k in range(BOXES):
                sure = float(x[n, (CLASSES + k) * PLACES + place])
                score = {"OBJ": sure, "PROB": scores.max(), "MULTIPLY": sure * scores.max()}[kind]
                found.append((int(scores.argmax()), score, box_at(x[n], place, k, True, True)))
        found.sort(key=lambda row: -row[1])
        if nms >= 0:
            kept: list[tuple[int, float, Row]] = []
            for row in found:
                if all(overlap(row[2], k[2]) < nms for k in kept):
                    kept.append(row)
            found = kept
        taken: set[int] = set()
        rows = []
        for label, score, row in sorted(found, key=lambda row: row[0]):
            own = [(overlap(row, o[2]), i) for i, o in enumerate(objects) if o[0] == label]
            most = max(own, key=lambda pair: pair[0], default=(-1, -1))
            if most[0] < 0.1:
                marks = (0, 1)
            elif objects[most[1]][1]:
                marks = (0, 0)
            else:
                marks = (0, 1) if most[1] in taken else (1, 0)
                taken.add(most[1])
            seen.add(marks)
            rows += [label, score, *marks]
        expected[n, CLASSES : CLASSES + len(rows)] = rows
    assert seen == {(0, 0), (0, 1), (1, 0)}
    top = layer(values, labels, labels)  # further bottoms are not read
    assert [tuple(top.shape)] == layer.top_shapes(shapes)
    assert_close(top, expected, 1e-12, "top")


@pytest.mark.parametrize("kind", ["DetectionLoss", "EvalDetection"])
def test_counts_that_do_not_go(kind: str) -> None:
    field = {"DetectionLoss": "detection_loss_param", "EvalDetection": "eval_detection_param"}[kind]
    with pytest.raises(LayerError, match=rf"need bottoms \(N, {COUNT}\) and \(N, 63\), got \(2, 5\)"):
        make_layer(f'type: "{kind}" {field} {{ {COMMON} }}', (2, 5), (2, 63))


def test_a_label_that_is_no_class() -> None:
    layer = make_layer(f'type: "DetectionLoss" detection_loss_param {{ {COMMON} }}', (2, COUNT), (2, 7 * PLACES))
    values, labels = inputs()
    labels[0, 2 * PLACES + 1] = 4
    with pytest.raises(LayerError, match=r"label 4 is outside of 0\.\.3"):
        layer(values, labels)
