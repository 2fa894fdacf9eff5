"""Caffe's layers that combine or reduce values: Eltwise, Reduction, ArgMax, Scale and Bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.base import NO_BIAS, Layer, Shape
from fcnproto.layers.dtypes import at_least_float32, computing_type
from fcnproto.layers.plain import MODULE, Piece, Request, Unsayable, blob_or_none, number, parameters_of
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


def reduce_from(x: Tensor, axis: int, operation: str, coeff: float = 1.0) -> Tensor:
    """SUM, MEAN, ASUM (of magnitudes) or SUMSQ (of squares) over all axes from `axis` on, times `coeff`."""
    rows = at_least_float32(x).reshape(*x.shape[:axis], math.prod(x.shape[axis:]))
    if operation == "ASUM":
        rows = rows.abs()
    elif operation == "SUMSQ":
        rows = rows * rows
    reduced = rows.mean(-1) if operation == "MEAN" else rows.sum(-1)
    if coeff != 1:
        reduced = reduced * coeff
    return reduced.to(x.dtype) if axis else reduced


@register("Reduction")
class Reduction(Layer):
    """Caffe's Reduction: SUM, ASUM, SUMSQ or MEAN over all axes from `axis` (default 0) on, times `coeff`.

    The top keeps the axes before; reducing from axis 0 gives a scalar (as of losses, float32 for half types too).
    """

    config_field = "reduction_param"

    def of_zeros(self) -> str:
        return "kept"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.operation = str(caffe_pb2.ReductionParameter.ReductionOp.Name(self.config.operation))

    kind = "arithmetic"

    def keeps_images_apart(self) -> bool:
        return bool(self.config.axis > 0)

    def backward_reads(self, in_place: bool) -> Reads:
        message = caffe_pb2.ReductionParameter
        return Reads(bottoms=(0,)) if self.config.operation in (message.ASUM, message.SUMSQ) else Reads()

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis(self.config.axis, x.shape) if x.dim() else 0
        return reduce_from(x, axis, self.operation, self.config.coeff)

    def plain(self, request: Request) -> Piece:
        axis = self.axis(self.config.axis, request.shapes[0]) if request.shapes[0] else 0
        coeff = [] if self.config.coeff == 1 else [f"coeff={number(self.config.coeff)}"]
        arguments = [request.x, str(axis), f'"{self.operation}"', *coeff]
        return Piece(("reduce_from", arguments), None, (reduce_from,))


@register("ArgMax")
class ArgMax(Layer):
    """Caffe's ArgMax: the `top_k` largest values' indices in descending order; of equal values the larger index first.

    Without `axis` over each item's values flattened: (N, 1, top_k), or (N, 2, top_k) of indices and values with
    `out_max_val`, and further axes of 1 for bottoms of more than 3. With `axis`: the bottom's shape with
    top_k there, holding indices, or the values alone with `out_max_val`. No gradient.
    """

    config_field = "argmax_param"
    kind = "arithmetic"
    stops_gradient = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.given_axis: int | None = self.config.axis if self.config.HasField("axis") else None

    def keeps_images_apart(self) -> bool:
        return self.given_axis is None or self.given_axis > 0

    @classmethod
    def ranks(cls, param: caffe_pb2.LayerParameter) -> bool:
        return param.argmax_param.axis in (1, -3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 0:
            self.fail("needs a bottom with at least one axis")
        axis = None if self.given_axis is None else self.axis(self.given_axis, x.shape)
        size, count = x.shape[1:].numel() if axis is None else x.shape[axis], self.config.top_k
        if not 1 <= count <= size:
            self.fail(f"top_k {count} must be in 1..{size}, the number of values to choose from")
        return arg_max(x, count, axis, self.config.out_max_val)

    def plain(self, request: Request) -> Piece:
        axis = None if self.given_axis is None else self.axis(self.given_axis, request.shapes[0])
        arguments = [request.x, str(self.config.top_k), f"axis={axis}", f"values={bool(self.config.out_max_val)}"]
        return Piece(("arg_max", arguments), None, (arg_max,))


def find_largest(x: Tensor, count: int) -> Tensor:
    """The places of the `count` largest along the last axis, of equal ones the first, for ONNX, which has no stable
    sort. Of values that are all minus infinity a place may come twice."""
    places = []
    for _ in range(count):
        places.append(x.argmax(-1, keepdim=True))
        x = x.scatter(-1, places[-1], -torch.inf)
    return torch.cat(places, -1)


def arg_max(x: Tensor, count: int, axis: int | None, values: bool) -> Tensor:
    """The `count` largest values' indices along an axis (None: of each item), or with `values` the values (both)."""
    x = x.detach()
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:])) if axis is None else x.movedim(axis, -1)
    mirrored = rows.flip(-1)  # so that the first of equal values is the one with the larger index
    if count == 1:
        place = mirrored.argmax(-1, keepdim=True)
    elif torch.compiler.is_compiling():
        place = find_largest(mirrored, count)
    else:
        place = mirrored.sort(stable=True, dim=-1, descending=True).indices[..., :count]
    place = rows.shape[-1] - 1 - place
    # Half precision can't hold larger indices.
    index = place.to(computing_type(x) if x.is_floating_point() else torch.float32)
    best = rows.gather(-1, place)
    if axis is not None:
        return (best if values else index).movedim(-1, axis)
    both = torch.stack([index, best], 1) if values else index.unsqueeze(1)
    return both.reshape(*both.shape, *[1] * (x.dim() - 3))


