"""Every blob's shape in a net that is given inputs of some shapes, by running its layers on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch

from fcnproto.errors import GraphError
from fcnproto.graph import Blob
from fcnproto.net import Net
from fcnproto.net.plan import runnable

Shape = tuple[int, ...]


def blob_shapes(net: Net, inputs: Mapping[str, Sequence[int]]) -> dict[Blob, Shape]:
    """The shapes of all blob versions that the inputs reach."""
    known = runnable(net.graph, list(inputs))
    shapes: dict[Blob, Shape] = {}
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        if node.is_data:
            shapes.update((blob, tuple(inputs[blob.name])) for blob in node.tops if blob.name in inputs)
            continue
        if not all(known[blob] for blob in node.bottoms):
            continue
        bottoms = [shapes[blob] for blob in node.bottoms]
        tops = layer.top_shapes(bottoms)
        if tops is None:
            memo = {
                id(value): torch.empty_like(value, device="meta") for value in [*layer.parameters(), *layer.buffers()]
            }
            twin = copy.deepcopy(layer, memo)
            with torch.no_grad():
                result = twin(*(torch.empty(shape, device="meta") for shape in bottoms))
            tops = [tuple(top.shape) for top in (result if isinstance(result, tuple) else (result,))]
        shapes.update(zip(node.tops, (tuple(top) for top in tops), strict=True))
    return shapes


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
