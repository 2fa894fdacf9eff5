"""Region proposals of Faster R-CNN: anchors, the boxes that predictions make of them, the best ones; and Proposal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, positive
from fcnproto.layers.registry import register

Array = npt.NDArray[Any]

RATIOS, SCALES = (0.5, 1.0, 2.0), (8.0, 16.0, 32.0)
"""The ratios and scales that the forks take where none are given."""


class Limits(NamedTuple):
    """What is kept of an image's boxes."""

    before: int
    """How many go into suppression, 0 for all."""
    after: int
    """How many come out of it, 0 for all."""
    threshold: float
    min_size: float
    """The smallest side in pixels of the image before it was scaled."""


def half_away(x: Array) -> Array:
    """To the nearest whole number, halves away from zero, as C does."""
    return np.asarray(np.trunc(x + np.copysign(np.float32(0.5), x)))


def anchor_boxes(
    base: float, ratios: Sequence[float], scales: Sequence[float], rounded: Callable[[Array], Array] = half_away
) -> Tensor:
    """Anchors (ratios * scales, 4) about the square 0..base - 1: for each ratio of height to width a box of the same
    area with whole sides, as wide as `rounded` makes it, times each scale; float64, exact."""
    wide = rounded(np.sqrt(np.float32(base * base) / np.asarray(ratios, np.float32)))
    high = rounded(wide * np.asarray(ratios, np.float32))
    factors = np.asarray(scales, np.float64)
    return _centred(base, np.multiply.outer(wide, factors), np.multiply.outer(high, factors))


