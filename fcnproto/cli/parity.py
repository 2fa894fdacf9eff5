"""Compare a net with a reference, blob by blob, and point at the first departure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.atomic import is_stream
from fcnproto.cli import _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError
from fcnproto.escaping import json_text, printable

if TYPE_CHECKING:
    from fcnproto.net import Net
    from fcnproto.parity import Entry, Recording, Report

_NETS = (".prototxt", ".pbtxt", ".caffemodel", ".h5", ".safetensors")
_TOLERANCES = {"golden": 1e-5, "float64": 1e-5, "caffe": 1e-5, "opencv": 1e-4}


def _print_dump_script(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from fcnproto.parity import DUMP_SCRIPT

        _output.print_text(DUMP_SCRIPT.read_text(encoding="utf-8").rstrip("\n"))
        context.exit()


class ParityCommand(_naming.NetCommand):
    """`--json FILE`, as `--json-file` was called once, is still understood."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Tell the file that an old command line names after `--json` from what follows the flag."""
        spelt: list[str] = []
        for word in args:
            if spelt and spelt[-1] == "--json" and _is_old_file(word):
                spelt[-1] = "--json-file"
            spelt.append(f"--json-file={word[7:]}" if word.startswith("--json=") else word)
        return super().parse_args(ctx, spelt)


def _is_old_file(word: str) -> bool:
    """Whether a word after `--json` can only be the name of a file to be written."""
    if word == "-" or word.lower().endswith(".json") or (os.path.exists(word) and is_stream(Path(word))):
        return True
    known = word.startswith("-") or os.path.exists(word) or word.lower().endswith(_NETS)
    if known:
        return False
    from fcnproto import zoo

    return word not in zoo.names()


