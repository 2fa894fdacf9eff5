"""Exponentials, logarithms and powers: Exp, Log and Power.

Where Caffe computes in place and then needs the overwritten input for the gradient (Power, Log), its gradient is wrong;
here it is the true one, since nothing is ever overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.base import Pointwise, Shape
from fcnproto.layers.plain import Piece, Request, constant_like, number
from fcnproto.layers.registry import register


@register("Exp")
class Exp(Pointwise):
    """Caffe's Exp: base ^ (shift + scale * x); base -1 stands for e."""

    config_field = "exp_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        base = self.config.base
        if base != -1 and base <= 0:
            self.fail(f"base {base:g} must be positive, or -1 for e")
        log_base = 1.0 if base == -1 else math.log(base)
        self.inner_scale = log_base * self.config.scale
        with np.errstate(over="ignore"):  # infinity is a result like others
            self.outer_scale = float(np.exp(log_base * self.config.shift))

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (y,) = found.tops
        return [found.slope * y * self.inner_scale]

    def forward(self, x: Tensor) -> Tensor:
        # The shift as a factor, as Caffe does it: e^(x + shift) would round the sum before the exponential.
        y = (x if self.inner_scale == 1 else x * self.inner_scale).exp()
        return y if self.outer_scale == 1 else y * self.outer_scale

    def plain(self, request: Request) -> Piece:
        inner = request.x if self.inner_scale == 1 else f"{request.x} * {number(self.inner_scale)}"
        outer = "" if self.outer_scale == 1 else f" * {number(self.outer_scale)}"
        return Piece((f"torch.exp({inner}){outer}", None))


@register("Log")
class Log(Pointwise):
    """Caffe's Log: log_base(shift + scale * x); base -1 stands for e."""

    differences = "in place, the gradient is the true one (Caffe reads the overwritten input)."

    config_field = "log_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        base = self.config.base
        if base != -1 and (base <= 0 or base == 1):
            self.fail(f"base {base:g} must be positive and not 1, or -1 for e")
        self.base_scale = 1.0 if base == -1 else 1 / math.log(base)

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0,), mixes=True)

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (x,) = found.bottoms
        slope = self.base_scale * self.config.scale / _affine(x, self.config.scale, self.config.shift)
        return [slope * (slope if found.in_place else found.slope)]

    def forward(self, x: Tensor) -> Tensor:
        y = _affine(x, self.config.scale, self.config.shift).log()
        return y if self.base_scale == 1 else y * self.base_scale

    def plain(self, request: Request) -> Piece:
        base = _said_affine(request.x, self.config.scale, self.config.shift)
        outer = "" if self.base_scale == 1 else f" * {number(self.base_scale)}"
        return Piece((f"torch.log({base}){outer}", None))


@register("Power")
class Power(Pointwise):
    """Caffe's Power: (shift + scale * x) ^ power.

    Where power * scale is 0 the result is a constant (1 for power 0, else shift ^ power) with gradient 0. At
    shift + scale * x = 0 the gradient is the true one, where Caffe's own formula for shift 0 divides 0 by 0.
    """

    differences = (
        "in place, the gradient is the true one (Caffe reads the overwritten input); at 0 with a power below "
        "1 it is not NaN."
    )

    config_field = "power_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.constant: float | None = None
        if self.config.power * self.config.scale == 0:
            with np.errstate(all="ignore"):  # NaN and infinity are results like others
                self.constant = float(np.power(np.float64(self.config.shift), self.config.power))

    def backward_reads(self, in_place: bool) -> Reads:
        if self.config.power * self.config.scale == 0:
            return Reads()
        if self.config.power == 1:
            return Reads(mixes=True)
        return Reads(bottoms=(0,), tops=() if self.config.power == 2 else (0,), mixes=True)

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (x,), (y,), power, scale = found.bottoms, found.tops, self.config.power, self.config.scale
        base = _affine(x, scale, self.config.shift)
        if power == 1:
            slope = torch.full_like(x, scale)
        else:
            slope = base * (2 * scale) if power == 2 else y / base * (power * scale)
        return [slope * (slope if found.in_place else found.slope)]

    def in_place_keeps(self) -> str:
        straight = self.config.power == 1 and self.config.scale > 0 and self.config.shift == 0
        return ("values" if self.config.scale == 1 else "signs") if straight else ""

    def forward(self, x: Tensor) -> Tensor:
        if self.constant is not None:
            return constant_like(x, self.constant)
        base = _affine(x, self.config.scale, self.config.shift)
        return base if self.config.power == 1 else base.pow(self.config.power)

    def plain(self, request: Request) -> Piece:
        if self.constant is not None:
            return Piece(("constant_like", [request.x, number(self.constant)]), None, (constant_like,))
        base, power = _said_affine(request.x, self.config.scale, self.config.shift), self.config.power
        if power == 1:
            return Piece((base, None)) if base != request.x else Piece(None)
        return Piece((f"{base if base == request.x else f'({base})'}.pow({number(power)})", None))


def _said_affine(x: str, scale: float, shift: float) -> str:
    """The expression of `_affine`."""
    said = x if scale == 1 else f"{x} * {number(scale)}"
    return f"{said} + {number(shift)}" if shift else said


def _affine(x: Tensor, scale: float, shift: float) -> Tensor:
    """shift + scale * x, without the steps that change nothing."""
    if scale != 1:
        x = x * scale
    return x + shift if shift else x
