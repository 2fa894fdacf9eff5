"""MNC's (and SSTD's) layers of masks and of regions that are resampled: MaskResize, MaskPooling, ROIWarping, and the
Python layers of its cascade, known by their modules' and classes' names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fcnproto.data.python_layer import register_python_layer
from fcnproto.dialects.proposals import image_info, moved, within
from fcnproto.dialects.rcnn import RegionProposals
from fcnproto.dialects.regions import Regions, rounded
from fcnproto.graph import maps
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, regions
from fcnproto.layers.registry import register

MASK_SIZE = 21
"""The side of MNC's masks, from its cfg."""


def between(at: Tensor, size: int) -> Tensor:
    """The weights (..., size) by which values at the positions `at` are mixed of those at 0..size - 1, linearly; the
    ends hold beyond. Positions farther out than half a step mix nothing."""
    inside = (at >= -0.5) & (at <= size - 0.5)
    at = at.clamp(0, size - 1)
    low = at.floor()
    place = torch.arange(size, dtype=at.dtype, device=at.device)
    share = (at - low).unsqueeze(-1)
    weights = (place == low.unsqueeze(-1)) * (1 - share) + (place == low.unsqueeze(-1) + 1) * share
    return weights * inside.unsqueeze(-1)


@register("MaskResize")
class MaskResize(Layer):
    """Maps resampled linearly to `output_height` x `output_width`, or `factor_height` and `factor_width` times their
    size, rounded down: a value at i is that of the bottom at i * (old size / new size)."""

    fork = "MNC, SSTD"
    kind = "deconvolution"
    config_field = "mask_resize_param"
    in_place = False

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if min(self.config.output_height, self.config.output_width) < 1:
            self.fail("output_height and output_width must be given and positive")
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) != 4:
            self.fail(f"resamples (N, C, H, W) bottoms only, got shape {tuple(shapes[0])}")
        return [(*shapes[0][:2], *self.size(shapes[0]))]

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """The top's height and width."""
        config = self.config
        high = int(shape[2] * config.factor_height) if config.factor_height > 0 else config.output_height
        wide = int(shape[3] * config.factor_width) if config.factor_width > 0 else config.output_width
        if min(high, wide) < 1:
            self.fail(f"the top would have the size {(high, wide)} for a bottom of shape {tuple(shape)}")
        return high, wide

    def forward(self, x: Tensor) -> Tensor:
        along, across = (
            between(torch.arange(new, dtype=x.dtype, device=x.device) * (old / new), old)
            for old, new in zip(x.shape[2:], self.size(x.shape), strict=True)
        )
        return along @ x @ across.t()


@register("MaskPooling")
class MaskPooling(Layer):
    """Features (N, C, H, W) times masks (N, 1, H, W)."""

    fork = "MNC, SSTD"
    bottoms = (2, 2)
    kind = "arithmetic"
    in_place = False
    coordinates = staticmethod(maps.same)

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        features, masks = (tuple(shape) for shape in shapes)
        if len(features) != 4 or masks != (features[0], 1, *features[2:]):
            self.fail(f"needs features (N, C, H, W) and masks (N, 1, H, W), got {features} and {masks}")
        return [features]

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        return x * masks


_TOGETHER = 16
"""Regions that ROIWarping samples at a time."""


@register("ROIWarping")
class ROIWarping(Regions):
    """The largest of the samples in each of `pooled_h` x `pooled_w` cells of each region, whose corners are first
    multiplied by `spatial_scale` and rounded. Samples are linear mixtures, on grid lines that cut a cell into steps of
    at most 1, its borders among them; those outside of the map don't count, and a cell without any is 0.
    """

    fork = "MNC"
    config_field = "roi_warping_param"
    differences = "regions get no gradient (MNC's training makes one for them)."

    def setup(self, shapes: Sequence[Shape]) -> None:
        if min(self.config.pooled_h, self.config.pooled_w) < 1:
            self.fail("pooled_h and pooled_w must be given and positive")
        self.check_bottoms(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.check_bottoms(shapes), shapes[0][1], self.config.pooled_h, self.config.pooled_w)]

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        image, corners = self.rows(x, regions)
        bounds = rounded(corners * self.config.spatial_scale)
        extent = (bounds[:, 2:] - bounds[:, :2]).clamp(min=0)
        tops = [x.new_zeros(0, x.shape[1], self.config.pooled_h, self.config.pooled_w)]
        for first in range(0, len(image), _TOGETHER):
            some = slice(first, first + _TOGETHER)
            along = _grid(bounds[some, 1], extent[some, 1], self.config.pooled_h)
            across = _grid(bounds[some, 0], extent[some, 0], self.config.pooled_w)
            tops.append(_largest_sample(x[image[some]], along, across))
        return torch.cat(tops)


