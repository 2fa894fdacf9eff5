"""pycaffe's `draw`: drawings of nets, in the package's own style; no pydot is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from fcnproto.atomic import atomic_write
from fcnproto.drawing import lay_out, layer_params, make_diagram, to_image, to_svg
from fcnproto.errors import Error, UsageError
from fcnproto.inspect.summary import OPEN, LayerSummary, NetSummary, summarise
from fcnproto.schema import caffe_pb2
from fcnproto.schema.upgrade import upgrade_net

_ENDINGS = (".png", ".svg")


def draw_net_to_file(
    caffe_net: caffe_pb2.NetParameter,
    filename: str | os.PathLike[str],
    rankdir: str = "LR",
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Draw a net to a .png or .svg file; drawings run from top to bottom whatever `rankdir` says."""
    ending = os.path.splitext(filename)[1].lower()
    if ending not in _ENDINGS:
        raise UsageError(f"{os.fspath(filename)}: drawings end in {' or '.join(_ENDINGS)}")
    content = draw_net(caffe_net, rankdir, ending[1:], phase, display_lrm)
    with atomic_write(filename) as file:
        file.write(content)


def draw_net(
    caffe_net: caffe_pb2.NetParameter,
    rankdir: str = "LR",
    ext: str = "png",
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """The bytes of a drawing of a net, TEST unless `phase` says TRAIN."""
    import io

    name = "train" if phase == caffe_pb2.TRAIN else "test"
    net = caffe_pb2.NetParameter()
    net.CopyFrom(caffe_net)
    upgrade_net(net)
    kept = layer_params(net, name)
    try:
        summary = summarise(net, None, phase=name)
    except Error:  # pycaffe drew whatever could be read: sizes that only data tell, layers that it lacked
        summary = _without_shapes(net.name, kept.values())
    diagram = make_diagram(summary, kept)
    layout = lay_out(diagram)
    if ext == "svg":
        return to_svg(diagram, layout).encode()
    buffer = io.BytesIO()
    to_image(diagram, layout).save(buffer, format=ext.upper())
    return buffer.getvalue()


def _without_shapes(name: str, layers: Iterable[caffe_pb2.LayerParameter]) -> NetSummary:
    """What a drawing shows of layers of which nothing is computed."""
    shown = [
        LayerSummary(layer.name, layer.type, dict.fromkeys(layer.bottom, OPEN), dict.fromkeys(layer.top, OPEN), 0, 0, 0)
        for layer in layers
    ]
    return NetSummary(name, {}, shown, 0, 0, 0, 0, 0, 0)


def get_pydot_graph(*arguments: Any, **settings: Any) -> Any:
    """pycaffe's graph for pydot, which this package doesn't make."""
    raise UsageError("caffe.draw makes no pydot graphs here; call draw_net_to_file, or `fcnproto draw`")
