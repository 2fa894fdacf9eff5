"""Eltwise: products, sums and maxima of several blobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.plain import Piece, Request, Unsayable, number
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


class _ProductByQuotient(torch.autograd.Function):
    """The product of tensors with Caffe's quick gradient y / x, which is NaN where x is 0."""

    @staticmethod
    def forward(*factors: Tensor) -> Tensor:
        product = factors[0]
        for factor in factors[1:]:
            product = product * factor
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        product, *factors = ctx.saved_tensors
        return tuple(
            gradients[0] * (product / factor) if wanted else None
            for factor, wanted in zip(factors, ctx.needs_input_grad, strict=True)
        )


def product_by_quotient(*factors: Tensor) -> Tensor:
    """The product of tensors, with Caffe's quick gradient where one is asked for."""
    # torch.compile can't follow the function where it has no gradient to give.
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        result: Tensor = _ProductByQuotient.apply(*factors)
        return result
    return math.prod(factors[1:], start=factors[0])


def larger(first: Tensor, second: Tensor) -> Tensor:
    """The larger one of two values each, the second where they are equal; it alone gets the gradient."""
    return torch.where(first > second, first, second)


def smaller(first: Tensor, second: Tensor) -> Tensor:
    """The smaller one of two values each, the second where they are equal; it alone gets the gradient."""
    return torch.where(first < second, first, second)


