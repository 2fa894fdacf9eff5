"""The experiments' results as Markdown tables, written between marks of a document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.definitions import experiments
from fcnproto.atomic import atomic_write
from fcnproto.errors import UsageError

METRICS = ("pixel accuracy", "mean accuracy", "mean IU", "frequency weighted IU")
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"


def write(folder: Path, document: Path) -> None:
    """Put the tables of the results below `folder` into `document`, each between its marks.

    Raises `UsageError` where a mark is missing.
    """
    text = document.read_text(encoding="utf-8")
    for table, lines in tables(folder).items():
        begin, end = BEGIN.format(table), END.format(table)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UsageError(f"{document}: the marks {begin} and {end} must stand there once each")
        before, rest = text.split(begin)
        text = "\n".join([before + begin, *lines, end + rest.split(end)[1]])
    with atomic_write(document) as file:
        file.write(text.encode())


def tables(folder: Path) -> dict[str, list[str]]:
    """The lines of each table, by its name; experiments without a result have no row."""
    found: dict[str, list[dict[str, Any]]] = {}
    for experiment in experiments():
        path = folder / experiment.name / "result.json"
        results = found.setdefault(experiment.table, [])
        if path.exists():
            results.append(json.loads(path.read_text()))
    return {table: _curves(rows) if table == "sampling" else _finals(rows) for table, rows in found.items()}


def _finals(results: Iterable[dict[str, Any]]) -> list[str]:
    """A row for each net and labelling: the metrics after the last iteration, in percent."""
    rows = []
    for result in results:
        scores = list(result["scores"].values())[-1]
        for blob, values in scores.items():
            title = result["title"] + (f" ({blob})" if len(scores) > 1 else "")
            rows.append([title, str(result["iterations"]), *(f"{100 * values[name]:.1f}" for name in METRICS)])
    return _table(["net", "iterations", *METRICS], rows)


def _curves(results: Iterable[dict[str, Any]]) -> list[str]:
    """A row for each checkpoint: the mean IU in percent, and how many images were seen."""
    rows = [
        [
            result["title"],
            iteration,
            str(result["images per iteration"] * int(iteration)),
            f"{100 * values['mean IU']:.1f}",
        ]
        for result in results
        for iteration, scores in result["scores"].items()
        for values in scores.values()
    ]
    return _table(["loss", "iterations", "images", "mean IU"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
