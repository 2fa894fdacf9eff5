"""The layer graph of a net: which layer reads and writes which version of which blob.

Built from an upgraded `NetParameter` by Caffe's rules: layers filtered by state, a Split layer after every top
with several readers, in-place layers as new versions of a blob. Knows nothing of tensors or parameters' shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fcnproto.errors import FcnprotoWarning, GraphError, net_title
from fcnproto.escaping import printable
from fcnproto.graph.facts import TypeFacts
from fcnproto.graph.rules import is_kept, net_state
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import suggestion
from fcnproto.schema.splits import is_inserted, split_name

AUTOMATIC = "(automatic)"
"""Caffe's name for the top that a loss layer makes for itself where the prototxt gives it none."""

_MOST_SAID = 8


@dataclass(eq=False)
class Blob:
    """One version of a blob: what one layer wrote to one top. `bottom` says which of its reader's bottoms it is."""

    name: str
    producer: Node
    top: int
    consumer: Node | None = None
    bottom: int = -1

    def __repr__(self) -> str:
        return printable(f"<{self.name} of {self.producer.name}>")


@dataclass(eq=False)
class Node:
    """One layer of the graph. `param` is its own copy of the layer's message, `facts` what its type says of itself.

    `automatic`: a Split that stands in no prototxt, inserted here or by the Caffe that wrote the net. `held` says why
    the layer can't be computed for now (a type that nobody knows, a size that nobody has said); empty as a rule.
    """

    name: str
    type: str
    param: caffe_pb2.LayerParameter
    facts: TypeFacts
    is_data: bool = False
    bottoms: list[Blob] = field(default_factory=list)
    tops: list[Blob] = field(default_factory=list)
    loss_weights: list[float] = field(default_factory=list)
    automatic: bool = False
    held: str = ""

    def __repr__(self) -> str:
        return printable(f"<{self.type} {self.name}>")


