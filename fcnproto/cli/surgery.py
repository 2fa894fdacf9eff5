"""Make nets and weights out of others: transplant, fuse, convolutionalise, change classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from fcnproto.meta import Meta
    from fcnproto.net import Net
    from fcnproto.schema import caffe_pb2
    from fcnproto.surgery import Report

_path = click.Path(path_type=Path)
_model = click.argument("model", type=_nets.MODEL)
_output_weights = click.option(
    "-o",
    "--output",
    required=True,
    type=_files.OutputFile(),
    help="Weights to write (.caffemodel, .caffemodel.h5, .safetensors); - is stdout, a .caffemodel.",
)
_start = click.option(
    "--weights",
    type=_nets.WEIGHTS,
    help="Values that the net has before; without, those of its fillers (zeros if none).",
)
_no_interpolation = click.option(
    "--no-interpolation", is_flag=True, help='Leave layers called "up..." as they are instead of making them bilinear.'
)


def _net(function: _options.Function) -> _options.Function:
    """`--json`, and the options of the net."""
    return _options.json_flag(_nets.net_options(device="cpu")(function))


@click.group("surgery")
def command() -> None:
    """Make nets and weights out of others, as the FCN papers did. Every command prints what it did, layer by layer:
    copied, coerced (into another shape), made, changed, kept (nothing came for it) or dropped (from the source)."""


@command.command("transplant", cls=_naming.NetCommand)
@_model
@click.argument("source", type=_nets.WEIGHTS)
@_output_weights
@_start
@click.option("--suffix", default="", help="Added to the source's layer names to find the net's.")
@click.option("--rename", "renames", metavar="OLD=NEW", multiple=True, help="A layer that the net calls differently.")
@click.option("--leave-out", metavar="A,B", callback=_options.names, help="Layers of the source not to be copied.")
@_no_interpolation
@_net
def transplant_command(
    model: Path,
    source: Path,
    output: Path,
    weights: Path | None,
    suffix: str,
    renames: Sequence[str],
    leave_out: Sequence[str],
    no_interpolation: bool,
    nets: _nets.NetOptions,
) -> None:
    """Copy weights from SOURCE into the net MODEL by layer name.

    Inner products become the convolutions that compute the same (fc6 of VGG16). Shapes that don't fit are an error,
    never cut or repeated. Layers of the net with "up" in their names are made to interpolate.
    """
    from fcnproto import surgery

    net = nets.load(model, weights)
    report = surgery.transplant(
        net, source, suffix, leave_out=leave_out, renamed=_options.assignments(renames, "--rename")
    )
    if not no_interpolation:
        report = surgery.with_interpolation(net, report)
    _finish(net, output, report)


@command.command("interpolate", cls=_naming.NetCommand)
@_model
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@_output_weights
@click.option("--layer", "layers", metavar="NAME", multiple=True, help='By default all with "up" in their names.')
@_net
def interpolate_command(
    model: Path,
    weights: Path | None,
    output: Path,
    layers: Sequence[str],
    nets: _nets.NetOptions,
) -> None:
    """Make Deconvolution layers of MODEL enlarge bilinearly; the other layers have the values in WEIGHTS."""
    from fcnproto import surgery

    net = nets.load(model, weights)
    report = surgery.interpolate(net, list(layers) or None)
    if not report.steps:
        raise UsageError(f'{model}: no Deconvolution layer has "up" in its name; name one with --layer')
    _finish(net, output, report)


@command.command("expand-score", cls=_naming.NetCommand)
@_model
@click.argument("source", type=_nets.WEIGHTS)
@click.argument("layer")
@_output_weights
@_start
@click.option("--from", "source_layer", metavar="LAYER", help="The layer of SOURCE, where its name differs.")
@click.option(
    "--class", "classes", metavar="NEW=OLD", multiple=True, help="Take class OLD of SOURCE for class NEW (numbers)."
)
@_net
def expand_command(
    model: Path,
    source: Path,
    layer: str,
    output: Path,
    weights: Path | None,
    source_layer: str | None,
    classes: Sequence[str],
    nets: _nets.NetOptions,
) -> None:
    """Copy the classes of a score layer in SOURCE into score LAYER of MODEL, which has others.

    By default the old classes are the first ones of the new; --class says it class by class.
    """
    from fcnproto import surgery

    net = nets.load(model, weights)
    if classes:
        report = surgery.transfer_classes(net, layer, source, _numbers(classes), source_layer)
    else:
        report = surgery.expand_score(net, layer, source, source_layer)
    _finish(net, output, report)


@command.command("early-fusion", cls=_naming.NetCommand)
@_model
@click.argument("source", type=_nets.WEIGHTS)
@_output_weights
@click.option("--layer", help="The net's first layer, by default the first with image weights.")
@click.option("--from", "source_layer", metavar="LAYER", help="The source's first layer, likewise.")
@_net
def early_command(
    model: Path,
    source: Path,
    output: Path,
    layer: str | None,
    source_layer: str | None,
    nets: _nets.NetOptions,
) -> None:
    """Fill MODEL, whose first layer reads more channels (colour and depth), from SOURCE, whose reads fewer.

    Each further channel gets the mean over the old ones.
    """
    from fcnproto import surgery

    net = nets.load(model)
    _finish(net, output, surgery.early_fusion(net, source, layer, source_layer))


@command.command("late-fusion", cls=_naming.NetCommand)
@_model
@click.option(
    "--stream", "streams", metavar="SUFFIX=WEIGHTS", multiple=True, required=True, help="As in --stream hha=W; repeat."
)
@_output_weights
@_net
def late_command(model: Path, streams: Sequence[str], output: Path, nets: _nets.NetOptions) -> None:
    """Fill MODEL, a net of several streams, each from its own weights, whose layer names lack the stream's suffix."""
    from fcnproto import surgery

    net = nets.load(model)
    _finish(net, output, surgery.late_fusion(net, dict(_options.assignments(streams, "--stream"))))


