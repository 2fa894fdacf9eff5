"""Caffe's layers that reduce or scale values: Reduction, ArgMax, Scale and Bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.backward import Reads
from fcnproto.layers.base import NO_BIAS, Layer, Shape
from fcnproto.layers.dtypes import at_least_float32, computing_type
from fcnproto.layers.plain import MODULE, Piece, Request, blob_or_none, number, parameters_of
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


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
