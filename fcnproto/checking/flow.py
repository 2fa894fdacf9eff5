"""Which blobs of a net are zero whatever its input is, and which parameters a gradient can ever reach.

An interpretation of the graph with two values, "zero" and "may be anything", from the parameters as they are. It is
repeated until it stands still: what a gradient reaches may be anything after the next update. Wrong only on the side of
"may be anything", so that nothing is called dead that could live.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import torch

from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Layer
from fcnproto.net import Net

Place = tuple[int, int]
"""A parameter blob: the index of the layer that owns it, and its own."""


@dataclass
class Flow:
    """What can move in a net: `zero` blobs are 0 for every input; `reached` parameters get a gradient; `moved` are the
    blobs that a gradient reaches; `asleep` are the weights that multiply by 0 for ever."""

    zero: set[Blob] = field(default_factory=set)
    moved: set[Blob] = field(default_factory=set)
    reached: set[Place] = field(default_factory=set)
    asleep: set[Place] = field(default_factory=set)


def zero_parameters(net: Net) -> set[Place]:
    """The parameter blobs all of whose values are 0."""
    blobs = {
        (index, k): getattr(layer, name)
        for index, layer in enumerate(net.layers)
        for k, name in enumerate(layer.blob_names)
        if (index, k) not in net.shared_blobs
    }
    if not blobs:
        return set()
    with torch.no_grad():
        moved = torch.stack([blob.any() for blob in blobs.values()]).tolist()  # from a GPU all at once
    return {place for place, any_is in zip(blobs, moved, strict=True) if not any_is}


def flow(net: Net, zeros: Set[Place]) -> Flow:
    """How zeros and gradients go through a net whose parameters `zeros` are 0 for now."""
    learnable = {(ref.layer, ref.index) for ref in net.parameter_places() if ref.lr_mult != 0}
    zeros = set(zeros)
    while True:
        found = Flow(_zero_blobs(net, zeros))
        _send_back(net, zeros, found)
        awake = zeros & found.reached & learnable
        if not awake:
            pairs = list(zip(net.graph.nodes, net.layers, strict=True))
            found.asleep = {(index, k) for index, k in zeros if k == 0 and _is_linear(*pairs[index])}
            return found
        zeros -= awake


def _zero_blobs(net: Net, zeros: Set[Place]) -> set[Blob]:
    found: set[Blob] = set()
    for index, (node, layer) in enumerate(zip(net.graph.nodes, net.layers, strict=True)):
        if _gives_zero(net, index, node, layer, zeros, found):
            found.update(node.tops)
    return found


def _is_linear(node: Node, layer: Layer) -> bool:
    """Whether the first parameter blob of a layer multiplies its bottoms."""
    return layer.of_zeros() == "linear" and bool(layer.blob_names)


def _gives_zero(net: Net, index: int, node: Node, layer: Layer, zeros: Set[Place], found: set[Blob]) -> bool:
    if not node.bottoms:
        return False
    inputs = [blob in found for place, blob in enumerate(node.bottoms) if place not in layer.size_bottoms]
    if _is_linear(node, layer):
        weights, *rest = (net.shared_blobs.get((index, k), (index, k)) in zeros for k in range(len(layer.blob_names)))
        return (all(inputs) or weights) and all(rest)
    rule = layer.of_zeros()
    return any(inputs) if rule == "product" else rule == "kept" and all(inputs)


def _send_back(net: Net, zeros: Set[Place], found: Flow) -> None:
    """Follow the gradients from the losses."""
    found.moved.update(blob for blob, _ in net.graph.weighted() if blob.consumer is None)
    pairs = list(enumerate(zip(net.graph.nodes, net.layers, strict=True)))
    for index, (node, layer) in reversed(pairs):
        if not any(blob in found.moved for blob in node.tops):
            continue
        owners = [net.shared_blobs.get((index, k), (index, k)) for k in range(len(layer.blob_names))]
        linear = _is_linear(node, layer)
        asleep = linear and all(blob in found.zero for blob in node.bottoms)
        found.reached.update(owner for k, owner in enumerate(owners) if k > 0 or not asleep)
        if linear and owners[0] in zeros:
            continue
        for place, blob in enumerate(node.bottoms):
            if _passes(node, layer, place, found.zero):
                found.moved.add(blob)


def _passes(node: Node, layer: Layer, place: int, zero: Set[Blob]) -> bool:
    """Whether the gradient of a layer's tops reaches one of its bottoms."""
    asked = list(node.param.propagate_down)
    if place in layer.force_backward_refuses or (asked and not asked[place]):
        return False
    if node.bottoms[place] in zero and layer.is_flat_at_zero():
        return False
    others = [blob for other, blob in enumerate(node.bottoms) if other != place]
    if layer.of_zeros() == "product":
        return not any(blob in zero for blob in others)
    return True
