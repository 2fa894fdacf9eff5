"""Measures of Caffe's forks: SegAccuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.registry import register


@register("SegAccuracy")
class SegAccuracy(Layer):
    """Of scores (N, C, H, W) and labels: the accuracy over positions, the mean recall of the classes that the labels
    hold, and the mean IU of all classes, in which a class neither labelled nor predicted counts 1: a top (1, 1, 1, 3).

    Labels in `ignore_label` don't count. With `reset: false` positions are counted on from call to call. `metric` has
    no effect, in the fork neither.
    """

    fork = "PSPNet, DeepLab"
    kind = "loss"
    config_field = "seg_accuracy_param"
    bottoms = (2, 2)
    in_place = False
    index_bottoms = (1,)
    force_backward_refuses = (0, 1)
    counts: Tensor

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(first[1]) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        scores, labels = shapes
        if len(scores) < 2 or scores[0] * math.prod(scores[2:]) != math.prod(labels):
            self.fail(f"scores of shape {tuple(scores)} need a label for each position, got shape {tuple(labels)}")
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64, device="cpu"), persistent=False)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 1, 1, 3)]

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        classes = scores.shape[1]
        truth, found = labels.flatten().long(), scores.argmax(1).flatten()
        valid = torch.ones_like(truth, dtype=torch.bool)
        for label in self.config.ignore_label:
            valid &= truth != label
        truth, found = truth[valid], found[valid]
        if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
            self.fail(f"labels from {int(truth.min())} to {int(truth.max())} for {classes} classes; see ignore_label")
        counts = torch.bincount(truth * classes + found, minlength=classes * classes).view(classes, classes)
        if not self.config.reset and self.counts.numel():
            counts = counts + self.counts
        self.counts = counts
        right, labelled, predicted = counts.diagonal().double(), counts.sum(1), counts.sum(0)
        union = labelled + predicted - counts.diagonal()
        present = labelled > 0
        recall = (right[present] / labelled[present]).mean() if bool(present.any()) else right.new_zeros(())
        iu = torch.where(union > 0, right / union.clamp(min=1), 1).mean()
        accuracy = right.sum() / counts.sum().clamp(min=1)
        return torch.stack([accuracy, recall, iu]).to(scores.dtype).view(1, 1, 1, 3)
