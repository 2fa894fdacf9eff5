"""How right the maps are that mscnn and cascade-rcnn train proposals with: see `fields.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.dialects.cascade import field_boxes
from fcnproto.dialects.fields import FieldLayer, Truth, objects_of, shared, truth_of
from fcnproto.layers.base import Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Draw
from fcnproto.layers.registry import register


class _FieldAccuracy(FieldLayer):
    """How right scores and boxes are: a top (1, 1, 1, 2) with the share of places whose class is right, of all and of
    objects' places, and one (1, 1, 1, 1) with the mean overlap of predicted boxes with their objects; -1 of none. There
    is no gradient."""

    tops = (1, 2)
    one: float = 0
    judges = True

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        both: list[Shape] = [(1, 1, 1, 2), (1, 1, 1, 1)]
        return both[: self.num_tops]

    def measured(self, right: Tensor, values: Tensor, truth: Truth, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The tops: `right` (M, P) is where the class is right, `values` (M, 4, H, W) are predictions."""
        settings = self.param.loss_param
        ignore = settings.ignore_label if settings.HasField("ignore_label") else None
        counted = torch.ones_like(right) if ignore is None else label != ignore
        counted &= ~((label == 0) & (truth.overlap >= self.config.bg_threshold))
        shares = [mean_of(right, counted), mean_of(right, counted & (label != 0))]
        first = torch.stack(shares).to(values.dtype).view(1, 1, 1, 2)
        if self.num_tops < 2:
            return first
        field = self.field_of_each(len(values), values).unsqueeze(1)
        corner, size = field_boxes(self.as_predicted(values, 1), field, self.stride, self.limits)
        boxes = truth.boxes.transpose(1, 2)
        own = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]
        there = truth.label != 0 if ignore is None else (truth.label != 0) & (truth.label != ignore)
        return first, mean_of(shared((corner, size), own, self.one), there).to(values.dtype).view(1, 1, 1, 1)


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values, -1 of none."""
    found = values[chosen].double()
    return found.mean() if len(found) else found.new_tensor(-1.0)


@register("DetectionAccuracy")
class DetectionAccuracy(_FieldAccuracy):
    """How right a map (N, cls_num + 4, H, W) of scores and predictions is by labels (N, 6, H, W), `top_k` scores being
    looked at. The tops: the share of places whose class is right, of all and of objects' places, in (1, 1, 1, 2), and
    the mean overlap of predicted boxes with their objects, in (1, 1, 1, 1); -1 of none. There is no gradient.
    """

    fork = "mscnn"
    config_field = "detection_accuracy_param"
    also_reads = ("bbox_reg_param", "loss_param")
    bottoms = (2, 2)
    force_backward_refuses = (0, 1)
    index_bottoms = (1,)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return objects_of(self.config.cls_num, self.stride, self.fields()[0]) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.read_normalisation()
        if config.coord_num != 4 or not 1 <= config.top_k <= max(config.cls_num, 1):
            self.fail(f"coord_num is 4 and top_k within 1..cls_num, got {config.coord_num} and {config.top_k}")
        first = shapes[0]
        channels = first[1] - 4 if len(first) == 4 else 0
        self.check_fields((first[0] if first else 0, channels, *first[2:]), (*first[:1], 4, *first[2:]), shapes[1])

    @torch.no_grad()
    def forward(self, x: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        config, truth, values = self.config, truth_of(labels), at_least_float32(x)
        label = truth.label.clamp(max=1) if config.objectness else truth.label
        scores = values[:, : config.cls_num].flatten(2)
        # Of equal scores the later class comes first, as the fork sorts pairs of score and number.
        ranked = scores.shape[1] - 1 - scores.flip(1).argsort(dim=1, descending=True, stable=True)
        right = (ranked[:, : config.top_k] == label.unsqueeze(1)).any(1)
        return self.measured(right, values[:, config.cls_num :], truth, label)


@register("DetectionGroupAccuracy")
class DetectionGroupAccuracy(_FieldAccuracy):
    """How right scores (N * G, cls_num, H, W) and predictions (N * G, 4, H, W) of G fields are by labels (N * G, 6, H,
    W). The tops: the share of places whose class is right, of all and of objects' places, in (1, 1, 1, 2), and the mean
    overlap of predicted boxes with their objects, in (1, 1, 1, 1); -1 of none. There is no gradient.
    """

    fork = "cascade-rcnn"
    config_field = "detection_group_accuracy_param"
    also_reads = ("bbox_reg_param", "loss_param")
    bottoms = (3, 3)
    force_backward_refuses = (0, 1, 2)
    index_bottoms = (2,)
    one = 1

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        sizes = [side for field in self.fields() for side in field]
        return objects_of(self.config.cls_num, self.stride, sizes) if bottom == 2 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_normalisation()
        self.check_fields(shapes[0], shapes[1], shapes[2])

    @torch.no_grad()
    def forward(self, x: Tensor, predicted: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        truth, scores = truth_of(labels), at_least_float32(x).flatten(2)
        label = truth.label.clamp(max=1) if self.config.objectness else truth.label
        return self.measured(scores.argmax(1) == label, at_least_float32(predicted), truth, label)
