"""A page to explore a net: its drawing with zoom and search; a click shows a layer's settings and weight statistics.

One HTML file that needs nothing else. An address ending in `#<layer>` opens it at that layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcnproto.drawing.diagram import Diagram
from fcnproto.drawing.layout import Layout
from fcnproto.drawing.svg import COLOURS, to_svg
from fcnproto.escaping import markup, script_json
from fcnproto.inspect.summary import NetSummary
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import format_message

_TEMPLATE = Path(__file__).with_name("page.html")
_BINS = 40


def to_page(
    diagram: Diagram,
    layout: Layout,
    summary: NetSummary,
    params: Mapping[str, caffe_pb2.LayerParameter],
    weights: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> str:
    """The page's text. `weights` are the parameter blobs by layer and name ("weight"); without, none are shown."""
    facts = {
        layer.name: {
            "type": layer.type,
            "bottoms": layer.bottoms,
            "tops": layer.tops,
            "multiply_adds": layer.multiply_adds,
            "settings": _settings(params.get(layer.name)),
            "weights": [statistics(name, blob) for name, blob in (weights or {}).get(layer.name, {}).items()],
        }
        for layer in reversed(summary.layers)
    }
    kinds = dict.fromkeys(box.kind for box in diagram.boxes)
    return fill_template(
        _TEMPLATE,
        TITLE=markup(diagram.name or "net", 200),
        SVG=to_svg(diagram, layout),
        TOTALS=f"{len(summary.layers)} layers, {summary.parameters:,} parameters, {summary.multiply_adds:,} "
        "multiply-adds",
        KEYS="".join(f'<span style="background:{COLOURS[kind]}">{kind}</span>' for kind in kinds),
        FACTS=script_json(facts),
    )


def fill_template(path: Path, **values: str) -> str:
    """A template's text with each `@@NAME@@` replaced, in the order of the names in the text."""
    parts = path.read_text(encoding="utf-8").split("@@")
    return "".join(values[part] if number % 2 else part for number, part in enumerate(parts))


def _settings(param: caffe_pb2.LayerParameter | None) -> str:
    if param is None:
        return ""
    shown = caffe_pb2.LayerParameter()
    shown.CopyFrom(param)
    for name in ("blobs", "name", "bottom", "top", "type"):
        shown.ClearField(name)
    return format_message(shown).strip() or "no settings"


def statistics(name: str, blob: Tensor) -> dict[str, Any]:
    """What is shown of a parameter blob: mean, deviation, extremes (None unless finite), share of zeros, histogram."""
    values = blob.detach().float().cpu().flatten()
    finite = values[values.isfinite()]
    result: dict[str, Any] = {"name": name, "shape": list(blob.shape), "mean": None, "std": None}
    result |= {"min": None, "max": None, "zeros": 0.0, "histogram": []}
    if finite.numel():
        low, high = float(finite.min()), float(finite.max())
        result |= {"mean": float(finite.mean(dtype=torch.float64)), "std": float(finite.std(correction=0))}
        result |= {"min": low, "max": high, "zeros": float((values == 0).double().mean())}
        if high > low:
            result["histogram"] = [int(count) for count in torch.histc(finite, _BINS, low, high)]
    return result
