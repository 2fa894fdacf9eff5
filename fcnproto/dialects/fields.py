"""What mscnn and cascade-rcnn train proposals with: losses of maps whose places each predict an object about as large
as the place's field. Accuracies of the same maps are in `field_accuracy.py`.

Labels are maps (N, 6, H, W): an object's class (0 for none), its centre and size in pixels, and how much of it the
field overlaps. Predictions (N, 4, H, W) are the centre from the middle of the place in units of the field, and the
logarithm of the size over the field's, less `bbox_mean` and divided by `bbox_std`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcnproto.dialects.cascade import Normalised, middles
from fcnproto.dialects.rcnn_targets import some_of
from fcnproto.layers.base import Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Array, Draw
from fcnproto.layers.loss import LOG_FLT_MIN, LossLayer, raise_to
from fcnproto.layers.plain import Piece, Request, Unsayable
from fcnproto.layers.registry import register

_LEAST_SIDE = 2
"""Objects with shorter sides are learnt as having sides of so many pixels."""
_MODES = ("random", "bootstrap", "mixture")


class Truth(NamedTuple):
    """What labels say; P places."""

    label: Tensor
    """(M, P), whole numbers"""
    boxes: Tensor
    """(M, 4, P): centres and sizes"""
    overlap: Tensor
    """(M, P)"""


def truth_of(labels: Tensor) -> Truth:
    """The parts of labels (M, 6, H, W)."""
    flat = at_least_float32(labels).flatten(2)
    return Truth(flat[:, 0].long(), flat[:, 1:5], flat[:, 5])


def objects_of(classes: int, stride: float, sizes: Sequence[float]) -> Draw:
    """Random labels: an object at every fifth place or so, near the middle of its place."""

    def draw_labels(draw: np.random.Generator, shape: Sequence[int]) -> Array:
        values = np.zeros(tuple(shape))
        values[:, 0] = draw.integers(1, max(classes, 2), values[:, 0].shape) * (draw.random(values[:, 0].shape) < 0.2)
        down, across = np.indices(shape[2:])
        values[:, 1] = (across + draw.uniform(0, 1, values[:, 1].shape)) * stride
        values[:, 2] = (down + draw.uniform(0, 1, values[:, 2].shape)) * stride
        values[:, 3:5] = draw.uniform(0.7, 1.4, values[:, 3:5].shape) * float(np.mean(sizes))
        values[:, 5] = draw.uniform(0, 0.9, values[:, 5].shape)
        return values

    return draw_labels


def shared(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], one: float) -> Tensor:
    """The intersection over union of boxes given as corners (..., 2) and sizes (..., 2), pair by pair. With `one` 1
    boxes that meet by less than a whole pixel share nothing (cascade-rcnn's rule)."""
    extent = torch.minimum(a[0] + a[1], b[0] + b[1]) - torch.maximum(a[0], b[0])
    common = torch.where(((extent > 0) & (extent >= one)).all(-1), extent.prod(-1), 0)
    whole = a[1].prod(-1) + b[1].prod(-1) - common
    real = (a[1] > 0).all(-1) & (b[1] > 0).all(-1)
    return torch.where(real, common / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0)


class FieldLayer(Normalised):
    """What the losses and accuracies share: the fields (width, height), as many as take turns along the first axis."""

    def fields(self) -> list[tuple[float, float]]:
        config = self.config
        wide, high = config.field_w, config.field_h
        if isinstance(wide, int):
            return [(wide, high)]
        if len(wide) != len(high) or not wide:
            self.fail(f"each field needs a field_w and a field_h, got {len(wide)} and {len(high)}")
        return list(zip(wide, high, strict=True))

    def field_of_each(self, count: int, like: Tensor) -> Tensor:
        """The fields (count, 2) of the items along the first axis."""
        found = like.new_tensor(self.fields())
        return found.repeat(count // len(found), 1)

    @property
    def stride(self) -> float:
        config = self.config
        return float(config.downsample_rate if hasattr(config, "downsample_rate") else config.stride)

    @property
    def limits(self) -> tuple[float, float]:
        return self.config.field_xyr, self.config.field_whr

    def check_fields(self, scores: Shape, values: Shape, labels: Shape) -> None:
        config = self.config
        if self.stride <= 0 or min(min(field) for field in self.fields()) <= 0:
            self.fail("fields and the distance of places must be given and positive")
        if config.objectness and config.cls_num != 2:
            self.fail(f"with objectness there are two classes, got cls_num {config.cls_num}")
        if not (config.field_xyr > 0 and config.field_whr >= 1):
            self.fail("field_xyr must be positive and field_whr at least 1")
        count = len(self.fields())
        fits = (
            len(scores) == len(values) == len(labels) == 4
            and scores[0] == values[0] == labels[0]
            and scores[2:] == values[2:] == labels[2:]
            and (scores[1], values[1], labels[1]) == (config.cls_num, 4, 6)
        )
        if not fits or scores[0] % count:
            self.fail(
                f"needs scores (N, {config.cls_num}, H, W), predictions (N, 4, H, W) and labels (N, 6, H, W), N a "
                f"multiple of {count}, got {tuple(scores)}, {tuple(values)} and {tuple(labels)}"
            )

    def targets(self, truth: Truth, height: int, width: int) -> Tensor:
        """What is to be predicted (M, 4, P)."""
        field = self.field_of_each(len(truth.boxes), truth.boxes).unsqueeze(2)
        centre = (truth.boxes[:, :2] - middles(height, width, self.stride, truth.boxes).t()) / field
        size = (truth.boxes[:, 2:].clamp(min=_LEAST_SIDE) / field).log()
        mean, std = (truth.boxes.new_tensor(one).view(1, 4, 1) for one in (self.mean, self.std))
        return (torch.cat([centre, size], 1) - mean) / std

    def bounded(self, values: Tensor) -> Tensor:
        """Predictions (M, 4, P) within what the field allows; the gradient passes as if nothing had been cut off."""
        reach, ratio = 1 / self.limits[0], math.log(self.limits[1])
        kept = []
        for part, most in ((slice(0, 2), reach), (slice(2, 4), ratio)):
            mean = sum(self.mean[part]) / 2
            std = math.sqrt(math.prod(self.std[part]))
            kept.append(values[:, part].clamp((-most - mean) / std, (most - mean) / std))
        return values + (torch.cat(kept, 1) - values).detach()


class _FieldLoss(FieldLayer):
    """A loss over places: a top (1, 1, 1, 2) of the whole loss and of its part for boxes, which has no gradient.

    The class's is the mean of -log of its probability over the places that take part, the boxes' the mean of smooth L1
    (or of halves of squares) over the values of objects' places.
    """

    kind = "loss"
    tops = (1, 1)

    def keeps_images_apart(self) -> bool:
        return False

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 1, 1, 2)]

    def plain(self, request: Request) -> Piece:
        raise Unsayable("it is a loss to train a detector with")

    def whole(self, classes: Tensor, boxes: Tensor) -> Tensor:
        """The top of both parts."""
        part = getattr(self.config, "lambda") * boxes
        return torch.stack([classes + part, part.detach()]).view(1, 1, 1, 2)

    def class_loss(self, scores: Tensor, label: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
        """Of scores (M, C, P) where labels (M, P) are `kept`, times `weights`."""
        wrong = kept & ((label < 0) | (label >= scores.shape[1]))
        if bool(wrong.any()):
            self.fail(f"label {int(label[wrong][0])} is outside of 0..{scores.shape[1] - 1}")
        chosen = label.clamp(0, scores.shape[1] - 1).unsqueeze(1)
        costs = -raise_to(scores.log_softmax(1).gather(1, chosen).squeeze(1), LOG_FLT_MIN)
        return torch.where(kept, costs * weights, 0).sum() / kept.sum().clamp(min=1)

    def box_loss(self, values: Tensor, targets: Tensor, found: Tensor, smooth: bool) -> Tensor:
        """Of predictions (M, 4, P) at the places `found` (M, P)."""
        difference = torch.where(found.unsqueeze(1), values - targets, 0)
        squares = difference.square() / 2
        costs = torch.where(difference.abs() < 1, squares, difference.abs() - 0.5) if smooth else squares
        return costs.sum() / (4 * found.sum()).clamp(min=1)

    def ignored(self, label: Tensor) -> Tensor:
        """The places whose label `loss_param` says to leave out."""
        settings = self.param.loss_param
        return label == settings.ignore_label if settings.HasField("ignore_label") else torch.zeros_like(label).bool()

    def balanced(self, weights: Tensor, positive: Tensor, kept: Tensor) -> Tensor:
        """Weights such that objects' places have the share 1 / (1 + bg_multiple) of all that take part."""
        part = 1 / (1 + self.config.bg_multiple)
        count = kept.sum()
        sums = ((weights * (kept & which)).sum() for which in (positive, ~positive))
        factors = [
            torch.where(total != 0, share * count / total, 1)
            for share, total in zip((part, 1 - part), sums, strict=True)
        ]
        return weights * torch.where(positive, factors[0], factors[1])


def highest(scores: Tensor, chosen: Tensor, most: int) -> Tensor:
    """The places of a mask with the largest scores, at most `most`: of equal ones the later, as the forks sort."""
    places = chosen.nonzero().flatten()
    order = len(places) - 1 - scores[places].flip(0).argsort(descending=True, stable=True)
    return places[order[:most]]


class FieldLoss(_FieldLoss, LossLayer):
    """mscnn's DetectionLoss (`dialects/yolo_first.py` has the type): the loss of a map (N, cls_num + 4, H, W), scores
    and then predictions, with labels.

    Of places without an object, those overlapped by less than `bg_threshold` take part: by chance (`sample_mode`
    "random") some of `bg_multiple` for each object, or as many of the highest scores for a class ("bootstrap"), half of
    each ("mixture"), or all. `iou_weighted` weighs objects by their overlap, `pos_neg_weighted` balances both kinds.
    """

    config_field = "detection_loss_param"
    also_reads = ("bbox_reg_param", "loss_param")
    bottoms = (2, 2)
    force_backward_refuses = (1,)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return objects_of(self.config.cls_num, self.stride, self.fields()[0]) if bottom == 1 else None

    def draws_numbers(self) -> bool:
        return self.config.sample_mode in ("random", "mixture")

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.read_normalisation()
        if config.coord_num != 4:
            self.fail(f"coord_num is 4, got {config.coord_num}")
        first = shapes[0]
        channels = first[1] - 4 if len(first) == 4 else 0
        self.check_fields((first[0] if first else 0, channels, *first[2:]), (*first[:1], 4, *first[2:]), shapes[1])

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        config, truth = self.config, truth_of(labels)
        values = at_least_float32(x).flatten(2)
        scores, boxes = values[:, : config.cls_num], values[:, config.cls_num :]
        label = truth.label.clamp(max=1) if config.objectness else truth.label
        with torch.no_grad():
            positive = truth.label != 0
            kept = positive | self._kept(scores, truth, label)
            weights = torch.where(positive, truth.overlap, 1) if config.iou_weighted else torch.ones_like(truth.overlap)
            if config.pos_neg_weighted and bool((weights * positive).sum() != 0):
                weights = self.balanced(weights, positive, kept)
            targets = self.targets(truth, *x.shape[2:])
            ignored = self.ignored(label)
        classes = self.class_loss(scores, label, kept & ~ignored, weights)
        return self.whole(
            classes,
            self.box_loss(self.bounded(boxes), targets, positive & ~self.ignored(truth.label), config.bb_smooth),
        )

    def _kept(self, scores: Tensor, truth: Truth, label: Tensor) -> Tensor:
        """Which places without an object take part (M, P)."""
        config = self.config
        free = (truth.label == 0) & (truth.overlap < config.bg_threshold)
        if config.sample_mode not in _MODES:
            return free
        kept = torch.zeros_like(free)
        part = 0.5 if config.sample_mode == "mixture" else 1
        for item, (mask, classes) in enumerate(zip(free, label, strict=True)):
            if config.sample_mode != "bootstrap":
                count = max(int(int((classes != 0).sum()) * config.bg_multiple * part), 4 * (config.cls_num - 1))
                places = torch.randint(len(mask), (count,)).to(mask.device)
                kept[item, places] = mask[places]
            if config.sample_mode != "random":
                for number in range(1, config.cls_num):
                    most = max(4, int(int((classes == number).sum()) * config.bg_multiple * part))
                    kept[item, highest(scores[item, number], mask, most)] = True
        return kept


@register("DetectionGroupLoss")
class DetectionGroupLoss(_FieldLoss, LossLayer):
    """The loss of scores (N * G, cls_num, H, W), predictions (N * G, 4, H, W) and labels (N * G, 6, H, W) of G fields.

    Of each image `batch_size` places take part (-1: all objects' and `bg_multiple` as many others, at least
    `min_num_neg`), 1 / (1 + bg_multiple) of them objects'; the others, overlapped by less than `bg_threshold`, by
    chance (`neg_mining_type` "random"), the hardest by `neg_ranking_type` ("bootstrap"), or half of each ("mixture").
    Predictions are bounded where field_xyr and field_whr are given. `pos_neg_weighted` balances both kinds.
    """

    fork = "cascade-rcnn"
    config_field = "detection_group_loss_param"
    also_reads = ("bbox_reg_param", "loss_param")
    bottoms = (3, 3)
    force_backward_refuses = (2,)
    index_bottoms = (2,)
    differences = "other layers see the predictions as they are (the fork bounds them where they lie)."

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        sizes = [side for field in self.fields() for side in field]
        return objects_of(self.config.cls_num, self.stride, sizes) if bottom == 2 else None

    def draws_numbers(self) -> bool:
        return self.config.neg_mining_type != "bootstrap" or self.config.batch_size > 0

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.read_normalisation()
        self.check_fields(shapes[0], shapes[1], shapes[2])
        if config.neg_mining_type not in _MODES or config.neg_ranking_type not in ("conf_loss", "conf_prob"):
            self.fail("neg_mining_type is one of random, bootstrap, mixture, neg_ranking_type conf_loss or conf_prob")
        if config.bbox_loss_type not in ("Smooth_L1", "Euclidean_L2"):
            self.fail(f'bbox_loss_type "{config.bbox_loss_type}": expected Smooth_L1 or Euclidean_L2')
        if config.batch_size != -1 and config.batch_size < 1:
            self.fail(f"batch_size must be positive, or -1, got {config.batch_size}")

    def forward(self, x: Tensor, predicted: Tensor, labels: Tensor) -> Tensor:
        config, truth = self.config, truth_of(labels)
        scores, boxes = (at_least_float32(one).flatten(2) for one in (x, predicted))
        label = truth.label.clamp(max=1) if config.objectness else truth.label
        with torch.no_grad():
            kept = self._kept(scores, truth, label)
            weights = torch.ones_like(truth.overlap)
            if config.pos_neg_weighted:
                weights = self.balanced(weights, truth.label > 0, kept)
            targets = self.targets(truth, *x.shape[2:])
            there = (truth.label != 0) & kept & ~self.ignored(truth.label)
        if config.HasField("field_xyr") and config.HasField("field_whr"):
            boxes = self.bounded(boxes)
        classes = self.class_loss(scores, label, kept & ~self.ignored(label), weights)
        return self.whole(classes, self.box_loss(boxes, targets, there, config.bbox_loss_type == "Smooth_L1"))

    def _kept(self, scores: Tensor, truth: Truth, label: Tensor) -> Tensor:
        """Which places take part (M, P)."""
        config, count = self.config, len(self.fields())
        logs = scores.log_softmax(1)
        if config.neg_ranking_type == "conf_prob":
            rank = 1 - logs[:, 0].exp()
        else:
            rank = -logs.gather(1, label.clamp(0, scores.shape[1] - 1).unsqueeze(1)).squeeze(1).clamp(min=LOG_FLT_MIN)
        free = (truth.label == 0) & (truth.overlap < config.bg_threshold)
        grouped = (part.reshape(len(part) // count, -1) for part in (truth.label > 0, free, rank))
        rows = []
        for positive, negative, hard in zip(*grouped, strict=True):
            found, others = int(positive.sum()), int(negative.sum())
            if config.batch_size == -1:
                wanted, most = found, max(found * config.bg_multiple, config.min_num_neg)
            else:
                wanted = min(math.floor(config.batch_size / (1 + config.bg_multiple) + 0.5), found)
                most = config.batch_size - wanted
            row = torch.zeros_like(positive)
            row[some_of(positive, wanted) if found > wanted else positive] = True
            row[self._negatives(hard, negative, most) if others > most else negative] = True
            rows.append(row)
        return torch.stack(rows).view_as(free) if rows else torch.zeros_like(free)

    def _negatives(self, rank: Tensor, negative: Tensor, most: int) -> Tensor:
        """The places (P,) of one image without an object that take part, where there are more than `most`."""
        mode = self.config.neg_mining_type
        if mode == "random":
            return some_of(negative, most)
        hard = highest(rank, negative, most if mode == "bootstrap" else math.floor(most * 0.5 + 0.5))
        rest = negative.clone()
        rest[hard] = False
        return torch.cat([hard, some_of(rest, most - len(hard))])