def pixel_anchor_boxes(base: float, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """The same where `scales` are sides in pixels and the box of a ratio isn't rounded, only its scaled sides less 1
    (caffe-windows)."""
    wide = np.sqrt(np.float32(base * base) / np.asarray(ratios, np.float32))
    high = wide * np.asarray(ratios, np.float32)
    factors = np.asarray(scales, np.float32)
    sides = [np.multiply.outer(side, factors).astype(np.float64) / base - 1 for side in (wide, high)]
    wide, high = (np.trunc(side + 0.5) + 1 for side in sides)
    return _centred(base, wide, high)


def _centred(base: float, wide: Array, high: Array) -> Tensor:
    right, down = (wide.ravel() - 1) / 2, (high.ravel() - 1) / 2
    return torch.from_numpy(np.stack([-right, -down, right, down], 1) + (base - 1) / 2)


def at_places(anchors: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The anchors (A, 4) at each place of a map, `stride` pixels apart: (height * width * A, 4), by rows."""
    down = torch.arange(height, device=anchors.device) * stride
    right = torch.arange(width, device=anchors.device) * stride
    y, x = torch.meshgrid(down, right, indexing="ij")
    shift = torch.stack([x, y, x, y], 2).to(anchors.dtype)
    return (shift.unsqueeze(2) + anchors).reshape(-1, 4)


def moved(boxes: Tensor, values: Tensor) -> Tensor:
    """Boxes (N, 4), whose last pixel belongs to them, moved and scaled by predictions (N, 4): the centre in units of
    the size, the sizes by their logarithms."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    centre = boxes[:, :2] + 0.5 * size
    centre = values[:, :2] * size + centre
    half = 0.5 * (values[:, 2:].exp() * size)
    return torch.cat([centre - half, centre + half], 1)


def values_for(boxes: Tensor, wanted: Tensor) -> Tensor:
    """The predictions that move `boxes` to the centre and size of `wanted`, both (N, 4)."""
    size, other = boxes[:, 2:] - boxes[:, :2] + 1, wanted[:, 2:] - wanted[:, :2] + 1
    centre, target = boxes[:, :2] + 0.5 * size, wanted[:, :2] + 0.5 * other
    return torch.cat([(target - centre) / size, (other / size).log()], 1)


def within(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (N, 4) with corners brought into an image."""
    return torch.stack([boxes[:, axis].clamp(max=(width, height)[axis % 2] - 1).clamp(min=0) for axis in range(4)], 1)


def places_last(x: Tensor, each: int) -> Tensor:
    """A map (A * each, H, W) as rows (H * W * A, each)."""
    return x.permute(1, 2, 0).reshape(-1, each)


def propose(
    scores: Tensor,
    values: Tensor,
    anchors: Tensor,
    stride: int,
    info: Sequence[float],
    limits: Limits,
    keeps_small: bool,
) -> tuple[Tensor, Tensor]:
    """The proposals of one image: boxes (R, 4) and their scores (R,), best first.

    Args:
        scores: of objects (A, H, W); `values`: predictions (4 A, H, W).
        info: the image's height, width, and the scale of its heights and of its widths (one number for both may do).
        keeps_small: whether boxes that are too small score 0 instead of being left out.
    """
    height, width = scores.shape[1:]
    placed = at_places(anchors.to(values), height, width, stride)
    boxes = within(moved(placed, places_last(values, 4)), info[0], info[1])
    score = places_last(scores, 1).flatten()
    least = boxes.new_tensor([limits.min_size * info[-1], limits.min_size * info[2]])
    large = (boxes[:, 2:] - boxes[:, :2] + 1 >= least).all(1)
    if keeps_small:
        score = score * large
    else:
        boxes, score = boxes[large], score[large]
    order = score.argsort(descending=True, stable=True)
    order = order[: limits.before] if limits.before > 0 else order
    kept = box.suppress(boxes[order], limits.threshold, one=1, most=limits.after if limits.after > 0 else None)
    order = order[kept.to(order.device)]
    return boxes[order], score[order]


def image_info(first: Shape, stride: int) -> Draw:
    """Values of an image's size and scales for score maps (N, 2 A, H, W)."""

    def draw_info(draw: np.random.Generator, shape: Sequence[int]) -> Array:
        values = np.ones(shape)
        values.reshape(-1)[:2] = [first[2] * stride, first[3] * stride]
        return values

    return draw_info


class ProposalLayer(Layer):
    """What layers of proposals have in common: bottoms scores (N, 2 A, H, W), of which the second half counts, values
    (N, 4 A, H, W) and the image's size; no gradient; a top of rows image, x1, y1, x2, y2 and one of scores."""

    kind = "other"
    bottoms = (3, 3)
    tops = (1, 2)
    in_place = False
    index_bottoms = (2,)
    force_backward_refuses = (0, 1, 2)
    keeps_small = False
    scores_have_axis = False
    """Whether the second top is (R, 1) and not (R,)."""
    anchors: Tensor
    stride: int
    limits: Limits

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return {0: positive, 2: image_info(first, self.stride)}.get(bottom)

    def check_bottoms(self, shapes: Sequence[Sequence[int]]) -> None:
        scores, values, info = shapes
        count = len(self.anchors)
        if len(scores) != 4 or list(values) != [scores[0], 2 * scores[1], *scores[2:]] or scores[1] != 2 * count:
            self.fail(
                f"{count} anchors need scores (N, {2 * count}, H, W) and values (N, {4 * count}, H, W), "
                f"got {tuple(scores)} and {tuple(values)}"
            )
        if not info or (info[-1] if len(info) < 3 else info[1]) < 3:
            self.fail(f"bottom 2 must have height, width and scale of the image (1, 3), got {tuple(info)}")

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.stride < 1 or self.limits.before < 0 or self.limits.after < 0 or not self.limits.threshold >= 0:
            self.fail("the stride must be positive, and no number of boxes and no threshold negative")
        self.check_bottoms(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        scores = shapes[0]
        count = scores[0] * (self.limits.after or scores[1] // 2 * scores[2] * scores[3])
        both: list[Shape] = [(count, 5), (count, 1) if self.scores_have_axis else (count,)]
        return both[: self.num_tops]

    @torch.no_grad()
    def forward(self, scores: Tensor, values: Tensor, info: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.check_bottoms([scores.shape, values.shape, info.shape])
        numbers = [float(number) for number in info.flatten()[: 4 if self.keeps_small else 3]]
        rows, found = [], []
        for image in range(scores.shape[0]):
            best = scores[image, len(self.anchors) :]
            boxes, score = propose(
                best, values[image], self.anchors, self.stride, numbers, self.limits, self.keeps_small
            )
            rows.append(torch.cat([boxes.new_full((len(boxes), 1), image), boxes], 1))
            found.append(score)
        regions = torch.cat(rows) if rows else values.new_zeros(0, 5)
        if self.num_tops < 2:
            return regions
        score = torch.cat(found) if found else values.new_zeros(0)
        return regions, score.unsqueeze(1) if self.scores_have_axis else score


@register("Proposal")
class Proposal(ProposalLayer):
    """Regions that may hold objects, from scores (N, 2 A, H, W) of A anchors at each place (the second half of them),
    predictions (N, 4 A, H, W) and the image's height, width and scale (1, 3): a top (R, 5) of rows image, x1, y1, x2,
    y2, and their scores as a second top (R,).

    Anchors are squares of `base_size` stretched to each `ratio` of height to width with whole sides, times each
    `scale`, `feat_stride` pixels apart (without any ratio or scale 0.5, 1, 2 and 8, 16, 32). Predictions move them, the
    image cuts them, those with a side below `min_size` times the image's scale go; the best `pre_nms_topn` are
    suppressed where they overlap a better one by more than `nms_thresh`, and the first `post_nms_topn` remain, with no
    gradient. Synopsys' words (`max_rois`, `rpn_min_size`, `rpn_nms_thresh`, `anchor_*`) mean the same. Dialect
    "happynear", or four numbers in bottom 2 (height, width, scale of each): `scale` is in pixels, and boxes that are
    too small score 0 instead.
    """

    fork = "Faster R-CNN in mini-caffe, caffe-windows (happynear), Synopsys"
    config_field = "proposal_param"
    differences = (
        "boxes that are too small are left out, as in py-faster-rcnn and Synopsys' fork (mini-caffe has them score 0); "
        "equal scores keep the order of places. The number of boxes before suppression holds (not in Synopsys' fork)."
    )

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        windows = self.dialect == "happynear" or (self.dialect is None and shapes[2][-1] == 4)
        ratios, scales = list(config.ratio), list(config.scale)
        if windows and not (ratios and scales):
            self.fail("give each ratio, and each scale in pixels")
        ratios, scales = (
            ratios or self._few("anchor_ratio", RATIOS, 1.0),
            scales or self._few("anchor_scale", SCALES, 32.0),
        )
        base = config.anchor_base_size if config.HasField("anchor_base_size") else config.base_size
        if base < 1 or min(ratios) <= 0 or min(scales) <= 0:
            self.fail("base_size, ratios and scales must be positive")
        self.keeps_small = windows
        self.scores_have_axis = self.dialect == "synopsys"
        self.anchors = (pixel_anchor_boxes if windows else anchor_boxes)(base, ratios, scales)
        self.stride = config.feat_stride
        self.limits = Limits(
            config.pre_nms_topn,
            config.max_rois if config.HasField("max_rois") else config.post_nms_topn,
            config.rpn_nms_thresh if config.HasField("rpn_nms_thresh") else config.nms_thresh,
            config.rpn_min_size if config.HasField("rpn_min_size") else config.min_size,
        )
        super().setup(shapes)

    def _few(self, name: str, all_of_them: Sequence[float], one: float) -> list[float]:
        """Synopsys' way to choose: 3 for the usual values, another number for one."""
        return list(all_of_them) if getattr(self.config, name) == 3 else [one]
