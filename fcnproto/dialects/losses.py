"""Losses of detectors: SmoothL1Loss, and the layers of R-FCN that train on the hardest regions (OHEM)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Draw, integers, positive
from fcnproto.layers.labels import check_items
from fcnproto.layers.loss import (
    LossLayer,
    SoftmaxWithLoss,
    divisor,
)
from fcnproto.layers.plain import Piece, Request, number
from fcnproto.layers.registry import register


def four_axes(shape: Sequence[int]) -> Shape:
    """A shape of up to four axes with the missing ones as 1, as layers of Caffe's first years see blobs."""
    return (*(int(extent) for extent in shape), *[1] * (4 - len(shape)))


def smooth_l1(difference: Tensor, sigma: float) -> Tensor:
    """0.5 * (sigma d)^2 where |d| < 1 / sigma^2, else |d| - 0.5 / sigma^2."""
    square, size = sigma * sigma, difference.abs()
    return torch.where(size < 1 / square, difference.square() * (0.5 * square), size - 0.5 / square)


def smooth_l1_costs(
    predicted: Tensor,
    wanted: Tensor,
    inside: Tensor | None = None,
    outside: Tensor | None = None,
    sigma: float = 1.0,
    *,
    slope_weighted: bool = True,
) -> Tensor:
    """outside * smooth_l1(inside * (predicted - wanted)); without `slope_weighted` the gradient is that of `inside`
    being 1 behind the curve."""
    difference = at_least_float32(predicted) - wanted.reshape(predicted.shape)
    if inside is not None:
        weights = inside.detach().reshape(predicted.shape)
        weighted = difference * weights
        difference = weighted if slope_weighted else difference + (weighted - difference).detach()
    costs = smooth_l1(difference, sigma)
    return costs if outside is None else costs * outside.detach().reshape(predicted.shape)


def by_place(costs: Tensor) -> Tensor:
    """The sum over channels of costs (N, C, H, W): (N, 1, H, W), without a gradient."""
    return costs.detach().reshape(four_axes(costs.shape)).sum(1, keepdim=True)


def added_up(costs: Tensor, divided_by: float | Tensor, absolute: bool = False) -> Tensor:
    """The sum of the costs, or with `absolute` of their amounts (with the costs' gradient), over `divided_by`."""
    return (costs + (costs.abs() - costs).detach() if absolute else costs).sum() / divided_by


def box_divisor(x: Tensor, mode: str | float) -> float | Tensor:
    """What the sum over bottoms like `x` (N, C, H, W) is divided by, for N * H * W places."""
    return divisor(mode, x.shape[0], math.prod(x.shape[2:]), None)


