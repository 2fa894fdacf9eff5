"""Nets that end in what programs want of scores: probabilities (Softmax) or labels (ArgMax), by Caffe's own layers."""

from __future__ import annotations

from collections.abc import Sequence

from fcnproto.errors import UsageError
from fcnproto.graph import Node
from fcnproto.net import Net
from fcnproto.net.described import known_meta
from fcnproto.net.roles import score_blobs
from fcnproto.net.weights import definition
from fcnproto.schema import caffe_pb2
from fcnproto.schema.extract import loadable

_ENDINGS = {"Softmax": "prob", "ArgMax": "label"}


def with_ends(net: Net, kinds: Sequence[str]) -> Net:
    """The net with layers of these kinds ("Softmax", "ArgMax") after each of its score blobs, of the same weights.

    Blob `score` becomes `score_prob` (probabilities over the classes) and `score_label`, (N, 1, height, width), the
    class with the highest score, the lowest of equals. Where the net has such a layer already it stays the only one.

    Raises `GraphError` where the net has no scores, `UsageError` where it has blobs of these names.
    """
    param = definition(net)
    for blob in score_blobs(net):
        for kind in kinds:
            if any(node.type == kind and _read_by(node) == blob for node in net.graph.nodes):
                continue
            name = f"{blob}_{_ENDINGS[kind]}"
            if name in net.graph.blobs:
                raise UsageError(f"{net.graph.title}: has a blob {name!r} already")
            layer = param.layer.add(name=name, type=kind, bottom=[blob], top=[name])
            layer.phase = net.graph.state.phase
            if kind == "ArgMax":
                layer.argmax_param.axis = 1
    if not kinds or len(param.layer) == len(net.graph.nodes):
        return net
    made = Net(
        _without_splits(param), net.phase, dialect=net.dialect, allow_python=True, fill=False, shapes=_shapes(net)
    )
    made.load_state_dict(net.state_dict())
    made._unfilled.clear()
    if meta := known_meta(net):
        made.meta = meta
    return made


def _read_by(node: Node) -> str:
    """The blob that a layer reads, before Split layers."""
    blob = node.bottoms[0]
    while blob.producer.type == "Split":
        blob = blob.producer.bottoms[0]
    return blob.name


def _shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """The shapes of data layers' tops, as far as they are whole."""
    inputs = set(net.inputs)
    return {
        name: tuple(extent for extent in shape if extent is not None)
        for name, shape in net.source_shapes.items()
        if shape is not None and None not in shape and name not in inputs
    }


def _without_splits(param: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """The definition as a prototxt has it: blobs of several readers by their own names."""
    found, _ = loadable(param, {})
    return found
