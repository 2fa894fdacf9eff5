"""Losses between scores or features and what they ought to be: EuclideanLoss, HingeLoss and ContrastiveLoss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.layers.backward import Reads
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.labels import Labels, check_items, place_labels, read_labels
from fcnproto.layers.loss import LossLayer, per_item
from fcnproto.layers.plain import Piece, Request, number
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


def euclidean_loss(first: Tensor, second: Tensor) -> Tensor:
    """The sum of (a - b)^2 / (2 N)."""
    difference = at_least_float32(first - second.reshape(first.shape))
    return difference.square().sum() / (2 * max(first.shape[0], 1))


def hinge_loss(scores: Tensor, read: Labels, squared: bool) -> Tensor:
    """v or v^2 summed over N for scores (N, C); v = max(0, 1 + x), at the label max(0, 1 - x)."""
    scores = at_least_float32(scores)
    sign = torch.ones_like(scores).scatter(1, read.classes, read.leave_out(-torch.ones_like(scores[:, :1])))
    margins = F.relu(scores * sign + 1)
    return (margins.square() if squared else margins).sum() / max(len(scores), 1)


@register("EuclideanLoss")
class EuclideanLoss(LossLayer):
    """Caffe's EuclideanLoss: sum of (a - b)^2 / (2 N), with gradients to both bottoms."""

    force_backward_refuses = ()
    index_bottoms = ()

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        check_items(self, first, second)
        if first.numel() != second.numel():
            self.fail(f"bottoms must have the same count, got shapes {tuple(first.shape)} and {tuple(second.shape)}")
        return euclidean_loss(first, second)

    def plain(self, request: Request) -> Piece:
        return Piece(("euclidean_loss", list(request.args)), None, (euclidean_loss,))


@register("HingeLoss")
class HingeLoss(LossLayer):
    """Caffe's HingeLoss: 1/N * sum of v (`norm` L1) or v^2 (L2); v = max(0, 1 + x), at the label max(0, 1 - x).

    Bottoms: scores (N, ...), numbered through in an item, and one label per item.
    """

    differences = "more than one label per item is an error; Caffe reads the first ones without complaint."

    config_field = "hinge_loss_param"

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        check_items(self, scores, labels)
        rows = per_item(scores)
        return hinge_loss(rows, read_labels(self, labels, rows, 1), self.squared)

    @property
    def squared(self) -> bool:
        """Whether the margins are squared (norm L2)."""
        return bool(self.config.norm == caffe_pb2.HingeLossParameter.L2)

    def plain(self, request: Request) -> Piece:
        rows = f"per_item({request.x})"
        arguments = [rows, f"place_labels({request.args[1]}, {rows}, 1)", f"squared={self.squared}"]
        return Piece(("hinge_loss", arguments), None, (hinge_loss, per_item, place_labels))


@register("ContrastiveLoss")
class ContrastiveLoss(LossLayer):
    """Caffe's ContrastiveLoss: 1/(2 N) * sum of d^2 for similar pairs and max(margin - d, 0)^2 for others.

    d is the distance of the vectors a and b (N, C), further axes being 1; pairs are similar where the third bottom is
    not 0 after its fraction is cut off. `legacy_version` takes max(margin - d^2, 0) instead. The gradient of a
    dissimilar pair is Caffe's: its length has d / (d + 1e-4) where the derivative has 1.
    """

    config_field = "contrastive_loss_param"
    bottoms = (3, 3)
    force_backward_refuses = (2,)
    index_bottoms = (2,)

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(2,))

    def forward(self, first: Tensor, second: Tensor, similar: Tensor) -> Tensor:
        check_items(self, first, second)
        count = first.shape[0]
        if first.shape[:2].numel() != first.numel() or first.numel() != second.numel() or first.dim() < 2:
            got = f"{tuple(first.shape)} and {tuple(second.shape)}"
            self.fail(f"bottoms 0 and 1 must be vectors (N, C) of one size, got shapes {got}")
        if similar.numel() != count:
            self.fail(f"needs one similarity per pair, {count}, got shape {tuple(similar.shape)}")
        return contrastive_loss(first, second, similar, self.config.margin, self.config.legacy_version)

    def plain(self, request: Request) -> Piece:
        config = self.config
        arguments = [*request.args, f"margin={number(config.margin)}", f"legacy={config.legacy_version}"]
        return Piece(("contrastive_loss", arguments), None, (contrastive_loss,))


def contrastive_loss(first: Tensor, second: Tensor, similar: Tensor, margin: float, legacy: bool) -> Tensor:
    """The contrastive loss of pairs of vectors (N, C, ...), similar where `similar` is not 0."""
    difference = at_least_float32(first.flatten(1) - second.flatten(1))
    is_similar = similar.detach().reshape(first.shape[0]).to(difference.device, torch.int64) != 0
    result: Tensor = _Contrast.apply(difference, is_similar, margin, legacy)[0]
    return result


class _Contrast(torch.autograd.Function):
    """The contrastive loss of differences (N, C), with Caffe's gradient."""

    @staticmethod
    def forward(difference: Tensor, similar: Tensor, margin: float, legacy: bool) -> tuple[Tensor, Tensor]:
        squared = difference.square().sum(1)
        if legacy:
            cost = (margin - squared).clamp(min=0)
            slope = -(squared < margin).to(squared.dtype)
        else:
            distance = squared.sqrt()
            gap = (margin - distance).clamp(min=0)
            cost, slope = gap.square(), -gap / (distance + 1e-4)
        count = max(len(difference), 1)
        loss = torch.where(similar, squared, cost).sum() / (2 * count)
        return loss, slope.masked_fill(similar, 1) / count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        difference, slope = ctx.saved_tensors
        return difference * (slope * grad).unsqueeze(1), None, None, None
