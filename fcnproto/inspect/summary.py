"""What a net costs: every layer's shapes, parameters, multiply-adds and memory for a given input size.

Works on the meta device: nothing is computed and no weights are needed. Measured times are not its business.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fcnproto.errors import DataError, FcnprotoWarning, GraphError
from fcnproto.escaping import one_line
from fcnproto.graph import Blob, Node
from fcnproto.layers.base import Shape
from fcnproto.net import Net
from fcnproto.net.caffe_memory import bottom_in_memory
from fcnproto.net.shapes import blob_shapes
from fcnproto.schema import caffe_pb2

_BYTES = 4  # of a float32 value
_USUAL_SIZE = (500, 500)


class OpenShape(tuple[int, ...]):
    """The shape of a blob that nothing says: empty, but not that of a scalar."""


OPEN = OpenShape()


@dataclass(frozen=True)
class LayerSummary:
    """One layer: what it reads and writes, with shapes (`OPEN` where a layer that can't be computed leaves them so);
    `parameters` are the values it owns (not those it shares),
    `learnable` those of them that a solver changes; `multiply_adds` of one forward pass."""

    name: str
    type: str
    bottoms: dict[str, Shape]
    tops: dict[str, Shape]
    parameters: int
    learnable: int
    multiply_adds: int


@dataclass(frozen=True)
class NetSummary:
    """A net's layers (Caffe's automatic Split layers left out) and totals.

    `multiply_adds` counts convolutions, deconvolutions, inner products and recurrent layers, where the work is; bias,
    pooling, activations and the like are left out. Memory in bytes, as float32: `parameter_bytes`; `blob_bytes`
    of all blobs together, as training keeps them; `peak_blob_bytes` of the blobs alive at one time when each is freed
    after its last use, as in inference; what single layers need besides is not counted.
    """

    name: str
    inputs: dict[str, Shape]
    layers: list[LayerSummary]
    parameters: int
    learnable: int
    multiply_adds: int
    parameter_bytes: int
    blob_bytes: int
    peak_blob_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The same in dicts, lists, texts and numbers, for JSON."""
        found = asdict(self)
        for shapes in (found["inputs"], *(layer[side] for layer in found["layers"] for side in ("bottoms", "tops"))):
            shapes.update((name, None) for name, shape in shapes.items() if isinstance(shape, OpenShape))
        return found


def summarise(
    param: caffe_pb2.NetParameter,
    input_size: tuple[int, int] | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    **state: Any,
) -> NetSummary:
    """The summary of a net (upgraded definition).

    Args:
        input_size: (height, width) of all image and label inputs; by default those in the prototxt, and 500 x 500 where
            it doesn't say (a warning tells).
        shapes: whole shapes of inputs, by name.
        state: phase, level, stages, allow_python, base_dir, file and so on, as for `Net`.

    Raises:
        GraphError: the layers don't fit together, or not this input size; the message begins with `file`, if given.
    """
    try:
        return _summary(param, input_size, shapes or {}, state)
    except (GraphError, DataError) as error:
        if state.get("file") is not None:
            error.args = (one_line(f"{os.fspath(state['file'])}: {error}"),)
        raise


