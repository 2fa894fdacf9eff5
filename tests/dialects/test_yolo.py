"""YOLO's detections and RegionLoss against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError

Row = list[float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = np.exp(x - x.max())
    return made / made.sum()


def overlap(a: Row, b: Row) -> float:
    """Of boxes x, y, w, h about their centres."""
    w, h = (
        min(a[i] + a[2 + i] / 2, b[i] + b[2 + i] / 2) - max(a[i] - a[2 + i] / 2, b[i] - b[2 + i] / 2) for i in (0, 1)
    )
    shared = w * h if w > 0 and h > 0 else 0
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def detections(found: list[Row], threshold: float) -> np.ndarray:
    """From x, y, w, h, class, score to the rows that remain."""
    found.sort(key=lambda row: -row[5])
    kept: list[Row] = []
    for row in found:
        if all(overlap(k[:4], row[:4]) < threshold for k in kept):
            kept.append(row)
    rows = [[0, c + 1, s, x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h, c, s in kept]
    return np.array(rows).reshape(1, 1, -1, 7)


MASKED = "biases: 9 biases: 14 biases: 20 biases: 30 biases: 40 biases: 25 biases: 16 biases: 50"


@pytest.mark.parametrize("gaussian", [False, True])
def test_the_third_version(gaussian: bool) -> None:
    length = 12 if gaussian else 8
    shapes = [(2, 2 * length, 2, 3), (2, 2 * length, 4, 6)]
    text = f"""type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ num_classes: 3 num_box: 2 mask_group_num: 2
        confidence_threshold: 0.3 nms_threshold: 0.4 {MASKED} mask: 2 mask: 1 mask: 0 mask: 3
        anchors_scale: 32 anchors_scale: 16 gaussian_box: {str(gaussian).lower()} }}"""
    layer = make_layer(text, *shapes)
    maps = [seeded(*shape, seed=i).mul(1.5) for i, shape in enumerate(shapes)]
    biases, masks, scales = [(9, 14), (20, 30), (40, 25), (16, 50)], [(2, 1), (0, 3)], (32, 16)
    found = []
    for m, mask, scale in zip(maps, masks, scales, strict=True):
        values = m.numpy()
        for n, a, i, j in np.ndindex(2, 2, *values.shape[2:]):
            v = values[n, a * length : (a + 1) * length, i, j].tolist()
            sure = sigmoid(v[8 if gaussian else 4])
            if gaussian:
                sure *= (4 - sum(sigmoid(v[c]) for c in (1, 3, 5, 7))) / 4
                v = [v[0], v[2], v[4], v[6], *v[8:]]
            box = [(j + sigmoid(v[0])) / values.shape[3], (i + sigmoid(v[1])) / values.shape[2]]
            box += [math.exp(v[2 + k]) * biases[mask[a]][k] / (values.shape[3 - k] * scale) for k in (0, 1)]
            found += [[*box, c, sure * sigmoid(v[5 + c])] for c in range(3) if sure * sigmoid(v[5 + c]) > 0.3]
    expected = detections(found, 0.4)
    assert 3 < expected.shape[2] < len(found)
    assert_close(layer(*maps), expected, 1e-6, "rows")


def test_the_second_version_with_two_maps() -> None:
    shapes = [(2, 16, 2, 2), (2, 16, 4, 4)]
    text = """type: "YoloDetectionOutput" yolo_detection_output_param { num_classes: 3 num_box: 2
        confidence_threshold: 0.3 nms_threshold: 0.3 biases: 1.2 biases: 0.8 biases: 0.7 biases: 1.5 }"""
    layer = make_layer(text, *shapes)
    maps = [seeded(*shape, seed=i).mul(1.5) for i, shape in enumerate(shapes)]
    found = []
    for m in maps:
        side = m.shape[3]
        for n, a, i, j in np.ndindex(2, 2, side, side):
            v = m[n, 8 * a : 8 * a + 8, i, j].numpy()
            size = [math.exp(v[2 + k]) * ((1.2, 0.8), (0.7, 1.5))[a][k] / side for k in (0, 1)]
            shares = softmax(v[5:])
            row = [(j + sigmoid(v[0])) / side, (i + sigmoid(v[1])) / side, *size, int(shares.argmax())]
            score = sigmoid(v[4]) * shares.max()
            found += [[*row, score]] if score >= 0.3 else []
    expected = detections(found, 0.3)
    assert 3 < expected.shape[2] < len(found)
    assert_close(layer(*maps), expected, 1e-6, "rows")


@pytest.mark.parametrize("kind", ["", "v3"])
def test_nothing_found_is_a_row_for_each_image(kind: str) -> None:
    settings = "num_classes: 1 num_box: 1 confidence_threshold: 0.99 biases: 1 biases: 1"
    settings += " mask: 0 mask_group_num: 1 anchors_scale: 8" if kind else ""
    layer = make_layer(
        f'type: "Yolo{kind}DetectionOutput" yolo{kind}_detection_output_param {{ {settings} }}', (2, 6, 2, 2)
    )
    assert layer(torch.zeros(2, 6, 2, 2)).tolist() == [[[[0.0] + [-1] * 6, [1.0] + [-1] * 6]]]


BIASES = [(1.1, 0.7), (0.6, 1.4), (2.0, 1.8)]
SIDE, CLASSES = 4, 3


def region_differences(x: np.ndarray, labels: np.ndarray, rescore: bool, match: bool, thresh: float) -> np.ndarray:
    """darknet's differences for x (N, A, L, S, S), object by object."""
    result = np.zeros_like(x)
    boxes = np.zeros((*x.shape[:2], SIDE, SIDE, 4))
    for n, a, i, j in np.ndindex(*boxes.shape[:4]):
        v = x[n, a, :, i, j]
        box = [(j + sigmoid(v[0])) / SIDE, (i + sigmoid(v[1])) / SIDE]
        boxes[n, a, i, j] = [*box, *(math.exp(v[2 + k]) * BIASES[a][k] / SIDE for k in (0, 1))]
        objects = []
        for row in labels[n].tolist():
            if row[1] == 0:
                break
            objects.append(row[1:])
        if not any(overlap(boxes[n, a, i, j].tolist(), o) > thresh for o in objects):
            p = sigmoid(v[4])
            result[n, a, 4, i, j] = 0.7 * p * p * (1 - p)
    for n in range(len(x)):
        for c, *truth in labels[n].tolist():
            if truth[2] == 0:
                break
            i, j = int(truth[1] * SIDE), int(truth[0] * SIDE)
            sizes = [[b / SIDE for b in BIASES[a]] if match else boxes[n, a, i, j, 2:].tolist() for a in range(3)]
            a = int(np.argmax([overlap([0, 0, *size], [0, 0, *truth[2:]]) for size in sizes]))
            v = x[n, a, :, i, j]
            found = overlap(boxes[n, a, i, j].tolist(), truth)
            scale = 1.5 * (1 if rescore else 2 - truth[2] * truth[3])
            for k, place in enumerate((j, i)):
                s = sigmoid(v[k])
                result[n, a, k, i, j] = -scale * (truth[k] * SIDE - place - s) * s * (1 - s)
                result[n, a, 2 + k, i, j] = -scale * (math.log(truth[2 + k] * SIDE / BIASES[a][k]) - v[2 + k])
            p = sigmoid(v[4])
            result[n, a, 4, i, j] = -5 * ((found if rescore else 1) - p) * p * (1 - p)
            result[n, a, 5:, i, j] = 2 * (softmax(v[5:]) - np.eye(CLASSES)[int(c)])
    return result


