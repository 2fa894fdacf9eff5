"""SigmoidCrossEntropyLoss: Caffe's, HED's, MNC's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.layers.base import Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Draw, integers, positive
from fcnproto.layers.labels import check_items
from fcnproto.layers.loss import LossLayer, divisor, per_item
from fcnproto.layers.plain import Piece, Request
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2

_Mode = caffe_pb2.LossParameter


class LogisticCost(torch.autograd.Function):
    """log(1 + e^x) - t * x for scores x and targets t, exact to the last digits also where a score is confident.

    Written as max(x, 0) - t * x + log(1 + e^-|x|), whose terms don't cancel where the target is 0 or 1; the gradient
    sigmoid(x) - t likewise, as (1 - t) - sigmoid(-x) for targets nearer to 1.
    """

    @staticmethod
    def forward(scores: Tensor, targets: Tensor) -> Tensor:
        return scores.clamp(min=0) - scores * targets + torch.exp(-scores.abs()).log1p()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scores, targets = ctx.saved_tensors
        slope = torch.where(targets > 0.5, (1 - targets) - (-scores).sigmoid(), scores.sigmoid() - targets)
        return grad * slope, None


def sigmoid_loss(scores: Tensor, targets: Tensor, ignore: int | None, mode: str | float) -> Tensor:
    """The logistic costs of scores and targets of one count over Z; targets whose whole part is `ignore` left out."""
    scores = at_least_float32(scores)
    targets = targets.detach().reshape(scores.shape)
    ignored = None if ignore is None else targets.to(torch.int64) == ignore
    costs: Tensor = LogisticCost.apply(scores, targets.to(scores.dtype))
    if ignored is not None:
        costs = costs.masked_fill(ignored, 0)
    return costs.sum() / divisor(mode, scores.shape[0], math.prod(scores.shape[1:]), ignored)


def weighted_sigmoid_loss(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The logistic costs of scores and targets times weights, all of one count, over the sum of the weights."""
    scores = at_least_float32(scores)
    targets, weights = (bottom.detach().reshape(scores.shape).to(scores.dtype) for bottom in (targets, weights))
    costs: Tensor = LogisticCost.apply(scores, targets)
    total = weights.sum()
    return (costs * weights).sum() * torch.where(total > 0, 1 / total, 0)


def class_balanced_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """HED's sum over an item of the logistic costs, those at targets of 1 times the share of the zeros, those at 0
    times the share of the ones, over N. Other targets cost nothing, yet their gradient is sigmoid - target, over N."""
    scores = per_item(at_least_float32(scores))
    targets = targets.detach().reshape(scores.shape).to(scores.dtype)
    ones, zeros = targets == 1, targets == 0
    count = [marked.sum(1, keepdim=True, dtype=scores.dtype) for marked in (ones, zeros)]
    weights = (ones * count[1] + zeros * count[0]) / (count[0] + count[1]).clamp(min=1)
    costs: Tensor = LogisticCost.apply(scores, targets)
    others = costs.masked_fill(ones | zeros, 0).sum()
    return ((costs * weights).sum() + (others - others.detach())) / max(scores.shape[0], 1)


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(LossLayer):
    """Caffe's SigmoidCrossEntropyLoss: -1/Z * sum of t * log(s) + (1 - t) * log(1 - s), s being the sigmoid of x.

    Bottoms: scores x and targets t of the same count. Left out are targets whose whole part is `ignore_label`. Z is by
    `loss_param.normalization` as for SoftmaxWithLoss, with BATCH_SIZE (N) the default.

    A third bottom (MNC's) weighs each cost; Z is the sum of the weights then, without a sum above 0 the loss is 0.
    In the dialect "hed" it is HED's class-balanced loss (`class_balanced_loss`), without settings.
    """

    differences = (
        "HED's loss (dialect hed), which nothing in the text tells from Caffe's, is 0 for an item without targets of 0 "
        "and 1 (the fork's NaN)."
    )

    bottoms = (2, 3)
    config_field = "loss_param"
    index_bottoms = ()
    default_mode = _Mode.BATCH_SIZE

    force_backward_refuses = (1, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        self.balanced = self.dialect == "hed"
        if len(shapes) == 3:
            given = [field.name for field, _ in self.config.ListFields()]
            self.warn_unread(given, "the loss with weights (MNC's) has no settings")
        if self.balanced:
            given = [field.name for field, _ in self.config.ListFields()]
            self.warn_unread(given, "HED's loss has no settings")

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return {1: integers(2), 2: positive}.get(bottom)

    def forward(self, scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        check_items(self, scores, targets)
        if scores.numel() != targets.numel():
            self.fail(f"needs one target per score, got shapes {tuple(scores.shape)} and {tuple(targets.shape)}")
        if weights is not None:
            if scores.numel() != weights.numel():
                self.fail(f"needs one weight per score, got shapes {tuple(scores.shape)} and {tuple(weights.shape)}")
            return weighted_sigmoid_loss(scores, targets, weights)
        if self.balanced:
            return class_balanced_loss(scores, targets)
        return sigmoid_loss(scores, targets, self.ignore_label, self.mode_name)

    def plain(self, request: Request) -> Piece:
        if len(request.args) == 3:
            return Piece(("weighted_sigmoid_loss", [*request.args]), None, (weighted_sigmoid_loss,))
        if self.balanced:
            return Piece(("class_balanced_loss", [*request.args]), None, (class_balanced_loss,))
        arguments = [*request.args, f"ignore={self.ignore_label}", self.said_mode]
        return Piece(("sigmoid_loss", arguments), None, (sigmoid_loss,))
