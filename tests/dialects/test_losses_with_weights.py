"""Losses of segmentation forks: weights of classes, lists of labels to ignore, HED's class-balanced loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded
from torch import Tensor

import fcnproto
from fcnproto.errors import FcnprotoWarning, LayerError
from fcnproto.export.shapes import blob_shapes
from fcnproto.export.source import endpoints, make_source, run_source
from fcnproto.layers.base import Layer
from fcnproto.layers.registry import lookup
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

SCORES, PLACES = (2, 4, 3, 5), (2, 1, 3, 5)
SOFTMAX = 'type: "SoftmaxWithLoss" '


def labels(*more: int) -> Tensor:
    found = torch.arange(30).reshape(PLACES) % 4
    for place, label in enumerate(more):
        found[place % 2, 0, 1, place] = label
    return found


def by_hand(scores: np.ndarray, truth: np.ndarray, weights, ignored, mode: str) -> tuple[float, np.ndarray]:
    """The loss and its gradient, one position at a time."""
    scores = scores - scores.max(1, keepdims=True)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    total, share, count, slope = 0.0, 0.0, 0, np.zeros_like(p)
    for n, i, j in np.ndindex(len(scores), *scores.shape[2:]):
        label = int(truth[n, 0, i, j])
        if label in ignored:
            continue
        total -= weights[label] * np.log(p[n, label, i, j])
        slope[n, :, i, j] = weights[label] * (p[n, :, i, j] - np.eye(scores.shape[1])[label])
        share, count = share + weights[label], count + 1
    divisor = {"VALID": count, "BATCH_SIZE": len(scores), "BY_WEIGHT": share}[mode]
    return total / divisor, slope / divisor


def check(layer: Layer, truth: Tensor, weights: list[float], ignored: tuple[int, ...], mode: str) -> None:
    scores = seeded(*SCORES).requires_grad_()
    loss = layer(scores, truth)
    loss.backward()
    expected, slope = by_hand(scores.detach().numpy(), truth.numpy(), weights, ignored, mode)
    assert_close(loss, np.float64(expected), 1e-12, "loss")
    assert_close(scores.grad, slope, 1e-12, "gradient")


@pytest.mark.parametrize("mode", ["VALID", "BATCH_SIZE"])
def test_weights_of_segnet(mode: str) -> None:
    text = f"""{SOFTMAX} loss_param {{ weight_by_label_freqs: true ignore_label: 9 normalize: {str(mode == "VALID").lower()}
      class_weighting: 0.5 class_weighting: 2 class_weighting: 0 class_weighting: 1.25 }}"""
    check(make_layer(text, SCORES, PLACES), labels(9, 9), [0.5, 2, 0, 1.25], (9,), mode)


def test_without_weights_segnet_takes_the_frequencies_of_the_batch() -> None:
    truth = labels(9, 0, 0)
    counts = [int((truth == label).sum()) for label in range(4)]
    text = SOFTMAX + "loss_param { weight_by_label_freqs: true ignore_label: 9 }"
    check(make_layer(text, SCORES, PLACES), truth, [1 / count for count in counts], (9,), "VALID")


def test_labels_that_deeplab_ignores() -> None:
    text = SOFTMAX + "softmaxloss_param { ignore_label: 255 ignore_label: 2 ignore_label: -1 }"
    check(make_layer(text, SCORES, PLACES), labels(255, -1, 2), [1] * 4, (255, 2, -1), "BY_WEIGHT")
    all_of_them = make_layer(text, SCORES, PLACES)(seeded(*SCORES), torch.full(PLACES, 255))
    assert float(all_of_them) == 0


def test_deeplab_reads_weights_from_a_file(tmp_path: Path) -> None:
    def layer(content: str) -> Layer:
        (tmp_path / "weights.txt").write_text(content)
        param = parse(
            f'name: "it" {SOFTMAX} softmaxloss_param {{ weight_source: "weights.txt" }}', caffe_pb2.LayerParameter
        )
        made = lookup("SoftmaxWithLoss")(param, 1)
        made.base_dir = str(tmp_path)
        made.setup([SCORES, PLACES])
        return made

    check(layer("0.5 0.25\n2\n0"), labels(), [0.5, 0.25, 2, 0], (), "BY_WEIGHT")
    with pytest.raises(LayerError, match="must hold 4 numbers from 0 on"):
        layer("1 2 3")
    with pytest.raises(LayerError, match="must hold 4 numbers from 0 on"):
        layer("1 2 3 -1")
    with pytest.raises(LayerError, match="not a file of numbers"):
        layer("1 2 3 much")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("loss_param { weight_by_label_freqs: true class_weighting: 1 }", "has 1 values; 4 classes need one each"),
        ('softmaxloss_param { weight_source: "nowhere.txt" }', "is not a file"),
        ("softmaxloss_param { } loss_param { ignore_label: 1 }", "keep one"),
    ],
)
def test_what_does_not_fit(settings: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        make_layer(SOFTMAX + settings, SCORES, PLACES)


def test_weights_that_are_off_draw_a_warning() -> None:
    with pytest.warns(FcnprotoWarning, match="class_weighting has no effect"):
        make_layer(SOFTMAX + "loss_param { class_weighting: 1 class_weighting: 2 }", SCORES, PLACES)


def balanced(scores: np.ndarray, targets: np.ndarray) -> float:
    total = 0.0
    for x, t in zip(scores.reshape(len(scores), -1), targets.reshape(len(scores), -1), strict=True):
        ones, zeros = (t == 1).sum(), (t == 0).sum()
        cost = np.log1p(np.exp(x)) - t * x
        total += (cost[t == 1].sum() * zeros + cost[t == 0].sum() * ones) / (ones + zeros)
    return total / len(scores)


def hed() -> Layer:
    layer = lookup("SigmoidCrossEntropyLoss")(
        parse('name: "it" type: "SigmoidCrossEntropyLoss"', caffe_pb2.LayerParameter), 1
    )
    layer.dialect = "hed"
    layer.setup([(3, 1, 4, 5)] * 2)
    return layer


def test_the_loss_of_hed() -> None:
    scores = seeded(3, 1, 4, 5).requires_grad_()
    targets = (seeded(3, 1, 4, 5, seed=1) > 1).double()
    targets[1] = 1
    assert_close(hed()(scores, targets), np.float64(balanced(scores.detach().numpy(), targets.numpy())), 1e-12, "loss")
    assert torch.autograd.gradcheck(lambda x: hed()(x, targets), scores, fast_mode=True)


def test_other_targets_have_a_gradient_in_hed_but_no_cost() -> None:
    scores, targets = seeded(3, 1, 4, 5).requires_grad_(), torch.full((3, 1, 4, 5), 0.5, dtype=torch.float64)
    loss = hed()(scores, targets)
    loss.backward()
    assert float(loss) == 0
    assert_close(scores.grad, ((1 / (1 + np.exp(-scores.detach().numpy()))) - 0.5) / 3, 1e-12, "gradient")


@pytest.mark.parametrize(
    ("layer", "dialect"),
    [
        (SOFTMAX + "loss_param { weight_by_label_freqs: true }", None),
        (
            SOFTMAX + "loss_param { weight_by_label_freqs: true class_weighting: 1 class_weighting: 2 "
            "class_weighting: 0.1 class_weighting: 3 }",
            None,
        ),
        (SOFTMAX + "softmaxloss_param { ignore_label: 3 ignore_label: 0 }", None),
        ('type: "SigmoidCrossEntropyLoss"', "hed"),
    ],
)
def test_exported(layer: str, dialect: str | None) -> None:
    scores, targets = seeded(*SCORES, dtype=torch.float32), labels().float()
    if dialect:
        targets = (seeded(*SCORES, seed=1, dtype=torch.float32) > 0).float()
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + "".join(f"dim: {extent} " for extent in value.shape)
        + "} } }\n"
        for name, value in (("x", scores), ("t", targets))
    )
    text += f'layer {{ name: "it" bottom: "x" bottom: "t" top: "loss" {layer} }}'
    net = fcnproto.load(parse(text, caffe_pb2.NetParameter), dialect=dialect)
    names, _ = endpoints(net, losses=True)
    source = make_source(net, blob_shapes(net, {"x": scores.shape, "t": targets.shape}), "w", losses=True)
    assert list(names) == ["x", "t"]
    assert torch.equal(run_source(source)(scores, targets), net(x=scores, t=targets)["loss"])
