"""Segment images: label maps, overlays with a legend, probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _cluster, _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError
from fcnproto.escaping import printable

if TYPE_CHECKING:
    from fcnproto.cluster import Cluster
    from fcnproto.segment import Result, Segmenter

_CLASSES_SHOWN = 8


class SegmentCommand(_naming.NetCommand):
    """`--polygons` may stand without a word of which."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give `--polygons` its word where it has none."""
        words = ("labelme", "coco", "both")
        spelt = list[str]()
        for place, argument in enumerate(args):
            bare = argument == "--polygons" and (place + 1 == len(args) or args[place + 1] not in words)
            spelt.append("--polygons=both" if bare else argument)
        return super().parse_args(ctx, spelt)


class TileType(click.ParamType):
    """auto, off or the pixels of a tile's side."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The word, or the number from 1 on."""
        if value in ("auto", "off"):
            return str(value)
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is not auto, off or a number of pixels from 1 on.", param, ctx)
        return int(value)


@click.command("segment", cls=SegmentCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS)
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="IMAGE_OR_FOLDER...")
@click.option("-o", "--output", required=True, type=_files.FolderOrSink(), help="Folder for the results.")
@click.option("--probs", is_flag=True, help="Write the probabilities too: .npz, 4 bytes for each pixel and class.")
@click.option("--crf", is_flag=True, help="Sharpen probabilities and labels by a dense CRF, as DeepLab does.")
@click.option(
    "--crf-parameters",
    metavar="NAME=X,...",
    help="Others than DeepLab's: iterations=10,pos_w=3,pos_xy=1,bi_w=4,bi_xy=67,bi_rgb=3 or parts of it.",
)
@click.option(
    "--polygons",
    type=click.Choice(["labelme", "coco", "both"]),
    help="Write the label maps as polygons, too: cat.json for labelme, annotations.coco.json for all; alone: both.",
)
@click.option("--no-legend", is_flag=True, help="Leave the legend out of the overlays.")
@click.option("-r", "--recursive", is_flag=True, help="Look for images in subfolders too.")
@click.option("--no-optimize", is_flag=True, help="Compute every layer as it stands: slower, the same to rounding.")
@click.option(
    "--classes", metavar="FILE", type=click.Path(path_type=Path), help="Class names, one a line, label 0 first."
)
@click.option("--blob", "blobs", metavar="NAME", multiple=True, help="Score blob to use; may be repeated.")
@click.option(
    "--image",
    "--input",
    "inputs",
    metavar="BLOB=PATH",
    multiple=True,
    help="For a net with several image inputs: image or folder for a further one; files are matched by name.",
)
@_options.json_option
@_preprocessing.preprocessing_options
@_options.precision_option(
    "What convolutions are computed in; others than fp32 are compared with it on some of the images."
)
@click.option(
    "--compare",
    "compared",
    type=click.IntRange(min=0),
    default=5,
    metavar="N",
    show_default=True,
    help="Images whose labels are compared with fp32's when --precision is another.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most images of one size that go through the net together.  [default: as many as are small]",
)
@click.option(
    "--writers",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Write the results in N processes of their own: for a GPU that is quicker than two threads.",
)
@click.option("--cuda-graphs", is_flag=True, help="On a GPU: record the net's work for each size and replay it.")
@click.option(
    "--tile",
    type=TileType(),
    default="auto",
    metavar="auto|N|off",
    show_default=True,
    help="Compute images in tiles of N pixels a side, with the whole image's result; auto: where memory is short.",
)
@click.option("--max-side", type=click.IntRange(min=1), metavar="N", help="Shrink larger images for the net.")
@_cluster.cluster_options()
@click.option(
    "--format",
    "chosen_format",
    type=click.Choice(["files", "tar", "parquet"]),
    help="With --cluster: what the results in a folder are.  [default: files]",
)
@_nets.net_options()
def command(
    model: Path,
    weights: Path,
    images: Sequence[str],
    output: Path | str,
    classes: Path | None,
    recursive: bool,
    no_legend: bool,
    no_optimize: bool,
    inputs: Sequence[str],
    nets: _nets.NetOptions,
    chosen_format: str | None,
    **settings: Any,
) -> int:
    """Segment images of any size with the net in the prototxt MODEL and its WEIGHTS (.caffemodel or .caffemodel.h5).

    For each image cat.jpg there will be cat_labels.png, a palette image whose pixel values are the labels, and
    cat_overlay.png for looking at. Results of an earlier run are replaced. An image that can't be worked on is
    reported, and the rest go on; the exit status is then 1. While the net works, the next images are read and the
    last results written.

    With --cluster a corpus of any length is segmented through Ray: label files alone, or rows of a tar or Parquet file,
    with a manifest; what is there already is done no more with --resume.

    Preprocessing and class names are those of the net's own data layer or of the published net that it is; for other
    nets BGR and the mean of ImageNet are assumed.
    """
    import fcnproto
    from fcnproto.preprocessing import read_class_names
    from fcnproto.segment import Segmenter, segment
    from fcnproto.segment.crf import parse_crf

    if settings["cuda_graphs"] and no_optimize:
        raise UsageError("--cuda-graphs is part of what --no-optimize leaves out; give one of them")
    if settings["crf_parameters"] is not None and not settings["crf"]:
        raise UsageError("--crf-parameters are those of --crf, which is not given")
    corpus = settings["cluster"] is not None
    if corpus and settings["polygons"]:
        raise UsageError("--polygons goes without --cluster")
    if not corpus:
        _cluster.refuse_without({**settings, "format": chosen_format})
    where = _cluster.cluster_of(settings, nets) if corpus else None
    net = nets.load(model, weights, device="cpu" if corpus else None)
    segmenter = Segmenter(
        net if no_optimize else fcnproto.optimize(net, cuda_graphs=settings["cuda_graphs"], tuning=False),
        blobs=settings["blobs"],
        classes=None if classes is None else read_class_names(classes),
        longest_side=settings["max_side"],
        fixed_size=_preprocessing.fixed_size(settings["resize"], net),
        probabilities=settings["probs"],
        precision=settings["precision"],
        batch=settings["batch"],
        tile=settings["tile"],
        crf=parse_crf(settings["crf_parameters"] or "") if settings["crf"] else None,
    )
    segmenter.preprocessing = {
        name: _preprocessing.override(how, name, segmenter.inputs, settings)
        for name, how in segmenter.preprocessing.items()
    }
    _preprocessing.tell_assumptions(segmenter.preprocessing)
    if where is not None:
        if inputs:
            raise UsageError("--image: a corpus feeds nets with one image input")
        return _segment_corpus(segmenter, images, output, where, recursive, chosen_format, settings)
    results = segment(
        segmenter,
        images,
        output,
        inputs=_options.assignments(inputs, "--image"),
        with_legend=not no_legend,
        recursive=recursive,
        writers=settings["writers"],
        compared=settings["compared"],
        polygons=("labelme", "coco") if settings["polygons"] == "both" else tuple(filter(None, [settings["polygons"]])),
    )
    return _print(results, settings["precision"], settings["as_json"])