def align(operand: Tensor, x: Tensor, axis: int) -> Tensor:
    """The operand shaped so that it broadcasts over `x` from `axis` on; a scalar goes with any axis."""
    if operand.dim() == 0:
        return operand
    return operand.reshape(*operand.shape, *[1] * (x.dim() - axis - operand.dim()))


def scaled(x: Tensor, factor: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """x * factor + bias, both over the axes of `x` from `axis` on."""
    factor = align(factor, x, axis)
    return x * factor if bias is None else torch.addcmul(align(bias, x, axis), x, factor)


def _is_per_channel(
    param: caffe_pb2.LayerParameter, config: caffe_pb2.ScaleParameter | caffe_pb2.BiasParameter
) -> bool:
    """Whether a Scale or Bias has one value of its own for each channel of an image."""
    return len(param.bottom) == 1 and config.axis in (1, -3) and config.num_axes == 1


@register("Scale")
class _Broadcast(Layer):
    """What Scale and Bias share: a factor or term over some of the bottom's axes, learnt or given as bottom 1."""

    bottoms = (1, 2)
    kind = "normalisation"
    coordinates = staticmethod(maps.same)

    def keeps_images_apart(self) -> bool:
        return len(self.param.bottom) == 1 and bool(self.config.axis > 0)

    def covered(self, shape: Shape) -> Shape:
        """The shape of the layer's own blob: the bottom's extents at [axis, axis + num_axes)."""
        axis, count = self.axis(self.config.axis, shape), self.config.num_axes
        if count < -1:
            self.fail(f"num_axes {count} must be -1 (to the end) or not negative")
        if count == -1:
            return shape[axis:]
        if axis + count > len(shape):
            self.fail(f"axis {axis} + num_axes {count} exceeds the axes of a bottom of shape {shape}")
        return shape[axis : axis + count]

    def _axis(self, shape: Sequence[int]) -> int:
        """The axis from which on the operand lies over a bottom of `shape`; any for a scalar."""
        return self.axis(self.config.axis, shape) if shape else 0

    def checked(self, x: Tensor, operand: Tensor) -> Tensor:
        """The operand, unless it doesn't fit the bottom."""
        axis = self.config.axis if operand.dim() == 0 else self._axis(x.shape)
        if operand.dim() and tuple(operand.shape) != tuple(x.shape[axis : axis + operand.dim()]):
            self.fail(
                f"shape {tuple(operand.shape)} of the {self.type.lower()} does not match a bottom of shape "
                f"{tuple(x.shape)} from axis {axis} on"
            )
        return operand


@register("Scale")
class Scale(_Broadcast):
    """Caffe's Scale: y = x * scale, plus a bias of the same shape with `bias_term`.

    The scale is a blob (filled with 1 unless `filler` is given) over `num_axes` axes from `axis` on, or bottom 1.
    """

    config_field = "scale_param"
    is_whole = False
    """The scale has as many values as the bottom; known after `setup`, which waits where the bottom's size isn't."""

    def of_zeros(self) -> str:
        return "linear" if len(self.param.bottom) == 1 else "" if self.config.bias_term else "product"

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return _is_per_channel(param, param.scale_param)

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        covered = shapes[1] if len(shapes) == 2 else self.covered(shapes[0])
        self.is_whole = len(shapes) == 1 and math.prod(covered) == math.prod(shapes[0])
        if len(shapes) == 1:
            one = caffe_pb2.FillerParameter(type="constant", value=1)
            self.add_blob("weight", covered, config.filler if config.HasField("filler") else one)
        else:
            self.warn_unread(("num_axes", "filler"), "bottom 1 is the scale")
        if config.bias_term:
            self.add_blob("bias", covered, config.bias_filler)
        else:
            self.warn_unread(("bias_filler",), NO_BIAS)

    def backward_reads(self, in_place: bool) -> Reads:
        first, second = () if in_place else (0,), (1,) if len(self.param.bottom) == 2 else ()
        return Reads(bottoms=first + second)

    def overwrites_gradients(self) -> tuple[int, ...]:
        return (0,) if self.is_whole else ()

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        factor = self.blob(0) if given is None else given
        bias = self.optional_blob(1 if given is None else 0)
        return scaled(x, self.checked(x, factor), None if bias is None else self.checked(x, bias), self._axis(x.shape))

    def plain(self, request: Request) -> Piece:
        module = parameters_of(self.blob_names, self.blob_shapes) if self.blob_names else None
        factor = request.args[1] if len(request.args) > 1 else f"{MODULE}.weight"
        bias = blob_or_none(self.blob_names, len(self.blob_names) - 1) if self.config.bias_term else "None"
        arguments = [request.x, factor, bias, f"axis={self._axis(request.shapes[0])}"]
        return Piece(("scaled", arguments), module, (scaled,))


@register("Bias")
class Bias(_Broadcast):
    """Caffe's Bias: y = x + bias; the bias is a blob over `num_axes` axes from `axis` on, or bottom 1."""

    config_field = "bias_param"

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return _is_per_channel(param, param.bias_param)

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes) == 1:
            self.add_blob("bias", self.covered(shapes[0]), self.config.filler)
        else:
            self.warn_unread(("num_axes", "filler"), "bottom 1 is the bias")

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return x + align(self.checked(x, self.blob(0) if given is None else given), x, self._axis(x.shape))

    def plain(self, request: Request) -> Piece:
        module = parameters_of(self.blob_names, self.blob_shapes) if self.blob_names else None
        bias = request.args[1] if len(request.args) > 1 else f"{MODULE}.bias"
        aligned = f"align({bias}, {request.x}, axis={self._axis(request.shapes[0])})"
        return Piece((f"{request.x} + {aligned}", None), module, (align,))
