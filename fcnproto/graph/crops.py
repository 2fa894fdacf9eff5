"""Crop layers without offsets: what nets of 2015 mean by them.

The Caffe of the FCN authors' first branch (and those of HED, RCF, CRF-RNN, U-Net after it) computed a Crop's offsets
from the coordinate maps; Caffe 1.0 begins at 0 where `crop_param` gives none. The same file is read either way here.
"""

from __future__ import annotations

import warnings

from fcnproto.errors import FcnprotoWarning, GraphError, UsageError
from fcnproto.graph import coord_map
from fcnproto.graph.graph import Graph, Node

CHOICES = ("caffe", "aligned")
"""How a Crop without offset is read: from 0 on, as Caffe 1.0 does, or by the coordinate map."""

_MOST_SAID = 8


def read_offsets(graph: Graph, crop: str) -> None:
    """Act on the Crop layers without an offset for which the coordinate map says another one than 0.

    "aligned" gives them that offset (in the nodes' own messages); "caffe" warns, once for the net. Where no coordinate
    map says a whole number of positions inside the blob, the layer stays as it is. Raises `UsageError` for another
    `crop`.
    """
    if crop not in CHOICES:
        raise UsageError(f"crop={crop!r}: expected {' or '.join(map(repr, CHOICES))}")
    found = _align(graph)
    if crop == "aligned":
        return
    for node in found:
        node.param.crop_param.ClearField("offset")
    if found:
        listed = [f"{node.name!r} 0 where the map says {_said(offsets)}" for node, offsets in found.items()]
        more = f" and {len(listed) - _MOST_SAID} more" if len(listed) > _MOST_SAID else ""
        warnings.warn(
            f"{graph.title}: Crop layers without an offset begin at 0, as in Caffe 1.0, but by the coordinate "
            f"maps their bottoms lie elsewhere: {'; '.join(listed[:_MOST_SAID])}{more}. Nets of 2015 (the first FCN, "
            'HED, RCF, CRF-RNN) mean the latter: load(..., crop="aligned") or --crop aligned takes it',
            FcnprotoWarning,
            stacklevel=4,
        )


def _said(offsets: list[int]) -> str:
    return str(offsets[0]) if len(set(offsets)) == 1 else ", ".join(map(str, offsets))


def _align(graph: Graph) -> dict[Node, list[int]]:
    """Give the Crops without offset that of the coordinate map, in the order of layers, since a later one's map passes
    through the earlier ones. Returns those that got one."""
    found: dict[Node, list[int]] = {}
    for node in graph.nodes:
        if node.type == "Crop" and not node.param.crop_param.offset and len(node.bottoms) == 2:
            offsets = _offsets(node)
            if any(offsets):
                found[node] = offsets
                node.param.crop_param.offset.extend(offsets)
    return found


def _offsets(node: Node) -> list[int]:
    """The offsets that the coordinate map gives for a Crop; empty where there is no such map, or along other axes."""
    try:
        found = coord_map.crop(node.bottoms[0], node.bottoms[1])
    except GraphError:
        return []
    return list(found.offset) if found.axis == node.param.crop_param.axis else []
