"""Random inputs that a net's layers accept: classes for labels, indices within range, 0 and 1 for what is a switch.

For comparing a net with itself in another form; the values stand for images less their mean, not for photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fcnproto.layers.examples import SMALLEST, Array, Draw
from fcnproto.net.net import Net
from fcnproto.net.params import moved_from

_REACH = 100.0
"""Values lie within -100..100, as images less their mean do."""


def draw_inputs(
    net: Net, shapes: Mapping[str, Sequence[int]], *, seed: int = 1, positive: bool = False
) -> dict[str, Array]:
    """float32 values for the inputs named in `shapes`, the same at every call.

    With `positive` they lie within 0.05..1 instead of -100..100: for logarithms, and powers that are no whole numbers.
    """
    roles = _roles(net, shapes)
    draw = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        make = roles.get(name)
        if make is not None:
            drawn = make(draw, shape)
        else:
            drawn = draw.uniform(SMALLEST, 1, shape) if positive else draw.uniform(-_REACH, _REACH, shape)
        values[name] = drawn.astype(np.float32)
    return values


def _roles(net: Net, shapes: Mapping[str, Sequence[int]]) -> dict[str, Draw]:
    """How the inputs are drawn that are no plain numbers."""
    roles: dict[str, Draw] = {}
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        for index, bottom in enumerate(node.bottoms):
            source = moved_from(bottom)
            if source.producer.is_data and source.name in shapes:
                first = shapes.get(moved_from(node.bottoms[0]).name, (1,))
                role = layer.suitable_values(index, tuple(first))
                if role is not None:
                    roles[source.name] = role
    return roles
