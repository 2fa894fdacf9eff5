"""Losses against their formulas in NumPy, at the clamped values, and with labels of all kinds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer, seeded
from torch import Tensor

from fcnproto.errors import LayerError
from fcnproto.layers.base import Layer

Array = npt.NDArray[np.float64]
FLT_MIN = float(np.finfo(np.float32).tiny)


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def divisor(mode: str, default: str, items: int, places: int, valid: int) -> float:
    """Caffe's normalizer for a `loss_param` setting."""
    names = {"": default, "normalize: true": "VALID", "normalize: false": "BATCH_SIZE"}
    name = names.get(mode, mode.rsplit(" ", 1)[-1])
    return max(1, {"FULL": items * places, "VALID": valid, "BATCH_SIZE": items, "NONE": 1}[name])


MODES = [
    "",
    "normalize: true",
    "normalize: false",
    *(f"normalization: {name}" for name in ("FULL", "VALID", "BATCH_SIZE", "NONE")),
    "normalize: false normalization: VALID",
    "normalize: true normalization: NONE",
]


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    data=st.data(),
    mode=st.sampled_from(MODES),
    ignore=st.sampled_from([None, 0, 255, -1]),
    label_type=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int32, torch.int16]),
)
@settings(max_examples=80, deadline=None)
def test_softmax_with_loss(
    shape: list[int], data: st.DataObject, mode: str, ignore: int | None, label_type: torch.dtype
) -> None:
    axis = data.draw(st.integers(1, len(shape) - 1))
    negative = data.draw(st.booleans())
    outer, places = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    allowed = list(range(shape[axis])) + ([] if ignore is None else [ignore])
    labels = data.draw(st.lists(st.sampled_from(allowed), min_size=outer * places, max_size=outer * places))
    text = "" if ignore is None else f"ignore_label: {ignore}"
    layer = make_layer(
        f'type: "SoftmaxWithLoss" loss_param {{ {mode} {text} }} '
        f"softmax_param {{ axis: {axis - len(shape) if negative else axis} }}",
        shape,
        (shape[0], outer * places // shape[0]),
    )
    scores = seeded(*shape).mul(4).requires_grad_()
    loss = layer(scores, torch.tensor(labels, dtype=label_type).reshape(shape[0], -1))
    (loss * 3).backward()

    p = softmax(scores.detach().numpy(), axis).reshape(outer, shape[axis], places)
    truth = np.array(labels).reshape(outer, places)
    valid = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    rows, columns = np.nonzero(valid)
    z = divisor(mode, "VALID", outer, places, int(valid.sum()))
    gradient = p * valid[:, None]
    gradient[rows, truth[valid], columns] -= 1
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-np.log(p[rows, truth[valid], columns]).sum() / z, rel=1e-9, abs=1e-12)
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), 3 / z * gradient.reshape(shape), rtol=1e-9, atol=1e-12)


