"""Which blobs of a net are its images, its scores and its labels, and what may be done with them.

The one place that answers it: for segmenting, scoring, exporting, preprocessing and fine-tuning alike. What the layers
are, they say themselves (`judges`, `ranks`, `makes_data`, ... in `layers/base.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fcnproto.errors import GraphError
from fcnproto.graph import Blob, Node
from fcnproto.net.plan import missing_inputs, runnable

if TYPE_CHECKING:
    from fcnproto.net.net import Net


def judges(node: Node) -> bool:
    """Whether a layer says how good scores are: a loss, or a figure such as Accuracy."""
    return node.facts.is_loss or node.facts.judges


def self_made(net: Net) -> list[str]:
    """The blobs that layers make of their settings alone (DummyData), in order."""
    return [blob.name for node in net.graph.nodes if node.facts.makes_data for blob in node.tops]


def image_inputs(net: Net, blobs: Sequence[str]) -> list[str]:
    """The inputs that `blobs` depend on, in the net's order. `GraphError` for an unknown blob or if there are none."""
    nothing = {blob: False for node in net.graph.nodes for blob in [*node.bottoms, *node.tops]}
    needed = {name for blob in blobs for name in missing_inputs(net.graph, net.graph.blob(blob), nothing)}
    inputs = [name for name in net.source_shapes if name in needed.difference(self_made(net))]
    if not inputs:
        raise GraphError(f"{net.graph.title}: {', '.join(map(repr, blobs))} depends on no input")
    return inputs


def score_blobs(net: Net) -> list[str]:
    """The blobs that may hold class scores: what losses and accuracies are taken of, and the net's other outputs.

    Of a Softmax or ArgMax over the channels, what it reads. `GraphError` if there is none.
    """
    found: dict[str, None] = {}
    for node in net.graph.nodes:
        if judges(node) and node.bottoms:
            found[_scores_of(node.bottoms[0]).name] = None
    for name in net.outputs:
        producer = net.graph.blobs[name].producer
        if not judges(producer) and not producer.is_data:
            found[_scores_of(net.graph.blobs[name]).name] = None
    candidates = [name for name in found if not net.graph.blobs[name].producer.is_data]
    if not candidates:
        raise GraphError(f"{net.graph.title}: no blob of class scores found; name it with blobs= or --blob")
    return candidates


def _scores_of(blob: Blob) -> Blob:
    """The blob before splits and before the layers that only rank or normalise scores."""
    while blob.producer.bottoms:
        node = blob.producer
        if node.type != "Split" and not node.facts.ranks(node.param):
            break
        blob = node.bottoms[0]
    return blob


def unsplit(blob: Blob) -> Blob:
    """The blob that one from Split layers is a copy of."""
    while blob.producer.type == "Split":
        blob = blob.producer.bottoms[0]
    return blob


def judged_blobs(net: Net) -> dict[str, str]:
    """The blobs of scores whose labels the net knows, with the label's blob: what its losses and accuracies read."""
    found = {}
    for node in net.graph.nodes:
        if judges(node) and len(node.bottoms) > 1:
            scores, label = (unsplit(blob).name for blob in node.bottoms[:2])
            found[scores] = label
    return found


def images_stay_apart(net: Net, blobs: Sequence[str]) -> bool:
    """Whether the layers behind `blobs` are known to compute each image of a batch by itself.

    Layers say it of themselves (`Layer.keeps_images_apart`); those that may mix images, such as a BatchNorm by the
    batch's own statistics, a Reshape or a Python layer, count as mixing.
    """
    layers = dict(zip(net.graph.nodes, net.layers, strict=True))
    stack, seen = [net.graph.blob(name).producer for name in blobs], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if not node.is_data and not layers[node].keeps_images_apart():
            return False
        stack += [blob.producer for blob in node.bottoms]
    return not any(node.facts.makes_data for node in seen)


def computable_outputs(net: Net, inputs: Sequence[str]) -> list[str]:
    """The net's outputs that can be computed from these inputs (and DummyData layers) alone."""
    known = runnable(net.graph, list(dict.fromkeys([*inputs, *self_made(net)])))
    return [name for name in net.outputs if known[net.graph.blobs[name]]]


def fixed_image_size(net: Net, blob: str) -> tuple[int, int] | None:
    """(height, width) of the input in the prototxt if the net is made for that size alone, else None.

    So it is with an InnerProduct layer, whose weights depend on it, and by custom with a global pooling.
    """
    shape = net.source_shapes.get(blob)
    if shape is None or len(shape) != 4 or shape[2] is None or shape[3] is None:
        return None
    classifies = any(node.facts.fixes_image_size(node.param) for node in net.graph.nodes)
    return (shape[2], shape[3]) if classifies else None
