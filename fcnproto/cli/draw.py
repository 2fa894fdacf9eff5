"""Draw a net's layers and blobs as SVG, PNG or an HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output
from fcnproto.errors import UsageError

_FORMATS = (".svg", ".png", ".html")


@click.command("draw", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS, required=False)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=_files.OutputFile(),
    required=True,
    help="The drawing; its kind by its ending: .svg, .png or .html; - is stdout.",
)
@_files.format_option("svg", "png", "html")
@click.option("--input-size", metavar="HxW", callback=_options.size, help="Size of image inputs, for the shapes.")
@click.option("--unfolded", is_flag=True, help="Show every layer, also where groups repeat.")
@click.option(
    "--layout",
    "engine",
    type=click.Choice(["auto", "graphviz", "own"]),
    default="auto",
    show_default=True,
    help="Who places the boxes; auto: Graphviz where it is installed.",
)
@_options.json_option
@_nets.net_options(device="cpu")
def command(
    model: Path,
    weights: Path | None,
    output: Path,
    chosen_format: str | None,
    input_size: tuple[int, int] | None,
    unfolded: bool,
    engine: str,
    as_json: bool,
    nets: _nets.NetOptions,
) -> None:
    """Draw the net in the prototxt MODEL: layers by kind, shapes on the arrows, repeated groups folded.

    The HTML page zooms, searches, and shows the settings of the layer that is clicked, with statistics of its weights
    where WEIGHTS are given.
    """
    kind = _files.ending(output, chosen_format, ".svg")
    if kind not in _FORMATS:
        raise UsageError(f"-o {output}: the name must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
    if weights is not None and kind != ".html":
        raise UsageError("WEIGHTS are shown in .html drawings only")
    from fcnproto.atomic import atomic_write
    from fcnproto.drawing import lay_out, layer_params, make_diagram, to_image, to_svg
    from fcnproto.drawing.page import to_page
    from fcnproto.inspect.summary import summarise
    from fcnproto.schema.text import read_net

    param = read_net(model, strict=nets.strict and nets.caffe_proto is None, quiet=True)
    summary = summarise(
        param, input_size, shapes=nets.shapes, base_dir=model.resolve().parent, file=model, **nets.state
    )
    params = layer_params(param, nets.phase, level=nets.level, stages=nets.stages)
    diagram = make_diagram(summary, params, fold=not unfolded)
    diagram.name = diagram.name or _options.title(model)
    try:
        layout = lay_out(diagram, graphviz={"auto": None, "graphviz": True, "own": False}[engine])
    except FileNotFoundError as error:
        raise UsageError(f"--layout graphviz: {error}") from None
    blobs = None
    if weights is not None:
        net = nets.load(model, weights)
        blobs = {layer.name: {n: getattr(layer, n) for n in layer.blob_names} for layer in reversed(net.layers)}
    if kind == ".png":
        with atomic_write(output) as file:
            to_image(diagram, layout).save(file, format="PNG")
    else:
        with atomic_write(output, "w") as file:
            file.write(to_page(diagram, layout, summary, params, blobs) if kind == ".html" else to_svg(diagram, layout))
    if as_json:
        _output.print_json({"file": output, "boxes": len(diagram.boxes), "layers": len(summary.layers)})
    else:
        _output.note(f"{output}: {len(diagram.boxes)} boxes for {len(summary.layers)} layers")