@command.command("convolutionalise", cls=_naming.NetCommand)
@_model
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@click.option("-o", "--output", required=True, type=_files.OutputFile(), help="Prototxt to write; - is stdout.")
@click.option("--output-weights", type=_files.OutputFile(), help="Weights to write.")
@click.option("--pad", type=click.IntRange(min=0), help="Padding of the first convolution (100 in the published FCNs).")
@click.option("--classes", type=click.IntRange(min=2), help="Replace the classifier by an FCN's head for so many.")
@click.option("--label", is_flag=True, help="With --classes: add the label input and the loss, for training.")
@_net
def convolutionalise_command(
    model: Path,
    weights: Path | None,
    output: Path,
    output_weights: Path | None,
    pad: int | None,
    classes: int | None,
    label: bool,
    nets: _nets.NetOptions,
) -> None:
    """Make the classification net MODEL give a map of scores for images of any size.

    Inner products become convolutions; the average pooling before them, flattenings, auxiliary classifiers and losses
    are dropped. With --classes the result is a coarse FCN (32s for most nets): score, interpolation, crop.
    """
    from fcnproto import surgery
    from fcnproto.schema.text import read_net

    _check_weights(weights, output_weights)
    if label and classes is None:
        raise UsageError("--label needs --classes")
    net, report = surgery.convolutionalise(read_net(model), pad=pad, classifier=classes is None, shapes=nets.shapes)
    if classes is not None:
        net, head = surgery.add_scores(net, classes, label=label)
        report += head
    _write_both(nets, net, model, weights, output, output_weights, report, ())


@command.command("set-classes", cls=_naming.NetCommand)
@_model
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@click.option(
    "--classes", metavar="[BLOB=]N", multiple=True, required=True, help="Number of classes; repeat for tasks."
)
@click.option("-o", "--output", required=True, type=_files.OutputFile(), help="Prototxt to write; - is stdout.")
@click.option(
    "--output-weights", type=_files.OutputFile(), help="Weights to write; score layers of another size begin at zero."
)
@_net
def classes_command(
    model: Path,
    weights: Path | None,
    classes: Sequence[str],
    output: Path,
    output_weights: Path | None,
    nets: _nets.NetOptions,
) -> None:
    """Give the net MODEL another number of classes; weights of all other layers stay."""
    from fcnproto import surgery
    from fcnproto.schema.text import read_net

    _check_weights(weights, output_weights)
    wanted: int | dict[str, int]
    if len(classes) == 1 and classes[0].isdecimal():
        wanted = int(classes[0])
    else:
        texts = _options.assignments(classes, "--classes")
        if not all(text.isdecimal() for text in texts.values()):
            raise UsageError("--classes: expected a number, or BLOB=NUMBER for each score blob")
        wanted = {name: int(text) for name, text in texts.items()}
    net, report = surgery.set_classes(read_net(model), wanted)
    _write_both(nets, net, model, weights, output, output_weights, report, report.layers("changed"))


