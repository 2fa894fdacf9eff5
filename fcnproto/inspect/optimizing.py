"""What each pass of `fcnproto.optimize` does to which layers of a net, and what that saves for one size of its inputs.

Counted, not measured: multiply-adds and bytes, as `summary` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fcnproto.inspect.summary import LayerSummary, NetSummary
from fcnproto.layers.base import Layer
from fcnproto.layers.shaping import Crop
from fcnproto.net import Net
from fcnproto.passes import products, winograd
from fcnproto.passes.folding import FoldedChain, Step
from fcnproto.passes.fused import FusedConvolution, FusedProduct
from fcnproto.passes.keeping import Watch
from fcnproto.passes.kernels import FastConvolution, FastPooling
from fcnproto.passes.normalising import FastNorm
from fcnproto.passes.rewriting import Change, chosen_passes, rewrite
from fcnproto.passes.upsampling import FastDeconvolution

_FLOAT, _INDEX = 4, 8  # bytes of a value, and of the position that torch's max pooling keeps for it


@dataclass(frozen=True)
class Saving:
    """One thing that a pass did: to the layers of these names, what, and how many multiply-adds and bytes of blobs
    that saves in a call without gradients."""

    made_by: str
    layers: tuple[str, ...]
    what: str
    multiply_adds: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The same in a dict, for JSON."""
        return {**asdict(self), "layers": list(self.layers)}


def explain(net: Net, summary: NetSummary, passes: Sequence[str] | None = None) -> list[Saving]:
    """What `optimize(net, passes=passes)` does, in the order of the passes and of the layers.

    Args:
        net: with its weights, by which deconvolutions are computed in one way or another; in any phase.
        summary: of the same net, for the size of inputs that is asked about.

    Raises:
        UsageError: an unknown pass.
    """
    plan = net.plan(list(net.source_shapes))
    _, changes = rewrite(plan, Watch(), chosen_passes(passes))
    known = {layer.name: layer for layer in summary.layers}
    return [saving for change in changes for saving in _savings(change, known)]


def _savings(change: Change, known: dict[str, LayerSummary]) -> Iterator[Saving]:
    names, module = tuple(layer.name for layer in change.layers), change.module
    if isinstance(module, FoldedChain):
        yield from _of_folding(change.made_by, module, known)
    elif isinstance(module, FastConvolution):
        yield _of_convolution(change.made_by, module, change.layers, known)
    elif isinstance(module, FastPooling):
        yield _of_pooling(change.made_by, change.layers, known)
    elif isinstance(module, FastDeconvolution):
        yield _of_deconvolution(change.made_by, module, change.layers, known)
    elif isinstance(module, FastNorm):
        what = "one product and sum per channel"
        if len(names) > 1:
            what += f"; {', '.join(layer.type for layer in change.layers[1:])} along with it"
        yield Saving(change.made_by, names, what, 0, sum(_bytes(known[name]) for name in names[1:]))
    elif isinstance(module, FusedConvolution | FusedProduct):
        yield from _of_fused(change.made_by, module, change.layers, known)
    else:
        yield Saving(change.made_by, names, "does nothing in this phase: not called", 0, 0)


def _of_folding(name: str, chain: FoldedChain, known: dict[str, LayerSummary]) -> Iterator[Saving]:
    """A saving for each step: of those that run on a part of their blob, and of those that run in full."""
    height, width = _bottom(known[chain.first.name])[2:]
    for step, part in chain.reached(height, width):
        own = known[step.layer.name]
        if part is not None:
            yield _of_step(name, step, part, known)
        elif step.fast is not None:
            yield _of_convolution(name, step.fast, step.layers, known)
        elif own.type == "Pooling":
            yield _of_pooling(name, step.layers, known)


def _of_step(name: str, step: Step, part: tuple[int, int], known: dict[str, LayerSummary]) -> Saving:
    own = known[step.layer.name]
    whole = _top(own)[2:]
    left = math.prod(part) / math.prod(whole)
    what = f"{part[0]}x{part[1]} of {whole[0]}x{whole[1]} positions"
    computed, by_winograd = round(own.multiply_adds * left), 0
    if step.fast is not None:
        what, by_winograd = _by_winograd(what, step.fast, own, computed)
    unwritten = sum(_bytes(known[layer.name]) for layer in step.layers[1:]) + round(_bytes(own) * (1 - left))
    names = tuple(layer.name for layer in step.layers)
    return Saving(name, names, what, own.multiply_adds - computed + by_winograd, unwritten)


