"""The second stages of mscnn and cascade-rcnn: which regions they learn from, how right their boxes are, and what
they find. Regions are rows image, x1, y1, x2, y2, objects rows image, x1, y1, x2, y2, class, ignored, and may have two
further axes of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.dialects.cascade import MODES, Normalised, moved, share
from fcnproto.dialects.field_accuracy import mean_of
from fcnproto.dialects.fields import highest, shared
from fcnproto.dialects.rcnn_targets import some_of
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Array, Draw, regions
from fcnproto.layers.plain import Request, Unsayable
from fcnproto.layers.registry import register

_SHORTEST = 32
"""The least side of a region that is drawn where all others overlap objects."""
_TRIES = 1000
_SURE = 0.975
"""Regions that overlap their object by more are the object itself, and don't count."""


def rows_of(layer: Layer, blob: Tensor, least: int, what: str) -> Tensor:
    """A blob of rows (R, K, ...) as (R, K); K must be at least `least`."""
    rows = at_least_float32(blob).reshape(blob.shape[0], -1)
    if rows.shape[1] < least:
        layer.fail(f"needs {what} of {least} numbers or more, got {tuple(blob.shape)}")
    return rows


def sized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Corners and sizes (R, 2) of boxes (R, 4) whose last pixel belongs to them."""
    return rows[:, :2], rows[:, 2:] - rows[:, :2] + 1


def objects(draw: np.random.Generator, shape: Sequence[int]) -> Array:
    """Random objects of class 1 in image 0."""
    rows = np.zeros((shape[0], math.prod(shape[1:])))
    rows[:, :5] = regions((1, 1, 8, 8))(draw, (shape[0], 5))
    rows[:, 5] = 1
    return rows.reshape(tuple(shape))


@register("ProposalTarget")
class ProposalTarget(Normalised):
    """Which regions (R, 5), to which objects (G, 7 or more) are added, a second stage learns from, and what.

    Tops, with two further axes of 1: regions (B, 5), their classes (B, 1), predictions (B, 4 * `cls_num`, or 8 where
    `cls_aware` is false), inside and outside weights, what they match (B, 6: class, x1, y1, x2, y2, overlap; zeros for
    the background) and, of seven tops, the weights of regions (B, 1), by which objects' have the share `fg_fraction`.
    A region is of the class of the object that it overlaps by `fg_thr` or more, and left out where that is ignored; it
    is background from `bg_thr_lw` up to below `bg_thr_hg`. By chance `batch_size` (-1: all) are taken, `fg_fraction` of
    them objects'; where there are too few, others that overlap less or more. mscnn draws regions beside the objects for
    those still missing, cascade-rcnn one where there is none at all.
    """

    fork = "mscnn, cascade-rcnn"
    config_field = "proposal_target_param"
    also_reads = ("bbox_reg_param",)
    bottoms = (2, 2)
    tops = (6, 7)
    kind = "data"
    index_bottoms = (0, 1)
    force_backward_refuses = (0, 1)
    differences = "where a thousand drawn regions all overlap objects, no more are drawn (the forks go on for ever)."

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions((1, 1, 8, 8)) if bottom == 0 else objects

    def draws_numbers(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        self.read_normalisation()
        self.aware = self.param.bbox_reg_param.cls_aware
        if config.cls_num < 2 or config.fg_thr < config.bg_thr_hg:
            self.fail("cls_num counts the background too, and fg_thr is at least bg_thr_hg")
        if config.batch_size != -1 and config.batch_size < 1:
            self.fail(f"batch_size must be positive, or -1, got {config.batch_size}")
        if not shapes[0] or math.prod(shapes[0][1:]) != 5:
            self.fail(f"needs regions (R, 5), got {tuple(shapes[0])}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count = max(shapes[0][0], 1) if self.config.batch_size == -1 else self.config.batch_size
        width = 4 * self.config.cls_num if self.aware else 8
        return [(count, extent, 1, 1) for extent in (5, 1, width, width, width, 6, 1)[: self.num_tops]]

    @torch.no_grad()
    def forward(self, proposed: Tensor, labelled: Tensor) -> tuple[Tensor, ...]:
        config = self.config
        truth = rows_of(self, labelled, 7, "objects")
        truth = truth[truth[:, 0] != -1]
        rows = rows_of(self, proposed, 5, "regions")
        if config.append_gtbox:
            rows = torch.cat([rows, truth[:, :5].to(rows)])
        for found in (rows[:, 0], truth[:, 0]):
            if len(found) and not 0 <= float(found.min()) <= float(found.max()) < config.num_img_per_batch:
                self.fail(f"images are numbered from 0 to num_img_per_batch ({config.num_img_per_batch}) - 1")
        best, whose = self._matches(rows, truth)
        positive = best >= config.fg_thr
        if len(truth):
            if bool((positive & (truth[whose, 5] <= 0)).any()):
                self.fail("objects are of classes from 1 on")
            positive &= truth[whose, 6] == 0
        found, others = self._sampled(best, positive)
        rows, others = self._filled(rows, truth, len(found), others)
        kept = torch.cat([found, others])
        label = torch.zeros(len(kept), dtype=torch.int64, device=rows.device)
        matches = rows.new_zeros(len(kept), 6)
        if len(found):
            own = truth[whose[found]]
            label[: len(found)] = own[:, 5].long()
            matches[: len(found)] = torch.cat([label[: len(found), None].to(rows), own[:, 1:5], best[found, None]], 1)
        tops = [rows[kept], label.unsqueeze(1).to(rows), *self._spread(rows[kept], matches, label), matches]
        if self.num_tops > len(tops):
            tops.append(self._weights(matches, label).unsqueeze(1))
        return tuple(top.to(proposed.dtype).unflatten(1, (-1, 1, 1)) for top in tops)

    def plain(self, request: Request) -> NoReturn:
        raise Unsayable("it says, by chance, what a detector is to learn")

    def _matches(self, rows: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the object of its image each region overlaps most, and which that is."""
        if not len(truth):
            return rows.new_zeros(len(rows)), torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        corner, size = sized(rows[:, 1:])
        others = sized(truth[:, 1:5])
        every = shared((corner[:, None], size[:, None]), (others[0][None], others[1][None]), self._one)
        every = every.masked_fill(rows[:, :1] != truth[None, :, 0], -1)
        best, whose = every.max(1)
        return best.clamp(min=0), whose

    @property
    def _one(self) -> float:
        return 0 if self.dialect == "mscnn" else 1

    def _sampled(self, best: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of objects' regions and of others that take part."""
        config = self.config
        low = best < config.fg_thr
        background = low & (best >= config.bg_thr_lw) & (best < config.bg_thr_hg)
        if config.batch_size == -1:
            return positive.nonzero().flatten(), background.nonzero().flatten()
        wanted = math.floor(config.fg_fraction * config.batch_size + 0.5)
        found = some_of(positive, wanted) if int(positive.sum()) > wanted else positive.nonzero().flatten()
        most = config.batch_size - len(found)
        if int(background.sum()) > most:
            return found, some_of(background, most)
        others = background.nonzero().flatten()
        if config.pickup_discard:
            others = torch.cat([others, (low & ~background).nonzero().flatten()[: most - len(others)]])
        return found, others

    def _filled(self, rows: Tensor, truth: Tensor, found: int, others: Tensor) -> tuple[Tensor, Tensor]:
        """The regions and the indices of the background's with those drawn for what is missing."""
        config = self.config
        count = found + len(others)
        if self.dialect == "mscnn":
            missing = max(config.batch_size - count, 0)
        else:
            missing = int(count == 0)
        drawn: list[list[float]] = []
        for _ in range(_TRIES if missing else 0):
            row = [int(torch.randint(config.num_img_per_batch, ())), *self._drawn_box()]
            best, _whose = self._matches(rows.new_tensor([row]), truth)
            if float(best) < config.fg_thr:
                drawn.append(row)
            if len(drawn) == missing:
                break
        numbers = torch.arange(len(rows), len(rows) + len(drawn), device=rows.device)
        return torch.cat([rows, rows.new_tensor(drawn).view(-1, 5)]), torch.cat([others, numbers])

    def _drawn_box(self) -> list[float]:
        ends = self.config.img_width, self.config.img_height
        if min(ends) <= _SHORTEST:
            self.fail(f"needs img_width and img_height above {_SHORTEST} to draw regions of the background")
        low = [int(torch.randint(end - _SHORTEST, ())) for end in ends]
        sides = [max(int(torch.randint(end - start, ())), _SHORTEST) for end, start in zip(ends, low, strict=True)]
        return [*low, low[0] + sides[0] - 1, low[1] + sides[1] - 1]

    def _spread(self, rows: Tensor, matches: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions and both weights, 0 but at each region's class."""
        config = self.config
        if len(label) and self.aware and int(label.max()) >= config.cls_num:
            self.fail(f"an object is of class {int(label.max())}; cls_num is {config.cls_num}")
        targets = rows.new_zeros(len(rows), config.cls_num if self.aware else 2, 4)
        weights = torch.zeros_like(targets)
        at = label.nonzero().flatten()
        (corner, size), (own, extent) = sized(rows[at, 1:]), sized(matches[at, 1:5])
        values = torch.cat([(own + extent / 2 - corner - size / 2) / size, (extent / size).log()], 1)
        place = label[at] if self.aware else torch.ones_like(label[at])
        targets[at, place] = (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)
        within = (config.bbox_thr_lw <= matches[at, 5]) & (matches[at, 5] <= config.bbox_thr_hg)
        weights[at, place] = within.to(weights).unsqueeze(1)
        return targets.flatten(1), weights.flatten(1), weights.flatten(1)

    def _weights(self, matches: Tensor, label: Tensor) -> Tensor:
        """Of each region (B,), in all as many as there are regions."""
        there = label > 0
        weights = torch.where(there, matches[:, 5], 1) if self.config.iou_weighted else torch.ones_like(matches[:, 5])
        whole, rest = (weights * there).sum(), (weights * ~there).sum()
        if whole == 0:
            return weights
        part = self.config.fg_fraction
        return weights * torch.where(there, part * len(label) / whole, (1 - part) * len(label) / rest)


@register("HardMining")
class HardMining(Layer):
    """The regions that cost most: of costs (R,), regions (R, 5) and further rows (R, ...), the `num_roi_per_image`
    hardest of each of `num_image` images in their order, and of what is left the hardest of all where some have fewer.
    A top of the rows of each bottom behind the first, without a gradient.
    """

    fork = "cascade-rcnn"
    config_field = "hard_mining_param"
    kind = "other"
    bottoms = (2, None)
    tops = (1, None)
    in_place = False
    differences = "of equal costs the later region counts as the harder one."

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions((1, 1, 8, 8)) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes) != self.num_tops + 1:
            self.fail(f"makes a top of each bottom behind the first, got {len(shapes)} and {self.num_tops} tops")
        if min(self.config.num_roi_per_image, self.config.num_image) < 1:
            self.fail("num_roi_per_image and num_image must be positive")
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        rows = shapes[0][0] if shapes[0] else 0
        fits = math.prod(shapes[0]) == rows and math.prod(shapes[1][1:]) == 5
        if not fits or any(not 0 < len(shape) <= 4 or shape[0] != rows for shape in shapes):
            self.fail(
                "needs costs (R,), regions (R, 5) and rows (R, ...), got "
                f"{', '.join(str(tuple(shape)) for shape in shapes)}"
            )
        count = min(self.config.num_image * self.config.num_roi_per_image, rows)
        return [(count, *shape[1:], *[1] * (4 - len(shape))) for shape in shapes[1:]]

    @torch.no_grad()
    def forward(self, costs: Tensor, *rows: Tensor) -> Tensor | tuple[Tensor, ...]:
        cost, image = costs.flatten(), rows[0].reshape(len(costs), 5)[:, 0]
        if len(image) and not 0 <= float(image.min()) <= float(image.max()) < self.config.num_image:
            self.fail(f"regions must be of images 0 to num_image ({self.config.num_image}) - 1")
        chosen = torch.zeros(len(cost), dtype=torch.bool, device=cost.device)
        for number in range(self.config.num_image):
            chosen[highest(cost, image.long() == number, self.config.num_roi_per_image)] = True
        count = min(self.config.num_image * self.config.num_roi_per_image, len(cost))
        chosen[highest(cost, ~chosen, count - int(chosen.sum()))] = True
        tops = [row[chosen].reshape(count, *row.shape[1:], *[1] * (4 - row.dim())) for row in rows]
        return tops[0] if len(tops) == 1 else tuple(tops)


@register("BboxAccuracy")
class BboxAccuracy(Normalised):
    """How much of its object a predicted box overlaps, in the mean: of predictions (R, 4 * classes, or 8 where
    `cls_aware` is false), regions (R, 5) and what they match (R, 6: class, x1, y1, x2, y2, overlap), as ProposalTarget
    gives it. The second top has the regions' own overlap. Regions that are the object itself (above 0.975) don't count;
    -1 where there is none. There is no gradient.
    """

    fork = "mscnn, cascade-rcnn"
    config_field = "bbox_reg_param"
    bottoms = (3, 3)
    tops = (1, 2)
    judges = True
    index_bottoms = (1, 2)
    force_backward_refuses = (0, 1, 2)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions((1, 1, 8, 8)) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_normalisation()
        self.aware = self.config.cls_aware
        counts = [math.prod(shape[1:]) for shape in shapes]
        fits = all(shape and shape[0] == shapes[0][0] for shape in shapes) and counts[1:] == [5, 6]
        if not fits or counts[0] % 4 or (not self.aware and counts[0] != 8):
            self.fail(
                f"needs predictions (R, {'4 * classes' if self.aware else 8}), regions (R, 5) and matches (R, 6), got "
                f"{', '.join(str(tuple(shape)) for shape in shapes)}"
            )

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 1, 1, 1)] * self.num_tops

    @torch.no_grad()
    def forward(self, predicted: Tensor, proposed: Tensor, matched: Tensor) -> Tensor | tuple[Tensor, ...]:
        matches = rows_of(self, matched, 6, "matches")
        there = (matches[:, 0] > 0) & (matches[:, 5] <= _SURE)
        rows, matches = rows_of(self, proposed, 5, "regions")[there, 1:], matches[there]
        values = rows_of(self, predicted, 8, "predictions")[there].unflatten(1, (-1, 4))
        label = matches[:, 0].long() if self.aware else torch.ones_like(matches[:, 0]).long()
        if len(label) and int(label.max()) >= values.shape[1]:
            self.fail(f"a match is of class {int(label.max())}; there are predictions for {values.shape[1]}")
        moves = self.as_predicted(values[torch.arange(len(label), device=label.device), label], 1)
        own = sized(matches[:, 1:5])
        one = 0 if self.dialect == "mscnn" else 1
        every = torch.ones_like(label, dtype=torch.bool)
        means = [mean_of(shared(boxes, own, one), every) for boxes in (moved(rows, moves), sized(rows))]
        tops = [mean.to(predicted.dtype).view(1, 1, 1, 1) for mean in means[: self.num_tops]]
        return tops[0] if len(tops) == 1 else tuple(tops)


