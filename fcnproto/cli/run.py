"""Run any net on an image or on arrays, and write its blobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from torch import Tensor

    from fcnproto.net import Net


@click.command("run", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@_preprocessing.input_options
@click.option("--blobs", metavar="A,B", callback=_options.names, help="Blobs to give besides the net's outputs.")
@click.option(
    "-o", "--output", metavar="FILE", type=_files.OutputFile(), help="Write the blobs to this .npz file; - is stdout."
)
@_files.format_option("npz", "txt")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Print the K best classes of a classifier.")
@click.option("--labels", metavar="FILE", type=click.Path(path_type=Path), help="Class names for --top-k, one a line.")
@_options.json_option
@_preprocessing.preprocessing_options
@_nets.net_options(cuts_images=True)
def command(
    model: Path,
    weights: Path | None,
    images: Sequence[str],
    arrays: Sequence[str],
    blobs: Sequence[str],
    output: Path | None,
    chosen_format: str | None,
    top_k: int | None,
    labels: Path | None,
    as_json: bool,
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

    if labels is not None and top_k is None:
        raise UsageError("--labels names the classes of --top-k, which is not given")
    net = nets.load(model, weights)
    with torch.no_grad():
        outputs = _run(net, images, arrays, blobs, settings)
    results = {name: value.float().cpu().numpy() for name, value in outputs.items()}
    if as_json:
        _output.print_json(_as_dict(results, top_k, labels))
    elif top_k is None:
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


def _as_dict(results: Mapping[str, Any], top_k: int | None, labels: Path | None) -> dict[str, Any]:
    """The results for JSON: each blob's shape and range, and for classifiers the best classes of each image."""
    blobs = {}
    for name, array in results.items():
        low, mean, high = map(float, _statistics(array))
        blobs[name] = {"shape": list(array.shape), "min": low, "mean": mean, "max": high}
    if top_k is None:
        return {"blobs": blobs}
    best: dict[str, Any] = {}
    for name, titles, rows in _best(results, top_k, labels):
        best[name] = [
            [{"label": label, "name": titles(label), "score": float(score)} for label, score in row] for row in rows
        ]
    return {"blobs": blobs, "best": best}


def _write(output: Path, results: Mapping[str, Any], chosen_format: str | None) -> None:
    from fcnproto.inspect.running import write_array_text, write_arrays

    if _files.ending(output, chosen_format, ".txt") == ".txt":
        write_array_text(output, ((name, name, array) for name, array in results.items()))
    else:
        write_arrays(output, results)


def _run(
    net: Net,
    images: Sequence[str],
    arrays: Sequence[str],
    blobs: Sequence[str],
    settings: Mapping[str, Any],
) -> Mapping[str, Tensor]:
    from fcnproto.inspect.running import run_with
    from fcnproto.net.roles import computable_outputs, score_blobs

    if arrays or images:
        values = _preprocessing.input_values(net, images, arrays, settings)
    elif net.inputs:
        raise UsageError(f"the net needs {', '.join(map(repr, net.inputs))}: give --image or --input")
    else:
        outputs: Mapping[str, Tensor] = net(blobs=list(blobs))
        return outputs
    if not blobs and not computable_outputs(net, list(values)):
        # Training nets end in losses, which need labels; what the losses judge is then the result.
        blobs = score_blobs(net)
    return run_with(net, {name: value.to(net.device) for name, value in values.items()}, blobs)


def _statistics(array: Any) -> tuple[float, ...]:
    return (array.min(), array.mean(dtype="float64"), array.max()) if array.size else (float("nan"),) * 3


def _best(
    results: Mapping[str, Any], count: int, labels: Path | None
) -> Iterator[tuple[str, Callable[[int], str], list[list[tuple[int, float]]]]]:
    """Of each blob that holds one score for each class: its name, how its classes are called, and for each image the
    labels with the highest scores. UsageError where there is none, or names don't fit."""
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
        titled = names.__getitem__ if names is not None else "class {}".format
        yield name, titled, [list(best_classes(row, count)) for row in array]


def _print_best(results: Mapping[str, Any], count: int, labels: Path | None) -> None:
    found = list(_best(results, count, labels))
    for name, titled, rows in found:
        for row in rows:
            for rank, (label, score) in enumerate(row, 1):
                _output.print_line(
                    f"{rank:3d}  {score:.6f}  {titled(label)}" + (f"  [{name}]" if len(found) > 1 else "")
                )
