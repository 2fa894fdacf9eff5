"""Losses of detectors beside what the recordings show: weights, normalisers, second tops, the hardest regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import LayerError

SHAPE = (3, 4, 2, 2)


def curve(d: np.ndarray, sigma: float = 1) -> np.ndarray:
    return np.where(np.abs(d) < 1 / sigma**2, 0.5 * (sigma * d) ** 2, np.abs(d) - 0.5 / sigma**2)


def slope(d: np.ndarray, sigma: float = 1) -> np.ndarray:
    return np.where(np.abs(d) < 1 / sigma**2, sigma**2 * d, np.sign(d))


def bottoms(count: int) -> list[torch.Tensor]:
    return [seeded(*SHAPE, seed=i).mul(2).requires_grad_() for i in range(count)]


@pytest.mark.parametrize("sigma", [1, 3])
def test_smooth_l1_with_weights_of_any_sign(sigma: int) -> None:
    text = f'type: "SmoothL1Loss" smooth_l1_loss_param {{ sigma: {sigma} }}'
    layer = make_layer(text, *[SHAPE] * 4, tops=2)
    given = bottoms(4)
    loss, each = layer(*given)
    a, b, inside, outside = (t.detach().numpy() for t in given)
    costs = outside * curve(inside * (a - b), sigma)
    assert_close(loss, costs.sum() / 3, 1e-12, "loss")
    assert_close(each, costs.sum(1, keepdims=True), 1e-12, "each")
    assert not each.requires_grad and [tuple(loss.shape), tuple(each.shape)] == layer.top_shapes([SHAPE] * 4)
    loss.backward()
    gradient = outside * inside * slope(inside * (a - b), sigma) / 3
    assert_close(given[0].grad, gradient, 1e-12, "gradient")
    assert_close(given[1].grad, -gradient, 1e-12, "gradient of the targets")
    assert given[2].grad is None and given[3].grad is None


@pytest.mark.parametrize("count", [2, 3, 4])
def test_synopsys_adds_amounts_and_leaves_inner_weights_out_of_the_gradient(count: int) -> None:
    layer = make_layer('type: "SmoothL1Loss" smooth_l1_loss_param { abssum: true }', *[SHAPE] * count)
    given = bottoms(count)
    loss = layer(*given)
    a, b, inside, outside = (*(t.detach().numpy() for t in given), *[np.ones(SHAPE)] * 2)[:4]
    assert_close(loss, np.abs(outside * curve(inside * (a - b))).sum() / 3, 1e-12, "loss")
    loss.backward()
    assert_close(given[0].grad, outside * slope(inside * (a - b)) / 3, 1e-12, "gradient")


@pytest.mark.parametrize(
    ("settings", "divisor"),
    [("", 12), ("normalization: FULL", 12), ("normalization: BATCH_SIZE", 3), ("normalization: NONE", 1)]
    + [("normalization: PRE_FIXED pre_fixed_normalizer: 7.5", 7.5), ("normalize: false", 3)]
    + [("normalization: PRE_FIXED pre_fixed_normalizer: 0.5", 1)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_smooth_l1_of_hard_examples(settings: str, divisor: float, weighted: bool) -> None:
    text = f'type: "SmoothL1LossOHEM" loss_param {{ {settings} }}'
    layer = make_layer(text, *[SHAPE] * (2 + weighted), tops=2)
    given = bottoms(2 + weighted)
    loss, each = layer(*given)
    a, b, weights = (*(t.detach().numpy() for t in given), np.ones(SHAPE))[:3]
    costs = curve(weights * (a - b))
    assert_close(loss, costs.sum() / divisor, 1e-12, "loss")
    assert_close(each, costs.sum(1, keepdims=True), 1e-12, "each")
    loss.backward()
    assert_close(given[0].grad, slope(weights * (a - b)) / divisor, 1e-12, "gradient")
    assert_close(given[1].grad, -slope(weights * (a - b)) / divisor, 1e-12, "gradient of the targets")


@pytest.mark.parametrize("tops", [1, 2, 3])
def test_softmax_of_hard_examples_with_an_ignored_label(tops: int) -> None:
    text = 'type: "SoftmaxWithLossOHEM" loss_param { ignore_label: 1 normalization: PRE_FIXED pre_fixed_normalizer: 5 }'
    layer = make_layer(text, (2, 3, 2, 1), (2, 1, 2, 1), tops=tops)
    scores, labels = seeded(2, 3, 2, 1).requires_grad_(), torch.tensor([0.0, 1, 2, 0]).view(2, 1, 2, 1)
    made = layer(scores, labels)
    made = made if tops > 1 else (made,)
    probabilities = scores.detach().softmax(1).numpy()
    picked = np.take_along_axis(probabilities, labels.numpy().astype(int), 1)
    costs = np.where(labels.numpy() == 1, 0, -np.log(picked))
    expected = [costs.sum() / 5, probabilities, costs]
    assert len(made) == tops
    for value, wanted in zip(made, expected, strict=False):
        assert_close(value, wanted, 1e-12, "a top")
    made[0].backward()
    onehot = np.eye(3)[labels.numpy().astype(int)[:, 0]].transpose(0, 3, 1, 2)
    assert_close(scores.grad, (probabilities - onehot) * (labels.numpy() != 1) / 5, 1e-12, "gradient")


def test_a_fixed_normalizer_of_softmax_with_loss() -> None:
    text = 'type: "%s" loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 12 }'
    scores, labels = seeded(4, 3), torch.tensor([0.0, 1, 2, 0])
    expected = torch.nn.functional.cross_entropy(scores, labels.long(), reduction="sum") / 12
    assert_close(make_layer(text % "SoftmaxWithLoss", (4, 3), (4,))(scores, labels), expected.numpy(), 1e-12, "loss")
    targets = (seeded(4, 3, seed=4) > 0).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="sum") / 12
    layer = make_layer(text % "SigmoidCrossEntropyLoss", (4, 3), (4, 3))
    assert_close(layer(scores, targets), expected.numpy(), 1e-12, "loss")


def test_the_hardest_regions_of_each_image_over_places() -> None:
    text = 'type: "BoxAnnotatorOHEM" box_annotator_ohem_param { roi_per_img: 2 ignore_label: 255 }'
    shapes = [(3, 5, 2, 1), (3, 1, 2, 1), (3, 1, 2, 1), (3, 4, 2, 1)]
    layer = make_layer(text, *shapes, tops=2)
    regions = torch.zeros(shapes[0])
    regions[:, 0, :, 0] = torch.tensor([[0, 2], [0, 0], [2, 2]])
    loss = torch.tensor([[5.0, 1], [5, 5], [3, 2]]).view(shapes[1])
    label, weights = torch.arange(6.0).view(shapes[2]), torch.ones(shapes[3])
    labels, kept = layer(regions, loss, label, weights)
    assert labels.flatten().tolist() == [0, 255, 2, 255, 4, 5]
    assert torch.equal(kept, (labels != 255).float().expand(shapes[3]))
    assert [tuple(labels.shape), tuple(kept.shape)] == layer.top_shapes(shapes)


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "SmoothL1Loss"', [(2, 3), (2, 4)], "must have one shape"),
        ('type: "SmoothL1Loss" smooth_l1_loss_param { sigma: 0 }', [(2, 3)] * 2, "sigma must be above 0"),
        ('type: "BoxAnnotatorOHEM"', [(2, 5), (2, 1), (2, 1), (2, 4)], "roi_per_img must be given"),
        (
            'type: "BoxAnnotatorOHEM" box_annotator_ohem_param { roi_per_img: 1 }',
            [(2, 4), (2, 1), (2, 1), (2, 4)],
            r"needs regions \(R, 5\)",
        ),
    ],
)
def test_what_does_not_go(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(text, *shapes)
