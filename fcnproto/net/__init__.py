"""A Caffe net as a `torch.nn.Module`: the net itself, its shapes, parameters, plans, weights and calls.

The names below are loaded on first use, so that a module of this room can be imported alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnproto.lazy import lazily

if TYPE_CHECKING:
    from fcnproto.net.calling import Outputs
    from fcnproto.net.loading import load
    from fcnproto.net.net import Net

__all__ = [
    "Net",
    "Outputs",
    "load",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Net": "fcnproto.net.net",
        "Outputs": "fcnproto.net.calling",
        "load": "fcnproto.net.loading",
    },
)
