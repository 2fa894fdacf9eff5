"""CenterLoss: features drawn to the centre of their class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.layers.base import Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.loss import LossLayer
from fcnproto.layers.registry import register


class _Centres(torch.autograd.Function):
    """Half the mean squared distance to the own class' centre; the centres' gradient is a step of their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
        distance = x - centres[labels]
        ctx.save_for_backward(distance, labels)
        ctx.classes = len(centres)
        return distance.square().sum() / (2 * max(len(x), 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        distance, labels = ctx.saved_tensors
        total = distance.new_zeros(ctx.classes, distance.shape[1]).index_add(0, labels, -distance)
        counts = torch.bincount(labels, minlength=ctx.classes).to(distance.dtype)
        return gradient * distance / max(len(distance), 1), total / (counts + 1).unsqueeze(1), None


@register("CenterLoss")
class CenterLoss(LossLayer):
    """The sum of |x - centre of its class|^2 over 2 N, for features (N, ...) from `axis` on and labels (N).

    The blob holds a centre for each of `num_output` classes. Its gradient is the sum of (centre - x) over the class'
    features divided by one more than their number, whatever the loss's weight: the paper's update.
    """

    fork = "KaiPeng Zhang's caffe-face, PytorchToCaffe"
    config_field = "center_loss_param"

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(self.config.num_output) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if not self.config.num_output:
            self.fail("num_output (of classes) must be given and positive")
        self.feature_axis = self.axis(self.config.axis, shapes[0])
        if math.prod(shapes[1]) != math.prod(shapes[0][: self.feature_axis]):
            self.fail(f"features of shape {tuple(shapes[0])} need a label each, got shape {tuple(shapes[1])}")
        self.add_blob(
            "centres", (self.config.num_output, math.prod(shapes[0][self.feature_axis :])), self.config.center_filler
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        centres = self.blob(0)
        numbers = labels.detach().flatten().long()
        if numbers.device.type == "cpu" and numbers.numel() and not torch.compiler.is_compiling():
            low, high = (int(value) for value in numbers.aminmax())
            if low < 0 or high >= len(centres):
                self.fail(f"labels from {low} to {high} for {len(centres)} classes (num_output)")
        return _Centres.apply(x.reshape(-1, centres.shape[1]), centres, numbers)  # type: ignore[no-any-return]