def _summary(
    param: caffe_pb2.NetParameter,
    input_size: tuple[int, int] | None,
    shapes: Mapping[str, Sequence[int]],
    state: Mapping[str, Any],
) -> NetSummary:
    net = Net(param, shapes=shapes, fill=False, **state).to("meta")
    sources = {
        blob: shape
        for node in net.graph.nodes
        if node.is_data and not (node.held and any(net.source_shapes[blob.name] is None for blob in node.tops))
        for blob, shape in zip(node.tops, _source_shapes(net, node, input_size, shapes), strict=True)
    }
    known = blob_shapes(net.graph, net.layers, sources)
    layers = []
    owned = _owned(net)
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        if node.automatic:
            continue
        layers.append(
            LayerSummary(
                name=node.name,
                type=node.type,
                bottoms={_root(blob).name: known.get(blob, OPEN) for blob in node.bottoms},
                tops={blob.name: known.get(blob, OPEN) for blob in node.tops},
                parameters=sum(count for count, _ in owned.get(id(layer), [])),
                learnable=sum(count for count, learns in owned.get(id(layer), []) if learns),
                multiply_adds=0
                if any(blob not in known for blob in [*node.bottoms, *node.tops])
                else layer.multiply_adds([known[blob] for blob in node.bottoms], [known[blob] for blob in node.tops]),
            )
        )
    parameters = sum(layer.parameters for layer in layers)
    everything, peak = blob_bytes(net.graph.nodes, known)
    return NetSummary(
        name=net.graph.name,
        inputs={blob.name: known.get(blob, OPEN) for node in net.graph.nodes if node.is_data for blob in node.tops},
        layers=layers,
        parameters=parameters,
        learnable=sum(layer.learnable for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        parameter_bytes=parameters * _BYTES,
        blob_bytes=everything,
        peak_blob_bytes=peak,
    )


def _owned(net: Net) -> dict[int, list[tuple[int, bool]]]:
    """For each layer (by id) the sizes of the parameter blobs that it owns, and whether a solver changes them."""
    holders: dict[int, int] = {}
    for layer in net.layers:
        for name in layer.blob_names:
            holders.setdefault(id(getattr(layer, name)), id(layer))
    owned: dict[int, list[tuple[int, bool]]] = {}
    for param in net.learnable:
        learns = param.lr_mult != 0 and isinstance(param.tensor, nn.Parameter)
        owned.setdefault(holders[id(param.tensor)], []).append((param.tensor.numel(), learns))
    return owned


def _source_shapes(
    net: Net, node: Node, input_size: tuple[int, int] | None, given: Mapping[str, Sequence[int]]
) -> list[Shape]:
    tops = []
    for blob in node.tops:
        shape = net.source_shapes[blob.name]
        if shape is None or None in shape[1:2]:
            raise GraphError(
                f"{net.graph.title}: nothing tells the shape of input {blob.name!r}; "
                f"give it (--shape {blob.name}=N,C,H,W)"
            )
        extents = list(shape)
        if len(extents) == 4 and input_size is not None and not node.facts.makes_data and blob.name not in given:
            extents[2:] = input_size
        if None in extents[2:]:
            _warn_of_usual_size()
            extents[2:] = [usual if n is None else n for n, usual in zip(extents[2:], _USUAL_SIZE, strict=False)]
        tops.append(tuple(1 if extent is None else extent for extent in extents))
    return tops


def _warn_of_usual_size() -> None:
    height, width = _USUAL_SIZE
    warnings.warn(
        f"the net does not say the size of its inputs; {height}x{width} is assumed (--input-size)",
        FcnprotoWarning,
        stacklevel=2,
    )


def _root(blob: Blob) -> Blob:
    """The blob of the prototxt that a blob from an automatic Split stands for."""
    return _root(blob.producer.bottoms[0]) if blob.producer.automatic else blob


def blob_bytes(nodes: Sequence[Node], shapes: Mapping[Blob, Shape]) -> tuple[int, int]:
    """(bytes of all blobs, greatest sum alive at one time). Tops that are their bottom's memory, as those of Split,
    Flatten and layers in place, are no copies."""
    sizes = {blob: _BYTES * math.prod(shape) for blob, shape in shapes.items() if _holder(blob) is blob}
    last_read: dict[Blob, Node] = {_holder(blob): node for node in nodes for blob in (*node.tops, *node.bottoms)}
    ends: dict[Node, list[Blob]] = {}
    for blob, node in last_read.items():
        if any(_holder(read) is blob for read in node.bottoms):
            ends.setdefault(node, []).append(blob)
    alive = peak = 0
    for node in nodes:
        alive += sum(sizes.get(blob, 0) for blob in node.tops)
        peak = max(peak, alive)
        alive -= sum(sizes.get(blob, 0) for blob in ends.get(node, ()))
    return sum(sizes.values()), peak


def _holder(blob: Blob) -> Blob:
    """The blob whose memory a blob is."""
    bottom = bottom_in_memory(blob)
    return blob if bottom is None else _holder(bottom)
