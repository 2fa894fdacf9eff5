"""What the original Caffe stops at or computes otherwise, as findings: whether a net that runs here trains there."""

from __future__ import annotations

from collections.abc import Iterator

from fcnproto.checking.findings import Finding
from fcnproto.checking.kinds import found
from fcnproto.net import Net
from fcnproto.net.caffe_memory import find_places
from fcnproto.net.refusals import caffe_refusals


def loads_in_caffe(net: Net) -> Iterator[Finding]:
    """One finding for each thing that the original Caffe refuses in the net."""
    for where, reason in caffe_refusals(net):
        yield found("caffe-refuses", "net" if where == "net" else [where], reason, level="fault")


def other_gradients(net: Net) -> Iterator[Finding]:
    """One finding for each layer whose gradient is another in Caffe, where anything learns by it."""
    places = find_places(net.graph, net.layers, net.parameter_places(), net.shared_blobs)
    for index, place in places.items():
        if place.counts:
            node = net.graph.nodes[index]
            yield found("caffe-gradient", [node.name], f"{node.type} {'; '.join(place.reasons)}")
