"""Segment images: label maps, overlays with a legend, probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _options, _output, _preprocessing

if TYPE_CHECKING:
    from fcnproto.segment import Result

_CLASSES_SHOWN = 8


@click.command("segment")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_OR_FOLDER...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--probs", is_flag=True, help="Write the probabilities too: .npz, 4 bytes for each pixel and class.")
@click.option("--no-legend", is_flag=True, help="Leave the legend out of the overlays.")
@click.option("-r", "--recursive", is_flag=True, help="Look for images in subfolders too.")
@click.option("--no-optimize", is_flag=True, help="Compute every layer as it stands: slower, the same to rounding.")
@click.option(
    "--classes", metavar="FILE", type=click.Path(path_type=Path), help="Class names, one a line, label 0 first."
)
@click.option("--blob", "blobs", metavar="NAME", multiple=True, help="Score blob to use; may be repeated.")
@click.option(
    "--input",
    "inputs",
    metavar="BLOB=PATH",
    multiple=True,
    help="For a net with several image inputs: image or folder for a further one; files are matched by name.",
)
@_preprocessing.preprocessing_options
@click.option("--max-side", type=click.IntRange(min=1), metavar="N", help="Shrink larger images for the net.")
@_options.device_option
@_options.state_options
def command(
    model: Path,
    weights: Path,
    images: Sequence[Path],
    output: Path,
    classes: Path | None,
    recursive: bool,
    no_legend: bool,
    no_optimize: bool,
    inputs: Sequence[str],
    device: str | None,
    level: int,
    stages: Sequence[str],
    allow_python: bool,
    **settings: Any,
) -> int:
    """Segment images of any size with the net in the prototxt MODEL and its WEIGHTS (.caffemodel or .caffemodel.h5).

    For each image cat.jpg there will be cat_labels.png, a palette image whose pixel values are the labels, and
    cat_overlay.png for looking at. Results of an earlier run are replaced. An image that can't be worked on is
    reported, and the rest go on; the exit status is then 1.

    Preprocessing and class names are those of the net's own data layer or of the published net that it is; for other
    nets BGR and the mean of ImageNet are assumed.
    """
    import fcnproto
    from fcnproto.recognise import read_class_names, zoo_record
    from fcnproto.segment import Segmenter, segment

    net = fcnproto.load(
        model,
        weights,
        level=level,
        stages=stages,
        allow_python=allow_python,
        device=_options.device(device),
    )
    segmenter = Segmenter(
        net if no_optimize else fcnproto.optimize(net),
        blobs=settings["blobs"],
        classes=None if classes is None else read_class_names(classes),
        record=zoo_record(model, weights),
        longest_side=settings["max_side"],
        fixed_size=_preprocessing.fixed_size(settings["resize"], net),
        probabilities=settings["probs"],
    )
    segmenter.preprocessing = {
        name: _preprocessing.override(how, name, segmenter.inputs, settings)
        for name, how in segmenter.preprocessing.items()
    }
    _preprocessing.tell_assumptions(segmenter.preprocessing)
    results = segment(
        segmenter,
        images,
        output,
        inputs=_options.assignments(inputs, "--input"),
        with_legend=not no_legend,
        recursive=recursive,
    )
    return _print(results)


def _print(results: Iterable[Result]) -> int:
    """A line for each image; returns the exit status."""
    failed = total = 0
    with _output.progress("segmenting") as progress:
        task = progress.add_task("", total=None)
        for result in results:
            total = result.total
            progress.update(task, completed=result.index + 1, total=total, description=result.source.name)
            if result.error is not None:
                failed += 1
                _output.error(result.error)
            for found in result.segmentations:
                shares = _most(found.shares())
                head = f"{found.blob}: " if len(result.segmentations) > 1 else ""
                _output.print_line(f"{result.source}: {head}{shares}")
    if failed:
        _output.note(f"{failed} of {total} images failed")
    return 1 if failed else 0


def _most(shares: dict[str, float]) -> str:
    """The classes with the largest shares, and how many others there are."""
    shown = [f"{name} {share:.1%}" for name, share in list(shares.items())[:_CLASSES_SHOWN]]
    more = len(shares) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