@pytest.mark.parametrize("rescore", [0, 1])
@pytest.mark.parametrize("match", [0, 1])
def test_region_loss(rescore: int, match: int) -> None:
    channels = 3 * (5 + CLASSES)
    shapes = [(2, channels, SIDE, SIDE), (2, 1, 6, 5)]
    text = f"""type: "RegionLoss" region_loss_param {{ num_class: 3 num: 3 rescore: {rescore} bias_match: {match}
        object_scale: 5 noobject_scale: 0.7 class_scale: 2 coord_scale: 1.5 thresh: 0.3
        {" ".join(f"biases: {b}" for pair in BIASES for b in pair)} }}"""
    layer = make_layer(text, *shapes, train=True)
    x = seeded(*shapes[0]).mul(0.5).requires_grad_()
    labels = torch.zeros(shapes[1], dtype=torch.float64)
    labels[0, 0, :4] = torch.tensor(
        [[0, 0.3, 0.4, 0.3, 0.2], [2, 0.8, 0.6, 0.2, 0.4], [1, 0.31, 0.41, 0.3, 0.2], [0, 0.1, 0.9, 0.5, 0.5]]
    )
    labels[1, 0, :2] = torch.tensor([[1, 0.5, 0.5, 0.4, 0.4], [1, 0.0, 0.7, 0.2, 0.2]])  # the second has x 0
    labels[1, 0, 2] = torch.tensor([2, 0.9, 0.9, 0.0, 0.3])  # and this one w 0
    labels[1, 0, 3] = torch.tensor([2, 0.2, 0.2, 0.3, 0.3])
    expected = region_differences(
        x.detach().numpy().reshape(2, 3, 5 + CLASSES, SIDE, SIDE), labels[:, 0].numpy(), bool(rescore), bool(match), 0.3
    )
    loss = layer(x, labels)
    assert loss.shape == ()
    assert_close(loss, (expected**2).sum() / 2, 1e-6, "loss")
    (loss * 3).backward()
    assert_close(x.grad, expected.reshape(x.shape) / 2 * 3, 1e-6, "gradient")


