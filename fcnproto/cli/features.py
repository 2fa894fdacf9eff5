"""Write blobs of many images to an HDF5 or npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fcnproto.cli import _cluster, _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError


@click.command("features", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS)
@click.argument("images", type=click.Path(), nargs=-1, required=True)
@click.option("--blobs", metavar="A,B", callback=_options.names, required=True, help="The blobs to write.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=_files.FileOrSink(),
    required=True,
    help="A .h5, .hdf5, .npz or .txt (a line per image and blob) file; - is stdout. With --cluster a .parquet file or "
    "a folder of such.",
)
@_files.format_option("h5", "npz", "txt")
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Images run at a time.", show_default=True)
@click.option("--pool", type=click.Choice(["mean", "max"]), help="Over height and width, instead of the whole blob.")
@_cluster.cluster_options()
@_options.json_option
@_preprocessing.preprocessing_options
@_nets.net_options(cuts_images=True)
def command(
    model: Path,
    weights: Path,
    images: Sequence[str],
    blobs: Sequence[str],
    output: Path | str,
    chosen_format: str | None,
    batch: int,
    pool: Any,
    as_json: bool,
    crop: tuple[int, int] | None,
    nets: _nets.NetOptions,
    **settings: Any,
) -> int:
    """Run the net in the prototxt MODEL with WEIGHTS on IMAGES (files or folders) and write the blobs named.

    Images of one size are stacked into one array per blob, a row per image, with `image_names` beside it; images of
    several sizes give an array `<blob>/<image name>` each.

    With --cluster through Ray, to Parquet: a row an image.
    """
    from fcnproto.image_files import find_images
    from fcnproto.inspect.features import FORMATS, extract_features, summary
    from fcnproto.net.roles import fixed_image_size, image_inputs
    from fcnproto.preprocessing import preprocessing_of

    where = None if settings["cluster"] is None else _cluster.cluster_of(settings, nets)
    if where is None:
        _cluster.refuse_without(settings)
    elif chosen_format is not None:
        raise UsageError("--format: with --cluster features go to Parquet")
    kind = _files.ending(Path(output), chosen_format, ".txt")
    if where is None and kind not in FORMATS:
        raise UsageError(f"-o {output}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    net = nets.load(model, weights, device=None if where is None else "cpu")
    name = image_inputs(net, blobs)[0]
    how = preprocessing_of(net, name)
    how = _preprocessing.override(how, name, [name], settings)
    _preprocessing.tell_assumptions({name: how})
    size = (
        fixed_image_size(net, name)
        if settings["resize"] is None and crop is None
        else _preprocessing.fixed_size(settings["resize"], net)
    )
    if where is not None:
        from fcnproto import cluster

        with _cluster.progress() as told:
            done = cluster.features(
                net,
                images,
                blobs,
                output,
                how,
                cluster=where,
                size=size,
                crop=crop,
                batch=batch,
                pool=pool,
                column=settings["column"],
                told=told,
            )
        return _cluster.report(done, as_json)
    found = find_images(images)
    with _output.progress("images") as bar:
        task = bar.add_task("", total=len(found))
        shapes = extract_features(
            net,
            found,
            blobs,
            Path(output),
            how,
            kind=kind,
            size=size,
            crop=crop,
            batch=batch,
            pool=pool,
            progress=lambda image: bar.update(task, advance=1, description=image),
        )
    if as_json:
        _output.print_json({"file": output, "images": len(found), "blobs": shapes})
    else:
        _output.note(f"{output}: {summary(shapes)} of {len(found)} images")
    return 0