class _BoxLoss(LossLayer):
    """What losses of box differences have in common: bottoms of one size, and a second top by place."""

    index_bottoms = ()
    tops = (1, 2)
    judges = False
    sigma: float = 1
    slope_weighted: bool = False
    """Whether the inside weights multiply the gradient too."""
    absolute: bool = False
    """Whether amounts are added."""

    @property
    def divided_by(self) -> str | float:
        """What the sum is divided by, as `divisor` takes it."""
        return self.mode_name

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        sizes = [four_axes(shape) for shape in shapes]
        if any(len(shape) > 4 for shape in shapes) or any(size != sizes[0] for size in sizes):
            self.fail(f"bottoms must have one shape (N, C, H, W), got {', '.join(str(tuple(s)) for s in shapes)}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count, _, height, width = four_axes(shapes[0])
        both: list[Shape] = [(), (count, 1, height, width)]
        return both[: self.num_tops]

    def costs_of(self, *bottoms: Tensor) -> Tensor:
        """The costs in the shape of the bottoms."""
        predicted, wanted, *weights = bottoms
        inside, outside = (*weights, None, None)[:2]
        return smooth_l1_costs(predicted, wanted, inside, outside, self.sigma, slope_weighted=self.slope_weighted)

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        check_items(self, bottoms[0], bottoms[1])
        costs = self.costs_of(*bottoms)
        loss = added_up(costs, box_divisor(bottoms[0], self.divided_by), self.absolute)
        return loss if self.num_tops < 2 else (loss, by_place(costs))

    def plain(self, request: Request) -> Piece:
        weighted = "" if self.slope_weighted else ", slope_weighted=False"
        costs = f"smooth_l1_costs({', '.join(request.args)}, sigma={number(self.sigma)}{weighted})"
        mode = repr(self.divided_by) if isinstance(self.divided_by, str) else number(self.divided_by)
        divided_by = f"box_divisor({request.x}, {mode})"
        values = [f"added_up({costs}, {divided_by}, {self.absolute})", f"by_place({costs})"][: self.num_tops]
        copies = (smooth_l1_costs, added_up, box_divisor, by_place)[: 2 + self.num_tops]
        return Piece((values[0], None) if self.num_tops < 2 else ("", values), None, copies)


@register("SmoothL1Loss")
class SmoothL1Loss(_BoxLoss):
    """sum of outside * e(inside * (a - b)) / N for bottoms a, b and, where given, weights inside and outside (all of
    one shape); e is (sigma d)^2 / 2 where |d| < 1 / sigma^2, else |d| - 0.5 / sigma^2. A second top (cascade-rcnn) has
    the sum over channels, without a gradient.

    With three bottoms (Fast R-CNN's first nets) the inside weights reach the gradient within e' alone. `abssum: true`
    (Synopsys' default; to be given, or by dialect "synopsys") adds the amounts of the terms and keeps
    the inner weights out of the gradient, as that fork does.
    """

    fork = "SSD; Fast R-CNN, R-FCN, cascade-rcnn, Synopsys"
    config_field = "smooth_l1_loss_param"
    bottoms = (2, 4)
    force_backward_refuses = (2, 3)

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if not self.config.sigma > 0:
            self.fail(f"sigma must be above 0, got {self.config.sigma}")
        self.sigma = float(self.config.sigma)
        self.absolute = bool(self.config.abssum) and (self.config.HasField("abssum") or self.dialect == "synopsys")
        self.slope_weighted = not self.absolute and len(shapes) != 3

    @property
    def divided_by(self) -> str:
        return "BATCH_SIZE"


@register("SmoothL1LossOHEM")
class SmoothL1LossOHEM(_BoxLoss):
    """sum of e(w * (a - b)) / Z for bottoms a, b and, where given, weights w; e(d) is d^2 / 2 where |d| < 1, else
    |d| - 0.5. The second top has the sum over channels, (N, 1, H, W), without a gradient.

    Z is by `loss_param.normalization` as for SoftmaxWithLoss, with N * H * W places. As in the forks, the weights reach
    the gradient within e' alone and don't multiply it.
    """

    fork = "R-FCN, Intel"
    config_field = "loss_param"
    bottoms = (2, 3)
    force_backward_refuses = (2,)


@register("SoftmaxWithLossOHEM")
class SoftmaxWithLossOHEM(SoftmaxWithLoss):
    """SoftmaxWithLoss, by whose third top, the cost of each label, `BoxAnnotatorOHEM` picks the hardest."""

    fork = "R-FCN, Intel"
    also_reads = ("loss_param",)
    fork_fields = LossLayer.fork_fields
    differences = (
        "the second top is filled also where there are three, and ignored labels add nothing to the loss, whichever "
        "they are (Intel's CPU code fills it with zeros, and adds the first labels)."
    )

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.weights is not None:
            self.fail("has no weights of classes; remove weight_by_label_freqs and softmaxloss_param")


@register("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(Layer):
    """The labels and box weights of the `roi_per_img` regions of each image with the largest loss; other regions get
    `ignore_label` and weights of 0.

    Bottoms: regions (R, 5), the loss and the label of each, box weights (R, C); each may have places (R, ..., H, W).
    Tops: labels (R, 1, H, W) and weights (R, C, H, W). There is no gradient. Equal losses keep their order.
    """

    fork = "R-FCN, Intel"
    kind = "loss"
    config_field = "box_annotator_ohem_param"
    bottoms = (4, 4)
    tops = (2, 2)
    in_place = False
    force_backward_refuses = (0, 1, 2, 3)
    differences = "regions of equal loss are taken in their order; the forks' sort leaves it open."

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return {0: integers(1), 1: positive, 2: integers(2)}.get(bottom)

    def setup(self, shapes: Sequence[Shape]) -> None:
        rois, loss, label, weights = (four_axes(shape) for shape in shapes)
        if self.config.roi_per_img < 1:
            self.fail("roi_per_img must be given, and be at least 1")
        places = [(shape[0], *shape[2:]) for shape in (rois, loss, label, weights)]
        if (rois[1], loss[1], label[1]) != (5, 1, 1) or any(place != places[0] for place in places):
            self.fail(
                "needs regions (R, 5), losses (R, 1), labels (R, 1) and weights (R, C), "
                f"got {', '.join(str(tuple(shape)) for shape in shapes)}"
            )

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        count, channels, height, width = four_axes(shapes[3])
        return [(count, 1, height, width), (count, channels, height, width)]

    @torch.no_grad()
    def forward(self, regions: Tensor, loss: Tensor, label: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        count, channels, height, width = four_axes(weights.shape)
        image = regions.reshape(count, 5, -1)[:, 0].flatten().long()
        chosen = hardest(loss.flatten(), image, self.config.roi_per_img).reshape(count, 1, height, width)
        labels = label.reshape(count, 1, height, width).masked_fill(~chosen, self.config.ignore_label)
        return labels, weights.reshape(count, channels, height, width).masked_fill(~chosen, 0)


def hardest(loss: Tensor, image: Tensor, most: int) -> Tensor:
    """Which of the items (R,) are among the `most` of their image with the largest loss."""
    order = loss.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    groups = image[order]
    place = torch.arange(len(order), device=loss.device)
    first = torch.searchsorted(groups, groups)
    return torch.zeros_like(image, dtype=torch.bool).index_put((order,), place - first < most)
