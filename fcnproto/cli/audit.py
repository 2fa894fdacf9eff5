"""Say what a net from elsewhere would touch, before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _naming, _nets, _options, _output
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from fcnproto.inspect.audit import Audit


@click.command("audit", cls=_naming.NetCommand)
@click.argument("net", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@_options.json_option
@_nets.shape_option
@_options.crop_option
@_options.dialect_option
@_options.strict_option
@_options.caffe_proto_option
@_nets.layers_option
def command(net: Path, weights: Path | None, as_json: bool, shapes: Sequence[str], **reading: Any) -> int:
    """List what the net in NET (a prototxt, a solver, or a caffemodel) would touch, without running anything of it.

    Files that it would read or write (data sources and what their lists name, means, label maps, snapshots, the nets
    that a solver names), Python modules, memory and work, and names that are odd. The exit status is 1 where something
    lies outside of the net's own folder.
    """
    from fcnproto.inspect.audit import audit

    result = audit(net, weights, shapes=_options.shapes(shapes), **reading)
    if as_json:
        _output.print_json(result.as_dict())
    else:
        _print(result)
    return 1 if result.outside else 0


def _print(result: Audit) -> None:
    rows = [
        (access.use, printable(access.name, 200), _state(access.exists, access.outside), printable(access.by, 100))
        for access in sorted(result.accesses, key=lambda access: not access.outside)
    ]
    if rows:
        _output.print_table(["use", "name", "where", "by"], rows)
    else:
        _output.print_line("no files and no modules")
    for odd in result.odd:
        _output.print_line(f"odd name: {printable(odd.what)} {printable(repr(odd.text), 100)} {', '.join(odd.why)}")
    for text in result.refused:
        _output.print_line(f"note: {printable(text)}")
    if result.parameters is not None and result.blob_bytes is not None and result.multiply_adds is not None:
        _output.print_line(
            f"{result.parameters:,} parameters, {result.blob_bytes / 1e6:,.1f} MB of blobs, "
            f"{result.multiply_adds:,} multiply-adds"
        )
    if result.outside:
        _output.print_line(f"{len(result.outside)} outside of {printable(result.folder)}")


def _state(exists: bool, outside: bool) -> str:
    return ("OUTSIDE" if outside else "inside") + ("" if exists else ", not there")
