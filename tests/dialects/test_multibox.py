"""MultiBoxLoss against a plain computation box by box, with settings beside those of the recordings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer

import fcnproto
from fcnproto.errors import FcnprotoWarning, LayerError
from fcnproto.parity.ties import near_ties

ITEMS, PRIORS, CLASSES = 3, 24, 4
Row = list[float]


def case(seed: int, classes: int, locations: int) -> list[np.ndarray]:
    """Locations, confidences, priors and truth; the second image has no objects, a row is empty, one is difficult."""
    draw = np.random.default_rng(seed)
    corners = draw.uniform(-0.1, 0.7, (PRIORS, 2))
    priors = np.concatenate([corners, corners + draw.uniform(0.1, 0.5, (PRIORS, 2))], 1)
    variances = draw.uniform(0.1, 0.3, (PRIORS, 4))
    truth = np.zeros((7, 8))
    truth[:, 0] = [0, 0, 0, -1, 2, 2, 2]
    truth[:, 1] = draw.integers(1, classes, 7)
    truth[:, 3:7] = priors[draw.choice(PRIORS, 7, replace=False)] + draw.uniform(-0.03, 0.03, (7, 4))
    truth[5, 7] = 1
    return [
        draw.normal(0, 0.7, (ITEMS, PRIORS * locations * 4)),
        draw.normal(0, 2, (ITEMS, PRIORS * classes)),
        np.stack([priors.ravel(), variances.ravel()])[None],
        truth[None, None],
    ]


def overlap(a: Row, b: Row) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    sizes = [0.0 if c[2] < c[0] or c[3] < c[1] else (c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(sizes) - shared) if shared else 0.0


def decoded(code: str, prior: Row, variance: Row, value: Row) -> Row:
    v = [a * b for a, b in zip(value, variance, strict=True)]
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if code == "CORNER":
        return [p + a for p, a in zip(prior, v, strict=True)]
    if code == "CORNER_SIZE":
        return [p + a * s for p, a, s in zip(prior, v, (width, height, width, height), strict=True)]
    x, y = (prior[0] + prior[2]) / 2 + v[0] * width, (prior[1] + prior[3]) / 2 + v[1] * height
    w, h = width * math.exp(v[2]), height * math.exp(v[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def encoded(code: str, prior: Row, variance: Row, target: Row) -> Row:
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if code == "CENTER_SIZE":
        values = [
            (target[0] + target[2] - prior[0] - prior[2]) / 2 / width,
            (target[1] + target[3] - prior[1] - prior[3]) / 2 / height,
            math.log((target[2] - target[0]) / width),
            math.log((target[3] - target[1]) / height),
        ]
    else:
        sizes = (width, height, width, height) if code == "CORNER_SIZE" else (1, 1, 1, 1)
        values = [(t - p) / s for t, p, s in zip(target, prior, sizes, strict=True)]
    return [a / b for a, b in zip(values, variance, strict=True)]


def matched(boxes: list[Row], objects: list[Row], settings: dict[str, Any]) -> tuple[list[int], list[float]]:
    found, overlaps = [-1] * len(boxes), {}
    for i, candidate in enumerate(boxes):
        if settings.get("ignore_cross_boundary_bbox") and not all(0 <= c <= 1 for c in candidate):
            found[i] = -2
            continue
        for j, target in enumerate(objects):
            if overlap(candidate, target) > 1e-6:
                overlaps[i, j] = overlap(candidate, target)
    best = [max((v for (i, _), v in overlaps.items() if i == n), default=0.0) for n in range(len(boxes))]
    taken: set[int] = set()
    while pairs := [(v, i, j) for (i, j), v in overlaps.items() if found[i] == -1 and j not in taken]:
        _, i, j = max(pairs)
        found[i] = j
        taken.add(j)
    if settings.get("match_type", "PER_PREDICTION") == "PER_PREDICTION":
        limit = settings.get("overlap_threshold", 0.5)
        for i in range(len(boxes)):
            pairs = [(v, 0, j) for (n, j), v in overlaps.items() if n == i and v >= limit]
            if found[i] == -1 and pairs:
                found[i] = max(pairs)[2]
    return found, best


def confidence_cost(kind: str, scores: Row, label: int | None) -> float:
    if kind == "SOFTMAX":
        assert label is not None
        return math.log(sum(math.exp(s) for s in scores)) - scores[label]
    return sum(math.log(1 + math.exp(s)) - (s if c == label else 0) for c, s in enumerate(scores))


def location_cost(kind: str, value: Row, target: Row) -> float:
    apart = [abs(a - b) for a, b in zip(value, target, strict=True)]
    if kind == "L2":
        return sum(d * d / 2 for d in apart)
    return sum(d * d / 2 if d < 1 else d - 0.5 for d in apart)


def reference(settings: dict[str, Any], blobs: list[np.ndarray], mode: str = "VALID") -> float:
    """MultiBoxLoss for settings as in the prototxt, everything in loops."""
    get = settings.get
    classes, shared, background = settings["num_classes"], get("share_location", True), get("background_label_id", 0)
    code, mining = get("code_type", "CORNER"), get("mining_type", "MAX_NEGATIVE")
    kinds = get("loc_loss_type", "SMOOTH_L1"), get("conf_loss_type", "SOFTMAX")
    places = 1 if shared else classes
    locations = blobs[0].reshape(ITEMS, PRIORS, places, 4).tolist()
    scores = blobs[1].reshape(ITEMS, PRIORS, classes).tolist()
    priors, variances = blobs[2].reshape(2, PRIORS, 4).tolist()
    location, confidence, matches = 0.0, 0.0, 0
    for n in range(ITEMS):
        rows = [
            r for r in blobs[3].reshape(-1, 8).tolist() if r[0] == n and (get("use_difficult_gt", True) or not r[7])
        ]
        labels: dict[int, list[int]] = {}
        pairs: list[tuple[int, int, list[Any]]] = []
        for c in range(places):
            if not shared and c == background:
                continue
            predictions = [
                decoded(code, *args) for args in zip(priors, variances, [v[c] for v in locations[n]], strict=True)
            ]
            used = priors if get("use_prior_for_matching", True) else predictions
            own = [r for r in rows if shared or get("use_prior_for_matching", True) or r[1] == c]
            found, best = matched(used, [r[3:7] for r in own], settings)
            for i, j in enumerate(found):
                if j >= 0 and (shared or own[j][1] == c):
                    target = encoded(code, priors[i], variances[i], own[j][3:7])
                    value = [
                        t if get("bp_inside") and not 0 <= box <= 1 else v
                        for v, t, box in zip(locations[n][i][c], target, used[i], strict=True)
                    ]
                    pairs.append((i, int(own[j][1]), [value, target]))
        chosen: list[int] = []
        if rows and mining != "NONE":
            losses = [confidence_cost(kinds[1], s, background) for s in scores[n]]
            for i, label, pair in pairs:
                losses[i] = confidence_cost(kinds[1], scores[n][i], label)
                losses[i] += location_cost(kinds[0], *pair) if mining == "HARD_EXAMPLE" else 0
            can = [i for i in range(PRIORS) if found[i] == -1 and best[i] < get("neg_overlap", 0.5)]
            count = int(len(pairs) * get("neg_pos_ratio", 3.0))
            if mining == "HARD_EXAMPLE":
                can, count = list(range(PRIORS)), get("sample_size", 64)
            can.sort(key=lambda i: -losses[i])
            if "nms_param" in settings:
                boxes = priors if get("use_prior_for_nms") else predictions
                kept: list[int] = []
                for i in can[: settings["nms_param"]["top_k"]]:
                    size = (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1])
                    if size >= 1e-5 and all(
                        overlap(boxes[k], boxes[i]) <= settings["nms_param"]["nms_threshold"] for k in kept
                    ):
                        kept.append(i)
                can = kept
            chosen = can[:count]
            if mining == "HARD_EXAMPLE":
                pairs = [p for p in pairs if p[0] in chosen]
            chosen = [i for i in chosen if found[i] == -1]
        matches += len(pairs)
        location += sum(location_cost(kinds[0], *pair) for _, _, pair in pairs)
        for i, label, _ in pairs:
            labels.setdefault(i, []).append(label)
        if mining != "NONE":
            confidence += sum(confidence_cost(kinds[1], scores[n][i], label) for i, label, _ in pairs)
            confidence += sum(confidence_cost(kinds[1], scores[n][i], background) for i in chosen)
        elif kinds[1] == "SOFTMAX":
            confidence += sum(
                confidence_cost("SOFTMAX", s, labels.get(i, [background])[-1]) for i, s in enumerate(scores[n])
            )
        else:
            for i, s in enumerate(scores[n]):
                confidence += confidence_cost("LOGISTIC", s, None) - sum(s[c] for c in set(labels.get(i, [])))
    divisors = {"VALID": matches, "FULL": ITEMS * PRIORS, "BATCH_SIZE": ITEMS, "NONE": 1}
    return (get("loc_weight", 1.0) * location + confidence) / max(divisors[mode], 1)


def text_of(settings: dict[str, Any]) -> str:
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            words.append(f"{name} {{ {text_of(value)} }}")
        else:
            words.append(f"{name}: {str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(words)


def layer_for(settings: dict[str, Any], blobs: list[np.ndarray], mode: str = "VALID") -> Any:
    text = f'type: "MultiBoxLoss" multibox_loss_param {{ {text_of(settings)} }} loss_param {{ normalization: {mode} }}'
    return make_layer(text, *[b.shape for b in blobs], train=True)


NMS = {"nms_threshold": 0.3, "top_k": 15}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"neg_pos_ratio": 1.7, "neg_overlap": 0.2, "overlap_threshold": 0.3},
    {"mining_type": "HARD_EXAMPLE", "sample_size": 9},
    {"mining_type": "HARD_EXAMPLE", "sample_size": 9, "nms_param": NMS, "use_prior_for_nms": True},
    {"nms_param": NMS},
    {"mining_type": "NONE"},
    {"mining_type": "NONE", "share_location": False},
    {"mining_type": "NONE", "share_location": False, "use_prior_for_matching": False},
    {"use_prior_for_matching": False, "bp_inside": True},
    {"bp_inside": True, "ignore_cross_boundary_bbox": True, "match_type": "BIPARTITE"},
    {"use_prior_for_matching": False, "ignore_cross_boundary_bbox": True},
    {"use_difficult_gt": False, "loc_weight": 2.5, "loc_loss_type": "L2"},
]
KINDS = list(itertools.product(["SOFTMAX", "LOGISTIC"], ["CORNER", "CENTER_SIZE", "CORNER_SIZE"]))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: " ".join(s) or "default")
@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_loss_box_by_box(settings: dict[str, Any], kind: str, code: str) -> None:
    settings = {"num_classes": CLASSES, "conf_loss_type": kind, "code_type": code, **settings}
    blobs = case(len(settings), CLASSES, 1 if settings.get("share_location", True) else CLASSES)
    layer = layer_for(settings, blobs)
    assert_close(layer(*map(torch.from_numpy, blobs)), np.array(reference(settings, blobs)), 1e-9, "loss")


@pytest.mark.parametrize("mode", ["VALID", "FULL", "BATCH_SIZE", "NONE"])
def test_normalisation(mode: str) -> None:
    settings = {"num_classes": CLASSES}
    blobs = case(5, CLASSES, 1)
    loss = layer_for(settings, blobs, mode)(*map(torch.from_numpy, blobs))
    assert_close(loss, np.array(reference(settings, blobs, mode)), 1e-9, "loss")


@pytest.mark.parametrize(
    "settings",
    [{"mining_type": "HARD_EXAMPLE", "sample_size": 9}, {"conf_loss_type": "LOGISTIC", "bp_inside": True}],
    ids=["hard", "logistic"],
)
def test_gradients(settings: dict[str, Any]) -> None:
    blobs = case(8, CLASSES, 1)
    layer = layer_for({"num_classes": CLASSES, **settings}, blobs)
    locations, scores, priors, truth = map(torch.from_numpy, blobs)
    assert torch.autograd.gradcheck(
        lambda a, b: layer(a, b, priors, truth), (locations.requires_grad_(), scores.requires_grad_()), fast_mode=True
    )


def test_variances_in_the_target_leave_the_gradient_undivided() -> None:
    """Smooth L1's slope at (value - target) / variance, without the factor 1 / variance."""
    blobs = case(3, CLASSES, 1)
    inside = {"num_classes": CLASSES, "encode_variance_in_target": True, "code_type": "CORNER"}
    gradients = []
    for settings in (inside, {**inside, "encode_variance_in_target": False}):
        inputs = [torch.from_numpy(b.copy()) for b in blobs]
        if not settings["encode_variance_in_target"]:
            inputs[0] /= inputs[2][0, 1]
        inputs[0].requires_grad_()
        layer_for(settings, blobs)(*inputs).backward()
        gradients.append(inputs[0].grad)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[0], gradients[1].numpy(), 1e-12, "gradient")


