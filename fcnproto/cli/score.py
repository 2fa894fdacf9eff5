"""Score segmentations: folders of label maps, or a net on a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _cluster, _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.cli._scored import DATA_SETS, Items, items_of, outputs_of
from fcnproto.errors import UsageError
from fcnproto.escaping import file_name, printable

if TYPE_CHECKING:
    from fcnproto.cluster import Cluster
    from fcnproto.scoring import Scored
    from fcnproto.zoo import ModelInfo

_path = click.Path(path_type=Path)


def _result_options(function: _options.Function) -> _options.Function:
    for option in (
        click.option(
            "--picture",
            type=_files.OutputFile(makes_folder=True),
            metavar="FILE",
            help="Write the confusion matrix as a PNG.",
        ),
        _options.json_option,
        click.option("--leave-out", metavar="A,B", callback=_options.names, help="Classes left out of the means."),
        click.option(
            "--leave-out-absent/--count-absent",
            default=True,
            show_default=True,
            help="Classes that the truth lacks: out of the means, or with an IU of 0 where predicted.",
        ),
        _options.empty_classes_option,
        _options.binary_masks_option,
        click.option(
            "--ignore-label", type=int, default=255, show_default=True, help="Label that does not count (nor does 255)."
        ),
        click.option(
            "--colours", metavar="[BLOB=]FILE", multiple=True, help="Table of colours for colour-coded masks."
        ),
        click.option("--classes", metavar="[BLOB=]FILE", multiple=True, help="Class names, one a line, label 0 first."),
    ):
        function = option(function)
    return function


@click.group("score")
def command() -> None:
    """Score segmentations: pixel accuracy, mean accuracy, mean IU, frequency weighted IU, IU by class."""


def _corpus_options(function: _options.Function) -> _options.Function:
    sink = click.option(
        "-o",
        "--output",
        type=_files.FolderOrSink(),
        metavar="SINK",
        help="With --cluster: a folder or .parquet file for each image's confusion matrix; --resume needs it.",
    )
    return _cluster.cluster_options(column=False)(sink(function))


@command.command("folders")
@click.argument("predictions", type=click.Path())
@click.argument("truth", type=click.Path())
@_result_options
@_corpus_options
def folders_command(
    predictions: str, truth: str, classes: Sequence[str], colours: Sequence[str], **settings: Any
) -> None:
    """Score the label images in PREDICTIONS against those in TRUTH.

    The prediction for cat.png is cat.png, cat_labels.png or cat_mask.png. Pixels are labels (palette and grey images,
    .npy, .mat), or colours that stand for them (--colours). Both may be annotations as well: folders of labelme's or
    Pascal VOC's files, or one file of COCO's or CVAT's. With --cluster through Ray; the folders may be at fsspec's
    addresses.
    """
    from fcnproto import cluster
    from fcnproto.scoring import score_folders

    where = _where(settings)
    known, tables = _options.classes_and_colours(classes, colours)
    if list(known) != [""]:
        raise UsageError("say the classes with --classes (one name a line) or --colours, once")
    names = known[""]
    how: dict[str, Any] = {
        "ignore_label": settings["ignore_label"],
        "colours": tables.get(""),
        "binary": settings["binary_masks"],
        "leave_out": _numbers(settings["leave_out"], names),
        "count_absent": not settings["leave_out_absent"],
        "allow_empty_classes": settings["allow_empty_classes"],
    }
    if where is not None:
        with _cluster.progress() as told_corpus:
            scored = cluster.score_folders(
                predictions, truth, names, cluster=where, out=settings["output"], told=told_corpus, **how
            )
    else:
        with _progress() as told:
            scored = score_folders(predictions, truth, names, told=told, **how)
    _show([scored], settings, None)


def _where(settings: Mapping[str, Any], nets: _nets.NetOptions | None = None) -> Cluster | None:
    """What the options of `--cluster` say; None without."""
    if settings["cluster"] is None:
        _cluster.refuse_without(settings)
        return None
    return _cluster.cluster_of(settings, nets)


@command.command("net", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS)
@click.option("--images", metavar="[BLOB=]DIR", multiple=True, help="Folder of images; with --masks.")
@click.option(
    "--masks", metavar="[BLOB=]DIR", multiple=True, help="Folder of masks with the images' names (sem=A, geo=B)."
)
@click.option(
    "--data", "data_set", type=click.Choice(list(DATA_SETS)), help="A published data set; with --root and --split."
)
@_preprocessing.kinds_options
@click.option("--root", type=_path, help="The data set's folder.")
@click.option("--split", help="The split to score, such as seg11valid, val or test.")
@click.option("--voc", type=_path, help="For --data context: the folder that holds VOC2010.")
@click.option("--year", type=int, default=2012, show_default=True, help="For --data voc.")
@click.option("--iterations", type=click.IntRange(min=1), help="Forward passes on the net's own data layers.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --cluster: most images of one size that go through the net together.  [default: 1]",
)
@_result_options
@_corpus_options
@_nets.net_options()
def net_command(
    model: Path,
    weights: Path,
    classes: Sequence[str],
    colours: Sequence[str],
    nets: _nets.NetOptions,
    **settings: Any,
) -> None:
    """Score the net MODEL with its WEIGHTS on images with masks, on a published data set, or on its own data layers.

    Without --images and --data the net's data layers say what is scored (of a name of the zoo those of its val file): a
    published val.prototxt its whole split once, others --iterations batches. Where the net is a published one, the
    published figures are printed beside.
    """
    from fcnproto import cluster
    from fcnproto.preprocessing import zoo_record
    from fcnproto.scoring import score_net

    if settings["batch"] is not None and settings["cluster"] is None:
        raise UsageError("--batch goes with --cluster")
    where = _where(settings, nets)
    if not settings["images"] and settings["data_set"] is None:
        model = _nets.other_file(model, "val")
    net = nets.load(model, weights, device=None if where is None else "cpu")
    record = zoo_record(model, weights)
    names, tables = _options.classes_and_colours(classes, colours)
    outputs = outputs_of(net, record, names, settings["data_set"])
    items, count = items_of(net, record, outputs, tables, settings)
    named = next(iter(outputs.values()))[1] if outputs else ()
    how: dict[str, Any] = {
        "ignore_label": settings["ignore_label"],
        "leave_out": _numbers(settings["leave_out"], named),
        "count_absent": not settings["leave_out_absent"],
        "allow_empty_classes": settings["allow_empty_classes"] or settings["data_set"] is not None,
    }
    if where is not None:
        if not isinstance(items, Items):
            raise UsageError("--cluster: the net's own data layers read one after another; give --images and --masks")
        with _cluster.progress() as told_corpus:
            scored = cluster.score_net(
                net,
                items,
                outputs,
                cluster=where,
                out=settings["output"],
                batch=settings["batch"] or 1,
                told=told_corpus,
                **how,
            )
    else:
        with _progress() as told:
            scored = score_net(net, items, outputs, count=count, told=told, **how)
    if not settings["images"] and settings["data_set"] is None:
        _output.say_faults(net)
    _show(scored, settings, record)


def _numbers(texts: Sequence[str], names: Sequence[str]) -> list[int]:
    """The labels of classes given by name or number."""
    found = []
    for text in texts:
        if text in names:
            found.append(list(names).index(text))
        elif text.isdecimal() and (not names or int(text) < len(names)):
            found.append(int(text))
        else:
            raise UsageError(f"--leave-out {text}: no such class")
    return found


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    with _output.progress("scoring") as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show(results: Sequence[Scored], settings: Mapping[str, Any], record: ModelInfo | None) -> None:
    """Print the results and write the picture."""
    if record is not None and {len(one.names) for one in results} != {len(one.classes) for one in record.outputs}:
        record = None  # a net of other classes under a published one's name
    if settings["leave_out_absent"]:
        for one in results:
            _tell_absent(one, len(results) > 1)
    if settings["as_json"]:
        published = [] if record is None else _published_figures(record)
        _output.print_json({"results": [scored.as_dict() for scored in results], "published": published})
    else:
        for scored in results:
            _print_tables(scored, len(results) > 1)
        if record is not None:
            _print_published(results, record)
    if settings["picture"] is not None:
        _write_pictures(results, settings["picture"])


def _tell_absent(scored: Scored, several: bool) -> None:
    """Say which classes the truth lacks; they are left out of the means."""
    from fcnproto.scoring.metrics import absent

    missing = [scored.names[index] for index in absent(scored.confusion)]
    if missing:
        of = f"{scored.blob}: " if several else ""
        shown = ", ".join(printable(name, 60) for name in missing)
        _output.note(f"{of}left out of the means, since the masks hold none of it: {shown}")


def _print_tables(scored: Scored, several: bool) -> None:
    found = scored.metrics
    if several:
        _output.print_line(f"{scored.blob}:")
    rows = []
    for index, name in enumerate(scored.names):
        figures = [f"{value:.3f}" for value in (found.class_iu[index], found.class_accuracy[index])]
        note = "left out" if index in scored.leave_out else ""
        rows.append(
            [
                printable(name, 60),
                *("" if text == "nan" else text for text in figures),
                f"{scored.confusion[index].sum()}",
                note,
            ]
        )
    columns = ["class", "IU", "accuracy", "pixels", ""]
    _output.print_table(columns, rows, numeric=columns[1:4])
    _output.print_line()
    for line in found.lines():
        _output.print_line(line)
    if scored.loss is not None:
        _output.print_line(f"loss {scored.loss:.6g}")
    _output.print_line(f"images {scored.images}")


def _published_figures(record: ModelInfo) -> list[dict[str, Any]]:
    """The figures that are published for a net, and for VOC's also those of other methods in the first paper."""
    from fcnproto.scoring.papers import SCORES

    figures: list[dict[str, Any]] = [{"net": record.name, **dataclasses.asdict(score)} for score in record.scores]
    known = {(score.data, score.metrics.get("mean IU")) for score in record.scores}
    own = [one for one in SCORES if one.model == record.name and (one.data, one.mean_iu) not in known]
    others = [one for one in SCORES if one.model != record.name and record.dataset == "PASCAL VOC"]
    for one in (*own, *others):
        name = record.name if one in own else one.method
        metrics = {"mean IU": one.mean_iu}
        figures.append({"net": name, "data": one.data, "metrics": metrics, "source": one.source, "verified": True})
    return figures


def _print_published(results: Sequence[Scored], record: ModelInfo) -> None:
    """The published figures, beside ours where they are of this net."""
    ours = dict(results[0].metrics.named())
    if len(results) > 1:
        ours["geometric pixel accuracy"] = results[1].metrics.pixel_accuracy
    rows = []
    for figure in _published_figures(record):
        for name, value in figure["metrics"].items():
            mine = f"{ours[name]:.3f}" if name in ours and figure["net"] == record.name else ""
            rows.append([figure["net"], name, mine, f"{value:.3f}", figure["data"], figure["source"]])
    if rows:
        _output.print_line()
        columns = ["net", "metric", "here", "published", "on", "source"]
        _output.print_table(columns, rows, numeric=columns[2:4])


def _write_pictures(results: Sequence[Scored], path: Path) -> None:
    from fcnproto.demo import save_picture
    from fcnproto.scoring import confusion_picture

    taken: set[str] = set()
    for index, scored in enumerate(results):
        target = path if index == 0 else path.with_name(f"{path.stem}_{file_name(scored.blob, taken)}{path.suffix}")
        taken.add(file_name(scored.blob, taken).lower())
        save_picture(target, confusion_picture(scored))
