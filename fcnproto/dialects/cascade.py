"""Boxes of mscnn and cascade-rcnn: BoxOutput, BoxGroupOutput, DecodeBBox, ScaleRoute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fcnproto.dialects import boxes as box
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, regions
from fcnproto.layers.registry import register

MODES = ("IOU", "IOMU", "IOFU")
"""Overlap over the union, over the smaller box, over the kept box."""


def share(kept: Tensor, others: Tensor, mode: str, one: float) -> Tensor:
    """The overlaps of boxes `kept` (N, 4) with `others` (M, 4) by a mode: (N, M); `one` is 1 where the last pixel
    belongs to a box. Boxes that don't meet at all share nothing, also where they are less than a pixel apart."""
    low = torch.maximum(kept[:, None, :2], others[None, :, :2])
    high = torch.minimum(kept[:, None, 2:], others[None, :, 2:])
    meets = (high[..., 0] > low[..., 0] if one == 0 else high[..., 0] >= low[..., 0]) & (high[..., 1] > low[..., 1])
    shared = torch.where(meets, (high - low + one).prod(2), 0)
    a, b = box.area(kept, one)[:, None], box.area(others, one)[None]
    whole = {"IOU": a + b - shared, "IOMU": torch.minimum(a, b), "IOFU": a.expand_as(shared)}[mode]
    return torch.where((a > 0) & (b > 0), shared / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0)


def middles(height: int, width: int, stride: float, like: Tensor) -> Tensor:
    """The middles x, y (H * W, 2) of the places of a map that are `stride` pixels apart."""
    options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    y, x = torch.meshgrid(torch.arange(height, **options), torch.arange(width, **options), indexing="ij")
    return (torch.stack([x.flatten(), y.flatten()], 1) + 0.5) * stride


