"""Layers of NormFace and AMSoftmax (happynear's caffe-windows): InnerDistance, ChannelScale, LabelSpecificAdd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.graph import maps
from fcnproto.layers.base import Layer, SameShape, Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


class _OwnCentreAlone(torch.autograd.Function):
    """Distances (M, N) of vectors to centres, whose gradient reaches the centre of a vector's own label alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centres: Tensor, labels: Tensor, squares: bool) -> Tensor:
        ctx.save_for_backward(x, centres, labels)
        ctx.squares = squares
        return distances(x, centres, squares)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, centres, labels = ctx.saved_tensors
        if ctx.squares:
            of_x = 2 * (gradient.sum(1, keepdim=True) * x - gradient @ centres)
        else:
            of_x = (gradient.unsqueeze(2) * (x.unsqueeze(1) - centres).sign()).sum(1)
        own = gradient.gather(1, labels.unsqueeze(1))
        away = centres[labels] - x
        step = own * (2 * away if ctx.squares else away.sign())
        return of_x, torch.zeros_like(centres).index_add(0, labels, step), None, None


def distances(x: Tensor, centres: Tensor, squares: bool) -> Tensor:
    """The sums of the squares, or of the magnitudes, of x (M, K) less each of the centres (N, K): (M, N)."""
    return torch.cdist(x.unsqueeze(0), centres.unsqueeze(0), p=1)[0] if not squares else _squared(x, centres)


def _squared(x: Tensor, centres: Tensor) -> Tensor:
    difference = x.unsqueeze(1) - centres
    return difference.square().sum(2)


@register("InnerDistance")
class InnerDistance(Layer):
    """The distance of each vector, all axes from `axis` on, to each of `num_output` vectors of the blob (num_output, K)
    or of bottom 1 (N, ...): the sum of squared differences (`distance_type` "L2") or of their magnitudes ("L1").

    `normalize` first gives the blob's vectors length 1 where they are stored. With `update_center_only` the last bottom
    has a label for each vector, and only the vectors of those labels get a gradient.
    """

    fork = "happynear (NormFace)"
    kind = "linear"
    config_field = "inner_distance_param"
    bottoms = (1, 3)
    in_place = False
    differences = "transpose is refused (the fork reads its blob as if it weren't given)."

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    @classmethod
    def fixes_image_size(cls, param: caffe_pb2.LayerParameter) -> bool:
        return True

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        labelled = self.config.update_center_only and bottom == len(self.param.bottom) - 1
        return integers(self.outputs) if labelled else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if config.distance_type not in ("L1", "L2"):
            self.fail(f'distance_type {config.distance_type!r}: expected "L1" or "L2"')
        if config.transpose:
            self.fail("transpose isn't possible here; the fork's code ignores it")
        self.first_axis = self.axis(config.axis, shapes[0])
        self.inputs = math.prod(shapes[0][self.first_axis :])
        self.given = len(shapes) > 1 + config.update_center_only
        if len(shapes) > 2 + config.update_center_only:
            self.fail(f"has {len(shapes)} bottoms; the third one is a label, for update_center_only")
        self.outputs = shapes[1][0] if self.given else config.num_output
        if not self.outputs:
            self.fail("num_output must be given and positive, or the vectors as bottom 1")
        if self.given and math.prod(shapes[1][1:]) != self.inputs:
            self.fail(f"vectors of {self.inputs} values need others alike, got shape {tuple(shapes[1])}")
        if not self.given:
            self.add_blob("weight", (self.outputs, self.inputs), config.weight_filler)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][: self.first_axis], shapes[1][0] if self.given else self.outputs)]

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        if math.prod(x.shape[self.first_axis :]) != self.inputs:
            self.fail(f"was set up for {self.inputs} values from axis {self.first_axis} on, got {tuple(x.shape)}")
        centres = others[0].reshape(-1, self.inputs) if self.given else self.blob(0)
        if self.config.normalize and not self.given:
            with torch.no_grad():
                centres.div_((centres.square().sum(1, keepdim=True) + 1e-6).sqrt())
        flat, squares = x.reshape(-1, self.inputs), self.config.distance_type == "L2"
        if self.config.update_center_only:
            labels = others[-1].detach().flatten().long()
            found = _OwnCentreAlone.apply(flat, centres, labels, squares)
        else:
            found = distances(flat, centres, squares)
        return found.reshape(*x.shape[: self.first_axis], -1)