def _of_convolution(
    name: str, fast: FastConvolution, layers: Sequence[Layer], known: dict[str, LayerSummary]
) -> Saving:
    names, own = tuple(layer.name for layer in layers), known[layers[0].name]
    with torch.no_grad():
        product = products.suits(fast.layer, fast.layer.blob(0), _top(own)[2:], _top(own)[0])
    form = "one matrix product" if product else "channels innermost"
    what, saved = _by_winograd(form, fast, own, own.multiply_adds)
    if len(names) > 1:
        what += f"; {', '.join(layer.type for layer in layers[1:])} along with it"
    return Saving(name, names, what, saved, sum(_bytes(known[each]) for each in names[1:]))


def _of_fused(
    name: str, module: FusedConvolution | FusedProduct, layers: Sequence[Layer], known: dict[str, LayerSummary]
) -> Iterator[Saving]:
    """Nothing where the convolution runs as the pass before has it; what that one saved is not counted again."""
    following, what = module.following, "by oneDNN, weights where they lie"
    if isinstance(module, FusedConvolution):
        with torch.no_grad():
            way = module.way(_bottom(known[layers[0].name]))
        what = {"direct": "by oneDNN, weights arranged once", "rows": "one small product"}.get(way, "")
        if way == "plain" or (way == "winograd" and not following):
            return
    if following:
        what = f"{what}; " * bool(what) + f"{', '.join(layer.type for layer in following)} along with it"
    names = tuple(layer.name for layer in layers)
    yield Saving(name, names, what, 0, sum(_bytes(known[layer.name]) for layer in following))


def _of_pooling(name: str, layers: Sequence[Layer], known: dict[str, LayerSummary]) -> Saving:
    return Saving(name, (layers[0].name,), "maxima without their positions", 0, _bytes(known[layers[0].name], _INDEX))


def _by_winograd(what: str, fast: FastConvolution, own: LayerSummary, work: int) -> tuple[str, int]:
    """What is done, with Winograd's method where it is used, and how many of the multiply-adds `work` that saves."""
    shape = _bottom(own)
    padded = [n + 2 * pad for n, pad in zip(shape[2:], fast.layer.window.pad, strict=True)]
    if not fast.suits_winograd(shape[0], padded):
        return what, 0
    return f"{what}; by Winograd's method (CPU, fp32)", round(work * winograd.SAVED)


def _of_deconvolution(
    name: str, fast: FastDeconvolution, layers: Sequence[Layer], known: dict[str, LayerSummary]
) -> Saving:
    own = known[layers[0].name]
    full, kept = _top(own), _top(known[layers[-1].name])
    batch, channels, height, width = _bottom(own)
    work = own.multiply_adds
    what = {"full": "", "per channel": "each channel by itself", "along lines": "two matrix products a channel"}[
        fast.form
    ]
    if fast.form == "along lines":
        work = batch * channels * kept[3] * width * height + batch * channels * kept[2] * height * kept[3]
    else:
        work = round(work * math.prod(kept[2:]) / math.prod(full[2:]) / (channels if fast.form == "per channel" else 1))
    if isinstance(layers[-1], Crop):
        part = f"{kept[2]}x{kept[3]} of {full[2]}x{full[3]} positions"
        what = f"{what}; {part}" if what else part
    unwritten = _bytes(own) if isinstance(layers[-1], Crop) else 0
    return Saving(name, tuple(layer.name for layer in layers), what or "as it is", own.multiply_adds - work, unwritten)


def _bottom(layer: LayerSummary) -> tuple[int, ...]:
    """The shape of the first bottom."""
    return tuple(next(iter(layer.bottoms.values())))


def _top(layer: LayerSummary) -> tuple[int, ...]:
    """The shape of the first top."""
    return tuple(next(iter(layer.tops.values())))


def _bytes(layer: LayerSummary, each: int = _FLOAT) -> int:
    """Bytes of a layer's tops that aren't its bottoms (in place), with so many for each value."""
    return sum(each * math.prod(shape) for name, shape in layer.tops.items() if name not in layer.bottoms)