def field_boxes(values: Tensor, field: Tensor, stride: float, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Boxes as a place of a map predicts them: top left corners (..., H * W, 2) and sizes (..., H * W, 2).

    Args:
        values: x, y, w, h (..., 4, H, W): the centre in units of the `field` (width, height), from the middle of the
            place, and the logarithm of the size over it; kept within +-1 / bounds[0] and +-log(bounds[1]).
        stride: how far apart places are.
    """
    height, width = values.shape[-2:]
    by_place = values.flatten(-2).transpose(-1, -2)
    middle = middles(height, width, stride, values)
    reach, ratio = 1 / bounds[0], math.log(bounds[1])
    centre = by_place[..., :2].clamp(-reach, reach) * field + middle
    size = by_place[..., 2:].clamp(-ratio, ratio).exp() * field
    return centre - size / 2, size


def moved(boxes: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (..., 4) whose last pixel belongs to them, moved by predictions (..., 4): the centre by x and y in units of
    the size, the size by the exponent of w and h. Returns corners and sizes (..., 2)."""
    size = boxes[..., 2:] - boxes[..., :2] + 1
    centre = moves[..., :2] * size + 0.5 * (boxes[..., 2:] + boxes[..., :2])
    size = size * moves[..., 2:].exp()
    return centre - (size - 1) / 2, size


class Normalised(Layer):
    """A layer whose predictions are divided by `bbox_std` after `bbox_mean` was taken off."""

    in_place = False
    kind = "other"

    def keeps_images_apart(self) -> bool:
        return False

    def read_normalisation(self) -> None:
        """Check `bbox_reg_param`."""
        settings = self.param.bbox_reg_param
        self.mean, self.std = [0.0] * 4, [1.0] * 4
        if settings.bbox_mean and settings.bbox_std:
            self.mean, self.std = list(settings.bbox_mean), list(settings.bbox_std)
            if len(self.mean) != 4 or len(self.std) != 4 or min(self.std) <= 0:
                self.fail("bbox_reg_param takes four of bbox_mean and four positive ones of bbox_std")

    def as_predicted(self, values: Tensor, axis: int) -> Tensor:
        """The predictions, four along an axis, before they were normalised."""
        shape = [1] * values.dim()
        shape[axis] = 4
        return values * values.new_tensor(self.std).view(shape) + values.new_tensor(self.mean).view(shape)


class _FieldOutput(Normalised):
    """What BoxOutput and BoxGroupOutput share: suppression of each image's boxes, and the tops (R, 5, 1, 1) of rows
    image, x1, y1, x2, y2 and (R, 6, 1, 1) with the score behind."""

    tops = (1, 2)
    also_reads = ("bbox_reg_param",)
    one: float = 0

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_normalisation()
        config = self.config
        if config.nms_type not in MODES:
            self.fail(f'nms_type "{config.nms_type}": expected one of {", ".join(MODES)}')
        if not (config.field_xyr > 0 and config.field_whr >= 1):
            self.fail("field_xyr must be positive and field_whr at least 1")

    @property
    def bounds(self) -> tuple[float, float]:
        return self.config.field_xyr, self.config.field_whr

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count = max(self.config.max_post_nms_num, 1)
        both: list[Shape] = [(count, 5, 1, 1), (count, 6, 1, 1)]
        return both[: self.num_tops]

    def order(self, scores: Tensor) -> Tensor:
        """The best first."""
        return scores.argsort(descending=True, stable=True)

    def kept(self, image: int, boxes: Tensor, scores: Tensor) -> Tensor:
        """The rows (R, 6) of an image's boxes (M, 4) that remain."""
        config = self.config
        order = self.order(scores)
        order = order[: config.max_nms_num] if config.max_nms_num > 0 else order
        measure = partial(share, mode=config.nms_type, one=self.one)
        most = config.max_post_nms_num if config.max_post_nms_num > 0 else None
        chosen = order[box.suppress(boxes[order], config.iou_thr, most=most, measure=measure).to(order.device)]
        return torch.cat([boxes.new_full((len(chosen), 1), image), boxes[chosen], scores[chosen].unsqueeze(1)], 1)

    def given(self, rows: Sequence[Tensor], like: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The tops of all images' rows; where there are none, the box 1, 1, 10, 10 of image 0, scored as zeros."""
        found = torch.cat(list(rows)) if rows else like.new_zeros(0, 6)
        regions = found[:, :5] if len(found) else like.new_tensor([[0, 1, 1, 10, 10]])
        found = found if len(found) else like.new_zeros(1, 6)
        regions, found = regions.reshape(-1, 5, 1, 1), found.view(-1, 6, 1, 1)
        return regions if self.num_tops < 2 else (regions, found)


@register("BoxOutput")
class BoxOutput(_FieldOutput):
    """The regions that maps of several scales propose. Each bottom (N, C + 4, H, W) has the scores of the background
    and of C - 1 classes, and x, y, w, h in units of its field (`field_w`, `field_h`), its places `downsample_rate`
    apart.

    A box scores the best class's score less the background's. Boxes below `fg_thr` or with a side below `min_size` go,
    the best `max_nms_num` (0: all) are suppressed beyond `iou_thr`, and `max_post_nms_num` (0: all) remain for each
    image. Where none does in any image, the top is one region 1, 1, 10, 10. There is no gradient.
    """

    fork = "mscnn"
    config_field = "box_output_param"
    bottoms = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        config = self.config
        if any(len(given) != len(shapes) for given in (config.field_w, config.field_h, config.downsample_rate)):
            self.fail(f"give field_w, field_h and downsample_rate for each of the {len(shapes)} bottoms")
        first = shapes[0]
        if any(len(shape) != 4 or tuple(shape[:2]) != tuple(first[:2]) or shape[1] < 6 for shape in shapes):
            self.fail(
                "bottoms must be maps (N, C + 4, H, W) of the same N and of two classes or more, "
                f"got {', '.join(str(tuple(shape)) for shape in shapes)}"
            )

    def order(self, scores: Tensor) -> Tensor:
        # The fork sorts pairs of score and number: of equal scores the later comes first.
        return len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)

    @torch.no_grad()
    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        config = self.config
        boxes, scores = [], []
        for x, wide, high, stride in zip(maps, config.field_w, config.field_h, config.downsample_rate, strict=True):
            field = x.new_tensor([wide, high])
            corner, size = field_boxes(self.as_predicted(x[:, -4:], 1), field, stride, self.bounds)
            corner = corner.clamp(min=0)
            limit = x.new_tensor([x.shape[3] * stride, x.shape[2] * stride])
            boxes.append(torch.cat([corner, torch.minimum(size, limit - corner)], 2))
            scores.append((x[:, 1:-4].amax(1) - x[:, 0]).flatten(1))
        every, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        valid = (score >= config.fg_thr) & (every[..., 2:] >= config.min_size).all(2)
        corners = torch.cat([every[..., :2], every[..., :2] + every[..., 2:]], 2)
        rows = [self.kept(n, corners[n, keep], score[n, keep]) for n, keep in enumerate(valid)]
        return self.given(rows, maps[0])


@register("BoxGroupOutput")
class BoxGroupOutput(_FieldOutput):
    """The regions that maps of several scales propose, each with several fields. Bottoms come in pairs of probabilities
    (N * G, C, H, W), of which the first channel is the background's, and x, y, w, h (N * G, 4, H, W) in units of the G
    fields of a `box_group_param`, whose places are `stride` apart.

    A box scores 1 less the background's probability; what remains of them is as for BoxOutput, with boxes whose last
    pixel belongs to them.
    """

    fork = "cascade-rcnn"
    config_field = "box_group_output_param"
    bottoms = (2, None)
    one = 1
    differences = "equal scores keep the order of places; the fork's sort leaves it open."

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        groups = self.config.box_group_param
        if len(shapes) != 2 * len(groups):
            self.fail(f"needs two bottoms for each of the {len(groups)} box_group_param, got {len(shapes)}")
        if any(not group.field_w or len(group.field_w) != len(group.field_h) for group in groups):
            self.fail("each box_group_param must have a field_w for each field_h")
        images = shapes[0][0] // len(groups[0].field_w)
        for i, group in enumerate(groups):
            scores, values = shapes[2 * i], shapes[2 * i + 1]
            count = images * len(group.field_w)
            if len(scores) != 4 or scores[0] != count or list(values) != [count, 4, *scores[2:]]:
                self.fail(
                    f"group {i} of {len(group.field_w)} fields needs probabilities ({count}, C, H, W) and values "
                    f"({count}, 4, H, W), got {tuple(scores)} and {tuple(values)}"
                )

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        boxes, scores = [], []
        for i, group in enumerate(self.config.box_group_param):
            background, values = bottoms[2 * i][:, 0], bottoms[2 * i + 1]
            count = len(group.field_w)
            height, width = values.shape[2:]
            field = torch.stack([values.new_tensor(list(group.field_w)), values.new_tensor(list(group.field_h))], 1)
            grouped = self.as_predicted(values, 1).reshape(-1, count, 4, height, width)
            corner, size = field_boxes(grouped, field.unsqueeze(1), group.stride, self.bounds)
            limit = values.new_tensor([width * group.stride, height * group.stride])
            ends = torch.minimum(corner + size - 1, limit)
            boxes.append(torch.cat([corner.clamp(min=0), ends], 3).flatten(1, 2))
            scores.append(1 - background.reshape(-1, count * height * width))
        every, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        sides = every[..., 2:] - every[..., :2] + 1
        valid = (score >= self.config.fg_thr) & (sides >= self.config.min_size).all(2)
        rows = [self.kept(n, every[n, keep], score[n, keep]) for n, keep in enumerate(valid)]
        return self.given(rows, bottoms[0])


@register("DecodeBBox")
class DecodeBBox(Normalised):
    """Regions (R, 5) moved by predictions (R, 8), of which the last four count: the centre by x and y in units of the
    size, which is scaled by the exponent of w and h. The top is (R, 5, 1, 1).

    In TRAIN boxes that end before they begin are left out, and with a third bottom, of which the last number of a row
    is the region's overlap with its object, those with `gt_iou_thr` or more. There is no gradient.
    """

    fork = "mscnn, cascade-rcnn"
    config_field = "bbox_reg_param"
    also_reads = ("decode_bbox_param",)
    bottoms = (2, 3)
    force_backward_refuses = (0, 1, 2)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions((1, 1, 4, 4)) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.read_normalisation()
        values, priors, *others = ((*shape, 1, 1)[:2] for shape in shapes)
        count = shapes[0][0] if shapes[0] else 0
        if values != (count, 8) or priors != (count, 5) or any(other[0] != count for other in others):
            self.fail(
                "needs predictions (R, 8), regions (R, 5) and maybe overlaps (R, ...), "
                f"got {', '.join(str(tuple(shape)) for shape in shapes)}"
            )
        if others and not self.training:
            self.fail("takes a third bottom in TRAIN alone")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(shapes[0][0], 5, 1, 1)]

    @torch.no_grad()
    def forward(self, values: Tensor, priors: Tensor, overlaps: Tensor | None = None) -> Tensor:
        count = values.shape[0]
        rows = priors.reshape(count, 5)
        boxes = rows[:, 1:]
        moves = self.as_predicted(values.reshape(count, 8)[:, 4:], 1)
        start, size = moved(boxes, moves)
        made = torch.cat([rows[:, :1], start, start + size - 1], 1)
        if self.training:
            valid = (made[:, 1:3] <= made[:, 3:]).all(1)
            if overlaps is not None:
                valid &= overlaps.reshape(count, -1)[:, -1] < self.param.decode_bbox_param.gt_iou_thr
            if count and not bool(valid.any()):
                self.fail("no box is left; the fork stops here too")
            made = made[valid]
        return made.view(-1, 5, 1, 1)


