"""Tell what `fcnproto.optimize` does to a net, and what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _naming, _nets, _options, _output

if TYPE_CHECKING:
    from fcnproto.inspect.optimizing import Saving


@click.command("optimize", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@click.option("--explain", "explains", is_flag=True, help="A line for each layer that a pass takes, not one a pass.")
@click.option("--passes", metavar="A,B", callback=_options.names, help="Some of the passes.  [default: all]")
@_options.input_size_option
@_options.json_option
@_nets.net_options(device="cpu")
def command(
    model: Path,
    weights: Path | None,
    explains: bool,
    passes: tuple[str, ...],
    input_size: tuple[int, int] | None,
    as_json: bool,
    nets: _nets.NetOptions,
) -> None:
    """Tell what `fcnproto.optimize` does to the net in the prototxt MODEL, and what it saves for one size of its input.

    Multiply-adds and bytes of blobs are counted for a call without gradients. WEIGHTS matter to deconvolutions alone,
    which are computed in one way or another by their weights. Nothing is written: the net is optimised when it is used,
    by `segment` and `train --optimize` too.
    """
    from fcnproto.inspect.optimizing import explain
    from fcnproto.inspect.summary import summarise
    from fcnproto.passes.rewriting import chosen_passes
    from fcnproto.schema.text import read_net

    wanted = chosen_passes(passes or None)
    net = nets.load(model, weights)
    summary = summarise(
        read_net(model), input_size, shapes=nets.shapes, base_dir=model.resolve().parent, file=model, **nets.state
    )
    savings = explain(net, summary, wanted)
    if as_json:
        _output.print_json(
            {"multiply_adds": summary.multiply_adds, "savings": [saving.as_dict() for saving in savings]}
        )
        return
    if explains:
        _output.print_table(
            ["pass", "layers", "what", "multiply-adds saved", "MB saved"],
            [
                (each.made_by, ", ".join(each.layers), each.what, f"{each.multiply_adds:,}", f"{each.bytes / 1e6:.1f}")
                for each in savings
            ],
            numeric=["multiply-adds saved", "MB saved"],
        )
        _output.print_line()
    else:
        for name in wanted:
            _output.print_line(f"{name:15}", _told([saving for saving in savings if saving.made_by == name]))
    saved = sum(saving.multiply_adds for saving in savings)
    left = summary.multiply_adds - saved
    _output.print_line(f"{'in all':15}", f"{left:,} of {summary.multiply_adds:,} multiply-adds are left")


def _told(savings: Sequence[Saving]) -> str:
    """One pass in a line."""
    layers = sum(len(saving.layers) for saving in savings)
    if not layers:
        return "no layer"
    work, size = sum(saving.multiply_adds for saving in savings), sum(saving.bytes for saving in savings)
    return f"{layers} layer{'s' * (layers > 1)}: {work:,} multiply-adds and {size / 1e6:,.1f} MB of blobs saved"
