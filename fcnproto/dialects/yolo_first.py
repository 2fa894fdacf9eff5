"""The first YOLO: DetectionLoss, and EvalDetection, which marks its detections as right or wrong.

Both take, for an image of S x S places, all of it flat: the scores of the classes (classes, S * S), how sure each of
the `num_object` boxes of a place is (num_object, S * S), and the boxes (num_object, 4, S * S); and labels: whether the
object is difficult, whether there is one, its class (S * S each), and its box (S * S, 4), as x, y, w, h in fractions of
the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.dialects.fields import FieldLoss
from fcnproto.dialects.yolo import corners, overlap_of
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Array, Draw
from fcnproto.layers.loss import LossLayer
from fcnproto.layers.plain import Piece, Request, Unsayable
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2

_Scores = caffe_pb2.EvalDetectionParameter


class Predicted(NamedTuple):
    """What a bottom says, by place: L is S * S, K boxes."""

    classes: Tensor
    """(N, L, classes)"""
    sure: Tensor
    """(N, L, K)"""
    boxes: Tensor
    """(N, L, K, 4), as predicted."""


class Labelled(NamedTuple):
    """What labels say, by place."""

    difficult: Tensor
    there: Tensor
    label: Tensor
    """(N, L) each."""
    boxes: Tensor
    """(N, L, 4)"""


def one_object(draw: np.random.Generator, shape: Sequence[int]) -> Array:
    """Labels with an object of class 0 at the first place of each image."""
    values = np.zeros((shape[0], math.prod(shape[1:])))
    count = values.shape[1] // 7
    values[:, count] = 1
    values[:, 3 * count : 3 * count + 4] = draw.uniform(0.1, 0.5, (shape[0], 4))
    return values.reshape(tuple(shape))


def check_counts(layer: Layer, shapes: Sequence[Shape]) -> None:
    """Both bottoms must have as many values as the settings say."""
    config, places = layer.config, layer.config.side**2
    wanted = (places * (config.num_class + 5 * config.num_object), places * 7)
    if any(not shape or math.prod(shape[1:]) != count for shape, count in zip(shapes, wanted, strict=True)):
        layer.fail(
            f"{config.side} x {config.side} places, {config.num_class} classes and {config.num_object} boxes need "
            f"bottoms (N, {wanted[0]}) and (N, {wanted[1]}), got {tuple(shapes[0])} and {tuple(shapes[1])}"
        )
    if min(config.side, config.num_class, config.num_object) < 1:
        layer.fail("side, num_class and num_object must be positive")


def predicted(x: Tensor, config: Any) -> Predicted:
    """The parts of a bottom."""
    places = config.side**2
    parts = x.reshape(len(x), -1, places).split([config.num_class, config.num_object, 4 * config.num_object], 1)
    boxes = parts[2].reshape(len(x), config.num_object, 4, places).permute(0, 3, 1, 2)
    return Predicted(parts[0].transpose(1, 2), parts[1].transpose(1, 2), boxes)


def labelled(labels: Tensor, config: Any) -> Labelled:
    """The parts of labels."""
    places = config.side**2
    flat = labels.reshape(len(labels), 7 * places)
    difficult, there, label, boxes = flat.split([places, places, places, 4 * places], 1)
    return Labelled(difficult == 1, there != 0, label.long(), boxes.reshape(-1, places, 4))


def in_image(boxes: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Centres and sizes in fractions of the image, (N, L, K, 2) each, of boxes as predicted."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    if config.constriant:
        centre = (centre + corner_of(boxes, config.side)) / config.side
    return centre, size.square() if config.sqrt else size


def corner_of(boxes: Tensor, side: int) -> Tensor:
    """Column and row of each place, (L, 1, 2)."""
    place = torch.arange(side * side, device=boxes.device)
    return torch.stack([place % side, place // side], 1).unsqueeze(1).to(boxes.dtype)


@register("DetectionLoss")
class DetectionLoss(LossLayer):
    """mscnn's loss where `cls_num` is given (`dialects/fields.py`), else the first YOLO's.

    That is the sum of squares: of how sure boxes are where they are to find nothing, over their
    number; over the number of objects those of classes, of the box that overlaps the object most (or, where none does,
    is nearest), and of how sure it is, less 1. Each times its `_scale`.

    With `sqrt` boxes predict the roots of width and height, with `constriant` the centre within the place. The gradient
    is that of the squares' halves over N, for how sure the box is with its overlap in place of 1, as in the fork.
    """

    fork = "caffe-yolo; mscnn"
    config_field = "detection_loss_param"
    also_reads = ("bbox_reg_param", "loss_param")

    def __init__(self, param: caffe_pb2.LayerParameter, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.of_fields = FieldLoss(param, num_tops) if param.detection_loss_param.HasField("cls_num") else None

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        if self.of_fields is not None:
            return self.of_fields.suitable_values(bottom, first)
        return one_object if bottom == 1 else None

    def draws_numbers(self) -> bool:
        return self.of_fields is not None and self.of_fields.draws_numbers()

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.of_fields is not None:
            self.of_fields.setup(shapes)
        else:
            check_counts(self, shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [()] if self.of_fields is None else self.of_fields.top_shapes(shapes)

    def plain(self, request: Request) -> Piece:
        raise Unsayable("it is a loss to train a detector with")

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.of_fields is not None:
            return self.of_fields.forward(x, labels)
        values = at_least_float32(x)
        with torch.no_grad():
            loss, differences = self.compute(values, at_least_float32(labels))
        slope = (values * differences).sum() / max(len(x), 1)
        return loss + (slope - slope.detach())

    def compute(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the differences in the shape of `x`."""
        config = self.config
        truth = labelled(labels, config)
        wrong = truth.there & ((truth.label < 0) | (truth.label >= config.num_class))
        if bool(wrong.any()):
            self.fail(f"label {int(truth.label[wrong][0])} is outside of 0..{config.num_class - 1}")
        found = predicted(x, config)
        best, overlap = self._responsible(found, truth)
        there = truth.there
        count = there.sum().to(x.dtype)
        onehot = torch.arange(config.num_class, device=x.device) == truth.label.unsqueeze(2)
        classes = (found.classes - onehot.to(x.dtype)) * there.unsqueeze(2)
        chosen = (torch.arange(config.num_object, device=x.device) == best.unsqueeze(2)) & there.unsqueeze(2)
        sure = found.sure
        none = sure.square().masked_fill(chosen, 0).sum() / (sure.numel() - count)
        target = self._target(truth).unsqueeze(2)
        boxes = torch.where(chosen.unsqueeze(3), found.boxes - target, 0)
        of_objects = (
            config.class_scale * classes.square().sum()
            + config.coord_scale * boxes.square().sum()
            + config.object_scale * (sure - 1).square().masked_fill(~chosen, 0).sum()
        )
        aimed = config.object_scale * (sure - overlap.unsqueeze(2))
        parts = (
            config.class_scale * classes.transpose(1, 2),
            torch.where(chosen, aimed, config.noobject_scale * sure).transpose(1, 2),
            (config.coord_scale * boxes).permute(0, 2, 3, 1).flatten(1, 2),
        )
        return of_objects / count + config.noobject_scale * none, torch.cat(parts, 1).reshape(x.shape)

    def _responsible(self, found: Predicted, truth: Labelled) -> tuple[Tensor, Tensor]:
        """For each place the box that is to find its object, and their overlap: (N, L) each."""
        centre, size = in_image(found.boxes, self.config)
        target = truth.boxes.unsqueeze(2)
        overlaps = overlap_of(centre, size, target[..., :2], target[..., 2:])
        apart = (torch.cat([centre, size], 3) - target).square().sum(3).sqrt()
        nearest = apart.argmin(2) * (apart.amin(2) < 20)
        most, which = overlaps.max(2)
        return torch.where(most > 0, which, nearest), most.clamp(min=0)

    def _target(self, truth: Labelled) -> Tensor:
        """What boxes are to predict: (N, L, 4)."""
        centre, size = truth.boxes[..., :2], truth.boxes[..., 2:]
        if self.config.constriant:
            centre = centre * self.config.side - corner_of(truth.boxes, self.config.side).squeeze(1)
        return torch.cat([centre, size.sqrt() if self.config.sqrt else size], 2)


