"""Write the net definition that a caffemodel carries within it as a prototxt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output


@click.command("extract", cls=_naming.NetCommand)
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=_files.OutputFile(), help="Prototxt to write.  [default: stdout]")
@click.option(
    "--shape",
    "shapes",
    metavar="BLOB=N,C,H,W",
    multiple=True,
    help="Make BLOB an input of this shape instead of reading it from a data layer (or nowhere).",
)
@_options.dialect_option
@_options.caffe_proto_option
@_nets.layers_option
@_options.json_option
@click.option("--raw", is_flag=True, help="Leave Split layers, phases and rules in it, as they are stored.")
def command(
    weights: Path,
    output: Path | None,
    shapes: Sequence[str],
    dialect: str | None,
    caffe_proto: Path | None,
    as_json: bool,
    raw: bool,
) -> None:
    """Write the definition of the net that the caffemodel WEIGHTS was saved from, in the current format.

    Left out is what only the built net has: Split layers, the phase that layers inherit from the net, include and
    exclude rules that have done their work. Numbers of fields that mean something else to a fork of Caffe are read as
    the fork's whose file it is, which the rest of the file shows, or --dialect or --caffe-proto say.
    """
    from fcnproto.graph.dialect import checked
    from fcnproto.meta import comment, read_beside
    from fcnproto.schema.definition import net_definition
    from fcnproto.schema.extract import loadable
    from fcnproto.schema.text import format_message, write_message

    net = net_definition(weights, caffe_proto, checked(dialect))
    if not raw:
        net, unknown = loadable(net, _options.shapes(shapes))
        if unknown:
            names = ", ".join(map(repr, unknown))
            _output.warning(
                f"{weights}: does not say the shape of input {names}; give it with --shape {unknown[0]}=N,C,H,W"
            )
    head = comment(read_beside(weights))
    if output is not None:
        write_message(output, net, head)
    if as_json:
        text = {"file": output} if output is not None else {"prototxt": head + format_message(net)}
        _output.print_json({"name": net.name, "layers": len(net.layer), **text})
    elif output is None:
        _output.print_text(head + format_message(net).rstrip("\n"))
