"""Boxes of detectors: overlaps, codes, suppression, PriorBox and DetectionOutput beside what the recordings show."""

from __future__ import annotations

import math

import golden_cases
import numpy as np
import pytest
import torch
from golden_cases import assert_close
from golden_runs import forward
from layer_maker import make_layer, seeded

from fcnproto.dialects import boxes as box
from fcnproto.errors import FcnprotoWarning, LayerError


def random_boxes(count: int, seed: int) -> torch.Tensor:
    corners = seeded(count, 2, seed=seed)
    return torch.cat([corners, corners + seeded(count, 2, seed=seed + 1).abs() + 0.1], 1)


def overlap(a: list[float], b: list[float], one: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    shared = width * height if width > 0 and height > 0 else 0.0
    sizes = [(c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b)]
    return shared / (sum(sizes) - shared)


@pytest.mark.parametrize("one", [0, 1])
def test_overlaps(one: int) -> None:
    a, b = random_boxes(6, 1), random_boxes(7, 5)
    expected = [[overlap(p, q, one) for q in b.tolist()] for p in a.tolist()]
    assert_close(box.overlaps(a, b, one), np.array(expected), 1e-12, "overlaps")


def test_a_box_that_ends_before_it_begins_overlaps_nothing() -> None:
    inverted, whole = torch.tensor([[2.0, 0, 1, 3]]), torch.tensor([[0.0, 0, 3, 3]])
    assert box.area(inverted).tolist() == [0] and box.overlaps(inverted, whole).tolist() == [[0]]


@pytest.mark.parametrize("code", [box.CORNER, box.CENTER_SIZE, box.CORNER_SIZE])
@pytest.mark.parametrize("variances", [None, torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=torch.float64)])
def test_codes_there_and_back(code: int, variances: torch.Tensor | None) -> None:
    priors, boxes = random_boxes(9, 2), random_boxes(9, 8)
    values = box.encode(code, priors, variances, boxes)
    assert_close(box.decode(code, priors, variances, values), boxes.numpy(), 1e-12, "boxes")


@pytest.mark.parametrize(
    ("threshold", "eta", "strict"), [(0.3, 1, False), (0.3, 1, True), (0.9, 0.6, False), (0, 1, False)]
)
def test_suppression_box_by_box(threshold: float, eta: float, strict: bool) -> None:
    boxes = random_boxes(60, 3).float()
    kept: list[int] = []
    limit = threshold
    for i, candidate in enumerate(boxes.tolist()):
        found = [overlap(candidate, boxes[k].tolist(), 0) for k in kept]
        if all(value < limit if strict else value <= limit for value in found):
            kept.append(i)
            if eta < 1 and limit > 0.5:
                limit *= eta
    assert box.suppress(boxes, threshold, eta, strict=strict).tolist() == kept and 1 < len(kept) < 60


def test_suppression_of_nothing() -> None:
    assert box.suppress(torch.zeros(0, 4), 0.5).tolist() == []


def test_priors_by_their_definition() -> None:
    settings = "min_size: 20 min_size: 31.9 max_size: 40 max_size: 60.5 aspect_ratio: 2 aspect_ratio: 3 step: 16"
    layer = make_layer(f'type: "PriorBox" prior_box_param {{ {settings} }}', (1, 2, 2, 3), (1, 3, 40, 50))
    top = layer(torch.zeros(1, 2, 2, 3), torch.zeros(1, 3, 40, 50))
    expected = []
    for h in range(2):
        for w in range(3):
            for small, large in ((20, 40), (31, 60)):
                sizes = [(small, small), (math.sqrt(small * large),) * 2]
                for ratio in (2, 1 / 2, 3, 1 / 3):
                    sizes.append((small * math.sqrt(ratio), small / math.sqrt(ratio)))
                for width, height in sizes:
                    x, y = (w + 0.5) * 16, (h + 0.5) * 16
                    expected += [
                        (x - width / 2) / 50,
                        (y - height / 2) / 40,
                        (x + width / 2) / 50,
                        (y + height / 2) / 40,
                    ]
    assert layer.top_shapes([(1, 2, 2, 3), (1, 3, 40, 50)]) == [tuple(top.shape)] == [(1, 2, len(expected))]
    assert_close(top[0, 0], np.float32(expected), 1e-6, "boxes")
    assert_close(top[0, 1], np.full(len(expected), np.float32(0.1)), 1e-6, "variances")


