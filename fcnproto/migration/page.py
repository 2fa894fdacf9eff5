"""The migration's report as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcnproto.drawing.page import fill_template
from fcnproto.escaping import markup
from fcnproto.parity.provenance import lines

_TEMPLATE = Path(__file__).with_name("report.html")
_GOOD = {"agrees": "good", "departs": "bad", "failed": "bad", "no weights": "plain"}


def to_html(report: Mapping[str, Any]) -> str:
    """The page's text."""
    counts = ", ".join(f"{number} {name}" for name, number in report["counts"].items())
    return fill_template(
        _TEMPLATE,
        FOLDER=markup(report["folder"]),
        COUNTS=markup(f"{counts}; {report['date']}"),
        ROWS="\n".join(_row(number, net) for number, net in enumerate(report["nets"])),
        NETS="\n".join(_net(number, net) for number, net in enumerate(report["nets"])),
        ABOUT=_pairs(lines({name: _listed(value) for name, value in report.items() if name not in ("nets", "counts")})),
    )


def _listed(value: Any) -> Any:
    """Lists and tables of numbers as text; what stays as it is, the versions among them, has its own form."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    numbers = isinstance(value, Mapping) and all(isinstance(one, float) for one in value.values())
    return ", ".join(f"{name} {one:g}" for name, one in value.items()) or "-" if numbers else value


def _row(number: int, net: Mapping[str, Any]) -> str:
    worst = [one["worst"] for one in net["compared"] if "worst" in one]
    made = ", ".join(one["target"] + (" (failed)" if "error" in one else "") for one in net["converted"])
    cells = [
        f'<a href="#net{number}">{markup(net["net"])}</a>',
        markup(net.get("weights", "")),
        f'<span class="{_GOOD[net["verdict"]]}">{markup(net["verdict"])}</span>',
        f"{max(worst):.2e}" if worst else "",
        markup(made),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _net(number: int, net: Mapping[str, Any]) -> str:
    return (
        f'<section id="net{number}"><h2>{markup(net["net"])} <span class="{_GOOD[net["verdict"]]}">'
        f"{markup(net['verdict'])}</span></h2>{_pairs(_told(net))}</section>"
    )


def _told(net: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if net["error"]:
        yield "error", net["error"]
    for one in net["compared"]:
        where = f"{one['reference']}, tolerance {one['tolerance']:g}"
        if "not compared" in one:
            yield "not compared", f"{where}: {one['not compared']}"
        else:
            verdict = "agrees" if one["agrees"] else f"departs, first in {one['departs']}"
            yield "compared", f"{where}: {one['arrays']} arrays, largest deviation {one['worst']:.3g}, {verdict}"
    for one in net["converted"]:
        if "error" in one:
            yield "not converted", f"{one['target']}: {one['error']}"
        else:
            verdict = "agrees" if one["agrees"] else "departs"
            yield (
                "converted",
                f"{one['target']}, compared with float64: largest deviation {one['worst']:.3g}, {verdict}",
            )
    if net["inputs"]:
        yield (
            "inputs",
            ", ".join(
                f"{name} {'x'.join(map(str, value))}" if isinstance(value, list) else str(value)
                for name, value in net["inputs"].items()
            ),
        )
    for record in [*net["files"], *(one for done in net["converted"] for one in done["files"])]:
        yield "file", f"{record['path']} ({record['bytes']:,} bytes), sha256 {record['sha256']}"
    if net["other weights"]:
        yield "other weights that may fit", ", ".join(net["other weights"])
    for text in net.get("refused weights", ()):
        yield "refused", text
    for text in net["warnings"]:
        yield "warning", text
    yield "seconds", str(net.get("seconds", ""))


def _pairs(pairs: Any) -> str:
    rows = "".join(f"<tr><th>{markup(name)}</th><td>{markup(text)}</td></tr>" for name, text in pairs)
    return f'<table class="pairs">{rows}</table>'