ONE_MAP = """type: "Yolov3DetectionOutput" yolov3_detection_output_param { num_classes: 1 mask_group_num: 1 num_box: 1
    anchors_scale: 8 mask: %d biases: 1 biases: 2 }"""


def test_no_object_at_all() -> None:
    text = 'type: "RegionLoss" region_loss_param { num_class: 1 num: 1 biases: 1 biases: 1 noobject_scale: 1 }'
    layer = make_layer(text, (1, 6, 2, 2), (1, 5), train=True)
    assert abs(float(layer(torch.zeros(1, 6, 2, 2), torch.zeros(1, 5))) - 4 * 0.125**2) < 1e-7


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "YoloDetectionOutput"', [(1, 6, 2, 2)], "num_classes is missing"),
        (
            'type: "YoloDetectionOutput" yolo_detection_output_param { num_classes: 1 num_box: 1 biases: 1 biases: 1 }',
            [(1, 6, 2, 3)],
            "takes square maps",
        ),
        (
            'type: "YoloDetectionOutput" yolo_detection_output_param { num_classes: 1 num_box: 1 biases: 1 }',
            [(1, 6, 2, 2)],
            "need 2 biases",
        ),
        (
            'type: "Yolov3DetectionOutput" yolov3_detection_output_param { num_classes: 1 }',
            [(1, 18, 2, 2)],
            "mask_group_num 2 is not the number of bottoms",
        ),
        (
            'type: "Yolov3DetectionOutput" yolov3_detection_output_param { num_classes: 1 mask_group_num: 1 }',
            [(1, 18, 2, 2)],
            "give anchors_scale",
        ),
        (
            ONE_MAP % 1,
            [(1, 6, 2, 2)],
            "mask asks for anchor 1; biases has 1",
        ),
        (
            ONE_MAP % 0,
            [(1, 7, 2, 2)],
            r"1 boxes of 6 values need maps \(N, 6, H, W\)",
        ),
        ('type: "RegionLoss"', [(1, 6, 2, 2), (1, 5)], "needs a square map"),
        ('type: "RegionLoss" region_loss_param { num: 1 num_class: 1 }', [(1, 6, 2, 2), (1, 4)], "needs labels"),
        ('type: "RegionLoss" region_loss_param { num: 1 num_class: 1 }', [(1, 6, 2, 2), (1, 5)], "need 2 biases"),
    ],
)
def test_what_does_not_go(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(text, *shapes)
