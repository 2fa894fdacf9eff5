"""Layers of NormFace, AMSoftmax, GENet, FlowNet and others against their formulas in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from layer_maker import make_layer, seeded

from fcnproto.errors import FcnprotoWarning, LayerError
from fcnproto.layers.fillers import fill
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import write_blob

DOUBLE = torch.float64


def close(found: torch.Tensor | None, wanted: np.ndarray, tolerance: float) -> None:
    assert found is not None
    assert_close(found, wanted, tolerance, "values")


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_distances_to_stored_and_to_given_vectors(kind: str) -> None:
    x, others = seeded(4, 3, 2).requires_grad_(), seeded(5, 6, seed=2).requires_grad_()
    text = f'type: "InnerDistance" inner_distance_param {{ num_output: 5 distance_type: "{kind}" }}'
    stored = make_layer(text, x.shape, dtype=DOUBLE)
    assert stored.blob_shapes == [(5, 6)]
    rows, centres = x.detach().numpy().reshape(4, 6), stored.blob(0).detach().numpy()
    difference = np.abs(rows[:, None] - centres[None])
    close(stored(x), (difference**2 if kind == "L2" else difference).sum(2), 1e-12)
    given = make_layer(text, x.shape, others.shape, dtype=DOUBLE)
    assert not given.blob_shapes
    assert torch.autograd.gradcheck(given, (x, others))


def test_stored_vectors_are_made_unit_length_and_only_the_own_class_moves() -> None:
    text = 'type: "InnerDistance" inner_distance_param { num_output: 3 normalize: true update_center_only: true }'
    x, labels = seeded(4, 2).requires_grad_(), torch.tensor([0.0, 2, 2, 0])
    layer = make_layer(text, x.shape, labels.shape, dtype=DOUBLE)
    slope = seeded(4, 3, seed=9)
    before = layer.blob(0).detach().clone()
    y = layer(x, labels)
    unit = before / (before.square().sum(1, keepdim=True) + 1e-6).sqrt()
    close(layer.blob(0), unit.numpy(), 1e-12)
    (y * slope).sum().backward()
    wanted = torch.zeros_like(unit)
    for m, label in enumerate(labels.long()):
        wanted[label] += 2 * slope[m, label] * (unit[label] - x[m].detach())
    close(layer.blob(0).grad, wanted.numpy(), 1e-12)
    of_x = sum(2 * slope[:, n : n + 1] * (x.detach() - unit[n]) for n in range(3))
    close(x.grad, of_x.numpy(), 1e-12)


def test_channels_are_scaled_by_place() -> None:
    x, scale = seeded(2, 3, 4, 2).requires_grad_(), seeded(2, 1, 4, 2, seed=1).requires_grad_()
    layer = make_layer('type: "ChannelScale"', x.shape, scale.shape, dtype=DOUBLE)
    assert torch.autograd.gradcheck(layer, (x, scale))
    text = 'type: "ChannelScale" channel_scale_param { do_forward: false do_backward_scale: false }'
    off = make_layer(text, x.shape, scale.shape, dtype=DOUBLE)
    y = off(x, scale)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, scale.detach().expand_as(x))  # type: ignore[arg-type]
    assert not scale.grad.any()  # type: ignore[union-attr]


def test_a_global_scale_is_a_running_mean_within_bounds() -> None:
    text = 'type: "ChannelScale" channel_scale_param { global_scale: true max_global_scale: 2 min_global_scale: 1.5 }'
    layer = make_layer(text, (2, 3, 1, 1), (2, 1, 1, 1), tops=2, train=True, dtype=DOUBLE)
    with torch.no_grad():
        layer.blob(0).fill_(-1)
    x = seeded(2, 3, 1, 1)
    y, factor = layer(x, torch.full((2, 1, 1, 1), -1.7, dtype=DOUBLE))
    assert factor.item() == pytest.approx(1.7)
    close(y, (x * 1.7).numpy(), 1e-12)
    assert layer(x, torch.full((2, 1, 1, 1), 9.0, dtype=DOUBLE))[1].item() == pytest.approx(0.99 * 1.7 + 0.09)
    layer.eval()
    assert layer(x, torch.full((2, 1, 1, 1), 9.0, dtype=DOUBLE))[1].item() == pytest.approx(0.99 * 1.7 + 0.09)


def test_the_margin_of_amsoftmax_is_taken_off_the_own_class() -> None:
    scores, labels = torch.tensor([[0.9, 0.2], [0.3, 0.1]], dtype=DOUBLE).requires_grad_(), torch.tensor([0.0, 1])
    text = 'type: "LabelSpecificAdd" label_specific_add_param {'
    layer = make_layer(f"{text} bias: -0.35 }}", scores.shape, labels.shape, train=True, dtype=DOUBLE)
    y = layer(scores, labels)
    close(y, np.array([[0.55, 0.2], [0.3, 0.1]]), 1e-7)  # 0.1 is not above 0.35
    y.sum().backward()
    assert torch.equal(scores.grad, torch.ones(2, 2, dtype=DOUBLE))  # type: ignore[arg-type]
    layer.eval()
    assert torch.equal(layer(scores, labels), scores)
    grows = make_layer(
        f"{text} bias_base: 0 bias_gamma: 0.5 bias_power: 1 bias_min: -9 bias_max: 0.8 iteration: 1 }}",
        scores.shape, labels.shape, train=True, tops=2, dtype=DOUBLE,
    )  # fmt: skip
    assert [round(grows(scores, labels)[1].item(), 6) for _ in range(3)] == [0.5, 0.8, 0.8]


def test_cudnns_batch_normalisation_keeps_the_unbiased_variance() -> None:
    text = 'type: "CuDNNBatchNorm" cudnn_batch_norm_param { momentum: 0.9 eps: 1e-9 scale_filler { value: 1 } }'
    layer = make_layer(text, (4, 3, 2, 2), train=True, dtype=DOUBLE)
    x = seeded(4, 3, 2, 2).requires_grad_()
    y = layer(x)
    rows = x.detach().transpose(0, 1).flatten(1)
    mean, variance = rows.mean(1), rows.var(1, correction=0)
    unit = (rows - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    wanted = unit * layer.blob(0).detach().view(3, 1) + layer.blob(1).detach().view(3, 1)
    close(y.transpose(0, 1).flatten(1), wanted.numpy(), 1e-10)
    close(layer.blob(2).flatten(), (0.1 * mean).numpy(), 1e-6)
    close(layer.blob(3).flatten(), (0.1 * rows.var(1)).numpy(), 1e-6)
    assert layer.blob_shapes == [(1, 3, 1, 1)] * 4
    frozen = make_layer(text.replace("momentum", "frozen: true momentum"), (4, 3), train=True, dtype=DOUBLE)
    with torch.no_grad():
        frozen.blob(3).fill_(4)
    close(
        frozen(x[:, :, 0, 0]),
        (x[:, :, 0, 0] / math.sqrt(4 + 1e-5) * frozen.blob(0).flatten() + frozen.blob(1).flatten()).detach().numpy(),
        1e-9,
    )


def test_a_mean_is_taken_off_after_scaling(tmp_path: Path) -> None:
    x = seeded(2, 6, 2, 3)
    text = 'type: "Mean" mean_param { operation: SUBTRACT input_scale: 0.5 value: 1 value: 2 value: 3 output_scale: 2 }'
    layer = make_layer(text, x.shape)
    mean = np.array([1, 2, 3, 1, 2, 3]).reshape(1, 6, 1, 1)
    close(layer(x), 2 * (0.5 * x.numpy() - mean), 1e-12)
    write_blob(tmp_path / "mean.binaryproto", np.arange(18, dtype=np.float32).reshape(1, 3, 2, 3))
    text = f'type: "Mean" mean_param {{ operation: ADD file: "{tmp_path}/mean.binaryproto" }}'
    added = make_layer(text, x.shape)
    close(added(x), x.numpy() + np.tile(np.arange(18).reshape(1, 3, 2, 3), (1, 2, 1, 1)), 1e-12)
    with pytest.raises(LayerError, match="mean of shape"):
        make_layer(text, (2, 4, 2, 3))


def test_paddings_of_every_axis() -> None:
    x = seeded(2, 3, 4)
    text = 'type: "Pad" pad_param { paddings: 0 paddings: 1 paddings: 2 paddings: 0 paddings: 1 paddings: 3'
    layer = make_layer(f"{text} constant_values: 7 }}", x.shape)
    wanted = np.pad(x.numpy(), [(0, 1), (2, 0), (1, 3)], constant_values=7)
    close(layer(x), wanted, 0)
    assert layer.top_shapes([(2, 3, 4)]) == [wanted.shape]
    with pytest.raises(LayerError, match="two for each axis"):
        make_layer(f"{text} }}", (2, 3))


def test_regions_go_to_the_level_of_their_size() -> None:
    text = 'type: "ScaleRoute" scale_route_param { low_scale: 10 high_scale: 20 }'
    rows = torch.tensor([[0, 0, 0, 8, 8], [1, 5, 5, 14, 14], [0, 0, 0, 19, 19], [1, 0, 0, 18, 18.0]])
    marks = torch.arange(4.0).view(4, 1)
    layer = make_layer(text, rows.shape, marks.shape, tops=2)
    chosen, with_them = layer(rows, marks)
    assert with_them.flatten().tolist() == [1, 3]  # sizes 9, 10, 20, 19
    assert chosen.shape == (2, 5, 1, 1)
    assert chosen.flatten(1).tolist() == rows[[1, 3]].tolist()
    # None fits: the nearest to the root of 10 * 20 by its ratio, 20 before 9.
    assert layer(rows[[0, 2]], marks[[0, 2]])[1].item() == 2
    open_ended = make_layer('type: "ScaleRoute" scale_route_param { low_scale: 20 }', rows.shape)
    assert open_ended(rows).flatten(1).tolist() == [rows[2].tolist()]


def test_the_marks_of_an_lstm_begin_with_zeros() -> None:
    layer = make_layer('type: "ContinuationIndicator" continuation_indicator_param { time_step: 3 batch_size: 2 }')
    assert layer().tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_diagonal_filler_makes_outputs_of_single_channels() -> None:
    blob = torch.empty(2, 3, 2, 2)
    fill(blob, caffe_pb2.FillerParameter(type="diagonal", diag_val=[8]))
    assert blob.sum((2, 3)).tolist() == [[8, 0, 0], [0, 1, 0]]
    assert blob[0, 0].unique().tolist() == [2]


def test_a_smaller_bottom_is_taken_for_every_place() -> None:
    x, other = seeded(2, 3, 4).requires_grad_(), seeded(3, seed=1).requires_grad_()
    text = 'type: "Eltwise" eltwise_param { operation: %s axis: 1 }'
    for operation, wanted in (
        ("SUM", x + other[:, None]),
        ("PROD", x * other[:, None]),
        ("DIV", x / other[:, None]),
        ("MAX", torch.maximum(x, other[:, None].expand_as(x))),
    ):
        with pytest.warns(FcnprotoWarning, match="taken for every place"):
            layer = make_layer(text % operation, x.shape, other.shape)
        close(layer(x, other), wanted.detach().numpy(), 1e-12)
    assert torch.autograd.gradcheck(layer, (x, other))
    with pytest.raises(LayerError, match="one shape"):
        make_layer(text % "SUM", (2, 3, 4), (4,)).top_shapes([(2, 3, 4), (4,)])


def test_one_bottom_needs_a_coefficient() -> None:
    layer = make_layer('type: "Eltwise" eltwise_param { operation: SUM coeff: 20 }', (2, 3))
    x = seeded(2, 3)
    assert torch.equal(layer(x), 20 * x)


def test_intels_concat_makes_rows_by_place() -> None:
    a, b = seeded(2, 4, 3, 2), seeded(2, 8, 1, 1, seed=1)
    layer = make_layer('type: "Concat" concat_param { axis: 1 per_fla_fuse: true }', a.shape, b.shape)
    wanted = np.concatenate([a.numpy().transpose(0, 2, 3, 1).reshape(2, -1), b.numpy().reshape(2, -1)], 1)
    close(layer(a, b), wanted, 0)


def test_weights_of_sigmoid_losses_and_the_cost_of_each_label() -> None:
    x = seeded(3, 4).requires_grad_()
    targets, weights = (seeded(3, 4, seed=1) > 0).double(), seeded(3, 4, seed=2).abs()
    layer = make_layer('type: "SigmoidCrossEntropyLoss"', x.shape, x.shape, x.shape)
    costs = torch.nn.functional.binary_cross_entropy_with_logits(x, targets, reduction="none")
    close(layer(x, targets, weights), ((costs * weights).sum() / weights.sum()).detach().numpy(), 1e-12)
    assert torch.autograd.gradcheck(lambda scores: layer(scores, targets, weights), (x,))
    assert layer(x, targets, 0 * weights).item() == 0
    labels = torch.tensor([[0.0], [3], [1]])
    loss = make_layer('type: "SoftmaxWithLoss" loss_param { ignore_label: 3 }', x.shape, labels.shape, tops=3)
    total, probabilities, each = loss(x, labels)
    wanted = -probabilities.log()[[0, 2], [0, 1]]
    close(each, np.array([[wanted[0].item()], [0], [wanted[1].item()]]), 1e-6)
    assert total.item() == pytest.approx(wanted.sum().item() / 2)


def test_smooth_l1_with_three_bottoms_weighs_inside_alone() -> None:
    a, b, w = seeded(4, 3).requires_grad_(), seeded(4, 3, seed=1), seeded(4, 3, seed=2)
    layer = make_layer('type: "SmoothL1Loss"', a.shape, b.shape, w.shape)
    d = w * (a - b).detach()
    near = d.abs() < 1
    loss = layer(a, b, w)
    close(loss, (torch.where(near, d**2 / 2, d.abs() - 0.5).sum() / 4).numpy(), 1e-12)
    loss.backward()
    close(a.grad, (torch.where(near, d, d.sign()) / 4).numpy(), 1e-12)
