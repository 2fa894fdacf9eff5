"""A parity report as one HTML file: table with bars, label maps, the net coloured by deviation."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fcnproto.drawing import Diagram, Layout, to_svg
from fcnproto.drawing.page import fill_template
from fcnproto.escaping import attribute_text, markup
from fcnproto.parity import provenance
from fcnproto.parity.measures import ULP_LIMITS
from fcnproto.parity.report import Entry, Report
from fcnproto.pictures.labels import label_image

_TEMPLATE = Path(__file__).with_name("report.html")
_LEVELS = (
    (0.1, "#cfe9c3", "below a tenth of the tolerance"),
    (1.0, "#edf0b5", "within it"),
    (10.0, "#f8cf9e", "up to ten times"),
    (math.inf, "#f2998c", "beyond"),
)
_SMALLEST = 1e-9
_LONGEST_NAME = 200


def to_html(report: Report, diagram: Diagram, layout: Layout) -> str:
    """The page's text; the diagram is that of the net compared."""
    first = report.departure.entry if report.departure else None
    return fill_template(
        _TEMPLATE,
        TITLE=_named(report.net or diagram.name or "net"),
        REFERENCE=markup(report.reference),
        VERDICT=_verdict(report),
        MAPS=_maps(report),
        BINS=markup(", ".join([*map(str, ULP_LIMITS), "more"])),
        ROWS="\n".join(_row(entry, entry is first) for entry in report.entries),
        REST=_rest(report) + _about(report),
        LEGEND="".join(f'<span style="background:{colour}">{text}</span>' for _, colour, text in _LEVELS),
        SVG=to_svg(diagram, layout, layer_colours(report)),
    )


def layer_colours(report: Report) -> dict[str, str]:
    """A colour for each layer that something was compared of, by its worst deviation over the tolerance."""
    worst: dict[str, float] = {}
    for entry in report.entries:
        worst[entry.layer] = max(worst.get(entry.layer, 0.0), 0.0 if entry.deviation == 0 else entry.severity)
    return {layer: _colour(value) for layer, value in worst.items()}


def _colour(severity: float) -> str:
    return next((colour for limit, colour, _ in _LEVELS if severity <= limit), _LEVELS[-1][1])


def _verdict(report: Report) -> str:
    departure = report.departure
    if departure is None:
        return (
            f'<p class="verdict good">All {len(report.entries)} arrays agree; the largest deviation is '
            f"{report.worst:.3g}.{_roundings(report)}</p>"
        )
    off = sum(not entry.agrees for entry in report.entries)
    entry = departure.entry
    size = f"{entry.deviation:.3g}" if entry.measures else "of shape"
    cause = f"<br>{markup(departure.cause)}." if departure.cause else ""
    return (
        f'<p class="verdict bad">{off} of {len(report.entries)} arrays depart. The first is {entry.kind} '
        f"<b>{_named(entry.name)}</b> of layer <b>{_named(entry.layer)}</b> ({_named(entry.type)}), deviation "
        f"{size}.<br>It looks like this: {markup(departure.looks_like)}.{cause}</p>"
    )


def _roundings(report: Report) -> str:
    return "".join(
        f"<br>{_named(entry.name)} lies beyond the tolerance by rounding alone: {markup(entry.judgement)}."
        for entry in report.roundings
    )


def _row(entry: Entry, first: bool) -> str:
    classes = " ".join(name for name, wanted in (("first", first), ("off", not entry.agrees)) if wanted)
    shape = "×".join(map(str, entry.shape)) or "scalar"
    if entry.shape != entry.reference_shape:
        shape += f" ({'×'.join(map(str, entry.reference_shape)) or 'scalar'})"
    what = entry.name if entry.kind == "blob" else f"{entry.kind} {entry.name}"
    cells = [("text", entry.layer), ("text", entry.type), ("text", what), ("text", shape)]
    start = f'<tr class="{classes}" data-layer="{attribute_text(entry.layer)}">'
    start += "".join(f'<td class="{kind}">{_named(text)}</td>' for kind, text in cells)
    found = entry.measures
    if found is None:
        return f'{start}<td colspan="7">other shape</td></tr>'
    argmax = "" if found.argmax is None else f"{found.argmax:.6f}"
    return (
        f'{start}<td class="value">{found.max_rel:.2e}</td>'
        f"<td>{_bar(entry)}</td><td>{found.max_abs:.2e}</td><td>{found.mean_rel:.2e}</td>"
        f"<td>{max(0.0, 1 - found.cosine):.1e}</td><td>{argmax}</td><td>{_steps(found.ulps)}</td></tr>"
    )


def _bar(entry: Entry) -> str:
    def place(value: float) -> float:
        if not math.isfinite(value):
            return 100.0
        return min(100.0, max(0.0, 100 * math.log(max(value, _SMALLEST) / _SMALLEST) / -math.log(_SMALLEST)))

    return (
        f'<span class="bar"><i style="width:{place(entry.deviation):.1f}%;background:{_colour(entry.severity)}"></i>'
        f'<b style="left:{place(entry.tolerance):.1f}%"></b></span>'
    )


def _steps(ulps: tuple[int, ...]) -> str:
    total = max(sum(ulps), 1)
    bars = "".join(f'<i style="height:{100 * math.sqrt(count / total):.0f}%"></i>' for count in ulps)
    names = [f"up to {limit}" for limit in ULP_LIMITS] + ["more"]
    title = ", ".join(f"{name}: {count}" for name, count in zip(names, ulps, strict=True) if count)
    return f'<span class="steps" title="{title}">{bars}</span>'


def _maps(report: Report) -> str:
    if not report.maps:
        return ""
    parts = ['<h2>Score maps</h2><div class="maps">']
    for name, (ours, theirs) in report.maps.items():
        differs, shown = ours != theirs, _named(name)
        pictures = (
            ("ours", label_image(ours.astype(np.uint8))),
            ("the reference", label_image(theirs.astype(np.uint8))),
            (f"{int(differs.sum())} of {differs.size} places differ", Image.fromarray(~differs)),
        )
        for text, picture in pictures:
            parts.append(
                f'<figure><img alt="" src="{_data_address(picture)}"><figcaption>{shown}: {text}</figcaption></figure>'
            )
    return "".join([*parts, "</div>"])


def _data_address(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _rest(report: Report) -> str:
    lines = []
    if report.equal_parameters:
        lines.append(f"<p>{report.equal_parameters} parameter blobs of the reference are the net's own.</p>")
    if report.not_compared:
        lines.append(f"<p>Not in the reference: {_listed(report.not_compared)}.</p>")
    if report.unknown:
        lines.append(f"<p>In the reference alone: {_listed(report.unknown)}.</p>")
    return "".join(lines)


def _about(report: Report) -> str:
    """How to repeat the comparison."""
    if not report.provenance:
        return ""
    told = provenance.lines(report.provenance)
    rows = (f'<tr><th class="text">{markup(name)}</th><td class="text">{markup(text)}</td></tr>' for name, text in told)
    return f"<h2>How to repeat it</h2><table>{''.join(rows)}</table>"


def _named(name: str) -> str:
    return markup(name, _LONGEST_NAME)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_named, names))
