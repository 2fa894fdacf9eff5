"""Accuracy: a figure of merit, never a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import computing_type
from fcnproto.layers.labels import Labels, place_labels, read_labels
from fcnproto.layers.plain import Piece, Request
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
    stops_gradient = True
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
        axis = self.axis(self.config.axis, scores.shape)
        read = read_labels(self, labels, scores.detach(), axis, self.ignore_label)
        accuracy = label_accuracy(scores, read, axis, self.config.top_k)
        return accuracy if self.num_tops < 2 else (accuracy, class_accuracies(scores, read, axis, self.config.top_k))

    def plain(self, request: Request) -> Piece:
        axis = self.axis(self.config.axis, request.shapes[0])
        read = f"place_labels({request.args[1]}, {request.x}, {axis}, ignore={self.ignore_label})"
        arguments = [request.x, read, f"axis={axis}", f"top_k={self.config.top_k}"]
        if self.num_tops < 2:
            return Piece(("label_accuracy", arguments), None, (label_accuracy, place_labels))
        both = [f"{name}({', '.join(arguments)})" for name in ("label_accuracy", "class_accuracies")]
        return Piece(("", both), None, (label_accuracy, class_accuracies, place_labels))


def count_right(scores: Tensor, read: Labels, axis: int, top_k: int) -> tuple[Tensor, Tensor]:
    """1 where a label is among the best scores, 0 elsewhere; and 1 where it counts."""
    scores = scores.detach()
    # The true class itself is among those that score as high.
    rank = (scores >= scores.gather(axis, read.classes)).sum(axis, keepdim=True) - 1
    right = read.leave_out((rank < top_k).to(computing_type(scores)))
    return right, read.leave_out(torch.ones_like(right))


def label_accuracy(scores: Tensor, read: Labels, axis: int, top_k: int) -> Tensor:
    """The share of labels among the `top_k` best scores; ties count against them."""
    right, valid = count_right(scores, read, axis, top_k)
    return right.sum() / valid.sum().clamp(min=1)


def class_accuracies(scores: Tensor, read: Labels, axis: int, top_k: int) -> Tensor:
    """The accuracy of each class, 0 for classes without labels."""
    right, valid = count_right(scores, read, axis, top_k)
    index = read.classes.reshape(-1)
    empty = torch.zeros(scores.shape[axis], dtype=right.dtype, device=scores.device)
    found = empty.scatter_add(0, index, right.reshape(-1))
    return found / empty.scatter_add(0, index, valid.reshape(-1)).clamp(min=1)