def test_detections_keep_the_best_of_all_classes() -> None:
    """Two far boxes, three classes, keep_top_k 2: the two best scores, by label."""
    settings = "num_classes: 3 keep_top_k: 2 confidence_threshold: 0.1 nms_param { nms_threshold: 0.5 }"
    layer = make_layer(
        f'type: "DetectionOutput" detection_output_param {{ {settings} code_type: CORNER }}', (1, 8), (1, 6), (1, 2, 8)
    )
    priors = torch.tensor([0.0, 0, 0.2, 0.2, 0.6, 0.6, 0.9, 0.9]).repeat(2).view(1, 2, 8)
    scores = torch.tensor([[0.1, 0.3, 0.8, 0.2, 0.7, 0.6]])
    rows = layer(torch.zeros(1, 8), scores, priors)[0, 0]
    assert_close(rows[:, :3], np.float32([[0, 1, 0.7], [0, 2, 0.8]]), 1e-6, "rows")
    assert_close(rows[:, 3:], np.float32([[0.6, 0.6, 0.9, 0.9], [0, 0, 0.2, 0.2]]), 1e-6, "boxes")


def test_files_of_detections_are_not_written() -> None:
    settings = 'num_classes: 2 save_output_param { output_directory: "/x" }'
    with pytest.warns(FcnprotoWarning, match="save_output_param has no effect"):
        make_layer(f'type: "DetectionOutput" detection_output_param {{ {settings} }}', (1, 8), (1, 4), (1, 2, 8))


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "PriorBox"', [(1, 2, 2, 3), (1, 3, 40, 50)], "min_size is missing"),
        ('type: "PriorBox" prior_box_param { min_size: 9 max_size: 9 }', [(1, 2, 2, 3), (1, 3, 4, 5)], "above its min_size"),
        ('type: "PriorBox" prior_box_param { min_size: 9 variance: 1 variance: 2 }', [(1, 2, 2, 3), (1, 3, 4, 5)], "variance"),
        ('type: "PriorBox" prior_box_param { min_size: 9 step: 1 step_h: 2 }', [(1, 2, 2, 3), (1, 3, 4, 5)], "give either step"),
        ('type: "DetectionOutput"', [(1, 8), (1, 4), (1, 2, 8)], "num_classes is missing"),
        ('type: "DetectionOutput" detection_output_param { num_classes: 3 }', [(1, 8), (1, 4), (1, 2, 8)], "don't go with"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError) as caught:
        make_layer(text, *shapes)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [name for name in golden_cases.names("dialects") if name.startswith("priorbox")])
def test_priors_are_the_forks_to_the_last_bit(name: str) -> None:
    """Priors of one size within an object overlap it equally: which is matched hangs on their last bits."""
    case = golden_cases.load("dialects", name)
    options = {"dialect": case.facts["dialect"]} if case.facts["needs_dialect"] else {}
    _, _, out = forward(case, **options)
    np.testing.assert_array_equal(out["y"].detach(), case.keys("out")["y"])


def test_clustered_priors() -> None:
    layer = make_layer(
        'type: "PriorBoxClustered" prior_box_param { width: 8 height: 4 width: 10 height: 20 step_w: 10 step_h: 12 }',
        (1, 4, 2, 3),
        (1, 3, 30, 40),
    )
    boxes, variances = layer(torch.zeros(1, 4, 2, 3), torch.zeros(1, 3, 30, 40))[0].view(2, 2, 3, 2, 4).double()
    for i, j, k in np.ndindex(2, 3, 2):
        (w, h), x, y = ((8, 4), (10, 20))[k], (j + 0.5) * 10, (i + 0.5) * 12
        wanted = [(x - w / 2) / 40, (y - h / 2) / 30, (x + w / 2) / 40, (y + h / 2) / 30]
        assert np.allclose(boxes[i, j, k].numpy(), wanted, atol=1e-6)
    assert torch.allclose(variances, torch.tensor(0.1).double())
    with pytest.raises(LayerError, match="as many of width as of height"):
        make_layer('type: "PriorBoxClustered" prior_box_param { width: 8 }', (1, 4, 2, 3), (1, 3, 30, 40))
