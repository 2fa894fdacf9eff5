"""Random inputs that a net's layers accept: classes for labels, indices within range, 0 and 1 for what is a switch.

For comparing a net with itself in another form; the values stand for images less their mean, not for photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fcnproto.errors import LayerError
from fcnproto.graph import Blob
from fcnproto.layers.base import Shape
from fcnproto.layers.examples import SMALLEST, Array, Draw
from fcnproto.net.net import Net
from fcnproto.net.params import moved_from
from fcnproto.net.shapes import blob_shapes

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
    known: dict[Blob, Shape] | None = None
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        for index, bottom in enumerate(node.bottoms):
            source = moved_from(bottom)
            if source.producer.is_data and source.name in shapes:
                if layer.suitable_values(index, (1, 1, 1, 1)) is None:
                    continue
                if known is None:
                    known = _known_shapes(net, shapes)
                role = layer.suitable_values(index, known.get(node.bottoms[0], (1,)))
                if role is not None:
                    roles[source.name] = role
    return roles


def _known_shapes(net: Net, shapes: Mapping[str, Sequence[int]]) -> dict[Blob, Shape]:
    """The shapes of the blobs that have the same ones whatever the values; of the inputs alone where a layer fails."""
    sources = {
        blob: tuple(shapes[blob.name])
        for node in net.graph.nodes
        if node.is_data
        for blob in node.tops
        if blob.name in shapes
    }
    try:
        return blob_shapes(net.graph, net.layers, sources, partial=True)
    except LayerError:
        return sources
