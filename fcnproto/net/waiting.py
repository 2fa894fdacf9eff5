"""Layers that wait for a size, and what sets them up in the end: weights, or the shapes of what a call gives."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from fcnproto.errors import GraphError, LayerError
from fcnproto.graph import Blob, Graph, Node
from fcnproto.layers.base import Layer, Shape
from fcnproto.net.making import make_layer
from fcnproto.net.shapes import GUESSES, PartialShape, layer_shapes
from fcnproto.net.stored_shapes import StoredShapes


def replacement(graph: Graph, node: Node, old: Layer) -> Layer:
    """A layer for the node like the old one, not set up."""
    made = make_layer(graph, node, old.base_dir, old.allow_python, strict=True)
    made.prototxt, made.allow_writes, made.dialect = old.prototxt, old.allow_writes, old.dialect
    made.notes = old.notes
    return made


def twin_of(graph: Graph, node: Node, old: Layer, bottoms: Sequence[Shape]) -> Layer:
    """A layer for the node like the old one, set up silently for bottoms of these shapes."""
    twin = replacement(graph, node, old)
    twin.notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin.setup(bottoms)
    twin.notes = old.notes
    return twin


def sources_of(node: Node, sources: Mapping[Blob, PartialShape | None]) -> list[Blob]:
    """The data tops that a layer's bottoms come from."""
    found: dict[Blob, None] = {}
    stack = list(node.bottoms)
    seen: set[Blob] = set(stack)
    while stack:
        blob = stack.pop()
        if blob in sources:
            found[blob] = None
        new = [bottom for bottom in blob.producer.bottoms if bottom not in seen]
        seen.update(new)
        stack += new
    return list(found)


def why_waiting(node: Node, sources: Mapping[Blob, PartialShape | None], open_blobs: set[Blob]) -> str:
    """Why a layer waits, and for what: the data tops whose size nobody has said."""
    behind = [blob for blob in sources_of(node, sources) if blob in open_blobs]
    names = [repr(blob.name) for blob in behind]
    size = f"the size of {', '.join(names)}, which nobody says" if names else "the sizes of what it reads"
    example = behind[0].name if behind else "name"
    return (
        f"layer {node.name!r} ({node.type}): waits for {size}; say it with "
        f"load(..., shapes={{{example!r}: (N, C, H, W)}}) (--shape {example}=N,C,H,W), or give the data"
    )


def fitting(
    graph: Graph,
    node: Node,
    old: Layer,
    stored: StoredShapes,
    shapes: Mapping[Blob, Shape],
    guess: Sequence[int],
) -> tuple[Layer, list[Shape]] | None:
    """A layer for the node whose blobs have the stored shapes, and the bottoms' shapes that it is set up for; None
    where no number of channels or of values makes one."""
    if old.holds_place or not node.bottoms or not stored.of(node.name):
        return None
    rest = [shapes.get(blob) for blob in node.bottoms[1:]]
    if None in rest:
        return None
    given = shapes.get(node.bottoms[0])
    for channels in stored.channels(old):
        firsts = [] if given is None or len(given) < 2 else [(given[0], channels, *given[2:])]
        images = guess[0] if not given else given[0]
        firsts += [(images, channels, *guess[2:]), (images, channels)]
        for first in dict.fromkeys(firsts):
            bottoms = [first, *(shape for shape in rest if shape is not None)]
            try:
                twin = twin_of(graph, node, old, bottoms)
            except GraphError:
                continue
            if stored.fit(twin):
                return twin, bottoms
    return None


def size_by_weights(graph: Graph, layers: list[Layer], stored: StoredShapes) -> list[int]:
    """Give place-holders the blobs of a weight file, and set up waiting layers by it, in `layers` and the graph's
    nodes; returns the indices of those that it says enough of."""
    sized = []
    for index, node in enumerate(graph.nodes):
        if not node.held or layers[index].blob_names:
            continue
        if layers[index].holds_place:
            if stored.of(node.name):
                named = [*stored.named(node.name)]
                layers[index].take_blobs(stored.of(node.name), named)  # type: ignore[operator]
                sized.append(index)
            continue
        found = fitting(graph, node, layers[index], stored, {}, GUESSES[0])
        if found is not None:
            layers[index], node.held = found[0], ""
            sized.append(index)
    return sized


def settle(graph: Graph, layers: list[Layer], given: Mapping[str, Shape]) -> list[int]:
    """Set up the waiting layers behind data tops of these shapes, in `layers` and the graph's nodes; returns their
    indices. `LayerError` where one can't work on what it gets, or another keeps it from being reached."""
    shapes: dict[Blob, Shape] = {}
    settled = []
    failure: LayerError | None = None
    for index, node in enumerate(graph.nodes):
        if node.is_data:
            shapes.update((blob, given[blob.name]) for blob in node.tops if blob.name in given)
            continue
        if layers[index].holds_place or any(blob not in shapes for blob in node.bottoms):
            continue
        bottoms = [shapes[blob] for blob in node.bottoms]
        if node.held:
            layers[index], node.held = twin_of(graph, node, layers[index], bottoms), ""
            settled.append(index)
        try:
            shapes.update(zip(node.tops, layer_shapes(layers[index], bottoms), strict=True))
        except LayerError as error:
            failure = failure or error
    if failure is not None and any(
        node.held and not layer.holds_place for node, layer in zip(graph.nodes, layers, strict=True)
    ):
        raise failure
    return settled
