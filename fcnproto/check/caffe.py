"""What the original Caffe stops at, as findings: whether a net that runs here loads and trains there."""

from __future__ import annotations

from collections.abc import Iterator

from fcnproto.check.findings import Finding, listed
from fcnproto.net import Net
from fcnproto.net.refusals import caffe_refusals


def loads_in_caffe(net: Net) -> Iterator[Finding]:
    """One finding for each thing that the original Caffe refuses in the net."""
    for where, reason in caffe_refusals(net):
        yield Finding(
            level="fault",
            code="caffe-refuses",
            where=where if where == "net" else listed([where]),
            seen=reason,
            why="the original Caffe stops there",
            remedy="change it if the net is to run there",
        )
