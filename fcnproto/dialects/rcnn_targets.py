"""py-faster-rcnn's and R-FCN's Python layers that say what their nets are to learn, known by module and class names.

They are computed here (of the data layer the shapes are known, its tops are to be given); none of their code is needed
or run. As for the proposals (`dialects/rcnn.py`), numbers of the project's `cfg` may stand in `param_str`, in small
letters; else they are its defaults, with those of the published end-to-end training (`bg_thresh_lo` 0, targets
normalised).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.python_layer import register_python_layer
from fcnproto.dialects import boxes as box
from fcnproto.dialects.proposals import RATIOS, SCALES, anchor_boxes, at_places, image_info, values_for
from fcnproto.dialects.rcnn import number, numbers, read_param_str, warn_others
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Array, Draw, regions
from fcnproto.layers.source import PartialShape, SourceLayer


def some_of(chosen: Tensor, most: int) -> Tensor:
    """At most `most` of the true places of a mask, by chance: their indices, in a random order."""
    found = chosen.nonzero().flatten()
    return found[torch.randperm(len(found))[: max(most, 0)].to(found.device)]


def best_overlaps(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The overlaps of boxes (N, 4) with objects (G, 4), the largest of each box and whose it is; 0 without any."""
    found = box.overlaps(boxes.double(), truth.double(), one=1)
    if not truth.shape[0]:
        return found, found.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    best, whose = found.max(1)
    return found, best, whose


class _Targets(Layer):
    """What both layers share: they have options, use chance, and take one image at a time."""

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    kind = "data"
    in_place = False
    known: ClassVar[tuple[str, ...]] = ()
    """The keys of `param_str` that are read."""

    def keeps_images_apart(self) -> bool:
        return False

    def draws_numbers(self) -> bool:
        return True

    def read_options(self) -> dict[str, Any]:
        options = read_param_str(self)
        warn_others(self, options, self.known)
        return options

    def four(self, options: dict[str, Any], name: str, default: Sequence[float]) -> list[float]:
        """An option of four numbers."""
        values = options.get(name, list(default))
        if not isinstance(values, list | tuple) or len(values) != 4:
            self.fail(f"param_str: {name!r} takes four numbers, got {values!r}")
        return [float(value) for value in values]

    def objects(self, rows: Tensor) -> Tensor:
        """Objects as rows x1, y1, x2, y2, class (G, 5)."""
        if rows.numel() % 5:
            self.fail(f"needs objects (G, 5), got {tuple(rows.shape)}")
        return rows.reshape(-1, 5)