@register("Eltwise")
class Eltwise(Layer):
    """Caffe's Eltwise: SUM (times `coeff`, one per bottom), PROD or MAX of bottoms of one shape; forks' MIN and DIV
    (bottom 0 by bottom 1). Synopsys' bottom 1 may have fewer axes, bottom 0's from `axis` (0) on: it is taken for all
    places of the others.

    The gradient of MAX and MIN goes to the winner alone: of equal values bottom 1 beats bottom 0, later bottoms lose.
    Without `stable_prod_grad` PROD's gradient is y / x as in Caffe, NaN where x is 0.
    """

    differences = (
        "computed on copies, so that a top may have a bottom's name (Caffe destroys the bottom without complaint). "
        "DIV has a gradient (the fork has none)."
    )

    config_field = "eltwise_param"
    fork_fields = ("eltwise_param.axis",)
    kind = "arithmetic"
    coordinates = staticmethod(maps.same)
    bottoms = (2, None)

    @classmethod
    def bottoms_of(cls, param: caffe_pb2.LayerParameter) -> tuple[int, int | None]:
        """FlowNet multiplies a single bottom by its coefficient."""
        return (1 if param.eltwise_param.coeff else 2), None

    def of_zeros(self) -> str:
        message = caffe_pb2.EltwiseParameter
        return {message.PROD: "product", message.DIV: ""}.get(self.config.operation, "kept")

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if len(config.coeff) not in (0, len(shapes)):
            self.fail(f"{len(config.coeff)} coeff values for {len(shapes)} bottoms; give none or one for each")
        message = caffe_pb2.EltwiseParameter
        if config.coeff and config.operation in (message.PROD, message.DIV, message.MIN):
            self.fail("coeff goes with SUM only; remove it")
        if config.operation == message.DIV and len(shapes) != 2:
            self.fail(f"DIV takes two bottoms, got {len(shapes)}")
        if config.operation == message.MAX:
            self.warn_unread(("coeff",), "it is for SUM")
        if config.operation != caffe_pb2.EltwiseParameter.PROD:
            self.warn_unread(("stable_prod_grad",), "it is for PROD")
        self.coefficients = list(config.coeff) or [1.0] * len(shapes)
        if len(shapes) > 1 and tuple(shapes[1]) != tuple(shapes[0]) and self._spreads(shapes[0], shapes[1]):
            self.warn(
                f"bottom 1 of shape {tuple(shapes[1])} is taken for every place of {tuple(shapes[0])}, as Synopsys'"
            )

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return True

    def near_ties(self, bottoms: Sequence[Tensor], reach: float) -> tuple[int, int, str] | None:
        if not self._chooses():
            return None
        bottoms = self._alike(bottoms)
        gap = (bottoms[1] - bottoms[0]).abs()
        return int(((gap <= reach) & (gap > 0)).sum()), gap.numel(), "places"

    @classmethod
    def settings_text(cls, param: caffe_pb2.LayerParameter) -> str:
        return str(caffe_pb2.EltwiseParameter.EltwiseOp.Name(param.eltwise_param.operation)).lower()

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        others = shapes[2:] if len(shapes) > 1 and self._spreads(shapes[0], shapes[1]) else shapes[1:]
        if any(tuple(shape) != tuple(shapes[0]) for shape in others):
            self.fail(f"bottoms must have one shape, got {', '.join(str(tuple(shape)) for shape in shapes)}")
        return [tuple(shapes[0])]

    def keeps_finite(self) -> bool:
        return bool(self.config.operation != caffe_pb2.EltwiseParameter.DIV)

    def is_plain_sum(self) -> bool:
        """Whether the top is the sum of two bottoms as they are (of one shape, which each call may change)."""
        is_sum = self.config.operation == caffe_pb2.EltwiseParameter.SUM
        return bool(is_sum and self.coefficients == [1.0, 1.0])

    def _spreads(self, first: Sequence[int], second: Sequence[int]) -> bool:
        """Whether bottom 1 has fewer axes than bottom 0, which are those from `axis` on."""
        axis = self.config.axis + (len(first) if self.config.axis < 0 else 0)
        return len(second) < len(first) and tuple(first[axis : axis + len(second)]) == tuple(second)

    def _alike(self, bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        """The bottoms, all of one shape."""
        if len(bottoms) < 2 or bottoms[1].shape == bottoms[0].shape:
            return bottoms
        first, second = bottoms[0], bottoms[1]
        axis = self.config.axis + (first.dim() if self.config.axis < 0 else 0)
        after = first.dim() - axis - second.dim()
        return first, second.reshape(*second.shape, *[1] * after).expand_as(first), *bottoms[2:]

    def backward_reads(self, in_place: bool) -> Reads:
        if self.config.operation == caffe_pb2.EltwiseParameter.DIV:
            return Reads(bottoms=(0, 1))
        if self.config.operation != caffe_pb2.EltwiseParameter.PROD:
            return Reads(mixes=True)
        every = tuple(range(len(self.param.bottom)))
        return Reads(bottoms=every, tops=() if self.config.stable_prod_grad else (0,), mixes=True)

    def _chooses(self) -> bool:
        """Whether each value is one bottom's."""
        return self.config.operation in (caffe_pb2.EltwiseParameter.MAX, caffe_pb2.EltwiseParameter.MIN)

    def caffe_gradients(self, found: Found) -> list[Tensor] | None:
        alike = all(bottom.shape == found.bottoms[0].shape for bottom in found.bottoms)
        if self.config.operation == caffe_pb2.EltwiseParameter.DIV or not alike:
            return None
        slope, gradients = found.slope, []
        for index, bottom in enumerate(found.bottoms):
            if self.config.operation == caffe_pb2.EltwiseParameter.SUM:
                gradient = slope * self.coefficients[index]
            elif self._chooses():
                bottoms = self._cleared(found.before) if found.in_place else found.before
                gradient = slope * (self.winner(bottoms) == index)
            else:
                others = [other for place, other in enumerate(found.bottoms) if place != index]
                factor = math.prod(others[1:], start=others[0]) if self.config.stable_prod_grad else None
                factor = found.tops[0] / bottom if factor is None else factor
                gradient = factor * (factor if found.in_place and index == 0 else slope)
            gradients.append(gradient)
            if found.in_place and index == 0:
                slope = gradient  # the others read the top's gradient where bottom 0's has just been written
        return gradients

    def forward_in_place(self, *bottoms: Tensor) -> Tensor:
        result: Tensor = self(*self._cleared(bottoms))
        return result

    def _cleared(self, bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        """The bottoms where the top, cleared for SUM, MAX and MIN before anything is read, is bottom 0."""
        message, last = caffe_pb2.EltwiseParameter, torch.finfo(torch.float32).max
        if self.config.operation in (message.PROD, message.DIV):
            return bottoms
        start = {message.MAX: -last, message.MIN: last}.get(self.config.operation, 0.0)
        return torch.full_like(bottoms[0], start), *bottoms[1:]

    def winner(self, bottoms: Sequence[Tensor]) -> Tensor:
        """Which bottom MAX or MIN takes each value from."""
        if self.config.operation == caffe_pb2.EltwiseParameter.MIN:
            bottoms = [-bottom for bottom in bottoms]
        found, index = bottoms[0], torch.zeros_like(bottoms[0], dtype=torch.int64)
        for place, bottom in enumerate(bottoms[1:], 1):
            better = ~(found > bottom) if place == 1 else bottom > found
            index = index.masked_fill(better, place)
            found = torch.where(better, bottom, found)
        return index

    def forward(self, *bottoms: Tensor) -> Tensor:
        self.top_shapes([bottom.shape for bottom in bottoms])
        bottoms = tuple(self._alike(bottoms))
        if self.config.operation == caffe_pb2.EltwiseParameter.SUM:
            return self._sum(bottoms)
        if self.config.operation == caffe_pb2.EltwiseParameter.DIV:
            return bottoms[0] / bottoms[1]
        if self._chooses():
            choose = larger if self.config.operation == caffe_pb2.EltwiseParameter.MAX else smaller
            result = choose(bottoms[0], bottoms[1])
            for bottom in bottoms[2:]:
                result = choose(bottom, result)
            return result
        if not self.config.stable_prod_grad:
            return product_by_quotient(*bottoms)
        return math.prod(bottoms[1:], start=bottoms[0])

    def _sum(self, bottoms: Sequence[Tensor]) -> Tensor:
        result: Tensor | None = None
        for bottom, coefficient in zip(bottoms, self.coefficients, strict=True):
            if result is None:
                result = bottom if coefficient == 1 else bottom * coefficient
            else:
                result = torch.add(result, bottom, alpha=coefficient)
        assert result is not None
        return result

    def plain(self, request: Request) -> Piece:
        args, operation = request.args, self.config.operation
        if any(tuple(shape) != tuple(request.shapes[0]) for shape in request.shapes):
            raise Unsayable("its bottoms have several shapes")
        if operation == caffe_pb2.EltwiseParameter.PROD:
            if self.config.stable_prod_grad:
                return Piece((" * ".join(args), None))
            return Piece(("product_by_quotient", list(args)), None, (product_by_quotient,))
        if operation == caffe_pb2.EltwiseParameter.DIV:
            return Piece((" / ".join(args), None))
        if self._chooses():
            choose = larger if operation == caffe_pb2.EltwiseParameter.MAX else smaller
            result = f"{choose.__name__}({args[0]}, {args[1]})"
            for other in args[2:]:
                result = f"{choose.__name__}({other}, {result})"
            return Piece((result, None), None, (choose,))
        result = args[0] if self.coefficients[0] == 1 else f"{args[0]} * {number(self.coefficients[0])}"
        for other, factor in zip(args[1:], self.coefficients[1:], strict=True):
            if factor == 1:
                result = f"{result} + {other}"
            else:
                result = f"torch.add({result}, {other}, alpha={number(factor)})"
        return Piece((result, None))
