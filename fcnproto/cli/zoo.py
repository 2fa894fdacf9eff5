"""The nets that come with the package: list them, find their files, see what is known of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _nets, _options, _output

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
@click.argument("name", type=_nets.ZooName())
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
@click.argument("name", type=_nets.ZooName())
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


@command.command("fetch")
@click.argument("name", type=_nets.ZooName())
@click.option("--from", "source", metavar="URL|FILE", help="Take them from here, not from where they were published.")
@click.option("--mirror", metavar="URL", help="The address of a folder that has the file under its published name.")
@click.option("--sha256", metavar="HEX", help="What the file's SHA-256 must be.")
@click.option("--new", "accept_new", is_flag=True, help="Take it though it isn't the file that was there before.")
@_options.json_option
def fetch_weights(
    name: str, source: str | None, mirror: str | None, sha256: str | None, accept_new: bool, as_json: bool
) -> None:
    """Bring a net's trained weights into the cache, where `zoo path NAME weights` and NAME as WEIGHTS find them.

    Size and hash are printed and remembered: a net that is loaded with these bytes, wherever they lie, has its classes'
    names. A download that was cut off goes on where it stopped. The cache is in the folder that FCNPROTO_CACHE names,
    else where the system keeps such things.
    """
    from fcnproto.zoo.fetching import fetch

    with _output.progress("fetching") as bar:
        task = bar.add_task("", total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done >> 20, total=(total >> 20) or None, description=f"MB of {name}")

        found = fetch(name, source=source, mirror=mirror, sha256=sha256, accept_new=accept_new, told=told)
    if as_json:
        _output.print_json({"name": name, **asdict(found)})
        return
    _output.print_line(str(found.path))
    _output.print_line(f"{found.size:,} bytes, SHA-256 {found.sha256}")


def _classes(info: ModelInfo) -> str:
    return " + ".join(str(len(output.classes)) for output in info.outputs)


def _best_score(info: ModelInfo) -> str:
    found = [f"{score.metrics['mean IU']:g} ({score.data})" for score in info.scores if "mean IU" in score.metrics]
    return found[0] if found else ""
