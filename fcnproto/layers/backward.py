"""What Caffe's backward pass of a layer finds in memory, and gradients computed from that.

Caffe computes the gradient of a layer after the whole forward pass, from what its blobs hold then. A layer in place has
overwritten its bottom; so have in-place layers further on, if the blob's memory is shared. The gradient is then another
than the derivative. In these nets nothing is overwritten, and gradients are the true ones; what Caffe computes instead
is computed here, for nets that are asked to (`caffe_exact`). Which places of a net are concerned is found in
`fcnproto.net.caffe_memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from fcnproto.layers.base import Layer


@dataclass(frozen=True)
class Reads:
    """The bottoms and tops whose memory Caffe's backward pass of a layer reads.

    Not counted is what the layer keeps a copy of at the forward pass. Of the bottoms in `signs` only the signs matter.
    `mixes`: in place, the bottom's gradient is written over the top's before that has been read for the last time.
    """

    bottoms: tuple[int, ...] = ()
    tops: tuple[int, ...] = ()
    signs: tuple[int, ...] = ()
    mixes: bool = False


@dataclass(frozen=True)
class Found:
    """What the backward pass of a layer has at hand.

    `before` are the bottoms as the forward pass read them, `bottoms` and `tops` what their memory holds now, `slopes`
    the gradients of the tops (None where there is none), of the shapes of the tops. `in_place`: top 0 is bottom 0.
    """

    before: tuple[Tensor, ...]
    bottoms: tuple[Tensor, ...]
    tops: tuple[Tensor, ...]
    slopes: tuple[Tensor | None, ...]
    in_place: bool

    @property
    def slope(self) -> Tensor:
        """The gradient of top 0."""
        slope = self.slopes[0]
        return torch.zeros_like(self.tops[0]) if slope is None else slope


class Cell:
    """The memory of a blob: holds what the last in-place layer left in it, once that has run."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def keep(self, value: Tensor) -> None:
        """Note what the memory holds. Without the gradient's graph: a cell is part of that graph itself."""
        self.value = value.detach()

    def now(self, before: Tensor) -> Tensor:
        """What a blob in this memory holds, in the shape of its value `before`."""
        return before if self.value is None else self.value.reshape(before.shape)


@dataclass(frozen=True)
class Manner:
    """How one layer's backward pass departs from the derivative in Caffe.

    `bottoms` and `tops` are those read from overwritten memory. `overwrites` are the parameter blobs whose gradient the
    layer overwrites instead of adding to it, where the blob has the bottom's count; `lost` those whose gradient another
    layer overwrites later. `mixes` as in `Reads`.
    """

    bottoms: tuple[int, ...] = ()
    tops: tuple[int, ...] = ()
    in_place: bool = False
    mixes: bool = False
    overwrites: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()


def run_as_caffe(layer: Layer, manner: tuple[Any, ...], cells: tuple[Cell, ...], *bottoms: Tensor) -> Any:
    """The tops of a layer, with the gradient that Caffe computes.

    `manner` has the fields of a `Manner` (a graph of torch.fx holds plain values), `cells` the memories of its bottoms,
    then of its tops.
    """
    if torch.compiler.is_compiling():
        # Traced, the memory would be what it is before the pass; so the compiler leaves this to the interpreter.
        raise RuntimeError("layers with Caffe's gradient are not compiled")
    blobs = [getattr(layer, name) for name in layer.blob_names]
    result = _AsCaffe.apply(layer, Manner(*manner), cells, len(bottoms), *bottoms, *blobs)
    return result[0] if len(result) == 1 else result


class _AsCaffe(torch.autograd.Function):
    """See `run_as_caffe`."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, manner: Manner, cells: tuple[Cell, ...], count: int, *tensors: Tensor) -> Any:
        bottoms = tensors[:count]
        result = layer.forward_in_place(*bottoms) if manner.mixes else layer(*bottoms)
        tops = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        # A layer that hands on what it is given would make a top that is an input of the function.
        tops = tuple(top.clone() if any(top is given for given in tensors) else top for top in tops)
        ctx.layer, ctx.manner, ctx.cells, ctx.count = layer, manner, cells, count
        ctx.save_for_backward(*bottoms, *tops)
        return tops

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        layer, manner, count = ctx.layer, ctx.manner, ctx.count
        before, tops = ctx.saved_tensors[:count], list(ctx.saved_tensors[count:])
        bottoms = list(before)
        places = [(bottoms, i) for i in manner.bottoms] + [(tops, j) for j in manner.tops]
        for (values, index), cell in zip(places, ctx.cells, strict=True):
            values[index] = cell.now(values[index])
        wanted = list(ctx.needs_input_grad[4:])
        for index in manner.lost:
            wanted[count + index] = False
        found = Found(before, tuple(bottoms), tuple(tops), slopes, manner.in_place)
        own = layer.caffe_gradients(found) if manner.tops or manner.bottoms or manner.mixes else None
        if own is None:
            gradients = rerun(layer, found, wanted)
        else:
            missing = len(wanted) - len(own)
            gradients = [g if w else None for g, w in zip([*own, *[None] * missing], wanted, strict=True)]
        _forget(layer, [i for i in manner.overwrites if wanted[count + i]], before[0].numel() if before else None)
        return (None, None, None, None, *gradients)


def rerun(layer: Layer, found: Found, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The derivative of the layer at what its bottoms hold now, for bottoms and parameter blobs."""
    with torch.enable_grad():
        bottoms = [value.detach().requires_grad_(wish) for value, wish in zip(found.bottoms, wanted, strict=False)]
        result = layer(*bottoms)
        tops = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        sources = [*bottoms, *(getattr(layer, name) for name in layer.blob_names)]
        chosen = [source for source, wish in zip(sources, wanted, strict=True) if wish]
        pairs = [
            (top, slope)
            for top, slope in zip(tops, found.slopes, strict=True)
            if top.requires_grad and slope is not None
        ]
        if not chosen or not pairs:
            return [torch.zeros_like(s) if w else None for s, w in zip(sources, wanted, strict=True)]
        gradients = iter(
            torch.autograd.grad([top for top, _ in pairs], chosen, [slope for _, slope in pairs], allow_unused=True)
        )
    return [next(gradients) if wish else None for wish in wanted]


def _forget(layer: Layer, indices: Sequence[int], count: int | None) -> None:
    """Clear the gradients gathered so far of the blobs that have the bottom's count (None: of all)."""
    for index in indices:
        gathered = getattr(layer, layer.blob_names[index]).grad
        if gathered is not None and count in (None, gathered.numel()):
            gathered.zero_()


class _WithoutGradient(torch.autograd.Function):
    """See `without_gradient`."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def without_gradient(x: Tensor) -> Tensor:
    """`x` with a gradient of zero: Caffe's layer before reads it from other memory than the one behind writes it to."""
    result: Tensor = _WithoutGradient.apply(x)
    return result
