"""Where the layers of a prototxt stand in its text, so that findings can say file and line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from fcnproto.checking.findings import Finding
from fcnproto.errors import PrototxtError
from fcnproto.schema.tokens import Tokens, text_of

_LAYERS = ("layer", "layers")

Places = Mapping[str, tuple[str, int]]
"""File and line of each layer, by name."""


def places_in(file: Path | str | None) -> dict[str, tuple[str, int]]:
    """The first line of each layer of a text prototxt, by name; nothing for files that are no text."""
    if file is None:
        return {}
    try:
        text = Path(file).read_bytes().decode("utf-8-sig", "surrogateescape")
        return {name: (str(file), line) for name, line in _lines(Tokens(text, str(file)))}
    except (OSError, PrototxtError):
        return {}


def _lines(tokens: Tokens) -> Iterable[tuple[str, int]]:
    found: dict[str, int] = {}
    depth, start = 0, 0
    while tokens.current.kind != "end":
        token = tokens.advance()
        if token.kind == "symbol":
            depth += (token.text in "{<") - (token.text in "}>")
        elif depth == 0 and token.kind == "name" and token.text in _LAYERS:
            start = token.offset
        elif depth == 1 and token.kind == "name" and token.text == "name":
            tokens.accept(":")
            if tokens.current.kind == "string":
                name = text_of(tokens.string(tokens.advance()))
                found.setdefault(name, tokens.place(start)[0])
    return found.items()


def located(findings: Iterable[Finding], places: Places, whole: tuple[str, str] | None = None) -> list[Finding]:
    """The findings with file and line before the place of those that are about layers of the file. `whole`: what a net
    is called where a finding is about all of it, and its file."""
    result = []
    for finding in findings:
        place = next((places[name] for name in finding.layers if name in places), None)
        if place is not None and not finding.where.startswith(place[0]):
            finding = dataclasses.replace(finding, where=f"{place[0]}:{place[1]}: {finding.where}")
        elif whole is not None and finding.where == whole[0]:
            finding = dataclasses.replace(finding, where=f"{whole[1]}: {finding.where}")
        result.append(finding)
    return result
