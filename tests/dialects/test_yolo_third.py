"""Yolov3, the training loss, against a loop over boxes and objects in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

ANCHORS = [(10, 13), (30, 25), (50, 90), (60, 45)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    extent = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    if min(extent) < 0:
        return 0.0
    shared = extent[0] * extent[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def wanted_differences(
    x: np.ndarray, labels: np.ndarray, mask: list[int], classes: int, focal: bool, logic: bool
) -> np.ndarray:
    count, _, high, wide = x.shape
    v = x.reshape(count, len(mask), 5 + classes, high, wide)
    d = np.zeros_like(v)
    wide_px, high_px = wide * 16, high * 16
    for b in range(count):
        for n, row, column in np.ndindex(len(mask), high, wide):
            box = v[b, n, :, row, column]
            anchor = ANCHORS[mask[n]]
            pred = (
                (column + sigmoid(box[0])) / wide,
                (row + sigmoid(box[1])) / high,
                math.exp(box[2]) * anchor[0] / wide_px,
                math.exp(box[3]) * anchor[1] / high_px,
            )
            best = 0.0
            for object_ in labels[b]:
                if not object_[1]:
                    break
                best = max(best, iou(pred, tuple(object_[1:])))
            d[b, n, 4, row, column] = 0 if best > 0.6 else sigmoid(box[4])
        for object_ in labels[b]:
            label, cx, cy, w, h = object_
            if not w:
                break
            fits = [iou((0, 0, a[0] / wide_px, a[1] / high_px), (0, 0, w, h)) for a in ANCHORS]
            best_n = int(np.argmax(fits))
            own = mask.index(best_n) if best_n in mask else -1
            boxes = [own] if own >= 0 else []
            taken = own if own >= 0 else best_n
            boxes += [mask.index(n) for n in range(4) if n in mask and n != taken and fits[n] > 0.3]
            column, row = int(cx * wide), int(cy * high)
            for n in boxes:
                box, out = v[b, n, :, row, column], d[b, n, :, row, column]
                anchor = ANCHORS[mask[n]]
                scale = 2 * (2 - w * h)
                out[0], out[1] = (
                    scale * (sigmoid(box[0]) - (cx * wide - column)),
                    scale * (sigmoid(box[1]) - (cy * high - row)),
                )
                out[2] = scale * (box[2] - math.log(w * wide_px / anchor[0]))
                out[3] = scale * (box[3] - math.log(h * high_px / anchor[1]))
                out[4] = (sigmoid(box[4]) - 1) * (5 if logic else 1)
                share = [sigmoid(value) for value in box[5:]]
                if out[5 + int(label)]:
                    out[5 + int(label)] = 3 * (share[int(label)] - 0.95)
                    continue
                for c in range(classes):
                    aim = float(c == int(label))
                    if focal:
                        p = share[int(label)]
                        out[5 + c] = 3 * (share[c] - aim) * -0.5 * (1 - p) * (2 * p * math.log(p) + p - 1)
                    else:
                        out[5 + c] = 3 * (share[c] - (aim * 0.9 + 0.05))
    return d.reshape(x.shape)


@pytest.mark.parametrize(("focal", "logic"), [(False, False), (True, False), (False, True)])
def test_loss_and_gradient(focal: bool, logic: bool) -> None:
    mask, classes = [1, 3], 3
    x = seeded(2, 2 * 8, 3, 4).requires_grad_()
    labels = torch.zeros(2, 1, 6, 5, dtype=torch.float64)
    # Two objects of one place and size and of two classes; one that fits an anchor of another map; one that fits two.
    labels[0, 0, :3] = torch.tensor([[1, 0.4, 0.5, 0.5, 0.5], [2, 0.41, 0.52, 0.55, 0.5], [0, 0.8, 0.1, 0.15, 0.27]])
    labels[1, 0, 0] = torch.tensor([0, 0.1, 0.9, 0.7, 0.9])
    anchors = " ".join(f"biases: {w} biases: {h}" for w, h in ANCHORS)
    text = (
        f'type: "Yolov3" yolov3_param {{ num: 2 num_class: 3 {anchors} mask: 1 mask: 3 anchors_scale: 16 thresh: 0.6 '
        f"object_scale: 5 class_scale: 3 coord_scale: 2 iou_thresh: 0.3 use_focal_loss: {str(focal).lower()} "
        f"use_logic_gradient: {str(logic).lower()} }}"
    )
    layer = make_layer(text, x.shape, labels.shape, train=True)
    loss = layer(x, labels)
    d = wanted_differences(x.detach().numpy(), labels.numpy()[:, 0], mask, classes, focal, logic)
    assert_close(loss, (d**2).sum() / 2 * np.ones(()), 1e-9, "loss")
    loss.backward()
    if logic:
        share = 1 / (1 + np.exp(-x.detach().numpy().reshape(2, 2, 8, 3, 4)))
        slope = share * (1 - share)
        slope[:, :, 2:4] = 1
        d = d * slope.reshape(d.shape)
    assert x.grad is not None
    assert_close(x.grad, d / 2, 1e-9, "gradient")
    assert len({*np.sign(d.reshape(2, 2, 8, 3, 4)[:, :, 5:]).ravel()}) == 3
