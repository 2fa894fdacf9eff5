"""The target layers of py-faster-rcnn against plain loops, where chance leaves nothing open, and how chance chooses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

import fcnproto
from fcnproto.errors import DataError, LayerError

Row = list[float]
TEXT = 'type: "Python" python_param {{ module: "rpn.{}_target_layer" layer: "{}TargetLayer" param_str: "{}" }}'


def overlap(a: Row, b: Row) -> float:
    w, h = (min(a[2 + i], b[2 + i]) - max(a[i], b[i]) + 1 for i in (0, 1))
    shared = w * h if w > 0 and h > 0 else 0
    return shared / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - shared)


def values_for(a: Row, b: Row) -> Row:
    made = [((b[i] + b[2 + i]) / 2 - (a[i] + a[2 + i]) / 2) / (a[2 + i] - a[i] + 1) for i in (0, 1)]
    # With the last pixel a centre is half a pixel further, on both sides alike.
    return [*made, *(math.log((b[2 + i] - b[i] + 1) / (a[2 + i] - a[i] + 1)) for i in (0, 1))]


OBJECTS = torch.tensor([[10, 12, 40, 50, 3], [30, 5, 75, 30, 1], [55, 30, 90, 60, 2]], dtype=torch.float64)
HEIGHT, WIDTH = 5, 6


@pytest.mark.parametrize(
    ("extra", "negative", "clobbers", "weight"),
    [
        ("", 0.3, False, -1),
        ("\\nrpn_negative_overlap: 0.6\\nrpn_clobber_positives: 1\\nrpn_positive_weight: 0.2", 0.6, True, 0.2),
    ],
)
def test_what_anchors_are_to_be(extra: str, negative: float, clobbers: bool, weight: float) -> None:
    options = "feat_stride: 16\\nscales: [1, 2]\\nrpn_batchsize: 1000\\nallowed_border: 4\\nrpn_positive_overlap: 0.5"
    shapes = [(1, 12, HEIGHT, WIDTH), (3, 5), (1, 3), (1, 3, 80, 96)]
    layer = make_layer(TEXT.format("anchor", "Anchor", options + extra), *shapes, tops=4, train=True)
    tops = layer(seeded(*shapes[0]), OBJECTS, torch.tensor([[78.0, 92, 1]]), torch.zeros(shapes[3]))
    assert [tuple(top.shape) for top in tops] == layer.top_shapes(shapes)
    count, objects = 6, OBJECTS.tolist()
    boxes = {}
    for i, j, a in np.ndindex(HEIGHT, WIDTH, count):
        anchor = layer.anchors[a].tolist()
        placed = [anchor[k] + 16 * (j, i)[k % 2] for k in range(4)]
        if min(placed[:2]) >= -4 and placed[2] < 96 and placed[3] < 82:
            boxes[i, j, a] = placed
    best_of = [max(overlap(box, o[:4]) for box in boxes.values()) for o in objects]
    labels = np.full((count, HEIGHT, WIDTH), -1.0)
    targets, inside = (np.zeros((count, 4, HEIGHT, WIDTH)) for _ in range(2))
    for (i, j, a), placed in boxes.items():
        found = [overlap(placed, o[:4]) for o in objects]
        label = 0 if max(found) < negative else -1
        if max(found) >= 0.5 or any(f == b for f, b in zip(found, best_of, strict=True)):
            label = 0 if clobbers and max(found) < negative else 1
        labels[a, i, j] = label
        targets[a, :, i, j] = values_for(placed, objects[int(np.argmax(found))][:4])
        inside[a, :, i, j] = label == 1
    assert {-1, 0, 1} == set(labels.ravel())
    assert_close(tops[0], labels.reshape(1, 1, count * HEIGHT, WIDTH), 0, "labels")
    assert_close(tops[1], targets.reshape(1, 4 * count, HEIGHT, WIDTH), 1e-12, "targets")
    assert_close(tops[2], inside.reshape(1, 4 * count, HEIGHT, WIDTH), 0, "inside weights")
    one, none = (labels == 1).sum(), (labels == 0).sum()
    shares = (1 / (one + none),) * 2 if weight < 0 else (weight / one, (1 - weight) / none)
    outside = np.where(labels == 1, shares[0], np.where(labels == 0, shares[1], 0))
    outside = np.broadcast_to(outside[:, None], inside.shape).reshape(1, -1, HEIGHT, WIDTH)
    assert_close(tops[3], outside, 1e-12, "outside weights")


def test_chance_keeps_as_many_anchors_as_the_batch_has() -> None:
    options = "feat_stride: 16\\nscales: [1, 2]\\nrpn_batchsize: 6\\nrpn_positive_overlap: 0.3"
    layer = make_layer(TEXT.format("anchor", "Anchor", options), (1, 12, 5, 6), (3, 5), (1, 3), tops=4, train=True)
    seen = []
    for seed in range(3):
        torch.manual_seed(seed)
        labels, _, inside, outside = layer(seeded(1, 12, 5, 6), OBJECTS, torch.tensor([[80.0, 96, 1]]))
        assert int((labels == 1).sum()) == 3 and int((labels == 0).sum()) == 3
        assert inside.sum() == 12 and abs(float(outside.sum()) - 4) < 1e-9
        seen.append(labels)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_no_objects_are_all_background() -> None:
    layer = make_layer(
        TEXT.format("anchor", "Anchor", "feat_stride: 16\\nscales: 1"), (1, 6, 5, 6), (0, 5), (1, 3), tops=4
    )
    labels, targets, _, _ = layer(seeded(1, 6, 5, 6), OBJECTS[:0], torch.tensor([[80.0, 96, 1]]))
    assert set(labels.flatten().tolist()) == {-1, 0} and not targets.any()


PROPOSED = torch.tensor(
    [[0, 11, 12, 41, 52], [0, 28, 4, 70, 33], [0, 60, 32, 95, 66], [0, 0, 0, 20, 20], [0, 70, 2, 95, 20]],
    dtype=torch.float64,
)


@pytest.mark.parametrize("precomputed", [True, False])
@pytest.mark.parametrize("classes", [4, 2])
def test_what_regions_are_to_be(precomputed: bool, classes: int) -> None:
    options = f"num_classes: {classes}\\nbatch_size: -1\\nbbox_normalize_targets_precomputed: {precomputed}"
    layer = make_layer(TEXT.format("proposal", "Proposal", options), (5, 5), (3, 5), tops=5, train=True)
    tops = layer(PROPOSED, OBJECTS)
    assert all(top.shape[2:] == (1, 1) for top in tops)
    rows, labels, targets, inside, outside = (top.flatten(1) for top in tops)
    labels = labels.flatten()
    candidates = [*(row[1:] for row in PROPOSED.tolist()), *(row[:4] for row in OBJECTS.tolist())]
    expected = {}
    for candidate in candidates:
        found = [overlap(candidate, o[:4]) for o in OBJECTS.tolist()]
        whose = OBJECTS[int(np.argmax(found))].tolist()
        label = int(whose[4]) if max(found) >= 0.5 else 0
        target = np.zeros((classes, 4))
        if label:
            values = np.array(values_for(candidate, whose[:4]))
            target[1 if classes == 2 else label] = values / (0.1, 0.1, 0.2, 0.2) if precomputed else values
        expected[tuple(candidate)] = (label, target.ravel())
    assert len(rows) == len(candidates) and not rows[:, 0].any()
    assert sorted(map(tuple, rows[:, 1:].tolist())) == sorted(expected)
    for row, label, target, weight in zip(rows.tolist(), labels.tolist(), targets, inside, strict=True):
        assert label == expected[tuple(row[1:])][0]
        assert_close(target, expected[tuple(row[1:])][1], 1e-12, "targets")
        assert weight.sum() == (4 if label else 0) and not (weight == 0)[target != 0].any()
    assert torch.equal(inside, outside) and (labels[: int((labels > 0).sum())] > 0).all()


def test_chance_keeps_a_share_of_objects() -> None:
    options = "num_classes: 4\\nbatch_size: 4\\nfg_fraction: 0.5\\nbg_thresh_lo: 0.01"
    layer = make_layer(TEXT.format("proposal", "Proposal", options), (5, 5), (3, 5), tops=5, train=True)
    rows, labels, *_ = layer(PROPOSED, OBJECTS)
    labels = labels.flatten()
    assert (labels > 0).tolist() == [True, True] + [False] * (len(labels) - 2) and 2 < len(labels) <= 4
    assert len(rows) == len(labels)


@pytest.mark.parametrize(
    ("kind", "options", "shape", "words"),
    [
        ("anchor", "scales: 1", (1, 6, 2, 2), "lacks 'feat_stride'"),
        ("anchor", "feat_stride: 16", (2, 6, 2, 2), "of one image"),
        ("anchor", "feat_stride: 16\\nrpn_positive_weight: 2", (1, 6, 2, 2), "below 0 or within 0..1"),
        ("anchor", "feat_stride: 16\\nrpn_bbox_inside_weights: 1", (1, 6, 2, 2), "takes four numbers"),
        ("proposal", "batch_size: 1", (2, 5), "lacks 'num_classes'"),
        ("proposal", "num_classes: 1", (2, 5), "counts the background too"),
        ("proposal", "num_classes: 3", (2, 4), r"needs regions \(R, 5\)"),
    ],
)
def test_what_does_not_go(kind: str, options: str, shape: tuple[int, ...], words: str) -> None:
    others = [(3, 5), (1, 3)] if kind == "anchor" else [(3, 5)]
    with pytest.raises(LayerError, match=words):
        make_layer(TEXT.format(kind, kind.capitalize(), options), shape, *others)


def test_what_does_not_go_at_the_call() -> None:
    layer = make_layer(TEXT.format("proposal", "Proposal", "num_classes: 3"), (5, 5), (3, 5), tops=5)
    with pytest.raises(LayerError, match="an object is of class 3; num_classes is 3"):
        layer(PROPOSED, OBJECTS)
    with pytest.raises(LayerError, match="of one image, image 0"):
        layer(PROPOSED + 1, OBJECTS)


def python(name: str, module: str, kind: str, options: str, bottoms: str, tops: str) -> str:
    names = " ".join(f'bottom: "{b}"' for b in bottoms.split()) + " " + " ".join(f'top: "{t}"' for t in tops.split())
    return (
        f'layer {{ name: "{name}" type: "Python" {names} '
        f'python_param {{ module: "{module}" layer: "{kind}" param_str: "{options}" }} }}\n'
    )


def learned(name: str, kind: str, bottom: str, settings: str) -> str:
    field = {"Convolution": "convolution_param", "InnerProduct": "inner_product_param"}[kind]
    filler = 'weight_filler { type: "gaussian" std: 0.05 }'
    ends = f'bottom: "{bottom}" top: "{name}"'
    return f'layer {{ name: "{name}" type: "{kind}" {ends} {field} {{ {settings} {filler} }} }}\n'


def losses(name: str, scores: str, labels: str, values: str, weights: str) -> str:
    given = " ".join(f'bottom: "{weights}{i}"' for i in range(3))
    return (
        f'layer {{ name: "{name}_class" type: "SoftmaxWithLoss" bottom: "{scores}" bottom: "{labels}" '
        f'top: "{name}_class" loss_param {{ ignore_label: -1 }} }}\n'
        f'layer {{ name: "{name}_box" type: "SmoothL1Loss" bottom: "{values}" {given} top: "{name}_box" }}\n'
    )


def test_a_detector_trains_end_to_end(tmp_path: Path) -> None:
    """The tops of the data layer are given; everything else is computed, at two sizes."""
    anchors = "'feat_stride': 16 \\n'scales': [1, 2, 4]"
    reshape = 'layer {{ name: "{0}" type: "Reshape" bottom: "{1}" top: "{0}" reshape_param {{ shape {{ {2} }} }} }}\n'
    text = (
        python("input", "roi_data_layer.layer", "RoIDataLayer", "'num_classes': 4", "", "data im_info gt_boxes")
        + learned("conv", "Convolution", "data", "num_output: 8 kernel_size: 16 stride: 16")
        + learned("score", "Convolution", "conv", "num_output: 18 kernel_size: 1")
        + learned("values", "Convolution", "conv", "num_output: 36 kernel_size: 1")
        + reshape.format("halves", "score", "dim: 0 dim: 2 dim: -1 dim: 0")
        + python(
            "rpn-data",
            "rpn.anchor_target_layer",
            "AnchorTargetLayer",
            anchors,
            "score gt_boxes im_info data",
            "anchor_labels a0 a1 a2",
        )
        + losses("first", "halves", "anchor_labels", "values", "a")
        + 'layer { name: "prob" type: "Softmax" bottom: "halves" top: "prob" }\n'
        + reshape.format("whole", "prob", "dim: 0 dim: 18 dim: -1 dim: 0")
        + python("proposal", "rpn.proposal_layer", "ProposalLayer", anchors, "whole values im_info", "proposed")
        + python(
            "roi-data",
            "rpn.proposal_target_layer",
            "ProposalTargetLayer",
            "'num_classes': 4",
            "proposed gt_boxes",
            "rois labels t0 t1 t2",
        )
        + 'layer { name: "pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "pool" '
        "roi_pooling_param { pooled_w: 2 pooled_h: 2 spatial_scale: 0.0625 } }\n"
        + learned("classes", "InnerProduct", "pool", "num_output: 4")
        + learned("boxes", "InnerProduct", "pool", "num_output: 16")
        + losses("second", "classes", "labels", "boxes", "t")
    )
    path = tmp_path / "train.prototxt"
    path.write_text(text)
    torch.manual_seed(1)
    net = fcnproto.load(path, phase="train")
    with pytest.raises(DataError, match="give data, im_info, gt_boxes at the call"):
        net()
    for height, width in ((96, 128), (160, 112)):
        info = torch.tensor([[height, width, 1.0]])
        out = net(data=torch.randn(1, 3, height, width), im_info=info, gt_boxes=OBJECTS.float())
        assert sorted(out) == ["first_box", "first_class", "second_box", "second_class"]
        assert all(torch.isfinite(value) and value > 0 for value in out.values())
        net.loss(out).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for blobs in net.params.values() for p in blobs)


@pytest.mark.parametrize("tops", ["data rois labels", "data rois labels bbox_targets inside outside"])
def test_regions_of_a_database_have_known_shapes(tops: str, tmp_path: Path) -> None:
    text = python("data", "roi_data_layer.layer", "RoIDataLayer", "'num_classes': 4", "", tops)
    text += learned("conv", "Convolution", "data", "num_output: 8 kernel_size: 16 stride: 16")
    text += 'layer { name: "pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "pool" '
    text += "roi_pooling_param { pooled_w: 2 pooled_h: 2 spatial_scale: 0.0625 } }\n"
    text += learned("classes", "InnerProduct", "pool", "num_output: 4")
    text += 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "classes" bottom: "labels" top: "loss" }\n'
    if "bbox" in tops:
        text += learned("boxes", "InnerProduct", "pool", "num_output: 16")
        given = " ".join(f'bottom: "{b}"' for b in ("boxes", "bbox_targets", "inside", "outside"))
        text += f'layer {{ name: "box" type: "SmoothL1Loss" {given} top: "box" }}'
    path = tmp_path / "train.prototxt"
    path.write_text(text)
    net = fcnproto.load(path, phase="train")
    assert net.params["classes"][0].shape == (4, 32)
    rois = torch.tensor([[0, 5, 5, 60, 60], [1, 0, 0, 30, 90.0]])
    values = {"bbox_targets": torch.ones(2, 16), "inside": torch.ones(2, 16), "outside": torch.ones(2, 16)}
    out = net(
        data=torch.randn(2, 3, 96, 96), rois=rois, labels=torch.tensor([1.0, 0]), **(values if "bbox" in tops else {})
    )
    assert all(torch.isfinite(value) for value in out.values()) and "loss" in out
