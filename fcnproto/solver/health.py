"""Losses that are no number or have exploded: when to stop, and in which layer and blob it began."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcnproto.errors import SolverError
from fcnproto.net import Net

EXPLOSION = 1e6
"""A loss this many times the largest of the first ones (at least 1) has exploded."""
_FIRST = 20


class DivergedError(SolverError):
    """Training came to a loss, or parameters, that are no number or far too large.

    `iteration`, `layer` and `blob` say where it began (None where that can't be told), `snapshot` is the last good
    solver state of this run, if there is one.
    """

    def __init__(self, what: str, iteration: int, layer: str | None, blob: str | None, snapshot: str | None) -> None:
        self.what, self.iteration, self.layer, self.blob, self.snapshot = what, iteration, layer, blob, snapshot
        where = f"; it began in {blob}" if blob else ""
        where += f" of layer {layer!r}" if layer is not None else ""
        advice = f"the last good snapshot is {snapshot}" if snapshot else "there is no snapshot of this run"
        super().__init__(
            f"iteration {iteration}: {what}{where}. Training stopped; {advice}. Try a lower base_lr or clip_gradients"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.iteration, self.layer, self.blob, self.snapshot)


class LossWatch:
    """Says what is wrong with a loss, if anything is. `limit` is the factor of an explosion, 0 for no limit."""

    def __init__(self, limit: float = EXPLOSION) -> None:
        self.limit = limit
        self._seen, self._largest = 0, 1.0

    def complaint(self, loss: float) -> str | None:
        """A phrase for an error message, None for a loss that is well."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._seen < _FIRST:
            self._seen += 1
            self._largest = max(self._largest, abs(loss))
        elif self.limit and abs(loss) > self.limit * self._largest:
            return f"the loss has exploded to {loss:g} (at most {self._largest:g} in the beginning)"
        return None


def broken_parameter(net: Net) -> tuple[str, str] | None:
    """(layer, parameter blob) of the first learnable parameter with a value that is not finite."""
    entries = net.learnable
    if not entries:
        return None
    # A sum that is finite has finite terms; only where one is not is a tensor looked at value by value.
    sums = torch.stack([entry.tensor.detach().sum().to(entries[0].tensor.device) for entry in entries])
    for entry, total in zip(entries, sums.tolist(), strict=True):
        if not math.isfinite(total) and not bool(entry.tensor.detach().isfinite().all()):
            return entry.layer, f"parameter blob {entry.index}"
    return None


def largest_parameter(net: Net) -> tuple[str, str] | None:
    """(layer, parameter blob with its largest value) of the parameter that has grown most."""
    best: tuple[float, str, str] | None = None
    for entry in net.learnable:
        if entry.tensor.numel():
            value = float(entry.tensor.detach().abs().max())
            if best is None or value > best[0]:
                best = (value, entry.layer, f"parameter blob {entry.index} (values up to {value:g})")
    return None if best is None else best[1:]


def origin(
    net: Net, forward: Callable[[], Any], inputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> tuple[str | None, str | None]:
    """(layer, blob) where what is wrong with a pass began, as far as can be told; see `first_broken_blob`."""
    found = broken_parameter(net) or first_broken_blob(net, forward, inputs, batch) or largest_parameter(net)
    return found or (None, None)


def first_broken_blob(
    net: Net, forward: Callable[[], Any], inputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> tuple[str | None, str] | None:
    """(layer, blob) where a forward pass first has a value that is not finite; `forward` runs the pass.

    `inputs` are what the caller gave (then there is no layer to name), `batch` is what the data layers read.
    """
    for name, value in inputs.items():
        if not bool(value.isfinite().all()):
            return None, f"input {name!r}"
    readers = {blob.name: node.name for node in net.graph.nodes if node.is_data for blob in node.tops}
    for name, value in batch.items():
        if not bool(value.isfinite().all()):
            return readers.get(name), f"blob {name!r}"
    found: list[tuple[str, str]] = []

    def look(layer: Any, arguments: Any, result: Any) -> None:
        tops = result if isinstance(result, (tuple, list)) else (result,)
        for top, value in zip(layer.param.top, tops, strict=False):
            if not found and isinstance(value, Tensor) and not bool(value.isfinite().all()):
                found.append((layer.name, f"blob {top!r}"))

    handles = [layer.register_forward_hook(look) for layer in nn.ModuleList(net.layers)]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
