"""Which layers compute a gradient, and for which of their bottoms: Caffe's rules, worked out once for each net.

A layer does where a bottom or one of its own parameters wants one and a loss depends on it; with `force_backward` all
do, for all bottoms but those that never get one (labels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fcnproto.graph import Blob, Graph, Node
from fcnproto.layers.base import Layer


@dataclass(frozen=True)
class Needs:
    """Whether a layer takes part in the backward pass, and which of its bottoms get a gradient."""

    layer: bool
    bottoms: tuple[bool, ...]


def find_needs(graph: Graph, layers: Sequence[Layer]) -> list[Needs]:
    """The needs of each layer of a net, in order."""
    wanted: dict[Blob, bool] = {}
    found: list[Needs] = []
    contributing, silenced = _under_loss(graph)
    for node, layer in zip(graph.nodes, layers, strict=True):
        bottoms = [wanted[blob] for blob in node.bottoms]
        if node.param.propagate_down:
            bottoms = list(node.param.propagate_down)
        own = any(
            isinstance(blob, nn.Parameter) and blob.requires_grad
            for blob in (getattr(layer, name) for name in layer.blob_names)
        )
        needed = own or any(bottoms)
        wanted.update((top, needed) for top in node.tops)
        if node in silenced:
            needed, bottoms = False, [False] * len(bottoms)
        found.append(Needs(needed and node in contributing, tuple(bottoms)))
    if graph.force_backward:
        return [_forced(node, layer, needs) for node, layer, needs in zip(graph.nodes, layers, found, strict=True)]
    return found


def _forced(node: Node, layer: Layer, needs: Needs) -> Needs:
    bottoms = (one or i not in layer.force_backward_refuses for i, one in enumerate(needs.bottoms))
    return Needs(True, tuple(bottoms))


def _under_loss(graph: Graph) -> tuple[set[Node], set[Node]]:
    """The layers that a loss depends on, and those all of whose readers refuse to hand a gradient on."""
    contributing: set[Node] = set()
    silenced: set[Node] = set()
    under: dict[Blob, bool] = {}
    refused: dict[Blob, bool] = {}
    for node in reversed(graph.nodes):
        if any(node.loss_weights) or any(under.get(top, False) for top in node.tops):
            contributing.add(node)
        if node.tops and not any(node.loss_weights) and all(refused.get(top, False) for top in node.tops):
            silenced.add(node)
        given: Mapping[int, bool] = dict(enumerate(node.param.propagate_down))
        for i, blob in enumerate(node.bottoms):
            under[blob] = node in contributing
            refused[blob] = node in silenced or not given.get(i, True)
    return contributing, silenced
