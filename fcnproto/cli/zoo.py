"""The nets that come with the package: list them, find their files, see what is known of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _options, _output

if TYPE_CHECKING:
    from fcnproto.zoo import ModelInfo


@click.group("zoo")
def command() -> None:
    """The nets that come with the package: definitions, and what is known of them."""


@command.command("list")
@_options.json_flag
def list_models() -> None:
    """List the nets."""
    from fcnproto import zoo

    infos = [zoo.info(name) for name in zoo.names()]
    if _options.wants_json():
        _output.print_json([asdict(info) for info in infos])
        return
    rows = [
        (info.name, info.dataset, ", ".join(entry.blob for entry in info.inputs), _classes(info), _best_score(info))
        for info in infos
    ]
    _output.print_table(
        ["name", "data set", "inputs", "classes", "mean IU"],
        rows,
        optional=["classes", "inputs", "data set"],
    )


@command.command("path")
@click.argument("name")
@click.argument("kind", default="deploy")
@_options.json_option
def print_path(name: str, kind: str, as_json: bool) -> None:
    """Print the path of a net's file. KIND: deploy (the default), train, val, solver, weights."""
    from fcnproto import zoo

    path = zoo.path(name, kind)
    if as_json:
        _output.print_json({"name": name, "kind": kind, "path": path})
    else:
        _output.print_line(str(path))


@command.command("info")
@click.argument("name")
@_options.json_option
def print_info(name: str, as_json: bool) -> None:
    """Print what is known of a net: inputs and means, classes, weights, published scores."""
    from fcnproto import zoo

    info = zoo.info(name)
    if as_json:
        _output.print_json(asdict(info))
        return
    _output.print_line(f"{info.name}: {info.base} on {info.dataset}")
    for entry in info.inputs:
        mean = ", ".join(f"{value:g}" for value in entry.mean)
        _output.print_line(f"input {entry.blob}: {entry.kind}, channels {entry.channels}, mean {mean}")
    for output in info.outputs:
        _output.print_line(
            f"output {output.blob}: {len(output.classes)} classes ({', '.join(output.classes)}); "
            f"label blob {output.label}, ignored label {output.ignore_label}"
        )
    _output.print_line(f"trained from: {', '.join(info.initial_weights) or 'scratch'}")
    _output.print_line(f"published weights: {info.weights_url or 'none'}")
    for score in info.scores:
        figures = ", ".join(f"{metric} {value:g}" for metric, value in score.metrics.items())
        _output.print_line(f"score on {score.data}: {figures} ({score.source})")


def _classes(info: ModelInfo) -> str:
    return " + ".join(str(len(output.classes)) for output in info.outputs)


def _best_score(info: ModelInfo) -> str:
    found = [f"{score.metrics['mean IU']:g} ({score.data})" for score in info.scores if "mean IU" in score.metrics]
    return found[0] if found else ""