def test_nothing_to_find() -> None:
    blobs = case(1, CLASSES, 1)
    blobs[3][..., 0] = -1
    inputs = [torch.from_numpy(b) for b in blobs]
    inputs[1].requires_grad_()
    loss = layer_for({"num_classes": CLASSES}, blobs)(*inputs)
    loss.backward()
    assert loss.item() == 0 and inputs[1].grad is not None and not inputs[1].grad.any()
    none = [torch.zeros(0, PRIORS * 4), torch.zeros(0, PRIORS * CLASSES), *inputs[2:]]
    assert layer_for({"num_classes": CLASSES}, blobs)(*none).item() == 0


def test_objects_of_any_class_are_one() -> None:
    """map_object_to_agnostic: labels beyond the two classes count as class 1, mined too."""
    blobs = case(2, 2, 1)
    one = layer_for({"num_classes": 2}, blobs)(*map(torch.from_numpy, blobs))
    blobs[3][..., 1] = 7
    settings = {"num_classes": 2, "map_object_to_agnostic": True}
    assert layer_for(settings, blobs)(*map(torch.from_numpy, blobs)).item() == one.item()


def test_the_background_is_no_object() -> None:
    blobs = case(2, CLASSES, 1)
    blobs[3][0, 0, 4, 1] = 0
    with pytest.raises(LayerError, match=r"label 0; objects have labels 0\.\.3 other than the background's, 0"):
        layer_for({"num_classes": CLASSES}, blobs)(*map(torch.from_numpy, blobs))


