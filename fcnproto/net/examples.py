"""Random inputs that a net's layers accept: classes for labels, indices within range, 0 and 1 for what is a switch.

For comparing a net with itself in another form; the values stand for images less their mean, not for photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fcnproto.layers.base import Layer
from fcnproto.net.net import Net
from fcnproto.net.params import moved_from

Array = npt.NDArray[Any]
Draw = Callable[[np.random.Generator, Sequence[int]], Array]

_REACH = 100.0
"""Values lie within -100..100, as images less their mean do."""
_SMALLEST = 0.05


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
            drawn = draw.uniform(_SMALLEST, 1, shape) if positive else draw.uniform(-_REACH, _REACH, shape)
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
                role = _role(layer, index, len(node.bottoms), first)
                if role is not None:
                    roles[source.name] = role
    return roles


def _role(layer: Layer, index: int, bottoms: int, first: Sequence[int]) -> Draw | None:
    """How a layer's bottom is drawn; `first` is the shape of the input behind its bottom 0."""
    kind = layer.type
    if kind == "Embed":
        return _integers(layer.config.input_dim)
    if kind == "BatchReindex" and index == 1:
        return _integers(first[0])
    if (kind, index) in (("MultinomialLogisticLoss", 0), ("InfogainLoss", 2)):
        return lambda draw, shape: draw.uniform(_SMALLEST, 1, shape)
    if kind == "Filter" and index == bottoms - 1:
        return _selector
    switches = (("LSTM", 1), ("RNN", 1), ("LSTMUnit", 2), ("SigmoidCrossEntropyLoss", 1))
    return _integers(2) if (kind, index) in switches or index in layer.index_bottoms else None


def _integers(count: int) -> Draw:
    return lambda draw, shape: draw.integers(0, max(count, 1), shape)


def _selector(draw: np.random.Generator, shape: Sequence[int]) -> Array:
    """0 and 1, of which at least one is 1."""
    chosen = draw.integers(0, 2, shape)
    chosen.reshape(-1)[:1] = 1
    return chosen
