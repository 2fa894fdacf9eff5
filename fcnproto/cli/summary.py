"""List a net's layers with shapes, parameters, multiply-adds and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _naming, _nets, _options, _output
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from fcnproto.inspect.summary import NetSummary


@click.command("summary", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@_options.input_size_option
@_options.json_option
@_nets.net_options(device="cpu")
def command(
    model: Path,
    input_size: tuple[int, int] | None,
    as_json: bool,
    nets: _nets.NetOptions,
) -> None:
    """List the layers of the net in the prototxt MODEL for one size of its input.

    Multiply-adds are those of convolutions, deconvolutions, inner products and recurrent layers. Memory is that of
    parameters and blobs as float32.
    """
    from fcnproto.inspect.summary import summarise
    from fcnproto.schema.text import read_net

    result = summarise(
        read_net(model, strict=nets.strict and nets.caffe_proto is None, quiet=True),
        input_size,
        shapes=nets.shapes,
        base_dir=model.resolve().parent,
        file=model,
        **nets.state,
    )
    if as_json:
        _output.print_json(result.as_dict())
    else:
        _print(result)


def _print(summary: NetSummary) -> None:
    from fcnproto.inspect.summary import OpenShape

    rows = []
    for layer in summary.layers:
        tops = "  ".join(
            f"{printable(name, 100)} {'?' if isinstance(shape, OpenShape) else 'x'.join(map(str, shape)) or 'scalar'}"
            for name, shape in layer.tops.items()
        )
        rows.append(
            (printable(layer.name, 100), layer.type, tops, _number(layer.parameters), _number(layer.multiply_adds))
        )
    _output.print_table(
        ["layer", "type", "tops", "parameters", "multiply-adds"],
        rows,
        numeric=["parameters", "multiply-adds"],
        optional=["type", "multiply-adds"],
    )
    _output.print_line()
    fixed = summary.parameters - summary.learnable
    note = f", {_number(fixed)} of them fixed" if fixed else ""
    _output.print_line(f"parameters      {summary.parameters:,}{note} ({_megabytes(summary.parameter_bytes)})")
    _output.print_line(f"multiply-adds   {summary.multiply_adds:,}")
    _output.print_line(f"blobs           {_megabytes(summary.blob_bytes)} all together (training keeps them)")
    _output.print_line(f"                {_megabytes(summary.peak_blob_bytes)} at one time (inference)")


def _number(count: int) -> str:
    return f"{count:,}" if count else ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