def test_suppression_without_top_k_is_warned_of() -> None:
    with pytest.warns(FcnprotoWarning, match="without top_k"):
        layer_for({"num_classes": CLASSES, "nms_param": {"nms_threshold": 0.5}}, case(2, CLASSES, 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "num_classes is missing"),
        ({"num_classes": 5}, "24 priors, 5 classes, 1 locations each"),
        ({"num_classes": 4, "share_location": False}, "mining needs share_location"),
        ({"num_classes": 4, "background_label_id": 4}, "background_label_id 4 is outside of the classes 0..3"),
        ({"num_classes": 4, "do_neg_mining": False}, "contradicts mining_type"),
        ({"num_classes": 4, "map_object_to_agnostic": True}, "map_object_to_agnostic needs"),
        ({"num_classes": 4, "mining_type": "HARD_EXAMPLE", "sample_size": 0}, "sample_size must be positive"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(LayerError) as caught:
        layer_for(settings, case(2, CLASSES, 1))
    assert words in str(caught.value)


def test_drawn_bottoms_suit_it() -> None:
    blobs = case(2, CLASSES, 1)
    layer = layer_for({"num_classes": CLASSES, "code_type": "CENTER_SIZE"}, blobs)
    draw = np.random.default_rng(1)
    for bottom in (2, 3):
        values = layer.suitable_values(bottom, blobs[0].shape)
        assert values is not None
        blobs[bottom] = values(draw, blobs[bottom].shape)
    loss = layer(*map(torch.from_numpy, blobs))
    assert loss.isfinite() and loss > 0


def test_mined_examples_that_cost_the_same_are_near_ties(tmp_path: Path) -> None:
    """The worst background examples are mined: where the last taken and the first left cost nearly the same, another
    implementation may rightly take the other."""
    boxes = [0, 0, 0.2, 0.2, 0.5, 0.5, 0.7, 0.7, 0.6, 0, 0.8, 0.2, 0, 0.6, 0.2, 0.8]
    shapes = {"loc": (1, 16), "conf": (1, 8), "prior": (1, 2, 16), "truth": (1, 1, 1, 8)}
    inputs = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {extent}" for extent in shape)
        + " } } }\n"
        for name, shape in shapes.items()
    )
    (tmp_path / "net.prototxt").write_text(
        inputs + 'layer { name: "mbox" type: "MultiBoxLoss" bottom: "loc" bottom: "conf" bottom: "prior" '
        'bottom: "truth" top: "mbox" multibox_loss_param { num_classes: 2 neg_pos_ratio: 1 } }'
    )
    net = fcnproto.load(tmp_path / "net.prototxt", phase="train")
    values = {
        "loc": torch.full((1, 16), 0.5),
        "prior": torch.tensor([boxes, [0.1] * 16]).reshape(1, 2, 16),
        "truth": torch.tensor([0.0, 1, 0, 0, 0, 0.2, 0.2, 0]).reshape(1, 1, 1, 8),
    }
    for second, said in ((1.0 - 2e-7, "1 of 1 selections of examples of mbox are near ties"), (0.5, "")):
        conf = torch.tensor([[0.0, 1, 0, 1, 0, second, 0, -3]])
        assert near_ties(net, {**values, "conf": conf}, ["mbox"], 0.0) == said
