"""Rules about losses: what they are divided by, what they weigh, whether they take part."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from fcnproto.checking.findings import Finding
from fcnproto.checking.kinds import found
from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Shape
from fcnproto.layers.loss import LossLayer
from fcnproto.net import Net

_UNLIKE = 100.0
"""How many times one loss may weigh another."""


@dataclass(frozen=True)
class Term:
    """One weighted loss: its layer, its weight, how many labels an item of the batch has, and by what the sum of all is
    divided ("VALID", "FULL", "BATCH_SIZE", "NONE", or a number)."""

    node: Node
    weight: float
    places: int
    mode: str | float

    @property
    def pixels(self) -> float:
        """How many single losses count in full: the labels of an item for a summed loss, 1 for a mean."""
        if not isinstance(self.mode, str):
            return max(self.places / max(self.mode, 1.0), 1.0)
        return self.places if self.mode in ("BATCH_SIZE", "NONE") else 1


_CLASSIFYING = ("SoftmaxWithLoss", "InfogainLoss")
_BY_VALUE = ("EuclideanLoss", "SigmoidCrossEntropyLoss")
"""Losses that add up single values of their first bottom: the second kind has a mode, the first one halves squares."""


def terms(net: Net, shapes: Mapping[Blob, Shape], kinds: Container[str] = _CLASSIFYING) -> list[Term]:
    """The losses of a net by label, those that classify or compare place by place; none that waits for a size."""
    result = []
    layers = dict(zip(net.graph.nodes, net.layers, strict=True))
    for blob, weight in net.graph.weighted():
        node = blob.producer
        layer = layers[node]
        scores = shapes.get(node.bottoms[0]) if node.bottoms else None
        if not isinstance(layer, LossLayer) or node.type not in kinds or scores is None:
            continue
        size = tuple(scores[1 if node.type in _BY_VALUE else 2 :])
        mode = "BATCH_SIZE" if node.type == "EuclideanLoss" else layer.mode_name
        result.append(Term(node, abs(weight), max(math.prod(size), 1), mode))
    return result


def loss_scales(net: Net, shapes: Mapping[Blob, Shape]) -> Iterator[Finding]:
    """Losses of one net of which one counts many times the other."""
    found_terms = terms(net, shapes, (*_CLASSIFYING, *_BY_VALUE))
    if len(found_terms) < 2:
        return
    scaled = sorted(found_terms, key=lambda term: term.weight * term.pixels)
    small, large = scaled[0], scaled[-1]
    ratio = large.weight * large.pixels / max(small.weight * small.pixels, 1e-30)
    if ratio > _UNLIKE:
        yield found(
            "loss-scales",
            [large.node.name, small.node.name],
            f"{large.node.name!r} counts {ratio:.3g} times as much as {small.node.name!r} "
            f"({large.mode} and {small.mode}, {large.places} values an image)",
        )


def loss_weight_forgotten(net: Net) -> Iterator[Finding]:
    """Python layers called a loss, whose tops nobody reads and nothing weighs."""
    for node in net.graph.nodes:
        if node.type != "Python" or node.is_data or any(node.loss_weights):
            continue
        names = [node.name, *node.param.top, node.param.python_param.layer]
        unread = node.tops and all(blob.consumer is None for blob in node.tops)
        if unread and any("loss" in name.lower() for name in names) and not node.param.loss_weight:
            yield found(
                "loss-weight-forgotten", [node.name], "a Python layer counts as a loss by its loss_weight alone"
            )


def infogain_size(net: Net, shapes: Mapping[Blob, Shape]) -> Iterator[Finding]:
    """Matrices of InfogainLoss that don't fit the number of classes."""
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        matrix = getattr(layer, "matrix", None)
        scores = shapes.get(node.bottoms[0]) if node.bottoms else None
        if node.type != "InfogainLoss" or scores is None or len(scores) < 2:
            continue
        count = None
        if matrix is not None:
            count = matrix.numel()
        elif len(node.bottoms) == 3 and node.bottoms[2] in shapes:
            count = math.prod(shapes[node.bottoms[2]])
        if count is not None:
            yield from matrix_differs(node.name, count, scores[1])


def matrix_differs(name: str, count: int, classes: int) -> Iterator[Finding]:
    """A finding where the matrix of an InfogainLoss has not a value for every pair of classes."""
    if count != classes**2:
        yield found("infogain-size", [name], f"H has {count} values, {classes} classes need {classes**2}")
