"""Convert a net and its weights to other formats, and back."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.atomic import atomic_write, is_stream
from fcnproto.cli import _files, _naming, _nets, _options, _output
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from fcnproto.export.convert import Conversion


@click.command("convert", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS)
@click.argument("out", type=_files.OutputFile(makes_folder=True))
@_files.format_option("safetensors", "pt", "caffemodel", "caffemodel.h5", "pt2", "onnx")
@click.option(
    "--input-size",
    metavar="HxW",
    callback=_options.size,
    help="Size of image inputs: what a .py speaks of, and what --fixed means.  [default: the prototxt's]",
)
@click.option("--fixed", is_flag=True, help="A .pt2 or .onnx for this size alone, one image at a time.")
@click.option("--softmax", is_flag=True, help="End each map of scores in a Softmax: probabilities.")
@click.option("--argmax", is_flag=True, help="End each map of scores in an ArgMax: labels (N, 1, height, width).")
@click.option("--losses", is_flag=True, help="Keep losses and accuracies in .py, .pt2 and .onnx, labels being inputs.")
@_options.json_option
@_nets.net_options(device="cpu")
def command(
    model: Path,
    weights: Path,
    out: Path,
    chosen_format: str | None,
    input_size: tuple[int, int] | None,
    losses: bool,
    fixed: bool,
    softmax: bool,
    argmax: bool,
    as_json: bool,
    nets: _nets.NetOptions,
) -> None:
    """Write the net in the prototxt MODEL with WEIGHTS to OUT, whose ending says the format.

    Weights alone: .safetensors, .pt (a state_dict), .caffemodel, .caffemodel.h5. The net itself: .py (a module in plain
    PyTorch, beside its .safetensors), .pt2 (torch.export), .onnx. WEIGHTS may be a caffemodel or a PyTorch state_dict
    (.pt, .pth, .safetensors) with this net's names, so that a net trained elsewhere comes home. What was written is
    read back and compared before it gets its name. OUT may be - for stdout, with --format.
    """
    ends = [kind for kind, wanted in (("Softmax", softmax), ("ArgMax", argmax)) if wanted]
    if is_stream(out):
        with _spooled(out, chosen_format) as made:
            done = _convert(model, weights, made, input_size, losses, fixed, ends, nets)
        files = [out]
    elif chosen_format is not None and not out.name.lower().endswith(f".{chosen_format}"):
        raise UsageError(f"--format {chosen_format}: {out} says another format by its ending")
    else:
        done = _convert(model, weights, out, input_size, losses, fixed, ends, nets)
        files = list(done.files)
    if as_json:
        _output.print_json({"files": files, "checked": done.checked})
    else:
        _output.note(f"{', '.join(map(str, files))}: {done.checked}")


@contextlib.contextmanager
def _spooled(out: Path, chosen_format: str | None) -> Iterator[Path]:
    """A file to be made, which then goes to stdout, a device or a pipe. `UsageError` where it comes with another."""
    if chosen_format is None:
        raise UsageError(f"{out}: say with --format what to write; a .py, which comes with a second file, needs a name")
    with tempfile.TemporaryDirectory(prefix="fcnproto-") as folder:
        made = Path(folder) / f"net.{chosen_format}"
        yield made
        if len(os.listdir(folder)) > 1:
            raise UsageError(f"{out}: this net is written as several files; give the name of a file")
        with atomic_write(out) as file, open(made, "rb") as content:
            shutil.copyfileobj(content, file)


def _convert(
    model: Path,
    weights: Path,
    out: Path,
    input_size: tuple[int, int] | None,
    losses: bool,
    fixed: bool,
    ends: Sequence[str],
    nets: _nets.NetOptions,
) -> Conversion:
    from fcnproto.export import STATE_FILES, about_inputs, check_output, convert, load_state

    check_output(out, (model, weights))
    is_state = weights.suffix.lower() in STATE_FILES
    net = nets.load(model, None if is_state else weights)
    if is_state:
        load_state(net, weights)
    title, about = net.graph.name or _options.title(model), about_inputs(net)
    if ends:
        from fcnproto.export.ending import with_ends

        net = with_ends(net, ends)
    return convert(net, out, size=input_size, title=title, about=about, losses=losses, fixed=fixed)
