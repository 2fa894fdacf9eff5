"""Activations of Caffe's forks: ReLU6, HardSigmoid, HardSwish, Mish, Insanity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.base import Pointwise, Shape
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


def relu6(x: Tensor, negative_slope: float) -> Tensor:
    """x from 0 to 6, 6 above, `negative_slope` * x below 0."""
    positive = x.clamp(0, 6)
    return positive if negative_slope == 0 else positive + negative_slope * x.clamp(max=0)


@register("ReLU6")
class ReLU6(Pointwise):
    """ReLU with a ceiling of 6; below 0 the slope `relu6_param.negative_slope` (0)."""

    fork = "YOLO, Tengine, Vitis"
    config_field = "relu6_param"

    def forward(self, x: Tensor) -> Tensor:
        return relu6(x, self.config.negative_slope)


@register("HardSigmoid")
class HardSigmoid(Pointwise):
    """alpha * x + beta, cut off at 0 and 1 (alpha 0.2, beta 0.5)."""

    fork = "Synopsys"
    config_field = "hard_sigmoid_param"

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.config.alpha + self.config.beta).clamp(0, 1)


@register("HardSwish")
class HardSwish(Pointwise):
    """x * min(max(x + 3, 0), 6) / 6."""

    fork = "Synopsys"

    def forward(self, x: Tensor) -> Tensor:
        return x * (x + 3).clamp(0, 6) / 6


@register("Mish")
class Mish(Pointwise):
    """x * tanh(log(1 + e^x))."""

    fork = "Synopsys, YOLO"

    def forward(self, x: Tensor) -> Tensor:
        return F.mish(x)


@register("Insanity")
class Insanity(Pointwise):
    """Randomised leaky ReLU: below 0 x is divided by a number between `lb` and `ub`, drawn evenly for each value in the
    TRAIN phase, their logarithmic mean in the TEST phase."""

    fork = "happynear, imcl"
    config_field = "insanity_param"
    differences = "the slopes come from PyTorch's generator; in place, the gradient is the true one."

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return not training

    def draws_numbers(self) -> bool:
        return self.training

    def setup(self, shapes: Sequence[Shape]) -> None:
        low, high = self.config.lb, self.config.ub
        if low * high <= 0 or low > high:
            self.fail(f"lb {low:g} and ub {high:g} must have one sign, and lb must not be above ub")
        self.mean = low if low == high else (high - low) / (math.log(abs(high)) - math.log(abs(low)))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return torch.where(x > 0, x, x / self.mean)
        divisor = torch.empty_like(x, requires_grad=False).uniform_(self.config.lb, self.config.ub)
        return torch.where(x > 0, x, x / divisor)
