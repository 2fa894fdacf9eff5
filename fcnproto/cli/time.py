"""Measure each layer's forward and backward time.

Flags follow `caffe time`. Input layers get random numbers; data layers read their data, or get random numbers too where
`--shape` says how large.
"""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _options, _output
from fcnproto.cli._caffe_flags import CaffeCommand, one_gpu, phase_option
from fcnproto.escaping import printable


def _shapes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, list[int]]:
    shapes = {}
    for value in values:
        name, _, extents = value.partition("=")
        try:
            shapes[name] = [int(extent) for extent in extents.replace("x", ",").split(",")]
        except ValueError:
            raise click.BadParameter(f"{value!r} is not like data=1,3,500,375") from None
    return shapes


@click.command("time", cls=CaffeCommand, short_help="Measure each layer's time.")
@click.option("--model", type=click.Path(path_type=Path), required=True, help="The net's prototxt.")
@click.option("--weights", metavar="W[,W2]", help="Weights; times hardly depend on them.")
@click.option("--iterations", type=click.IntRange(1), default=50, show_default=True, help="How many passes to average.")
@click.option("--phase", metavar="TRAIN|TEST", callback=phase_option, help="The net's phase.  [default: TRAIN]")
@click.option("--shape", "shapes", multiple=True, callback=_shapes, help="An input's shape, data=1,3,500,375; repeat.")
@click.option("--gpu", metavar="N", help="The number of a GPU (as in Caffe).")
@_options.device_option
@_options.crop_option
@_options.state_options
@_options.writes_option
def command(
    model: Path,
    weights: str | None,
    iterations: int,
    phase: str,
    shapes: dict[str, list[int]],
    gpu: str | None,
    device: str | None,
    level: int,
    stages: tuple[str, ...],
    allow_python: bool,
    crop: str,
    allow_writes: bool,
) -> None:
    """Measure each layer's forward and backward time."""
    import fcnproto
    from fcnproto.inspect.timing import time_layers

    net = fcnproto.load(
        model,
        _options.names(None, None, weights),
        phase=phase,
        level=level,
        stages=stages,
        device=_options.device(one_gpu(gpu, device)),
        allow_python=allow_python,
        crop=crop,
        allow_writes=allow_writes,
        shapes=shapes,
    )
    times = time_layers(net, iterations, shapes)
    _output.print_line("Average time per layer:")
    for entry in times:
        _output.print_line(f"{printable(entry.name, 100):>10s}", f"forward: {entry.forward:g} ms.")
        _output.print_line(f"{printable(entry.name, 100):>10s}", f"backward: {entry.backward:g} ms.")
    forward, backward = sum(entry.forward for entry in times), sum(entry.backward for entry in times)
    _output.print_line(f"Average Forward pass: {forward:g} ms.")
    _output.print_line(f"Average Backward pass: {backward:g} ms.")
    _output.print_line(f"Average Forward-Backward: {forward + backward:g} ms.")
    _output.print_line(f"Total Time: {(forward + backward) * iterations:g} ms.")
