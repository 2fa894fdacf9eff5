"""Every blob's shape in a net that is given inputs of some shapes, and the shapes to give where none are said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fcnproto.errors import GraphError
from fcnproto.graph import Blob
from fcnproto.net import Net, shapes

Shape = tuple[int, ...]


def blob_shapes(net: Net, inputs: Mapping[str, Sequence[int]]) -> dict[Blob, Shape]:
    """The shapes of all blob versions that the inputs reach."""
    sources = {
        blob: tuple(inputs[blob.name])
        for node in net.graph.nodes
        if node.is_data
        for blob in node.tops
        if blob.name in inputs
    }
    return shapes.blob_shapes(net.graph, net.layers, sources, partial=True)


def input_shapes(net: Net, names: Sequence[str], size: tuple[int, int] | None = None) -> dict[str, Shape]:
    """The shapes of inputs: as in the prototxt, 1 and 500 x 500 where it leaves them open; `size` is of 4-axis ones."""
    found = {}
    for name in names:
        shape = net.source_shapes.get(name)
        if shape is None:
            raise GraphError(f"nothing tells the shape of input {name!r}; give it (--shape {name}=N,C,H,W)")
        extents = list(shape)
        if size is not None and len(extents) == 4:
            extents[2:] = size
        usual = (1, 1, 500, 500) if len(extents) == 4 else (1,) * len(extents)
        found[name] = tuple(usual[i] if extent is None else extent for i, extent in enumerate(extents))
    return found
