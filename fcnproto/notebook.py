"""How results look in a notebook: HTML for a net, a segmentation, a report of parity, a solver's curve.

What comes from a file (names of layers, blobs, classes) is escaped. Nothing here is a script, so that notebooks which
are not trusted show it too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fcnproto.drawing import lay_out, layer_params, make_diagram, to_svg
from fcnproto.errors import Error
from fcnproto.escaping import markup
from fcnproto.inspect.summary import NetSummary, OpenShape, summarise
from fcnproto.net.weights import definition
from fcnproto.pictures.chart import Curves, draw_chart
from fcnproto.pictures.labels import overlay
from fcnproto.preprocessing import background_labels
from fcnproto.schema.extract import loadable
from fcnproto.zoo import palette

if TYPE_CHECKING:
    from fcnproto.net import Net
    from fcnproto.parity.report import Report
    from fcnproto.segment import Segmentation
    from fcnproto.solver import Solver

_LONGEST_NAME, _MOST_ROWS, _MOST_CLASSES = 100, 400, 24
_LARGEST = 480
"""Pixels: the longest side of a picture within a page."""
_CELL = "padding:2px 10px;text-align:left;border-bottom:1px solid #8884;"
_NUMBER = _CELL + "text-align:right;font-variant-numeric:tabular-nums;"


def of_net(net: Net) -> str:
    """A net: what it is in a line, its layers and its drawing to be unfolded."""
    head = [f"<b>{_name(net.meta.name or net.graph.name or 'net')}</b>, phase {net.phase}"]
    count = sum(blob.numel() for blobs in net.params.values() for blob in blobs)
    head.append(f"{len(net.params)} layers with {count:,} parameters, {net.dtype}, {markup(str(net.device))}")
    facts = [
        ("inputs", ", ".join(f"{_name(entry.blob)} ({markup(str(entry.preprocessing))})" for entry in net.meta.inputs)),
        ("outputs", ", ".join(map(_name, net.outputs))),
        ("classes", _listed(net.meta.classes)),
    ]
    lines = [f"<div>{text}</div>" for text in head]
    lines += [f"<div>{title}: {text}</div>" for title, text in facts if text]
    try:
        param, _ = loadable(definition(net))
        summary = summarise(param, phase=net.phase, dialect=net.dialect)
    except Error as error:  # sizes that nobody has said yet: the layers' names are told all the same
        lines.append(f"<div>{markup(str(error))}</div>")
        return _framed("".join(lines))
    lines.append(_folded(f"{len(summary.layers)} layers", _table(summary)))
    diagram = make_diagram(summary, layer_params(param, net.phase))
    drawing = to_svg(diagram, lay_out(diagram, graphviz=False))
    lines.append(
        _folded("drawing", f'<div style="overflow:auto;max-height:600px;background:#fff">{_inline(drawing)}</div>')
    )
    return _framed("".join(lines))


def _inline(svg: str) -> str:
    """A drawing as an image of its own, whose styles touch nothing around it."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return f'<img alt="the net\'s drawing" style="max-width:none" src="data:image/svg+xml;base64,{data}">'


def _table(summary: NetSummary) -> str:
    rows = []
    for layer in summary.layers[:_MOST_ROWS]:
        tops = "<br>".join(f"{_name(name)} {_shape(shape)}" for name, shape in layer.tops.items())
        cells = [(_CELL, _name(layer.name)), (_CELL, _name(layer.type)), (_CELL, tops)]
        cells += [(_NUMBER, _count(layer.parameters)), (_NUMBER, _count(layer.multiply_adds))]
        rows.append("".join(f'<td style="{style}">{text}</td>' for style, text in cells))
    titles = ["layer", "type", "tops", "parameters", "multiply-adds"]
    head = "".join(f'<th style="{_CELL}">{title}</th>' for title in titles)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    more = len(summary.layers) - _MOST_ROWS
    rest = f"<div>and {more} more</div>" if more > 0 else ""
    return f'<table style="border-collapse:collapse;font-size:inherit"><tr>{head}</tr>{body}</table>{rest}'