@register_python_layer("roi_data_layer.layer", "RoIDataLayer")
class RegionData(SourceLayer):
    """roi_data_layer.layer.RoIDataLayer: images with their objects, or their regions, from the project's own databases,
    which can't be read here: its tops are to be given. Three tops are data, im_info and gt_boxes (or data, rois and
    labels); six are data, rois, labels, bbox_targets, bbox_inside_weights and bbox_outside_weights, five (Fast R-CNN's
    first version) have one set of weights.
    """

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    tops = (3, 6)

    def setup(self, shapes: Sequence[Shape]) -> None:
        options = read_param_str(self)
        if "num_classes" not in options:
            self.fail("param_str lacks 'num_classes'")
        self.classes = int(number(self, options, "num_classes", 0))
        if self.num_tops not in (3, 5, 6):
            self.fail(f"has 3, 5 or 6 tops, got {self.num_tops}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        if self.num_tops == 3 and "rois" not in self.param.top:
            return [(1, 3, None, None), (1, 3), (None, 5)]
        of_boxes: PartialShape = (None, 4 * self.classes)
        every: list[PartialShape] = [(None, 3, None, None), (None, 5), (None,), of_boxes, of_boxes, of_boxes]
        return every[: self.num_tops]

    def forward(self) -> tuple[Tensor, ...]:
        self.data_error(f"reads the project's own image databases; give {', '.join(self.param.top)} at the call")


@register_python_layer("rpn.anchor_target_layer", "AnchorTargetLayer")
class AnchorTargets(_Targets):
    """rpn.anchor_target_layer.AnchorTargetLayer: what the proposals of one image are to be, for A anchors a place.

    Bottoms: scores (1, 2 A, H, W), of which the size counts, objects (G, 5) as x1, y1, x2, y2, class, the image's
    height and width. Tops: labels (1, 1, A * H, W): 1 object, 0 none, -1 left out; predictions for the objects that
    anchors overlap most (1, 4 A, H, W); inside and outside weights for SmoothL1Loss. Anchors count within the image, by
    `allowed_border` (0) pixels; an object is what overlaps by `rpn_positive_overlap` (0.7) or an object's best anchor,
    none what overlaps all by less than `rpn_negative_overlap` (0.3). By chance `rpn_batchsize` (256) are kept, objects
    at most `rpn_fg_fraction` (0.5) of them.
    """

    bottoms = (3, 4)
    tops = (4, 4)
    size_bottoms = (0,)
    index_bottoms = (1, 2)
    force_backward_refuses = (0, 1, 2, 3)
    known = ("feat_stride", "scales", "ratios", "base_size", "allowed_border", "rpn_positive_overlap",
             "rpn_negative_overlap", "rpn_clobber_positives", "rpn_fg_fraction", "rpn_batchsize",
             "rpn_bbox_inside_weights", "rpn_positive_weight")  # fmt: skip

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return {1: object_rows(first, self.stride), 2: image_info(first, self.stride)}.get(bottom)

    def setup(self, shapes: Sequence[Shape]) -> None:
        options = self.read_options()
        if "feat_stride" not in options:
            self.fail("param_str lacks 'feat_stride'")
        self.stride = int(number(self, options, "feat_stride", 16))
        base = numbers(self, options, "base_size", [16])[0]
        scales, ratios = numbers(self, options, "scales", SCALES), numbers(self, options, "ratios", RATIOS)
        self.anchors = anchor_boxes(base, ratios, scales, np.round)
        self.border = number(self, options, "allowed_border", 0)
        self.positive = number(self, options, "rpn_positive_overlap", 0.7)
        self.negative = number(self, options, "rpn_negative_overlap", 0.3)
        self.clobbers = bool(options.get("rpn_clobber_positives", False))
        self.share = number(self, options, "rpn_fg_fraction", 0.5)
        self.batch = int(number(self, options, "rpn_batchsize", 256))
        self.inside = self.four(options, "rpn_bbox_inside_weights", [1] * 4)
        weight = options.get("rpn_positive_weight", -1)
        if not isinstance(weight, int | float) or not (weight < 0 or 0 < weight < 1):
            self.fail(f"param_str: 'rpn_positive_weight' takes a number below 0 or within 0..1, got {weight!r}")
        self.weight = float(weight)
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) != 4 or shapes[0][0] != 1:
            self.fail(f"takes a map (1, C, H, W) of one image, got {tuple(shapes[0])}")
        count, (height, width) = len(self.anchors), shapes[0][2:]
        of_boxes: Shape = (1, 4 * count, height, width)
        return [(1, 1, count * height, width), of_boxes, of_boxes, of_boxes]

    @torch.no_grad()
    def forward(self, scores: Tensor, objects: Tensor, info: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        height, width = scores.shape[2:]
        every = at_places(self.anchors.to(objects.device), height, width, self.stride)
        high, wide = (float(value) for value in info.flatten()[:2])
        truth = self.objects(objects).double()
        limits = every.new_tensor([wide, high]) + self.border
        fits = ((every[:, :2] >= -self.border) & (every[:, 2:] < limits)).all(1).nonzero().flatten()
        anchors = every[fits]
        labels, whose = self._labels(anchors, truth)
        targets = values_for(anchors, truth[whose, :4]) if len(truth) else torch.zeros_like(anchors)
        found, none = (labels == 1).unsqueeze(1), (labels == 0).unsqueeze(1)
        inside = found * anchors.new_tensor(self.inside)
        if self.weight < 0:
            outside = (found | none) / (found | none).sum().clamp(min=1).double()
            outside = outside.expand(-1, 4)
        else:
            shares = found * (self.weight / found.sum().double()), none * ((1 - self.weight) / none.sum().double())
            outside = (torch.where(found, shares[0], 0) + torch.where(none, shares[1], 0)).expand(-1, 4)
        label = every.new_full((len(every),), -1)
        label[fits] = labels
        tops = [label.view(height, width, -1).permute(2, 0, 1).reshape(1, 1, -1, width)]
        for values in (targets, inside, outside):
            full = torch.zeros_like(every)
            full[fits] = values
            tops.append(full.view(height, width, -1).permute(2, 0, 1).unsqueeze(0))
        return tuple(top.to(scores.dtype) for top in tops)

    def _labels(self, anchors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """1, 0 or -1 for each anchor, and the object that it overlaps most."""
        overlaps, best, whose = best_overlaps(anchors, truth[:, :4])
        labels = anchors.new_full((len(anchors),), -1)
        negative = best < self.negative
        if not self.clobbers:
            labels[negative] = 0
        if len(truth) and len(anchors):
            labels[(overlaps == overlaps.max(0).values).any(1)] = 1
        labels[best >= self.positive] = 1
        if self.clobbers:
            labels[negative] = 0
        wanted = int(self.share * self.batch)
        for value, most in ((1, wanted), (0, None)):
            chosen = labels == value
            limit = self.batch - int((labels == 1).sum()) if most is None else most
            if int(chosen.sum()) > limit:
                kept = some_of(chosen, limit)
                labels[chosen] = -1
                labels[kept] = value
        return labels, whose


@register_python_layer("rpn.proposal_target_layer", "ProposalTargetLayer")
class ProposalTargets(_Targets):
    """rpn.proposal_target_layer.ProposalTargetLayer: which regions of one image a detector learns from, and what.

    Bottoms: regions (R, 5), to which the objects are added, and objects (G, 5) as x1, y1, x2, y2, class. Tops, with two
    further axes of 1 as in R-FCN: regions (B, 5), their classes (B, 1), predictions (B, 4 * `num_classes`), inside and
    outside weights. A region is of the class
    of the object that it overlaps by `fg_thresh` (0.5) or more, of class 0 from `bg_thresh_lo` (0) up to below
    `bg_thresh_hi` (0.5). By chance `batch_size` (128; -1 for all) are taken, the objects' at most `fg_fraction` (0.25)
    of them. Predictions are normalised by `bbox_normalize_means` and `bbox_normalize_stds` unless
    `bbox_normalize_targets_precomputed` is False. With `num_classes` 2 all classes share the second place.
    """

    bottoms = (2, 2)
    tops = (5, 5)
    index_bottoms = (0, 1)
    force_backward_refuses = (0, 1)
    known = ("num_classes", "batch_size", "fg_fraction", "fg_thresh", "bg_thresh_hi", "bg_thresh_lo",
             "bbox_normalize_targets_precomputed", "bbox_normalize_means", "bbox_normalize_stds",
             "bbox_inside_weights")  # fmt: skip

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions((1, 1, 8, 8)) if bottom == 0 else object_rows((1, 1, 8, 8), 16)

    def setup(self, shapes: Sequence[Shape]) -> None:
        options = self.read_options()
        if "num_classes" not in options:
            self.fail("param_str lacks 'num_classes'")
        self.classes = int(number(self, options, "num_classes", 0))
        batch = options.get("batch_size", 128)
        self.batch = int(number(self, {} if batch == -1 else options, "batch_size", 0 if batch == -1 else 128))
        self.share = number(self, options, "fg_fraction", 0.25)
        self.positive = number(self, options, "fg_thresh", 0.5)
        self.low, self.high = number(self, options, "bg_thresh_lo", 0), number(self, options, "bg_thresh_hi", 0.5)
        self.agnostic = self.classes == 2
        normalises = bool(options.get("bbox_normalize_targets_precomputed", True))
        self.mean = self.four(options, "bbox_normalize_means", [0] * 4) if normalises else [0.0] * 4
        self.std = self.four(options, "bbox_normalize_stds", [0.1, 0.1, 0.2, 0.2]) if normalises else [1.0] * 4
        self.inside = self.four(options, "bbox_inside_weights", [1] * 4)
        if self.classes < 2:
            self.fail(f"param_str: 'num_classes' counts the background too, got {self.classes}")
        if not shapes[0] or (*shapes[0], 1)[1] != 5:
            self.fail(f"needs regions (R, 5), got {tuple(shapes[0])}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count = self.batch or shapes[0][0]
        of_boxes: Shape = (count, 4 * self.classes, 1, 1)
        return [(count, 5, 1, 1), (count, 1, 1, 1), of_boxes, of_boxes, of_boxes]

    @torch.no_grad()
    def forward(self, proposed: Tensor, objects: Tensor) -> tuple[Tensor, ...]:
        truth = self.objects(objects)
        rows = proposed.reshape(-1, 5)
        if bool((rows[:, 0] != 0).any()):
            self.fail("takes the regions of one image, image 0")
        rows = torch.cat([rows, torch.cat([truth.new_zeros(len(truth), 1), truth[:, :4]], 1).to(rows)])
        _, best, whose = best_overlaps(rows[:, 1:], truth[:, :4])
        positive = best >= self.positive
        background = (best < self.high) & (best >= self.low)
        most = self.batch or len(rows)
        share = round(self.share * self.batch) if self.batch else len(rows)
        found = some_of(positive, share)
        kept = torch.cat([found, some_of(background, most - len(found))])
        chosen, whose = rows[kept], whose[kept]
        labels = truth[whose, 4] if len(truth) else rows.new_zeros(len(kept))
        labels[len(found) :] = 0
        targets, inside = self._spread(chosen, truth, whose, labels.long())
        tops = (chosen, labels.to(proposed.dtype).unsqueeze(1), targets, inside, (inside > 0).to(inside.dtype))
        return tuple(top.unflatten(1, (-1, 1, 1)) for top in tops)

    def _spread(self, chosen: Tensor, truth: Tensor, whose: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and inside weights (B, 4 * classes), 0 but at each region's class."""
        if len(labels) and not self.agnostic and int(labels.max()) >= self.classes:
            self.fail(f"an object is of class {int(labels.max())}; num_classes is {self.classes}")
        targets = chosen.new_zeros(len(chosen), self.classes, 4)
        inside = torch.zeros_like(targets)
        at = labels.nonzero().flatten()
        if len(at):
            values = values_for(chosen[at, 1:], truth[whose[at], :4].to(chosen))
            values = (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)
            place = torch.ones_like(labels[at]) if self.agnostic else labels[at]
            targets[at, place] = values
            inside[at, place] = inside.new_tensor(self.inside)
        return targets.flatten(1), inside.flatten(1)


def object_rows(first: Shape, stride: int) -> Draw:
    """Objects (G, 5) of class 1 in images `stride` times as large as maps (N, C, H, W)."""

    def draw_objects(draw: np.random.Generator, shape: Sequence[int]) -> Array:
        rows = np.ones((max(int(np.prod(shape)) // 5, 0), 5))
        for low, extent in ((0, first[3] * stride), (1, first[2] * stride)):
            corners = np.sort(draw.uniform(0, extent, (len(rows), 2)), 1)
            rows[:, low], rows[:, low + 2] = corners.T
        return rows.reshape(tuple(shape))

    return draw_objects
