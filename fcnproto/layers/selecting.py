"""Layers that pass on some of what they get, or nothing: Filter, BatchReindex and Silence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fcnproto.layers.backward import Reads
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, integers, selector
from fcnproto.layers.plain import Piece, Request
from fcnproto.layers.registry import register


@register("Silence")
class Silence(Layer):
    """Caffe's Silence: takes its bottoms and gives nothing, so that they are no outputs of the net."""

    bottoms = (1, None)
    tops = (0, 0)
    kind = "shaping"
    idle = True
    stops_gradient = True

    def keeps_images_apart(self) -> bool:
        return True

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


@register("Filter")
class Filter(Layer):
    """Caffe's Filter: of every bottom but the last the items (along axis 0) whose entry in the last one is not 0.

    How many are kept, possibly none, is known only at the call, and read from the device; until then the tops'
    shapes are the bottoms'. The selector gets no gradient.
    """

    bottoms = (2, None)
    tops = (1, None)
    kind = "shaping"
    stops_gradient = True

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return selector if bottom == len(self.param.bottom) - 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.num_tops != len(shapes) - 1:
            self.fail(f"{len(shapes)} bottoms and {self.num_tops} tops; it needs one top for each bottom but the last")
        self._check(shapes)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes[:-1])

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        selector = shapes[-1]
        if len(selector) == 0 or math.prod(selector[1:]) != 1:
            self.fail(f"the last bottom, the selector, must have shape (N,) or (N, 1, ...), got {tuple(selector)}")
        for shape in shapes[:-1]:
            if len(shape) == 0 or shape[0] != selector[0]:
                self.fail(f"a bottom of shape {tuple(shape)} does not have the selector's {selector[0]} items")

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        self._check([bottom.shape for bottom in bottoms])
        kept = bottoms[-1].detach().flatten().nonzero().flatten()
        tops = tuple(bottom.index_select(0, kept) for bottom in bottoms[:-1])
        return tops if self.num_tops > 1 else tops[0]

    def plain(self, request: Request) -> Piece:
        kept = f"{request.args[-1]}.flatten() != 0"
        return Piece(("", [f"{name}[{kept}]" for name in request.args[:-1]]))


@register("BatchReindex")
class BatchReindex(Layer):
    """Caffe's BatchReindex: y[i] = x[index[i]] along axis 0; the index, of one axis, is truncated to integers."""

    bottoms = (2, 2)
    index_bottoms = (1,)
    kind = "shaping"

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(first[0] if first else 1) if bottom == 1 else None

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(1,))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if index.dim() != 1 or x.dim() == 0:
            self.fail(
                f"needs a bottom with items and an index of one axis, got {tuple(x.shape)} and {tuple(index.shape)}"
            )
        try:
            return x.index_select(0, index.long())
        except (IndexError, RuntimeError):  # on the CPU; a GPU reports its own error later
            self.fail(f"an index is outside of 0..{x.shape[0] - 1}, the items of bottom 0")

    def plain(self, request: Request) -> Piece:
        return Piece((f"{request.x}.index_select(0, {request.args[1]}.long())", None))
