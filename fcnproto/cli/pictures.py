"""Draw a net's filters, activations and gradients as PNG pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError
from fcnproto.escaping import file_name

if TYPE_CHECKING:
    from torch import Tensor

    from fcnproto.net import Net


@click.command("pictures", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@click.option(
    "-o", "--output", metavar="DIR", type=_files.OutputFolder(), required=True, help="Folder for the pictures."
)
@click.option("--filters", metavar="A,B", callback=_options.names, help="Layers  [default: the first convolution].")
@click.option("--activations", metavar="A,B", callback=_options.names, help="Blobs to show for an input.")
@click.option("--gradients", is_flag=True, help="The size of gradients per layer, after a backward pass.")
@_preprocessing.input_options
@_options.json_option
@_preprocessing.preprocessing_options
@_nets.net_options()
def command(
    model: Path,
    weights: Path | None,
    output: Path,
    filters: Sequence[str],
    activations: Sequence[str],
    gradients: bool,
    images: Sequence[str],
    arrays: Sequence[str],
    as_json: bool,
    nets: _nets.NetOptions,
    **settings: Any,
) -> None:
    """Draw the net in the prototxt MODEL with WEIGHTS: filters as grids, blobs as grids, gradients as bars.

    Activations and gradients need an input. Gradients start at the net's loss where the labels are given (--input),
    else at random values put in at its outputs.
    """
    if (activations or gradients) and not images and not arrays:
        raise UsageError("--activations and --gradients need an input: give --image or --input")
    from fcnproto.atomic import atomic_write

    net = nets.load(model, weights)
    inputs = _preprocessing.input_values(net, images, arrays, {**settings, "crop": None})
    output.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    written: list[Path] = []
    for name, picture in _pictures(net, filters, activations, gradients, inputs):
        stem = file_name(name, taken)
        taken.add(stem.lower())
        file = output / f"{stem}.png"
        with atomic_write(file) as opened:
            picture.save(opened, format="PNG")
        written.append(file)
        if not as_json:
            _output.note(f"{file}: {picture.width}x{picture.height}")
    if as_json:
        _output.print_json({"files": written})


def _pictures(
    net: Net, filters: Sequence[str], activations: Sequence[str], gradients: bool, inputs: Mapping[str, Tensor]
) -> list[tuple[str, Any]]:
    """(name, picture) of all that is asked for."""
    from fcnproto.inspect.running import run_with
    from fcnproto.parity.comparison import backward
    from fcnproto.parity.references import random_gradients
    from fcnproto.pictures.weights import activation_grid, filter_grid, flow_picture, gradient_flow

    made = []
    if not filters and not activations and not gradients:
        filters = [layer.name for layer in net.layers if layer.type == "Convolution"][:1]
    for name in filters:
        layer = net.layer(name)
        if not layer.blob_names:
            raise UsageError(f"--filters {name}: a {layer.type} layer has no filters")
        made.append((f"filters-{name}", filter_grid(layer.blob(0))))
    if not activations and not gradients:
        return made
    outputs = run_with(net, {name: value.to(net.device) for name, value in inputs.items()}, activations)
    made += [(f"activations-{name}", activation_grid(outputs[name])) for name in activations]
    if gradients:
        weighted = any(blob.name in outputs for blob, _ in net.graph.weighted())
        seeds = {} if weighted else random_gradients(net, outputs)
        import torch

        backward(net, outputs, {name: torch.from_numpy(v).to(net.device, net.dtype) for name, v in seeds.items()})
        made.append(("gradients", flow_picture(gradient_flow(net), net.graph.name or "gradients")))
    return made