def _grid(start: Tensor, extent: Tensor, count: int) -> Tensor:
    """The positions (R, count, K) of the samples of each cell along an axis, NaN where a cell has fewer than K.

    The fork goes from border to border in steps that it adds up in float32, so that the last may miss the border."""
    steps = (extent / count).ceil()
    step = (1 / steps).float().view(-1, 1)
    cell = torch.arange(count, dtype=torch.float32, device=start.device).expand(len(start), count)
    at, found = cell, []
    for _ in range(int(steps.max()) + 1 if len(start) else 1):
        found.append(torch.where(at <= cell + 1, at, math.nan))
        at = at + step
    return start.view(-1, 1, 1) + torch.stack(found, 2).to(start.dtype) * (extent / count).view(-1, 1, 1)


def _largest_sample(x: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """The largest sample (R, C, P, Q) of features (R, C, H, W) at positions (R, P, K) and (R, Q, L)."""
    counts = [at.ge(-0.5) & at.le(size - 0.5) for at, size in zip((along, across), x.shape[2:], strict=True)]
    rows = between(along.nan_to_num(-1), x.shape[2]).flatten(1, 2).to(x.dtype)
    columns = between(across.nan_to_num(-1), x.shape[3]).flatten(1, 2).to(x.dtype)
    samples = torch.einsum("rph,rchw,rqw->rcpq", rows, x, columns)
    samples = samples.unflatten(3, across.shape[1:]).unflatten(2, along.shape[1:])
    good = counts[0].view(len(x), 1, *along.shape[1:], 1, 1) & counts[1].view(len(x), 1, 1, 1, *across.shape[1:])
    low = torch.finfo(x.dtype).min
    best = samples.masked_fill(~good, low).permute(0, 1, 2, 4, 3, 5).flatten(4).max(4).values
    return torch.where(best == low, 0, best)


@register_python_layer("pylayer.proposal_layer", "ProposalLayer")
class MncProposals(RegionProposals):
    """pylayer.proposal_layer.ProposalLayer: as rpn.proposal_layer's; `use_clip` and `clip_base` concern a gradient that
    isn't made here. A second top (TRAIN) with the numbers of the proposals' anchors can't be had."""

    unread = ("use_clip", "clip_base")

    def withheld(self) -> str:
        if self.num_tops < 2:
            return ""
        return f"layer {self.name!r} (Python): the numbers of the proposals' anchors, its second top, aren't made here"


@register_python_layer("pylayer.mask_layer", "MaskLayer")
class MncMasks(Layer):
    """pylayer.mask_layer.MaskLayer in the TEST phase: predictions (N, 21 * 21) as masks (N, 1, 21, 21). In TRAIN it
    needs the project's own masks."""

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    kind = "shaping"
    bottoms = (1, None)
    in_place = False

    def withheld(self) -> str:
        if len(self.param.bottom) == 1 and self.num_tops == 1:
            return ""
        return f"layer {self.name!r} (Python): its targets for training need MNC's own data, which can't be read here"

    def keeps_images_apart(self) -> bool:
        return True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if math.prod(shapes[0][1:]) != MASK_SIZE**2:
            self.fail(f"needs predictions (N, {MASK_SIZE**2}), got {tuple(shapes[0])}")
        return [(shapes[0][0], 1, MASK_SIZE, MASK_SIZE)]

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 1, MASK_SIZE, MASK_SIZE)


@register_python_layer("pylayer.stage_bridge_layer", "StageBridgeLayer")
class MncStageBridge(Layer):
    """pylayer.stage_bridge_layer.StageBridgeLayer in the TEST phase: regions (R, 5) moved by the predictions (R, 4 C)
    for the class with the best of the scores (R, C), cut by the image whose height and width bottom 3 says; of image 0,
    without a gradient. In TRAIN it needs the project's own targets."""

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    bottoms = (3, None)
    in_place = False
    index_bottoms = (3,)
    force_backward_refuses = (0, 1, 2, 3)

    def withheld(self) -> str:
        if len(self.param.bottom) == 4 and self.num_tops == 1:
            return ""
        return f"layer {self.name!r} (Python): its targets for training need MNC's own data, which can't be read here"

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return {0: regions(()), 3: image_info((1, 1, 1, 1), 16)}.get(bottom)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        rows, values, scores = (math.prod(shape[1:]) for shape in shapes[:3])
        if rows != 5 or values != 4 * scores or len({shape[0] for shape in shapes[:3]}) != 1:
            given = ", ".join(str(tuple(shape)) for shape in shapes[:3])
            self.fail(f"needs regions (R, 5), predictions (R, 4 C) and scores (R, C), got {given}")
        return [(shapes[0][0], 5)]

    @torch.no_grad()
    def forward(self, rows: Tensor, values: Tensor, scores: Tensor, info: Tensor) -> Tensor:
        best = scores.flatten(1).argmax(1)
        chosen = values.reshape(len(values), -1, 4)[torch.arange(len(best), device=best.device), best]
        height, width = (float(number) for number in info.flatten()[:2])
        boxes = within(moved(rows.reshape(-1, 5)[:, 1:], chosen), height, width)
        return torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