def test_softmax_with_loss_counts_a_lost_label_as_the_smallest_float() -> None:
    layer = make_layer('type: "SoftmaxWithLoss"', (3, 2), (3,))
    scores = torch.tensor([[500, 0], [1000, -1000], [0, -math.inf]], dtype=torch.float64, requires_grad=True)
    loss = layer(scores, torch.tensor([1, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(FLT_MIN), rel=1e-12)
    assert scores.grad is not None
    # p - onehot, as if nothing had been clamped.
    torch.testing.assert_close(scores.grad * 3, torch.tensor([[1.0, -1.0]] * 3, dtype=torch.float64))


def test_softmax_with_loss_of_unsigned_labels() -> None:
    layer = make_layer('type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }', (1, 2, 1, 2), (1, 1, 1, 2))
    labels = torch.tensor([[[[255, 1]]]], dtype=torch.uint8)
    assert layer(torch.zeros(1, 2, 1, 2), labels).item() == pytest.approx(math.log(2))


def test_softmax_with_loss_gives_the_probabilities() -> None:
    layer = make_layer('type: "SoftmaxWithLoss"', (2, 3, 4), (2, 4), tops=2)
    scores = seeded(2, 3, 4).requires_grad_()
    loss, probabilities = layer(scores, torch.zeros(2, 4))
    np.testing.assert_allclose(probabilities.numpy(), softmax(scores.detach().numpy(), 1), rtol=1e-12)
    assert loss.requires_grad and not probabilities.requires_grad


@pytest.mark.parametrize("label", [3, -1, 255])
@pytest.mark.parametrize("type_name", ["SoftmaxWithLoss", "InfogainLoss", "HingeLoss", "MultinomialLogisticLoss"])
def test_a_label_out_of_range_is_named(type_name: str, label: int) -> None:
    shapes = [(2, 3), (2,)] + [(3, 3)] * (type_name == "InfogainLoss")
    layer = make_layer(f'type: "{type_name}" bottom: "score" bottom: "truth" bottom: "H"', *shapes)
    bottoms = [torch.full(shape, 0.5) for shape in shapes]
    bottoms[1] = torch.tensor([0, label])
    with pytest.raises(LayerError) as error:
        layer(*bottoms)
    assert f"label {label} in 'truth' is outside of 0..2" in str(error.value)
    assert "'it'" in str(error.value)


@pytest.mark.parametrize("type_name", ["SoftmaxWithLoss", "InfogainLoss", "HingeLoss", "MultinomialLogisticLoss"])
def test_where_labels_cannot_be_looked_at_a_wrong_one_gives_nan(
    type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    shapes = [(2, 3), (2,)] + [(3, 3)] * (type_name == "InfogainLoss")
    layer = make_layer(f'type: "{type_name}"', *shapes)
    bottoms = [torch.full(shape, 0.5) for shape in shapes]
    bottoms[1] = torch.tensor([0, 2])
    assert math.isfinite(layer(*bottoms).item())
    bottoms[1] = torch.tensor([0, 3])
    assert math.isnan(layer(*bottoms).item())


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        ('type: "SoftmaxWithLoss"', [(2, 3, 4), (2, 3)], "need 8 labels"),
        ('type: "SoftmaxWithLoss"', [(2, 3, 4), (8,)], "first extents"),
        ('type: "SoftmaxWithLoss" softmax_param { axis: 2 }', [(2, 3), (2,)], "axis 2 is outside"),
        ('type: "SigmoidCrossEntropyLoss"', [(2, 3), (2, 4)], "one target per score"),
        ('type: "EuclideanLoss"', [(2, 3), (2, 4)], "same count"),
        ('type: "EuclideanLoss"', [(2, 3), (3, 2)], "first extents"),
        ('type: "HingeLoss"', [(2, 3), (2, 2)], "need 2 labels"),
        ('type: "ContrastiveLoss"', [(2, 3, 2), (2, 3, 2), (2,)], "vectors"),
        ('type: "ContrastiveLoss"', [(2, 3), (2, 3), (2, 2)], "one similarity per pair"),
        ('type: "InfogainLoss"', [(2, 3), (2,), (2, 2)], "3 classes need 3 x 3"),
    ],
)
def test_bottoms_that_do_not_fit_are_named(text: str, shapes: list[tuple[int, ...]], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(text, *shapes)(*(torch.zeros(shape) for shape in shapes))


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    mode=st.sampled_from(MODES),
    ignore=st.sampled_from([None, 0, 1]),
)
@settings(max_examples=50, deadline=None)
def test_sigmoid_cross_entropy_loss(shape: list[int], mode: str, ignore: int | None) -> None:
    text = "" if ignore is None else f"ignore_label: {ignore}"
    layer = make_layer(f'type: "SigmoidCrossEntropyLoss" loss_param {{ {mode} {text} }}', shape, shape)
    scores = seeded(*shape).mul(3).requires_grad_()
    targets = (seeded(*shape, seed=1).abs() * 0.8).clamp(max=1)  # fractions count as their whole part: 0 or 1
    loss = layer(scores, targets)
    loss.backward()

    t, s = targets.numpy(), 1 / (1 + np.exp(-scores.detach().numpy()))
    valid = np.ones(t.shape, bool) if ignore is None else t.astype(int) != ignore
    z = divisor(mode, "BATCH_SIZE", shape[0], math.prod(shape[1:]), int(valid.sum()))
    costs = -(t * np.log(s) + (1 - t) * np.log(1 - s))
    assert loss.item() == pytest.approx(costs[valid].sum() / z, rel=1e-9, abs=1e-12)
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), (s - t) * valid / z, rtol=1e-9, atol=1e-12)


