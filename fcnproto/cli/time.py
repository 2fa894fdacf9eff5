"""Measure each layer's forward and backward time.

Flags follow `caffe time`. Input layers get random numbers; data layers read their data, or get random numbers too where
`--shape` says how large.
"""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _nets, _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand
from fcnproto.escaping import printable


@click.command("time", cls=CaffeCommand, short_help="Measure each layer's time.")
@click.option("--model", type=_nets.MODEL, required=True, help="The net's prototxt, or a name of the zoo.")
@click.option("--weights", type=_nets.ZooWeights(), metavar="W[,W2]", help="Weights; times hardly depend on them.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="How many passes to average.")
@_options.json_option
@_nets.net_options("train", gpu=True)
def command(
    model: Path,
    weights: str | None,
    iterations: int,
    as_json: bool,
    nets: _nets.NetOptions,
) -> None:
    """Measure each layer's forward and backward time."""
    from fcnproto.inspect.timing import time_layers

    net = nets.load(model, _options.names(None, None, weights))
    times = time_layers(net, iterations, nets.shapes)
    if as_json:
        layers = [{"name": one.name, "forward": one.forward, "backward": one.backward} for one in times]
        _output.print_json({"milliseconds": layers, "iterations": iterations})
        return
    _output.print_line("Average time per layer:")
    for entry in times:
        _output.print_line(f"{printable(entry.name, 100):>10s}", f"forward: {entry.forward:g} ms.")
        _output.print_line(f"{printable(entry.name, 100):>10s}", f"backward: {entry.backward:g} ms.")
    forward, backward = sum(entry.forward for entry in times), sum(entry.backward for entry in times)
    _output.print_line(f"Average Forward pass: {forward:g} ms.")
    _output.print_line(f"Average Backward pass: {backward:g} ms.")
    _output.print_line(f"Average Forward-Backward: {forward + backward:g} ms.")
    _output.print_line(f"Total Time: {(forward + backward) * iterations:g} ms.")
