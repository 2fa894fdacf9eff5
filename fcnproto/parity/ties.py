"""Near ties: places where the last digits decide which way a gradient goes, in max poolings, ReLUs and maxima.

Two implementations whose blobs agree to the last digits may send a gradient to different places there, both rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fcnproto.inspect.running import run_with
from fcnproto.layers.base import Layer
from fcnproto.net import Net

_LEAST = 2e-7
"""Float32 keeps values to about this share."""
_MOST_NAMED = 3


def near_ties(net: Net, inputs: Mapping[str, Tensor], blobs: Sequence[str], deviation: float) -> str:
    """The layers with near ties in words, "" where there are none; `deviation` is how far blobs lie apart (a share)."""
    reach = 2 * max(deviation, _LEAST)
    found: dict[str, tuple[int, int, str]] = {}
    handles = []
    for layer in net.layers:
        if type(layer).near_ties is not Layer.near_ties:
            handles.append(layer.register_forward_pre_hook(_counter(found, reach)))
    try:
        with torch.no_grad():
            run_with(net, dict(inputs), list(blobs))
    finally:
        for handle in handles:
            handle.remove()
    parts = [f"{count} of {total} {what} of {name}" for name, (count, total, what) in found.items()]
    if not parts:
        return ""
    more = f" and more in {len(parts) - _MOST_NAMED} other layers" if len(parts) > _MOST_NAMED else ""
    return f"{', '.join(parts[:_MOST_NAMED])}{more} are near ties"


def _counter(found: dict[str, tuple[int, int, str]], reach: float) -> Any:
    def count(layer: Any, bottoms: tuple[Tensor, ...]) -> None:
        x = bottoms[0]
        result = layer.near_ties(bottoms, reach * float(x.abs().max())) if x.numel() else None
        if result is not None and result[0]:
            found[layer.name] = result

    return count
