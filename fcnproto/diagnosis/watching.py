"""Watching the layers of a net while it runs: activations, gradients of their tops, updates of their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from fcnproto.net import Net

_TINY = 1e-2
"""Weights this small, times the root of their number an output, hand on next to nothing: untrained score layers."""


@dataclass(frozen=True)
class Row:
    """One layer that is learned: the root mean square of its top, the norm of its top's gradient, the last update over
    the weights; None where there is none."""

    name: str
    activation: float | None
    gradient: float | None
    update: float | None


class Watch:
    """A context in which a net's passes are watched.

    `broken`: the first layer and blob that was no number; `untrained`: layers that handed on next to nothing at first.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.broken: tuple[str, str] | None = None
        self.untrained = tiny_weights(net)
        self._activations: dict[str, float] = {}
        self._gradients: dict[str, float] = {}
        self._alive: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        learned = {ref.layer for ref in net.parameter_places() if ref.lr_mult != 0}
        self._learned = {id(layer) for index, layer in enumerate(net.layers) if index in learned}

    def __enter__(self) -> Watch:
        self._handles = [layer.register_forward_hook(self._look) for layer in dict.fromkeys(self.net.layers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, layer: Any, arguments: Any, result: Any) -> None:
        tops = result if isinstance(result, (tuple, list)) else (result,)
        for name, value in zip(layer.param.top, tops, strict=False):
            if self.broken is None and isinstance(value, Tensor) and not bool(value.detach().isfinite().all()):
                self.broken = layer.name, name
        top = tops[0] if tops else None
        if not isinstance(top, Tensor) or not top.numel():
            return
        if id(layer) in self._learned:
            self._activations[layer.name] = float(top.detach().double().square().mean().sqrt())
            if top.requires_grad:
                self._handles.append(top.register_hook(self._keeper(layer.name)))
        if layer.kind == "activation" and layer.of_zeros() == "kept" and layer.is_flat_at_zero() and top.dim() > 1:
            alive = (top.detach() != 0).movedim(1, 0).flatten(1).any(1)
            old = self._alive.get(layer.name)
            self._alive[layer.name] = alive if old is None or old.shape != alive.shape else old | alive

    def _keeper(self, name: str) -> Any:
        def keep(gradient: Tensor) -> None:
            self._gradients[name] = float(gradient.detach().double().norm())

        return keep

    def rows(self, changes: Mapping[str, float]) -> list[Row]:
        """What was seen of every layer that is learned, in the net's order."""
        return [
            Row(name, value, self._gradients.get(name), changes.get(name)) for name, value in self._activations.items()
        ]

    def dead(self) -> Iterator[tuple[str, float, int]]:
        """Layers that are flat below 0: name, share of the channels that were 0 everywhere so far, their number."""
        for name, alive in self._alive.items():
            yield name, 1 - float(alive.double().mean()), len(alive)


def _weights(net: Net) -> Iterator[tuple[str, Tensor]]:
    """The first blob of every layer that is learned."""
    layers = net.layers
    for ref in net.parameter_places():
        if ref.lr_mult != 0 and ref.index == 0:
            layer = layers[ref.layer]
            yield layer.name, getattr(layer, layer.blob_names[0]).detach()


def weights_now(net: Net) -> dict[str, Tensor]:
    """Copies of the weights that are learned, by layer."""
    return {name: value.clone() for name, value in _weights(net)}


def updates(net: Net, before: Mapping[str, Tensor]) -> dict[str, float]:
    """How far the weights have moved, as a share of their norm."""
    result = {}
    for name, value in _weights(net):
        norm = float(before[name].double().norm())
        result[name] = float((value - before[name]).double().norm()) / norm if norm else math.inf
    return result


def tiny_weights(net: Net) -> set[str]:
    """Layers whose weights hand on next to nothing."""
    return {
        name
        for name, value in _weights(net)
        if value.numel() and float(value.double().square().mean().sqrt()) * math.sqrt(max(value[0].numel(), 1)) < _TINY
    }
