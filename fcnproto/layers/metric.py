"""Accuracy: a figure of merit, never a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import computing_type
from fcnproto.layers.labels import read_labels
from fcnproto.layers.registry import register


@register("Accuracy")
class Accuracy(Layer):
    """Caffe's Accuracy: the share of labels that are among the `top_k` best scores along `axis`.

    A label counts as right where fewer than `top_k` other classes score as high or higher: ties count against it, and
    a constant prediction scores 0. Labels equal to `ignore_label` are left out; with no label left the result is 0.
    The second top has the accuracy of each class, 0 for classes without labels. There is no gradient. A label out of
    range is an error on the CPU and makes the result NaN on a GPU.
    """

    differences = "labels out of range are an error on the CPU; Caffe reads past the blob."

    config_field = "accuracy_param"
    kind = "loss"
    judges = True
    bottoms = (2, 2)
    tops = (1, 2)
    force_backward_refuses = (0, 1)
    index_bottoms = (1,)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.ignore_label = self.config.ignore_label if self.config.HasField("ignore_label") else None
        axis = self.axis(self.config.axis, shapes[0])
        classes = shapes[0][axis]
        if self.config.top_k > classes:
            self.fail(f"top_k {self.config.top_k} exceeds the {classes} classes of a bottom of shape {shapes[0]}")

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        scores = scores.detach()
        axis = self.axis(self.config.axis, scores.shape)
        read = read_labels(self, labels, scores, axis, self.ignore_label)
        # The true class itself is among those that score as high.
        rank = (scores >= scores.gather(axis, read.classes)).sum(axis, keepdim=True) - 1
        result_type = computing_type(scores)
        right = read.leave_out((rank < self.config.top_k).to(result_type))
        valid = read.leave_out(torch.ones_like(right))
        accuracy = right.sum() / valid.sum().clamp(min=1)
        if self.num_tops < 2:
            return accuracy
        index = read.classes.reshape(-1)
        per_class = torch.zeros(2, scores.shape[axis], dtype=result_type, device=scores.device)
        per_class[0].scatter_add_(0, index, right.reshape(-1))
        per_class[1].scatter_add_(0, index, valid.reshape(-1))
        return accuracy, per_class[0] / per_class[1].clamp(min=1)