def _segment_corpus(
    segmenter: Segmenter,
    images: Sequence[str],
    output: Path | str,
    where: Cluster,
    recursive: bool,
    chosen_format: str | None,
    settings: Mapping[str, Any],
) -> int:
    from fcnproto import cluster

    with _cluster.progress() as told:
        summary = cluster.segment(
            segmenter,
            images,
            output,
            cluster=where,
            format=chosen_format,
            column=settings["column"],
            recursive=recursive,
            told=told,
        )
    return _cluster.report(summary, settings["as_json"])


def _print(results: Iterable[Result], precision: str, as_json: bool) -> int:
    """A line for each image (or JSON of all), and what a lower precision changed; returns the exit status."""
    failed = total = 0
    told: list[dict[str, Any]] = []
    agreements: list[tuple[float, Result]] = []
    with _output.progress("segmenting") as progress:
        task = progress.add_task("", total=None)
        for result in results:
            total = result.total
            progress.update(task, completed=result.index + 1, total=total, description=result.source.name)
            if result.error is not None:
                failed += 1
                _output.error(result.error)
            if as_json:
                told.append(_as_dict(result))
            for found in result.segmentations:
                shares = _most(found.shares())
                head = f"{found.blob}: " if len(result.segmentations) > 1 else ""
                same = "" if found.agreement is None else f"; {found.agreement:.5f} of the labels as in float32"
                if not as_json:
                    _output.print_line(f"{result.source}: {head}{shares}{same}")
                if found.agreement is not None:
                    agreements.append((found.agreement, replace(result, segmentations=())))
    _tell_agreement(precision, agreements, total)
    if as_json:
        _output.print_json({"images": told, "failed": failed})
    if failed:
        _output.note(f"{failed} of {total} images failed")
    return 1 if failed else 0


def _as_dict(result: Result) -> dict[str, Any]:
    blobs = {
        found.blob: {"shares": found.shares(), **({} if found.agreement is None else {"agreement": found.agreement})}
        for found in result.segmentations
    }
    return {"source": result.source, "files": result.files, "error": result.error, "blobs": blobs}


def _tell_agreement(precision: str, agreements: Sequence[tuple[float, Result]], total: int) -> None:
    if not agreements:
        return
    mean = sum(share for share, _ in agreements) / len(agreements)
    lowest, where = min(agreements, key=lambda pair: pair[0])
    compared = len({result.index for _, result in agreements})
    _output.note(
        f"{precision}: {mean:.5f} of the labels agree with float32's ({compared} of {total} images compared; "
        f"lowest {lowest:.5f}, {where.source.name})"
    )


def _most(shares: dict[str, float]) -> str:
    """The classes with the largest shares, and how many others there are."""
    shown = [f"{printable(name, 60)} {share:.3f}" for name, share in list(shares.items())[:_CLASSES_SHOWN]]
    more = len(shares) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