@register("EvalDetection")
class EvalDetection(Layer):
    """The first YOLO's detections, marked: a top (N, classes + S * S * num_object * 4) of how many objects of each
    class there are, difficult ones left out, and rows label, score, right, wrong, by class and from the best on.

    A detection is right if the object of its class that it overlaps most is overlapped by `threshold` or more and was
    not found before; neither if that object is difficult. The score is how sure the box is (OBJ), its class's (PROB),
    or their product (MULTIPLY, the default). With `nms` from 0 on, boxes that overlap a better one by as much are left
    out. Further bottoms are not read.
    """

    fork = "caffe-yolo"
    kind = "loss"
    config_field = "eval_detection_param"
    bottoms = (2, None)
    in_place = False
    index_bottoms = (1,)
    force_backward_refuses = (0, 1)
    differences = "equal scores keep the order of places; the fork's sort leaves it open."

    def keeps_images_apart(self) -> bool:
        return True

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return one_object if bottom == 1 else None

    def withheld(self) -> str:
        if not self.config.biases:
            return ""
        return f"layer {self.name!r} (EvalDetection): biases are those of Intel's layer for YOLO v2, which isn't here"

    def setup(self, shapes: Sequence[Shape]) -> None:
        check_counts(self, shapes[:2])

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        config = self.config
        return [(shapes[0][0], config.num_class + config.side**2 * config.num_object * 4)]

    @torch.no_grad()
    def forward(self, x: Tensor, labels: Tensor, *_: Tensor) -> Tensor:
        config = self.config
        values = at_least_float32(x)
        found, truth = predicted(values, config), labelled(at_least_float32(labels), config)
        most, label = found.classes.max(2)
        kind = config.score_type
        score = most.unsqueeze(2).expand_as(found.sure) if kind == _Scores.PROB else found.sure
        score = score * most.unsqueeze(2) if kind == _Scores.MULTIPLY else score
        centre, size = in_image(found.boxes, config)
        top = values.new_zeros(len(x), config.num_class + score[0].numel() * 4) if len(x) else values.new_zeros(0)
        for n in range(len(x)):
            objects = Labelled(*(part[n] for part in truth))
            counted = objects.label[objects.there & ~objects.difficult]
            if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < config.num_class:
                self.fail(f"labels must be within 0..{config.num_class - 1}")
            top[n, : config.num_class] = torch.bincount(counted, minlength=config.num_class)
            names = label[n].repeat_interleave(config.num_object)
            boxes = (centre[n].flatten(0, 1), size[n].flatten(0, 1))
            rows = self._marked(names, score[n].flatten(), boxes, objects)
            top[n, config.num_class : config.num_class + rows.numel()] = rows.flatten()
        return top.to(x.dtype)

    def _marked(self, label: Tensor, score: Tensor, boxes: tuple[Tensor, Tensor], objects: Labelled) -> Tensor:
        """The rows (M, 4) of one image."""
        order = score.argsort(descending=True, stable=True)
        if self.config.nms >= 0:
            every = corners(*boxes)[order]
            order = order[box.suppress(every, self.config.nms, strict=True).to(order.device)]
        order = order[label[order].argsort(stable=True)]
        places = objects.there.nonzero().flatten()
        targets = objects.boxes[places]
        overlaps = overlap_of(
            boxes[0][order].unsqueeze(1), boxes[1][order].unsqueeze(1), targets[:, :2], targets[:, 2:]
        )
        same = label[order].unsqueeze(1) == objects.label[places]
        overlaps = overlaps.masked_fill(~same, -1)
        rows = torch.stack([label[order].to(score), score[order], 0 * score[order], 0 * score[order]], 1)
        if not len(places):
            rows[:, 3] = 1
            return rows
        best, which = overlaps.max(1)
        matched = (best >= self.config.threshold) & same.any(1)
        difficult = objects.difficult[places][which]
        first = _first_of_each(torch.where(matched & ~difficult, which, -1))
        rows[:, 2] = (matched & ~difficult & first).to(score)
        rows[:, 3] = (~matched | (~difficult & ~first)).to(score)
        return rows


def _first_of_each(which: Tensor) -> Tensor:
    """Which numbers (M,) have not been there before."""
    same = which.unsqueeze(1) == which.unsqueeze(0)
    return ~same.tril(-1).any(1)
