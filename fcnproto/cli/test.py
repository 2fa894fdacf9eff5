"""Run a trained net on its own test data and print the mean of every output.

Flags follow `caffe test`: the net in the TEST phase, its data layers read `--iterations` batches. The batches' own
values are logged on stderr, the means printed on stdout.
"""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _nets, _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand
from fcnproto.escaping import printable


@click.command("test", cls=CaffeCommand, short_help="Score a trained net on its own data.")
@click.option(
    "--model", type=_nets.VAL, required=True, help="The net's prototxt, or a name of the zoo: its val.prototxt."
)
@click.option(
    "--weights", type=_nets.ZooWeights(), metavar="W[,W2]", required=True, help="Its weights; later files overwrite."
)
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="How many batches.")
@_options.json_option
@_nets.net_options(gpu=True, writes=True)
def command(
    model: Path,
    weights: str,
    iterations: int,
    as_json: bool,
    nets: _nets.NetOptions,
) -> None:
    """Run a trained net on its own test data and print the mean of every output."""
    import torch

    from fcnproto.solver.log import LOGGER, figure, log_to
    from fcnproto.solver.testing import Means, loss_weights

    net = nets.load(model, _options.names(None, None, weights))
    _output.say_faults(net)
    handler, means, loss = log_to(), Means(), 0.0
    try:
        with torch.no_grad():
            for batch in range(iterations):
                outputs = net()
                loss += float(net.loss(outputs))
                means.add(outputs)
                for name, value in outputs.items():
                    for element in value.flatten().tolist():
                        LOGGER.info("%s", f"Batch {batch}, {printable(name, 200)} = {figure(element)}")
    finally:
        LOGGER.removeHandler(handler)
    weighted = loss_weights(net)
    if as_json:
        outputs = {name: list(map(float, values)) for name, values in means.result().items()}
        _output.print_json({"loss": loss / iterations, "outputs": outputs, "iterations": iterations})
        return
    _output.print_line(f"Loss: {figure(loss / iterations)}")
    for name, values in means.result().items():
        for value in values:
            weight = weighted.get(name, 0.0)
            share = f" (* {figure(weight)} = {figure(weight * value)} loss)" if weight else ""
            _output.print_line(f"{printable(name, 200)} = {figure(value)}{share}")