@register("ScaleRoute")
class ScaleRoute(Layer):
    """The regions (R, 5: image, x1, y1, x2, y2) whose size, the root of their area, is at least `low_scale` and below
    `high_scale`, and the rows of further bottoms (R, ...) that go with them; where there is none, the one whose size is
    nearest to the middle of the scales by their ratio. A top (K, C, H, W) of each bottom, without a gradient.
    """

    fork = "cascade-rcnn"
    kind = "other"
    config_field = "scale_route_param"
    bottoms = (1, None)
    tops = (1, None)
    in_place = False

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions(()) if bottom == 0 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.num_tops != len(shapes):
            self.fail(f"makes a top of each of its {len(shapes)} bottoms, but has {self.num_tops}")
        low, high = self.scales()
        if low > high or high <= 0:
            self.fail(f"low_scale {low:g} must not exceed high_scale {high:g}, which must be positive")
        self.top_shapes(shapes)

    def scales(self) -> tuple[float, float]:
        """The least size, and the one that is too large."""
        config = self.config
        return config.low_scale, config.high_scale if config.HasField("high_scale") else math.inf

    def middle(self) -> float:
        """The size in the middle; 256 where neither scale is given."""
        low, high = self.scales()
        if self.config.HasField("low_scale") and self.config.HasField("high_scale"):
            return math.sqrt(low * high)
        return low if self.config.HasField("low_scale") else high if math.isfinite(high) else 256.0

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if math.prod(shapes[0][1:]) != 5 or any(shape[0] != shapes[0][0] or len(shape) > 4 for shape in shapes):
            given = ", ".join(str(tuple(shape)) for shape in shapes)
            self.fail(f"needs regions (R, 5), and R rows in each further bottom, got {given}")
        return [(*shape, *[1] * (4 - len(shape))) for shape in shapes]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        rows = bottoms[0].reshape(-1, 5)
        if not len(rows):
            self.fail("has no regions to choose from")
        side = rows[:, 3:] - rows[:, 1:3]
        size = torch.where((side < 0).any(1), 0, (side + 1).prod(1)).sqrt()
        low, high = self.scales()
        chosen = ((size >= low) & (size < high)).nonzero().flatten()
        if not len(chosen):
            distance = (size / self.middle()).log2().abs()
            chosen = distance.argmin().reshape(1)
        tops = [bottom[chosen].reshape(len(chosen), *bottom.shape[1:], *[1] * (4 - bottom.dim())) for bottom in bottoms]
        return tops[0] if len(tops) == 1 else tuple(tops)