def _shape(shape: Sequence[int]) -> str:
    return "?" if isinstance(shape, OpenShape) else "×".join(map(str, shape)) or "scalar"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def of_segmentation(found: Segmentation) -> str:
    """A segmentation: the image, the labels' colours over it, and the classes with their colours and shares."""
    height, width = found.labels.shape
    image = found.image if found.image is not None else Image.new("RGB", (width, height), "white")
    laid = overlay(image.convert("RGB"), found.labels, bare=background_labels(found.names))
    pictures = "".join(
        _picture(each, title) for each, title in ((image.convert("RGB"), "image"), (laid, "labels over it"))
    )
    colours, rows = palette(), []
    counts = np.bincount(found.labels.ravel(), minlength=256)
    order = sorted(np.flatnonzero(counts), key=lambda label: (-counts[label], label))
    for label in map(int, order[:_MOST_CLASSES]):
        box = f'<span style="display:inline-block;width:1em;height:1em;background:rgb{colours[label]}"></span>'
        share = f"{counts[label] / found.labels.size:.3f}"
        rows.append(
            f'<tr><td style="{_CELL}">{box}</td><td style="{_CELL}">{_name(found.name(label))}</td>'
            f'<td style="{_NUMBER}">{share}</td></tr>'
        )
    more = f"<div>and {len(order) - _MOST_CLASSES} more</div>" if len(order) > _MOST_CLASSES else ""
    legend = f'<div><table style="border-collapse:collapse;font-size:inherit">{"".join(rows)}</table>{more}</div>'
    row = f'<div style="display:flex;gap:12px;flex-wrap:wrap;align-items:flex-start">{pictures}{legend}</div>'
    return _framed(f"<div>{_name(found.blob)}, {width}×{height}</div>{row}")


def of_report(report: Report) -> str:
    """A report of parity: the verdict, and a row for each blob to be unfolded."""
    departure = report.departure
    colour, verdict = ("#2a7", "agrees") if report.agrees else ("#c33", "departs")
    where = f" first at {_name(departure.entry.name)}" if departure is not None else ""
    sides = f"{_name(report.net or 'the net')} beside {markup(report.reference)}"
    head = f'<b style="color:{colour}">{verdict}</b>{where}: {sides}'
    rows = []
    for entry in report.entries[:_MOST_ROWS]:
        found = entry.measures
        value = "other shape" if found is None else f"{found.max_rel:.2e}"
        style = _NUMBER + ("" if entry.severity <= 1 else "color:#c33;font-weight:bold;")
        rows.append(
            f'<tr><td style="{_CELL}">{_name(entry.layer)}</td><td style="{_CELL}">{_name(entry.name)}</td>'
            f'<td style="{_CELL}">{markup(entry.kind)}</td><td style="{style}">{value}</td></tr>'
        )
    titles = "".join(f'<th style="{_CELL}">{title}</th>' for title in ("layer", "blob", "of", "largest deviation"))
    table = f'<table style="border-collapse:collapse;font-size:inherit"><tr>{titles}</tr>{"".join(rows)}</table>'
    return _framed(f"<div>{head}</div>{_folded(f'{len(report.entries)} comparisons', table)}")


def of_solver(solver: Solver) -> str:
    """A solver: how far it is, and the curve of its losses."""
    state = f"iteration {solver.iter}, rate {solver.lr:g}" if solver.param.lr_policy else f"iteration {solver.iter}"
    head = f"<div><b>{_name(solver.net.graph.name or 'net')}</b>, {state}</div>"
    if not solver.losses:
        return _framed(f"{head}<div>no step was done yet</div>")
    per_step = max(1, solver.param.iter_size)
    losses = [float(np.mean(solver.losses[i : i + per_step])) for i in range(0, len(solver.losses), per_step)]
    curves = Curves()
    curves.iterations = list(range(solver.iter - len(losses), solver.iter))
    curves.losses, window = losses, max(1, solver.param.average_loss)
    curves.smoothed = [float(np.mean(losses[max(0, k - window + 1) : k + 1])) for k in range(len(losses))]
    picture = _picture(draw_chart(curves, solver.net.graph.name or "net"), "loss by iteration", largest=1000)
    return _framed(f"{head}<div>last loss {solver.losses[-1]:.6g}</div>{picture}")


def _framed(content: str) -> str:
    return f'<div style="font-family:sans-serif;font-size:13px;line-height:1.5">{content}</div>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _name(text: Any) -> str:
    return markup(text, _LONGEST_NAME)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(_name, names[:_MOST_CLASSES]))
    return f"{shown}, ... ({len(names)})" if len(names) > _MOST_CLASSES else shown


def _picture(image: Image.Image, title: str, largest: int = _LARGEST) -> str:
    """A picture within the page, with its title below."""
    shown = image.copy()
    shown.thumbnail((largest, largest))
    content = io.BytesIO()
    shown.save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return (
        f'<figure style="margin:0"><img alt="{markup(title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{markup(title)}</figcaption></figure>"
    )
