"""Where a net has which resolution: the last blob of each, for feature pyramids and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fcnproto.errors import GraphError
from fcnproto.graph import coord_map
from fcnproto.net import Net
from fcnproto.net.roles import self_made, unsplit
from fcnproto.net.shapes import assumed_shapes, blob_shapes


class FeatureInfo(Sequence[dict[str, Any]]):
    """The last blob of each resolution on the way down from the first image, the largest first.

    As in timm each is a dict of `num_chs`, `reduction` (pixels of the image for one of the blob) and `module` (the name
    in `named_modules`), and here of `blob`, Caffe's name, with which `net(x, blobs=info.blobs())` gives it.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = list(rows)

    def __getitem__(self, index: Any) -> Any:
        """The entry at a place."""
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"FeatureInfo({self._rows})"

    def blobs(self) -> list[str]:
        """Caffe's names of the blobs."""
        return [row["blob"] for row in self._rows]

    def channels(self) -> list[int]:
        """How many channels each has."""
        return [row["num_chs"] for row in self._rows]

    def reduction(self) -> list[int]:
        """How many pixels of the image one of each is."""
        return [row["reduction"] for row in self._rows]

    def module_name(self) -> list[str]:
        """The modules that make them."""
        return [row["module"] for row in self._rows]


def feature_info(net: Net) -> FeatureInfo:
    """See `Net.feature_info`. `GraphError` for a net without an image input."""
    image = next((entry.blob for entry in net.meta.inputs), None)
    if image is None:
        raise GraphError(f"net {net.graph.name!r}: has no image input, so there are no stages of resolution")
    found: dict[int, dict[str, Any]] = {}
    for reduction, row in _rows(net, image):
        if not found or reduction >= max(found):
            found[reduction] = row
    return FeatureInfo([found[reduction] for reduction in sorted(found) if reduction > 0])


def _scores(net: Net, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """The score blobs, and the blobs before them that have a channel for each class: coarse scores, and upsampled
    ones."""
    found: set[str] = set()
    for output in net.meta.outputs:
        open_blobs = [net.graph.blobs[output.blob]]
        while open_blobs:
            blob = open_blobs.pop()
            if blob.name not in found and shapes.get(blob.name, (0, 0))[1:2] == (len(output.classes),):
                found.add(blob.name)
                open_blobs += blob.producer.bottoms
    return found


def _rows(net: Net, image: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The blobs with maps of features in the order of layers, each with its reduction."""
    known = blob_shapes(net.graph, net.layers, assumed_shapes(net.source_shapes, net.graph), partial=True)
    own = {*self_made(net), *_scores(net, {blob.name: shape for blob, shape in known.items()})}
    modules = dict(zip(net.graph.nodes, net._module_names, strict=True))
    for node in net.graph.nodes:
        if node.is_data or node.automatic or node.facts.is_loss or node.facts.judges or not node.tops:
            continue
        top = node.tops[0]
        shape = known.get(top, ())
        # The value that Caffe keeps is that of the last layer in place.
        if len(shape) != 4 or net.graph.blobs[top.name] is not top or top.name in own or node.facts.ranks(node.param):
            continue
        try:
            scale = coord_map.coord_map_from_to(unsplit(top), net.graph.blobs[image]).scale
        except (GraphError, KeyError):
            continue
        scales = scale if isinstance(scale, (list, tuple)) else [scale]
        if all(one >= 1 and one.denominator == 1 for one in scales):
            row = {"num_chs": shape[1], "reduction": int(scales[0]), "module": modules[node], "blob": top.name}
            yield int(scales[0]), row