class _Scaled(torch.autograd.Function):
    """x * scale, or x itself, with the gradients that the settings leave on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, does: tuple[bool, bool, bool]) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.does = does
        return x * scale if does[0] else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        _, features, scales = ctx.does
        of_scale = (x * gradient).sum_to_size(scale.shape) if scales else torch.zeros_like(scale)
        return gradient * scale if features else gradient, of_scale, None


@register("ChannelScale")
class ChannelScale(SameShape):
    """All channels of a position times its number in bottom 1 (N, 1, H, W); `do_forward`, `do_backward_feature` and
    `do_backward_scale` switch the product and the two gradients off (features pass the top's gradient on then).

    `global_scale` takes one number for all: a running mean (0.99 old, 0.01 new, begun with the first) of the mean
    magnitude of bottom 1, kept within `min_global_scale` and `max_global_scale` in the blob, updated in TRAIN; it is
    the second top. The gradients are those of the position's own numbers all the same.
    """

    fork = "happynear (NormFace)"
    kind = "arithmetic"
    config_field = "channel_scale_param"
    bottoms = (2, 2)
    tops = (1, 2)
    in_place = False
    coordinates = staticmethod(maps.same)
    differences = "global_scale is the GPU code's (the CPU code never takes a mean in)."

    def keeps_images_apart(self) -> bool:
        return not (self.config.global_scale and self.training)

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.num_tops > 1 and not self.config.global_scale:
            self.fail("a second top (the scale) goes with global_scale")
        if self.config.global_scale:
            begun = caffe_pb2.FillerParameter(type="constant", value=-1)
            self.add_blob("scale", (1,), begun, learnable=False)
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        x, scale = (tuple(shape) for shape in shapes)
        if len(x) < 2 or scale[:1] != x[:1] or math.prod(scale) * x[1] != math.prod(x):
            self.fail(f"needs bottoms (N, C, H, W) and (N, 1, H, W), got {x} and {scale}")
        return [x, (1,)][: self.num_tops]

    def forward(self, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        config = self.config
        each = scale.reshape(x.shape[0], 1, *x.shape[2:])
        does = (config.do_forward, config.do_backward_feature, config.do_backward_scale)
        if not config.global_scale:
            return _Scaled.apply(x, each, does)  # type: ignore[no-any-return]
        kept = self.blob(0)
        with torch.no_grad():
            if self.training and config.do_forward:
                mean = scale.abs().mean().to(kept.dtype)
                kept.copy_(torch.where(kept < 0, mean, 0.99 * kept + 0.01 * mean))
                kept.clamp_(config.min_global_scale, config.max_global_scale)
            factor = kept.to(x.dtype).clone() if config.do_forward else x.new_ones(1)
        own = _Scaled.apply(x, each, (False, *does[1:]))
        y = own + (factor - 1) * x.detach()
        return (y, factor) if self.num_tops == 2 else y


@register("LabelSpecificAdd")
class LabelSpecificAdd(SameShape):
    """Scores (N, C), to each item's own class' of which a bias is added where the score is above minus the bias: the
    margin of AMSoftmax, in TRAIN (never in TEST, where the scores pass).

    `bias`; or with `bias_base` bias_base + (1 + bias_gamma * i) ^ bias_power - 1 at the i-th pass from `iteration` on,
    kept within `bias_min` and `bias_max`. A second top has the bias. The gradient passes unchanged.
    """

    fork = "happynear (AMSoftmax)"
    kind = "loss"
    config_field = "label_specific_add_param"
    bottoms = (2, 2)
    tops = (1, 2)
    index_bottoms = (1,)
    force_backward_refuses = (1,)

    def keeps_images_apart(self) -> bool:
        return not self.config.HasField("bias_base")

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(first[1]) if bottom == 1 and len(first) > 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.passes = self.config.iteration
        self.top_shapes(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = (tuple(shape) for shape in shapes)
        if not scores or math.prod(labels) != scores[0]:
            self.fail(f"needs scores (N, C) and a label for each item, got {scores} and {labels}")
        return [scores, (1,)][: self.num_tops]

    def bias(self) -> float:
        """What is added in the next pass."""
        config = self.config
        if not config.HasField("bias_base"):
            return float(config.bias)
        value = config.bias_base + (1 + config.bias_gamma * self.passes) ** config.bias_power - 1
        return float(min(max(value, config.bias_min), config.bias_max))

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        bias = self.bias()
        y = scores
        if self.training:
            self.passes += 1
            flat, own = scores.flatten(1), labels.detach().reshape(-1, 1).long()
            add = (flat.detach().gather(1, own) > -bias) * bias
            y = (flat + torch.zeros_like(flat).scatter(1, own, add.to(flat.dtype))).reshape(scores.shape)
        return (y, scores.new_full((1,), bias)) if self.num_tops == 2 else y