@command.command("fold-normalisation", cls=_naming.NetCommand)
@_model
@click.argument("weights", type=_nets.WEIGHTS)
@click.option("-o", "--output", required=True, type=_files.OutputFile(), help="Prototxt to write; - is stdout.")
@click.option("--output-weights", required=True, type=_files.OutputFile(), help="Weights to write.")
@_options.json_flag
@_nets.layers_option
def fold_command(model: Path, weights: Path, output: Path, output_weights: Path) -> None:
    """Fold BatchNorm and Scale into the convolutions before them: the net computes the same without these layers."""
    from fcnproto import surgery
    from fcnproto.schema.text import read_net, write_message

    net, made, report = surgery.fold_normalisation(read_net(model), weights)
    made.meta = _meta(model, weights)
    write_message(output, net, _comment(net, made.meta))
    _finish(made, output_weights, report)


def _numbers(texts: Sequence[str]) -> dict[int, int]:
    pairs = _options.assignments(texts, "--class")
    if not all(text.isdecimal() for pair in pairs.items() for text in pair):
        raise UsageError("--class: expected NEW=OLD, two numbers of classes")
    return {int(new): int(old) for new, old in pairs.items()}


def _check_weights(weights: Path | None, output_weights: Path | None) -> None:
    if (weights is None) != (output_weights is None):
        raise UsageError("WEIGHTS and --output-weights go together")


def _write_both(
    nets: _nets.NetOptions,
    net: caffe_pb2.NetParameter,
    model: Path,
    weights: Path | None,
    output: Path,
    output_weights: Path | None,
    report: Report,
    leave_out: Sequence[str],
) -> None:
    """Write a definition, and its weights out of those of the net MODEL that it was made from."""
    from fcnproto import surgery
    from fcnproto.schema.text import write_message

    meta = _meta(model, weights)
    made = None
    if weights is not None and output_weights is not None:
        made = replace(nets, shapes={}).load(net)
        made.meta = meta
        with surgery.opened(weights) as layers:
            stored = {layer.name for layer in layers}
        report += surgery.transplant(made, weights, leave_out=[name for name in leave_out if name in stored])
        report = surgery.with_interpolation(made, report)
    write_message(output, net, _comment(net, meta))
    if made is not None and output_weights is not None:
        _save(made, output_weights)
    _tell(report)


def _meta(model: Path, weights: Path | None) -> Meta:
    """What is known of the net MODEL with these weights."""
    from fcnproto.meta import Meta
    from fcnproto.net import Net
    from fcnproto.net.described import known_meta, take_meta
    from fcnproto.schema.text import read_net

    net = Net(read_net(model, quiet=True), fill=False, file=model, base_dir=model.resolve().parent)
    for file in [model] if weights is None else [model, weights]:
        take_meta(net, file)
    return known_meta(net) or Meta()


def _comment(definition: caffe_pb2.NetParameter, meta: Meta) -> str:
    """The comment that says so of a net made of it: what still fits."""
    from fcnproto.meta import comment
    from fcnproto.net import Net
    from fcnproto.net.described import known_meta

    made = Net(definition, fill=False)
    made.meta = meta
    return comment(known_meta(made))


def _save(net: Net, path: Path) -> None:
    from fcnproto.atomic import is_stream
    from fcnproto.net.weights import save_with_meta

    # The name says the format, but stdout, a device or a pipe has none.
    save_with_meta(net, path, format_of=Path("net.caffemodel") if is_stream(path) and not path.suffix else None)


def _finish(net: Net, output: Path, report: Report) -> None:
    _save(net, output)
    _tell(report)


def _tell(report: Report) -> None:
    """What was done, on stdout."""
    if _options.wants_json():
        steps = [{"action": one.action, "layer": one.layer, "detail": one.detail} for one in report.steps]
        _output.print_json({"steps": steps})
        return
    for line in report.lines():
        _output.print_line(line)