@register("FrcnnOutput")
class FrcnnOutput(Normalised):
    """What a second stage finds in one image: of probabilities (R, C), predictions (R, 4 * C, or 8 where `cls_aware` is
    false), regions (R, 5 or 6) and the image's size (1, 2: height, width), a top (K + 1, 7, 1, 1) of a row of -1 and
    rows image, x1, y1, x2, y2, class, score by class and from the best on.

    A class's boxes with a probability of `conf_thr` or more, cut to the image, are suppressed beyond `iou_thr` by
    `nms_type`; the best `max_det_num` (0: all) of all classes remain. There is no gradient.
    """

    fork = "cascade-rcnn"
    config_field = "frcnn_output_param"
    also_reads = ("bbox_reg_param",)
    bottoms = (4, 4)
    force_backward_refuses = (0, 1, 2, 3)
    index_bottoms = (2, 3)
    differences = "files of detections are not made; a warning says so. Equal scores keep the order of regions."

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions((1, 1, 8, 8)) if bottom == 2 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_normalisation()
        self.warn_unread(("save_output_param",), "detections are only given as a blob")
        if self.config.nms_type not in MODES:
            self.fail(f'nms_type "{self.config.nms_type}": expected one of {", ".join(MODES)}')
        classes = math.prod(shapes[0][1:]) if shapes[0] else 0
        width = 4 * classes if self.param.bbox_reg_param.cls_aware else 8
        counts = [math.prod(shape[1:]) for shape in shapes]
        same = all(shape and shape[0] == shapes[0][0] for shape in shapes[:3])
        if not same or counts[1] != width or counts[2] not in (5, 6) or math.prod(shapes[3]) != 2:
            self.fail(
                f"needs probabilities (R, {classes}), predictions (R, {width}), regions (R, 5) and the image's size "
                f"(1, 2), got {', '.join(str(tuple(shape)) for shape in shapes)}"
            )

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(1, 7, 1, 1)]

    @torch.no_grad()
    def forward(self, x: Tensor, predicted: Tensor, proposed: Tensor, image: Tensor) -> Tensor:
        config = self.config
        probabilities = rows_of(self, x, 1, "probabilities")
        regions_ = rows_of(self, proposed, 5, "regions")
        if bool((regions_[:, 0] != 0).any()):
            self.fail("takes the regions of one image, image 0")
        moves = self.as_predicted(rows_of(self, predicted, 8, "predictions").unflatten(1, (-1, 4)), 2)
        corner, size = moved(regions_[:, None, 1:5], moves)
        boxes = torch.cat([corner, corner + size - 1], 2)
        height, width = (float(extent) for extent in image.flatten())
        limits = boxes.new_tensor([width, height])
        boxes = torch.cat([boxes[..., :2].clamp(min=0), torch.minimum(boxes[..., 2:], limits)], 2)
        aware = self.param.bbox_reg_param.cls_aware
        measure = partial(share, mode=config.nms_type, one=1)
        rows = [boxes.new_zeros(0, 7)]
        for number in range(1, probabilities.shape[1]):
            score = probabilities[:, number]
            order = score.argsort(descending=True, stable=True)
            order = order[score[order] >= config.conf_thr]
            own = boxes[order, number if aware else 1]
            kept = box.suppress(own, config.iou_thr, measure=measure).to(order.device)
            marks = own.new_tensor([number]).expand(len(kept), 1)
            rows.append(torch.cat([0 * marks, own[kept], marks, score[order[kept], None]], 1))
        found = torch.cat(rows)
        if 0 < config.max_det_num < len(found):
            best = found[:, 6].argsort(descending=True, stable=True)[: config.max_det_num]
            found = found[best.sort().values]
        fake = found.new_tensor([[0, -1, -1, -1, -1, -1, -1]])
        return torch.cat([fake, found]).to(x.dtype).view(-1, 7, 1, 1)
