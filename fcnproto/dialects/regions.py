"""Pooling of regions: ROIPooling, PSROIPooling and the ROIAlign of cascade-rcnn, from rows image, x1, y1, x2, y2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.errors import LayerError
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, regions
from fcnproto.layers.registry import register

Pair = tuple[int, int]


def rounded(x: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero, as C does."""
    return torch.where(x < 0, -(0.5 - x).floor(), (x + 0.5).floor())


class Regions(Layer):
    """What the layers share: features (N, C, H, W) and regions (R, 5), for which no gradient is made."""

    kind = "pooling"
    bottoms = (2, 2)
    in_place = False
    force_backward_refuses = (1,)

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return regions(first) if bottom == 1 else None

    def check_bottoms(self, shapes: Sequence[Sequence[int]]) -> int:
        """The number of regions."""
        features, rows = shapes
        if len(features) != 4 or len(rows) < 2 or math.prod(rows[1:]) != 5:
            self.fail(f"needs features (N, C, H, W) and regions (R, 5), got {tuple(features)} and {tuple(rows)}")
        return int(rows[0])

    def rows(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The image of each region, and its corners (R, 4). `LayerError` for an image that isn't there."""
        flat = regions.detach().reshape(-1, 5)
        image = flat[:, 0].long()
        if image.device.type == "cpu" and image.numel() and not torch.compiler.is_compiling():
            low, high = (int(value) for value in image.aminmax())
            if low < 0 or high >= features.shape[0]:
                self.fail(f"a region is of image {low if low < 0 else high}; the features are of {features.shape[0]}")
        return image, flat[:, 1:]

    def widened(self, corners: Tensor) -> Tensor:
        """The regions with `pad_ratio` of their size added on each side."""
        ratio = self.config.pad_ratio
        pad = (corners[:, 2:] - corners[:, :2] + 1) * ratio
        return torch.cat([corners[:, :2] - pad, corners[:, 2:] + pad], 1) if ratio else corners


def cells(start: Tensor, extent: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """First and last-but-one place of each of `count` cells along an axis of `size`: two (R, count), clipped."""
    step = (extent / count).unsqueeze(1)
    number = torch.arange(count, dtype=extent.dtype, device=extent.device)
    first = (number * step).floor() + start.unsqueeze(1)
    last = ((number + 1) * step).ceil() + start.unsqueeze(1)
    return first.clamp(0, size).long(), last.clamp(0, size).long()


def largest(x: Tensor, image: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Where the largest value of each cell is: flat places (R, C, P, Q) within the planes of `x` (N, C, H, W), the
    first in row-major order of several, -1 for an empty cell. `rows` and `columns` are the cells' bounds, (R, P) and
    (R, Q).

    From tables of the largest value of every block whose sides are powers of two: four blocks cover a cell.
    """
    height, width = x.shape[2:]
    empty = (rows[1] <= rows[0]).unsqueeze(2) | (columns[1] <= columns[0]).unsqueeze(1)
    place = x.new_full((len(image), x.shape[1], rows[0].shape[1], columns[0].shape[1]), -1, dtype=torch.long)
    down = _level((rows[1] - rows[0]).clamp(min=1))
    right = _level((columns[1] - columns[0]).clamp(min=1))
    index = torch.arange(height * width, device=x.device).view(1, 1, height, width).expand(x.shape)
    tall_values, tall_index = x, index
    for i in range(int(down.max()) + 1 if down.numel() else 0):
        if i:
            tall_values, tall_index = _doubled(tall_values, tall_index, 2, 1 << (i - 1))
        values, at = tall_values, tall_index
        for j in range(int(right.max()) + 1):
            if j:
                values, at = _doubled(values, at, 3, 1 << (j - 1))
            chosen = ((down == i).unsqueeze(2) & (right == j).unsqueeze(1) & ~empty).nonzero()
            if not len(chosen):
                continue
            region, p, q = chosen.unbind(1)
            top, bottom = rows[0][region, p], rows[1][region, p] - (1 << i)
            left, far = columns[0][region, q], columns[1][region, q] - (1 << j)
            best = None
            for y, z in ((top, left), (top, far), (bottom, left), (bottom, far)):
                found = values[image[region], :, y, z], at[image[region], :, y, z]
                best = found if best is None else _better(*best, *found)
            assert best is not None
            place[region, :, p, q] = best[1]
    return place


def _level(extent: Tensor) -> Tensor:
    """The power of two that is at most `extent`, as its exponent."""
    return torch.frexp(extent.double())[1] - 1


def _better(value: Tensor, at: Tensor, other: Tensor, other_at: Tensor) -> tuple[Tensor, Tensor]:
    takes = (other > value) | ((other == value) & (other_at < at))
    return torch.where(takes, other, value), torch.where(takes, other_at, at)


def _doubled(values: Tensor, at: Tensor, axis: int, step: int) -> tuple[Tensor, Tensor]:
    """The table of blocks twice as long along `axis`, from that of blocks of `step`."""
    length = values.shape[axis] - step
    if length <= 0:
        return values, at
    return _better(
        values.narrow(axis, 0, length),
        at.narrow(axis, 0, length),
        values.narrow(axis, step, length),
        at.narrow(axis, step, length),
    )


@register("ROIPooling")
class ROIPooling(Regions):
    """The largest value in each of `pooled_h` x `pooled_w` cells of each region, whose corners are first multiplied by
    `spatial_scale` and rounded; 0 for a cell outside of the map. A top (R, C, pooled_h, pooled_w).

    `pad_ratio` (cascade-rcnn) first widens the regions. A region that ends before it begins pools one cell and passes
    no gradient, as in the forks.
    """

    fork = "Fast R-CNN, Microsoft, Intel, cascade-rcnn, Synopsys"
    config_field = "roi_pooling_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        given = list(config.pooled_size)
        if len(given) > 2 or (given and (config.pooled_h or config.pooled_w)):
            self.fail("give either pooled_h and pooled_w or a pooled_size of one or two values")
        self.pooled = (given[0], given[-1]) if given else (config.pooled_h, config.pooled_w)
        if min(self.pooled) < 1:
            self.fail("pooled_h and pooled_w must be given and positive")
        self.check_bottoms(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.check_bottoms(shapes), shapes[0][1], *self.pooled)]

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        image, corners = self.rows(x, regions)
        bounds = rounded(self.widened(corners) * self.config.spatial_scale)
        extent = (bounds[:, 2:] - bounds[:, :2] + 1).clamp(min=1)
        columns = cells(bounds[:, 0], extent[:, 0], self.pooled[1], x.shape[3])
        rows = cells(bounds[:, 1], extent[:, 1], self.pooled[0], x.shape[2])
        place = largest(x.detach(), image, rows, columns)
        channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        values = x.flatten(2)[image.view(-1, 1, 1, 1), channel, place.clamp(min=0)]
        good = (bounds[:, 2:] >= bounds[:, :2]).all(1).view(-1, 1, 1, 1)
        return torch.where(place < 0, 0, torch.where(good, values, values.detach()))


@register("PSROIPooling")
class PSROIPooling(Regions):
    """R-FCN's pooling: the mean over each of `group_size` x `group_size` cells of a region, each cell of its own
    channels, channel (d * group_size + row) * group_size + column. A top (R, output_dim, group_size, group_size).
    """

    fork = "Microsoft (R-FCN), Intel"
    config_field = "psroi_pooling_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        for name in ("spatial_scale", "output_dim", "group_size"):
            if getattr(config, name) <= 0:
                self.fail(f"{name} must be given and positive")
        self.check_bottoms(shapes)
        wanted = config.output_dim * config.group_size**2
        if shapes[0][1] != wanted:
            self.fail(f"output_dim * group_size^2 is {wanted}, but the features have {shapes[0][1]} channels")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        config = self.config
        return [(self.check_bottoms(shapes), config.output_dim, config.group_size, config.group_size)]

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        config, count = self.config, self.config.group_size
        image, corners = self.rows(x, regions)
        start = rounded(corners[:, :2]) * config.spatial_scale
        extent = ((rounded(corners[:, 2:]) + 1) * config.spatial_scale - start).clamp(min=0.1)
        across = _means(start[:, 0], extent[:, 0], count, x.shape[3]).to(x.dtype)
        along = _means(start[:, 1], extent[:, 1], count, x.shape[2]).to(x.dtype)
        grouped = x.view(x.shape[0], config.output_dim, count, count, *x.shape[2:])
        top = x.new_zeros(len(image), config.output_dim, count, count)
        for item in image.unique().tolist():
            chosen = (image == item).nonzero().flatten()
            part = torch.einsum("dpqhw,rqw->rdpqh", grouped[item], across[chosen])
            top = top.index_copy(0, chosen, torch.einsum("rdpqh,rph->rdpq", part, along[chosen]))
        return top


def _means(start: Tensor, extent: Tensor, count: int, size: int) -> Tensor:
    """The matrices (R, count, size) that take the mean over each cell along one axis; rows of zeros for empty cells."""
    step = (extent / count).unsqueeze(1)
    number = torch.arange(count, dtype=extent.dtype, device=extent.device)
    first = (number * step + start.unsqueeze(1)).floor().clamp(0, size)
    last = ((number + 1) * step + start.unsqueeze(1)).ceil().clamp(0, size)
    place = torch.arange(size, device=extent.device)
    inside = (place >= first.unsqueeze(2)) & (place < last.unsqueeze(2))
    return inside / (last - first).clamp(min=1).unsqueeze(2)


@register("ROIAlign")
class ROIAlign(Regions):
    """cascade-rcnn's and mscnn's ROIAlign (`roi_pooling_param`): bilinear samples on (pooled_h + 1) x (pooled_w + 1)
    grid lines of a region, 0 outside of the map; a 2 x 2 mean pooling follows it in their nets.

    A region without area gives zeros.
    """

    fork = "mscnn, cascade-rcnn"
    config_field = "roi_pooling_param"
    also_reads = ("roi_align_param",)

    def withheld(self) -> str:
        if not self.param.HasField("roi_align_param"):
            return ""
        return (
            f"layer {self.name!r} (ROIAlign): roi_align_param is another layer's (ncnn, Synopsys), whose samples read "
            "beyond the map in the fork; only the one with roi_pooling_param is here"
        )

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.withheld():
            raise LayerError(self.withheld())
        if min(self.config.pooled_h, self.config.pooled_w) < 1:
            self.fail("pooled_h and pooled_w must be given and positive")
        self.check_bottoms(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.check_bottoms(shapes), shapes[0][1], self.config.pooled_h + 1, self.config.pooled_w + 1)]

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        config = self.config
        image, corners = self.rows(x, regions)
        bounds = self.widened(corners) * config.spatial_scale - 0.5
        extent = bounds[:, 2:] - bounds[:, :2]
        across = _samples(bounds[:, 0], extent[:, 0], config.pooled_w, x.shape[3])
        along = _samples(bounds[:, 1], extent[:, 1], config.pooled_h, x.shape[2])
        good = (extent > 0).all(1).to(x.dtype).view(-1, 1, 1, 1)
        top = x.new_zeros(len(image), x.shape[1], config.pooled_h + 1, config.pooled_w + 1)
        for item in image.unique().tolist():
            chosen = (image == item).nonzero().flatten()
            part = torch.einsum("chw,rqw->rchq", x[item], across[chosen].to(x.dtype))
            top = top.index_copy(0, chosen, torch.einsum("rchq,rph->rcpq", part, along[chosen].to(x.dtype)))
        return top * good


def _samples(start: Tensor, extent: Tensor, count: int, size: int) -> Tensor:
    """The matrices (R, count + 1, size) of bilinear samples on the grid lines along one axis."""
    step = (extent / count).unsqueeze(1)
    at = start.unsqueeze(1) + torch.arange(count + 1, dtype=extent.dtype, device=extent.device) * step
    inside = (at >= -0.5) & (at <= size - 0.5)
    low = at.floor().clamp(0, size - 1)
    high = (at.floor() + 1).clamp(0, size - 1)
    share = at.clamp(0, size - 1) - low
    place = torch.arange(size, device=extent.device)
    below = (place == low.unsqueeze(2)) * (1 - share).unsqueeze(2)
    return (below + (place == high.unsqueeze(2)) * share.unsqueeze(2)) * inside.unsqueeze(2)