@click.command("parity", cls=ParityCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@click.option("--golden", metavar="FILE", type=click.Path(path_type=Path), help="A recording: npz or HDF5.")
@click.option("--reference", type=click.Choice(["opencv", "caffe", "float64"]), help="Compute the reference now.")
@_preprocessing.input_options
@click.option("--input-size", metavar="HxW", callback=_options.size, help="Size of random inputs (without --image).")
@click.option("--tolerance", type=click.FloatRange(min=0), metavar="T", help="Of blobs.  [default: 1e-5; opencv: 1e-4]")
@click.option(
    "--gradient-tolerance",
    type=click.FloatRange(min=0),
    default=1e-4,
    metavar="T",
    help="Of gradients.",
    show_default=True,
)
@click.option("--backward", is_flag=True, help="Compare gradients too (float64, caffe; golden: if there are any).")
@click.option("--html", metavar="FILE", type=_files.OutputFile(), help="Write a report to look at.")
@_options.json_option
@click.option("--json-file", metavar="FILE", type=_files.OutputFile(), help="Write the numbers to a file.")
@click.option("--python", default="python", metavar="PROGRAM", help="Interpreter that has pycaffe.", show_default=True)
@click.option(
    "--dump-script",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_dump_script,
    help="Print the script that records a golden file where Caffe lives (Python 2.7 or 3).",
)
@_preprocessing.preprocessing_options
@_nets.net_options()
def command(
    model: Path,
    weights: Path | None,
    golden: Path | None,
    reference: str | None,
    arrays: Sequence[str],
    images: Sequence[str],
    tolerance: float | None,
    gradient_tolerance: float,
    html: Path | None,
    as_json: bool,
    json_file: Path | None,
    nets: _nets.NetOptions,
    **settings: Any,
) -> int:
    """Run the net in the prototxt MODEL with WEIGHTS beside a reference and compare every blob in the order of layers.

    References: a recording (--golden), OpenCV's dnn, a Caffe that another Python interpreter has, or our own layers in
    double precision. Without an image or arrays, references are computed on random inputs. Without WEIGHTS the
    parameters are those in the recording, or their fillers'. Exit status 1 where something departs.
    """
    if (golden is None) == (reference is None):
        raise UsageError("give either --golden FILE or --reference opencv, caffe or float64")
    if golden is not None and (images or arrays or settings["input_size"] is not None):
        raise UsageError("--golden has inputs of its own; --image, --input and --input-size go with --reference")
    if settings["backward"] and reference == "opencv":
        raise UsageError("--backward: OpenCV gives no gradients; use --reference float64, caffe or a golden file")
    from fcnproto.parity import compare, read_recording
    from fcnproto.parity.provenance import provenance

    if reference == "opencv":
        from fcnproto.parity.references import opencv

        opencv()  # told before the net is read
    net = nets.load(model, weights)
    if golden is not None:
        recording = read_recording(golden)
        if weights is None:
            _take_params(net, recording)
    else:
        recording = _compute(net, str(reference), images, arrays, settings)
    chosen = _TOLERANCES[reference or "golden"] if tolerance is None else tolerance
    report = compare(net, recording, tolerance=chosen, gradient_tolerance=gradient_tolerance)
    report.net = report.net or _options.title(model)
    given = [model, weights, golden, *_files_in([*images, *arrays])]
    report.provenance = provenance(
        (path for path in given if path is not None and path.is_file()),
        inputs={name: list(value.shape) for name, value in recording.inputs.items()},
        tolerances={"blobs": chosen, "gradients": gradient_tolerance},
    )
    if as_json:
        _output.print_json(report.to_dict())
    else:
        _print(report)
    if json_file is not None:
        from fcnproto.atomic import atomic_write

        with atomic_write(json_file, "w") as file:
            file.write(json_text(report.to_dict(), indent=2) + "\n")
    if html is not None:
        _write_page(html, report, net, recording)
    return 0 if report.agrees else 1


def _files_in(assignments: Sequence[str]) -> list[Path]:
    """The files of `--image` and `--input`, with or without a blob's name before them."""
    return [path for text in assignments for path in (Path(text), Path(text.partition("=")[2] or text))]


def _take_params(net: Net, recording: Recording) -> None:
    """Give the net the recorded parameters."""
    import torch

    from fcnproto.errors import DataError

    with torch.no_grad():
        for key, value in recording.params.items():
            layer, _, index = key.rpartition(".")
            blobs = net.params.get(layer, [])
            if not index.isdecimal() or int(index) >= len(blobs) or blobs[int(index)].numel() != value.size:
                raise DataError(f"{recording.source}: param.{key} does not fit {net.graph.title}")
            target = blobs[int(index)]
            target.copy_(torch.from_numpy(value.astype("float32")).reshape(target.shape))


def _compute(
    net: Net,
    reference: str,
    images: Sequence[str],
    arrays: Sequence[str],
    settings: dict[str, Any],
) -> Recording:
    from fcnproto.parity import caffe_reference, float64_reference, opencv_reference, random_inputs

    if arrays or images:
        values = _preprocessing.input_values(net, images, arrays, {**settings, "crop": None})
        inputs = {name: value.numpy() for name, value in values.items()}
    else:
        inputs = random_inputs(net, settings["input_size"])
    if reference == "opencv":
        return opencv_reference(net, inputs)
    if reference == "caffe":
        return caffe_reference(net, inputs, python=settings["python"], with_gradients=settings["backward"])
    return float64_reference(net, inputs, with_gradients=True if settings["backward"] else None)


def _print(report: Report) -> None:
    rows = []
    for entry in report.entries:
        found = entry.measures
        numbers = ["other shape", "", "", "", ""]
        if found is not None:
            argmax = "" if found.argmax is None else f"{found.argmax:.6f}"
            numbers = [
                f"{found.max_rel:.2e}",
                f"{found.max_abs:.2e}",
                f"{found.mean_rel:.2e}",
                f"{found.cosine:.8f}",
                argmax,
            ]
        what = entry.name if entry.kind == "blob" else f"{entry.kind} {entry.name}"
        rows.append(
            [
                printable(entry.layer, 100),
                printable(what, 100),
                "x".join(map(str, entry.shape)),
                *numbers,
                _verdict(entry),
            ]
        )
    columns = ["layer", "blob", "shape", "max rel", "max abs", "mean rel", "cosine", "argmax", ""]
    _output.print_table(
        columns, rows, numeric=columns[3:8], optional=["shape", "cosine", "mean rel", "argmax", "max abs"]
    )
    for names, where in ((report.not_compared, "not in the reference"), (report.unknown, "in the reference alone")):
        if names:
            _output.note(f"{where}: {', '.join(printable(name, 100) for name in names)}")
    for entry in report.roundings:
        _output.print_line(f"{printable(entry.name, 100)!r}: rounding alone: {entry.judgement}")
    departure = report.departure
    if departure is None:
        _output.print_line(f"agrees with {report.reference}: {len(rows)} arrays, largest deviation {report.worst:.3g}")
        return
    entry = departure.entry
    _output.print_line(
        f"departs from {report.reference}, first in {entry.kind} {printable(entry.name, 100)!r} of layer "
        f"{printable(entry.layer, 100)!r} ({entry.type}): {departure.looks_like}"
    )
    if departure.cause:
        _output.print_line(departure.cause)


def _verdict(entry: Entry) -> str:
    return "rounding" if entry.is_rounding else "" if entry.agrees else "departs"


def _write_page(path: Path, report: Report, net: Net, recording: Recording) -> None:
    from fcnproto.atomic import atomic_write
    from fcnproto.drawing import lay_out, layer_params, make_diagram
    from fcnproto.inspect.summary import summarise
    from fcnproto.net.weights import definition
    from fcnproto.parity.page import to_html
    from fcnproto.schema.extract import loadable

    shapes = {name: list(value.shape) for name, value in recording.inputs.items()}
    param, _ = loadable(definition(net), shapes)
    summary = summarise(param, phase=net.phase, allow_python=True, allow_writes=True)
    diagram = make_diagram(summary, layer_params(param, net.phase), fold=False)
    with atomic_write(path, "w") as file:
        file.write(to_html(report, diagram, lay_out(diagram)))