def test_sigmoid_cross_entropy_loss_of_large_scores() -> None:
    layer = make_layer('type: "SigmoidCrossEntropyLoss"', (1, 2), (1, 2))
    assert layer(torch.tensor([[1000.0, -1000.0]]), torch.tensor([[0.0, 1.0]])).item() == 2000


def test_multinomial_logistic_loss_clamps_the_value_alone() -> None:
    layer = make_layer('type: "MultinomialLogisticLoss"', (2, 2, 1, 1), (2, 1, 1, 1))
    p = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64).reshape(2, 2, 1, 1).requires_grad_()
    loss = layer(p, torch.ones(2, 1, 1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(1e-20)) / 2)
    assert p.grad is not None
    expected = torch.tensor([[0, -1 / (2 * 0.75)], [0, -1 / (2 * 1e-20)]], dtype=torch.float64)
    torch.testing.assert_close(p.grad.reshape(2, 2), expected)


def test_infogain_loss_clamps_the_value_alone() -> None:
    layer = make_layer('type: "InfogainLoss"', (1, 2), (1,), (1, 1, 2, 2))
    matrix = torch.tensor([[1.0, 2.0], [0.5, 3.0]], dtype=torch.float64)
    scores = torch.tensor([[100.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = layer(scores, torch.tensor([1]), matrix.reshape(1, 1, 2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(-3 * math.log(1e-20))
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor([[1 * 3.5 - 0.5, -3.0]], dtype=torch.float64))


def test_infogain_loss_without_a_matrix_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="as a third bottom or in"):
        make_layer('type: "InfogainLoss"', (1, 2), (1,))
    with pytest.raises(LayerError, match=r"'no\.binaryproto' is not a file"):
        make_layer('type: "InfogainLoss" infogain_loss_param { source: "no.binaryproto" }', (1, 2), (1,))
    broken = tmp_path / "broken.binaryproto"
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(LayerError, match="source can't be read"):
        make_layer(f'type: "InfogainLoss" infogain_loss_param {{ source: "{broken}" }}', (1, 2), (1,))
    with pytest.raises(LayerError, match=r"give loss_param\.normalization"):
        make_layer('type: "InfogainLoss" loss_param { normalize: true }', (1, 2), (1,), (2, 2))


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_loss(norm: str) -> None:
    layer = make_layer(f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }}', (2, 3), (2,))
    # Margins: item 0, label 0: 1 - 0.5, 1 + 0.5, 1 - 1; item 1, label 2: 1 + 1, 1 - 3, 1 - 0.5 (below 0 counts as 0).
    scores = torch.tensor([[0.5, 0.5, -1.0], [1.0, -3.0, 0.5]], dtype=torch.float64, requires_grad=True)
    loss = layer(scores, torch.tensor([0, 2]))
    loss.backward()
    margins = np.array([[0.5, 1.5, 0], [2, 0, 0.5]])
    sign = np.array([[-1, 1, 1], [1, 1, -1]])
    assert loss.item() == pytest.approx((margins if norm == "L1" else margins**2).sum() / 2)
    assert scores.grad is not None
    gradient = sign * (margins > 0) / 2 if norm == "L1" else sign * margins
    np.testing.assert_allclose(scores.grad.numpy(), gradient)


@pytest.mark.parametrize("legacy", [False, True])
def test_contrastive_loss(legacy: bool) -> None:
    text = f"margin: 2 legacy_version: {str(legacy).lower()}"
    layer = make_layer(f'type: "ContrastiveLoss" contrastive_loss_param {{ {text} }}', (4, 3), (4, 3), (4,))
    a, b = seeded(4, 3).requires_grad_(), seeded(4, 3, seed=1).requires_grad_()
    with torch.no_grad():
        b[1] = a[1] + 0.1  # a dissimilar pair within the margin
        b[3] = a[3]  # and one without distance
    loss = layer(a, b, torch.tensor([1, 0, 0.9, 0]))
    loss.backward()
    difference = (a - b).detach().numpy()
    total, gradient = 0.0, np.zeros((4, 3))
    for n, similar in enumerate([True, False, False, False]):
        squared = float((difference[n] ** 2).sum())
        distance = math.sqrt(squared)
        if similar:
            total += squared
            gradient[n] = difference[n] / 4
        elif legacy:
            total += max(2 - squared, 0)
            gradient[n] = -difference[n] / 4 if squared < 2 else 0
        else:
            total += max(2 - distance, 0) ** 2
            gradient[n] = -max(2 - distance, 0) / (distance + 1e-4) * difference[n] / 4
    assert loss.item() == pytest.approx(total / 8)
    assert a.grad is not None and b.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(b.grad.numpy(), -gradient, rtol=1e-9, atol=1e-12)


GRADIENTS: list[tuple[str, list[tuple[int, ...]], int]] = [
    ('type: "SoftmaxWithLoss" loss_param { ignore_label: 1 }', [(2, 3, 2, 2), (2, 2, 2)], 1),
    ('type: "MultinomialLogisticLoss"', [(3, 4), (3,)], 1),
    ('type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 0 normalization: VALID }', [(3, 4), (3, 4)], 1),
    ('type: "EuclideanLoss"', [(2, 3, 2), (2, 6)], 2),
    ('type: "HingeLoss"', [(3, 4), (3,)], 1),
    ('type: "HingeLoss" hinge_loss_param { norm: L2 }', [(3, 4), (3,)], 1),
    ('type: "ContrastiveLoss" contrastive_loss_param { legacy_version: true }', [(3, 4), (3, 4), (3,)], 2),
    ('type: "InfogainLoss"', [(2, 3, 2), (2, 2), (3, 3)], 1),
]


@pytest.mark.parametrize(("text", "shapes", "differentiable"), GRADIENTS)
def test_gradient_is_the_derivative(text: str, shapes: list[tuple[int, ...]], differentiable: int) -> None:
    layer: Layer = make_layer(text, *shapes)
    bottoms = [seeded(*shape, seed=i).abs() + 0.05 for i, shape in enumerate(shapes)]
    if differentiable == 1:
        bottoms[1] = (bottoms[1] * 2).clamp(max=2).trunc()

    def run(*free: Tensor) -> Tensor:
        return layer(*free, *bottoms[differentiable:])

    assert torch.autograd.gradcheck(run, [bottom.requires_grad_() for bottom in bottoms[:differentiable]])


@pytest.mark.parametrize(("text", "shapes", "differentiable"), GRADIENTS)
def test_labels_get_no_gradient(text: str, shapes: list[tuple[int, ...]], differentiable: int) -> None:
    layer = make_layer(text, *shapes)
    bottoms = [torch.ones(shape, requires_grad=True) for shape in shapes]
    layer(*bottoms).backward()
    assert [bottom.grad is not None for bottom in bottoms] == [i < differentiable for i in range(len(shapes))]
    assert all(i in layer.force_backward_refuses for i in range(differentiable, len(shapes)))


def test_loss_over_many_pixels_in_half_precision_does_not_overflow() -> None:
    layer = make_layer('type: "SoftmaxWithLoss" loss_param { normalization: NONE }', (1, 2, 400, 500), (1, 400, 500))
    scores = torch.zeros(1, 2, 400, 500, dtype=torch.float16, requires_grad=True)
    loss = layer(scores, torch.zeros(1, 400, 500))
    loss.backward()
    assert loss.item() == pytest.approx(200000 * math.log(2), rel=1e-5)
    assert scores.grad is not None and scores.grad.dtype == torch.float16


# Caffe's own formulas in float32, none of whose rounding may be smaller than that of the layers here.
def caffe_sigmoid_cost(x: Tensor, t: Tensor) -> Tensor:
    sign = (x >= 0).float()
    return -(x * (t - sign) - (1 + (x - 2 * x * sign).exp()).log())


@pytest.mark.parametrize("target", [0.0, 1.0, 0.25, 0.75])
@pytest.mark.parametrize("confidence", [0, 2, 8, 15, 30, 80])
def test_sigmoid_cross_entropy_of_confident_scores(confidence: int, target: float) -> None:
    layer = make_layer('type: "SigmoidCrossEntropyLoss" loss_param { normalization: NONE }', (1, 200), (1, 200))
    for sign in (-1, 1):
        x = ((seeded(1, 200) * 0.5 + confidence) * sign).float()
        t = torch.full_like(x, target)
        exact = x.double().requires_grad_()
        costs = exact.clamp(min=0) - exact * target + torch.exp(-exact.abs()).log1p()
        ours = x.clone().requires_grad_()
        loss = layer(ours, t)
        loss.backward()
        assert loss.item() == pytest.approx(costs.sum().item(), rel=3e-7)
        slope = exact.detach().sigmoid() - target if target <= 0.5 else (1 - target) - (-exact.detach()).sigmoid()
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.double(), slope, rtol=1e-6, atol=0 if target in (0, 1) else 6e-8)
        caffe_error = abs(caffe_sigmoid_cost(x, t).sum().item() - costs.sum().item())
        assert abs(loss.item() - costs.sum().item()) <= caffe_error + 3e-7 * abs(costs.sum().item())


@pytest.mark.parametrize("gap", [0, 3, 8, 14, 40])
def test_softmax_losses_of_confident_scores_are_as_exact_as_caffes_formula(gap: int) -> None:
    scores = seeded(64, 3).float()
    labels = torch.arange(64) % 3
    scores[torch.arange(64), labels] += gap
    exact = scores.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact, labels, reduction="none")
    wanted.sum().backward()
    assert exact.grad is not None
    shifted = (scores - scores.max(1, keepdim=True).values).exp()
    caffe = (shifted / shifted.sum(1, keepdim=True)).requires_grad_()
    caffe_costs = -caffe.gather(1, labels[:, None]).clamp(min=FLT_MIN).log()
    caffe_slope = caffe.detach() - torch.nn.functional.one_hot(labels, 3)
    for kind in ("SoftmaxWithLoss", "InfogainLoss"):
        ours = scores.clone().requires_grad_()
        if kind == "SoftmaxWithLoss":
            loss = make_layer('type: "SoftmaxWithLoss" loss_param { normalization: NONE }', (64, 3), (64,))(
                ours, labels.float()
            )
        else:
            text = 'type: "InfogainLoss" loss_param { normalization: NONE }'
            loss = make_layer(text, (64, 3), (64,), (3, 3))(ours, labels.float(), torch.eye(3))
        loss.backward()
        assert ours.grad is not None
        least = 2e-7 * wanted.sum().item()
        error, caffe_error = (abs(x.sum().item() - wanted.sum().item()) for x in (loss, caffe_costs))
        assert error <= max(caffe_error, least) * 1.5 + 1e-9, kind
        slope_error = (ours.grad.double() - exact.grad).abs().max().item()
        assert slope_error <= max((caffe_slope.double() - exact.grad).abs().max().item(), 6e-8) * 1.5, kind
