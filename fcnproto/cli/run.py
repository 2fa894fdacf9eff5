"""Run any net on an image or on arrays, and write its blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _files, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from torch import Tensor

    from fcnproto.net import Net


@click.command("run")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path), required=False)
@click.option("--image", "images", metavar="[BLOB=]FILE", multiple=True, help="An image as an input.")
@click.option(
    "--input", "arrays", metavar="FILE", type=click.Path(path_type=Path), help="Inputs: .npz by blob, or .npy."
)
@click.option("--blobs", metavar="A,B", callback=_options.names, help="Blobs to give besides the net's outputs.")
@click.option(
    "-o", "--output", metavar="FILE", type=_files.OutputFile(), help="Write the blobs to this .npz file; - is stdout."
)
@_files.format_option("npz", "txt")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Print the K best classes of a classifier.")
@click.option("--labels", metavar="FILE", type=click.Path(path_type=Path), help="Class names for --top-k, one a line.")
@_preprocessing.preprocessing_options
@_nets.net_options(cuts_images=True)
def command(
    model: Path,
    weights: Path | None,
    images: Sequence[str],
    arrays: Path | None,
    blobs: Sequence[str],
    output: Path | None,
    chosen_format: str | None,
    top_k: int | None,
    labels: Path | None,
    nets: _nets.NetOptions,
    **settings: Any,
) -> None:
    """Run the net in the prototxt MODEL once and give its outputs.

    Without WEIGHTS the parameters have the values of their fillers. Inputs are an image (--image) or arrays (--input);
    without either, the net's data layers read their next batch. The size of an image stays as it is, except for
    classifiers, which get the size in their Input layer; --resize changes this. Preprocessing is that of the net's own
    data layer or of the published net that it is, else BGR and the mean of ImageNet.
    """
    import torch

    if images and arrays is not None:
        raise UsageError("--image and --input exclude each other")
    if labels is not None and top_k is None:
        raise UsageError("--labels names the classes of --top-k, which is not given")
    net = nets.load(model, weights)
    with torch.no_grad():
        outputs = _run(net, model, weights, images, arrays, blobs, settings)
    results = {name: value.float().cpu().numpy() for name, value in outputs.items()}
    if top_k is None:
        rows = [
            (printable(name, 100), "x".join(map(str, array.shape)), *(f"{value:.6g}" for value in _statistics(array)))
            for name, array in results.items()
        ]
        _output.print_table(
            ["blob", "shape", "min", "mean", "max"], rows, numeric=["min", "mean", "max"], optional=["shape"]
        )
    else:
        _print_best(results, top_k, labels)
    if output is not None:
        _write(output, results, chosen_format)


def _write(output: Path, results: Mapping[str, Any], chosen_format: str | None) -> None:
    from fcnproto.inspect.running import write_array_text, write_arrays

    if _files.ending(output, chosen_format, ".txt") == ".txt":
        write_array_text(output, ((name, name, array) for name, array in results.items()))
    else:
        write_arrays(output, results)


def _run(
    net: Net,
    model: Path,
    weights: Path | None,
    images: Sequence[str],
    arrays: Path | None,
    blobs: Sequence[str],
    settings: Mapping[str, Any],
) -> Mapping[str, Tensor]:
    from fcnproto.inspect.running import read_arrays, run_with
    from fcnproto.net.roles import computable_outputs, score_blobs

    if arrays is not None:
        values = read_arrays(arrays, net)
    elif images:
        values = image_values(net, model, weights, images, settings)
    elif net.inputs:
        raise UsageError(f"the net needs {', '.join(map(repr, net.inputs))}: give --image or --input")
    else:
        outputs: Mapping[str, Tensor] = net(blobs=list(blobs))
        return outputs
    if not blobs and not computable_outputs(net, list(values)):
        # Training nets end in losses, which need labels; what the losses judge is then the result.
        blobs = score_blobs(net)
    return run_with(net, {name: value.to(net.device) for name, value in values.items()}, blobs)


def image_values(
    net: Net, model: Path, weights: Path | None, images: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The inputs that `--image` and the preprocessing options (with resize and crop) in `settings` name."""
    from fcnproto.inspect.running import image_value
    from fcnproto.net.roles import fixed_image_size
    from fcnproto.preprocessing import known_net, preprocessing_of

    record, inputs = known_net(net, model, weights), list(net.source_shapes)
    if not inputs:
        raise UsageError("the net has no inputs")
    hows, values = {}, {}
    for text in images:
        name, sign, path = text.partition("=")
        if not sign or name not in inputs:
            name, path = inputs[0], text
        if name in values:
            raise UsageError(f"--image: input {name!r} is given twice; name the other as BLOB=FILE")
        hows[name] = _preprocessing.override(preprocessing_of(net, name, record), name, inputs, settings)
        size = (
            fixed_image_size(net, name)
            if settings["resize"] is None and settings["crop"] is None
            else _preprocessing.fixed_size(settings["resize"], net)
        )
        values[name] = image_value(path, hows[name], size, settings["crop"])
    _preprocessing.tell_assumptions(hows)
    return values


def _statistics(array: Any) -> tuple[float, ...]:
    return (array.min(), array.mean(dtype="float64"), array.max()) if array.size else (float("nan"),) * 3


def _print_best(results: Mapping[str, Any], count: int, labels: Path | None) -> None:
    from fcnproto.inspect.running import best_classes
    from fcnproto.preprocessing import read_class_names

    names = None if labels is None else read_class_names(labels)
    judged = {
        name: array
        for name, array in results.items()
        if array.ndim >= 2 and array.shape[1] > 1 and array[0].size == array.shape[1]
    }
    if not judged:
        shapes = ", ".join(f"{name!r} {array.shape}" for name, array in results.items())
        raise UsageError(f"--top-k: none of the blobs holds one score for each class: {shapes}")
    for name, array in judged.items():
        if names is not None and len(names) != array.shape[1]:
            raise UsageError(f"--labels: {labels} has {len(names)} names, blob {name!r} has {array.shape[1]} classes")
        for row in array:
            for rank, (label, score) in enumerate(best_classes(row, count), 1):
                title = names[label] if names is not None else f"class {label}"
                _output.print_line(f"{rank:3d}  {score:.6f}  {title}" + (f"  [{name}]" if len(judged) > 1 else ""))
