"""Which parameters a net's loss reaches, told from the graph alone: what workers must know before they train."""

from __future__ import annotations

from fcnproto.graph import Node
from fcnproto.layers.base import Layer
from fcnproto.net import Net


def all_get_gradients(net: Net) -> bool:
    """Whether every parameter that is trained surely gets a gradient in each pass.

    False where that can't be told: layers of forks, of users, and those that wait may pass a gradient on or not.
    """
    layers = dict(zip(net.graph.nodes, net.layers, strict=True))
    reached = _reached(net, layers)
    read = {
        (index, k)
        for index, (node, layer) in enumerate(layers.items())
        for k in range(len(layer.blob_names))
        if node in reached
    }
    got = {net.shared_blobs.get(place, place) for place in read}
    trained = zip(net.parameter_places(), net.learnable, strict=True)
    return all((ref.layer, ref.index) in got for ref, entry in trained if entry.tensor.requires_grad)


def _reached(net: Net, layers: dict[Node, Layer]) -> set[Node]:
    """The layers that surely get a gradient from the loss."""
    reached: set[Node] = set()
    waiting = [blob.producer for blob, _ in net.graph.weighted() if blob.consumer is None]
    while waiting:
        node = waiting.pop()
        layer = layers[node]
        if node in reached or node.held or not _passes_gradient(layer):
            continue
        reached.add(node)
        silent = {*layer.force_backward_refuses, *layer.size_bottoms, *layer.index_bottoms}
        wanted = list(node.param.propagate_down) or [True] * len(node.bottoms)
        waiting += [
            bottom.producer
            for index, (bottom, wish) in enumerate(zip(node.bottoms, wanted, strict=True))
            if wish and index not in silent
        ]
    return reached


def _passes_gradient(layer: Layer) -> bool:
    """Whether every top's gradient reaches the blobs, and the bottoms that may have one, whatever the values are."""
    return type(layer).__module__.startswith("fcnproto.layers.") and not layer.stops_gradient