@dataclass(eq=False)
class Graph:
    """A net's layers in order, with its blobs.

    `blobs` maps each name to the version that Caffe holds after a forward pass: the last one written.
    `inputs` are the tops of Input layers, `outputs` the blobs that no layer reads, in Caffe's (byte) order.
    """

    name: str
    state: caffe_pb2.NetState
    force_backward: bool
    nodes: list[Node]
    blobs: dict[str, Blob]
    inputs: list[str]
    outputs: list[str]

    @property
    def title(self) -> str:
        """How messages call the net."""
        return net_title(self.name)

    def blob(self, name: str) -> Blob:
        """The last version of the blob called `name`; `GraphError` with the nearest name if there is none."""
        try:
            return self.blobs[name]
        except (KeyError, TypeError):
            raise GraphError(f"no blob {name!r} in {self.title}{suggestion(str(name), self.blobs)}") from None

    def __getstate__(self) -> dict[str, Any]:
        """The graph as tables with numbers for blobs: copied as it is, each layer would be a level of recursion."""
        numbers = {blob: i for i, blob in enumerate(top for node in self.nodes for top in node.tops)}
        rows = [
            {
                **node.__dict__,
                "bottoms": [numbers[blob] for blob in node.bottoms],
                "tops": [blob.name for blob in node.tops],
            }
            for node in self.nodes
        ]
        return {**self.__dict__, "nodes": rows, "blobs": {name: numbers[blob] for name, blob in self.blobs.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.nodes, blobs = [], list[Blob]()
        for row in state["nodes"]:
            node = Node(**{**row, "bottoms": [blobs[i] for i in row["bottoms"]], "tops": []})
            for k, blob in enumerate(node.bottoms):
                blob.consumer, blob.bottom = node, k
            node.tops = [Blob(name, node, j) for j, name in enumerate(row["tops"])]
            blobs += node.tops
            self.nodes.append(node)
        self.blobs = {name: blobs[i] for name, i in state["blobs"].items()}

    def weighted(self) -> list[tuple[Blob, float]]:
        """The tops with a loss weight other than zero, in layer order."""
        return [
            (top, weight)
            for node in self.nodes
            for top, weight in zip(node.tops, node.loss_weights, strict=True)
            if weight != 0
        ]


def build_graph(
    net: caffe_pb2.NetParameter,
    facts: Callable[[str, str], TypeFacts],
    phase: str | int,
    level: int = 0,
    stages: Sequence[str] = (),
) -> Graph:
    """The graph of `net` (upgraded) for a phase, level and stages.

    `facts(type, layer name)` gives what is known of a layer type and raises for an unknown one.
    Raises `GraphError` for unknown or doubly written blobs, wrong numbers of bottoms, tops, loss weights or
    propagate_down entries.
    """
    state = net_state(net, phase, level, stages)
    if net.debug_info:
        message = f"{net_title(net.name)}: debug_info has no effect in a net; the solver's debug_info has"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)
    params = []
    for layer in net.layer:
        if is_kept(layer, state):
            param = caffe_pb2.LayerParameter()
            param.CopyFrom(layer)
            params.append(param)
    return _connect(net, state, _insert_splits(params), facts)


def _unknown_bottom(
    params: Sequence[caffe_pb2.LayerParameter], position: int, index: int, known: Iterable[str]
) -> NoReturn:
    """The error for bottom `index` of the layer at `position`, which nobody before it writes; with the others of the
    net that nobody writes, so that all can be mended at once."""
    layer, name = params[position], params[position].bottom[index]
    where = f"layer {layer.name!r} ({layer.type}): bottom {index} is {name!r}"
    written = {*known, *(top for other in params[position:] for top in other.top)}
    others = list(dict.fromkeys(bottom for other in params for bottom in other.bottom if bottom not in written))
    others = [other for other in others if other != name]
    more = f"; nor does any write {', '.join(map(repr, others[:_MOST_SAID]))}" if others else ""
    more += f" and {len(others) - _MOST_SAID} more" if len(others) > _MOST_SAID else ""
    if name in layer.top:
        raise GraphError(f"{where}, which no earlier layer writes, only this one itself{more}")
    if name in written:
        raise GraphError(f"{where}, which only a later layer writes; layers must follow the ones they read from{more}")
    raise GraphError(f"{where}, which no earlier layer writes{suggestion(name, known)}{more}")


def _readers(params: Sequence[caffe_pb2.LayerParameter]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """For every top (layer, index) the bottoms (layer, index) that read it, in file order."""
    writer: dict[str, tuple[int, int]] = {}
    readers: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, param in enumerate(params):
        for j, bottom in enumerate(param.bottom):
            if bottom not in writer:
                _unknown_bottom(params, i, j, writer)
            readers[writer[bottom]].append((i, j))
        for j, top in enumerate(param.top):
            writer[top] = (i, j)
            readers[i, j] = []
    return readers


def _insert_splits(params: list[caffe_pb2.LayerParameter]) -> list[caffe_pb2.LayerParameter]:
    """Caffe's Split layers: after a layer one for each of its tops that is used more than once.

    A loss weight counts as a use; it moves to the first top of the Split and the layer's own weights are cleared.
    """
    readers = _readers(params)
    result = []
    for i, param in enumerate(params):
        result.append(param)
        weights = list(param.loss_weight)
        for j, top in enumerate(param.top):
            weight = weights[j] if j < len(weights) else 0.0
            count = len(readers[i, j]) + (weight != 0)
            if count < 2:
                continue
            split = caffe_pb2.LayerParameter(name=split_name(top, param.name, j), type="Split", bottom=[top])
            split.top.extend(f"{split.name}_{k}" for k in range(count))
            if weight != 0:
                split.loss_weight.extend([weight] + [0.0] * (count - 1))
                param.ClearField("loss_weight")
            for k, (reader, bottom) in enumerate(readers[i, j], start=int(weight != 0)):
                params[reader].bottom[bottom] = split.top[k]
            result.append(split)
    return result


def _connect(
    net: caffe_pb2.NetParameter,
    state: caffe_pb2.NetState,
    params: Iterable[caffe_pb2.LayerParameter],
    facts: Callable[[str, str], TypeFacts],
) -> Graph:
    """Nodes and blobs of layers that name each blob version's single reader."""
    blobs: dict[str, Blob] = {}
    nodes: list[Node] = []
    for param in params:
        known = facts(param.type, param.name)
        # What a Python layer, or one that nobody knows, gives without bottoms comes from outside, as any data layer's.
        is_data = known.is_data or ((known.holds_place or param.type == "Python") and not param.bottom)
        node = Node(param.name, param.type, param, known, is_data)
        _connect_bottoms(node, blobs)
        _connect_tops(node, known, blobs)
        node.loss_weights = _loss_weights(node, known)
        node.automatic = any(is_inserted(param, blob.producer.name, blob.top) for blob in node.bottoms)
        nodes.append(node)
    inputs = [top.name for node in nodes if node.type == "Input" for top in node.tops]
    unread = {blob.name for blob in blobs.values() if blob.consumer is None}
    outputs = sorted(unread, key=lambda name: name.encode())
    return Graph(net.name, state, net.force_backward, nodes, blobs, inputs, outputs)


def _connect_bottoms(node: Node, blobs: dict[str, Blob]) -> None:
    for name in node.param.bottom:
        blob = blobs[name]
        blob.consumer, blob.bottom = node, len(node.bottoms)
        node.bottoms.append(blob)
    if node.param.propagate_down and len(node.param.propagate_down) != len(node.bottoms):
        raise GraphError(
            f"layer {node.name!r} ({node.type}): {len(node.param.propagate_down)} propagate_down entries "
            f"for {len(node.bottoms)} bottoms; give none or one for each"
        )


def _connect_tops(node: Node, known: TypeFacts, blobs: dict[str, Blob]) -> None:
    where = f"layer {node.name!r} ({node.type})"
    named: set[str] = set()
    for j, name in enumerate(node.param.top):
        in_place = j < len(node.bottoms) and node.bottoms[j].name == name
        if in_place and not known.in_place:
            raise GraphError(
                f"{where}: top {name!r} is its bottom, but this type can't work in place; name the top otherwise"
            )
        if name in named:
            raise GraphError(f"{where}: names the top {name!r} twice")
        named.add(name)
        if name in blobs and not in_place:
            first = blobs[name].producer.name
            raise GraphError(
                f"{where}: top {name!r} is written by layer {first!r} already; only a layer that is the sole reader "
                "of a blob may write to it again (in place)"
            )
        node.tops.append(Blob(name, node, j))
    automatic = max(0, known.tops[0] - len(node.tops)) if known.is_loss else 0
    allowed = known.bottoms_of(node.param)
    if not known.fork and not allowed[0] <= len(node.bottoms) <= known.fork_bottoms:
        # A fork's layer, or another fork's of its name, may have others: it is for the layer to say.
        check_counts(where, len(node.bottoms), allowed, len(node.tops) + automatic, known.tops)
    for blob in node.tops:
        blobs[blob.name] = blob
    node.tops += [Blob(AUTOMATIC, node, len(node.param.top) + k) for k in range(automatic)]


def check_counts(
    where: str, bottoms: int, allowed: tuple[int, int | None], tops: int, allowed_tops: tuple[int, int | None]
) -> None:
    """`GraphError` where a layer has more or fewer bottoms or tops than its type allows."""
    _check_count(where, "bottom", bottoms, allowed)
    _check_count(where, "top", tops, allowed_tops)


def _check_count(where: str, what: str, count: int, allowed: tuple[int, int | None]) -> None:
    low, high = allowed
    if count < low or (high is not None and count > high):
        expected = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        raise GraphError(f"{where}: has {count} {what}{'' if count == 1 else 's'}, expected {expected}")


def _loss_weights(node: Node, known: TypeFacts) -> list[float]:
    given = list(node.param.loss_weight)
    if not given:
        return [1.0 if known.is_loss and j == 0 else 0.0 for j in range(len(node.tops))]
    if len(given) == 1 and known.is_loss:
        given += [0.0] * (len(node.tops) - 1)
    if len(given) != len(node.tops):
        raise GraphError(
            f"layer {node.name!r} ({node.type}): {len(given)} loss_weight entries for {len(node.tops)} tops; "
            "give none or one for each"
        )
    return given
