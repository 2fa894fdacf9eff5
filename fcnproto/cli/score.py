"""Score segmentations: folders of label maps, or a net on a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcnproto.cli import _files, _naming, _nets, _options, _output, _preprocessing
from fcnproto.errors import UsageError
from fcnproto.escaping import file_name, printable

if TYPE_CHECKING:
    from torch import Tensor

    from fcnproto.data.datasets import ImageFolders
    from fcnproto.meta import ScoreOutput
    from fcnproto.net import Net
    from fcnproto.scoring import Scored
    from fcnproto.zoo import ModelInfo

_path = click.Path(path_type=Path)
_DATA_SETS = {
    "voc": "voc-fcn32s",
    "sbd": "voc-fcn32s",
    "nyud": "nyud-fcn32s-color",
    "siftflow": "siftflow-fcn32s",
    "context": "pascalcontext-fcn32s",
}
"""The published data sets, each with a net of the zoo that is trained on its classes."""


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


@command.command("folders")
@click.argument("predictions", type=_path)
@click.argument("truth", type=_path)
@_result_options
def folders_command(
    predictions: Path, truth: Path, classes: Sequence[str], colours: Sequence[str], **settings: Any
) -> None:
    """Score the label images in PREDICTIONS against those in TRUTH.

    The prediction for cat.png is cat.png or cat_labels.png. Pixels are labels (palette and grey images), or colours
    that stand for them (--colours).
    """
    from fcnproto.scoring import score_folders

    known, tables = _options.classes_and_colours(classes, colours)
    if list(known) != [""]:
        raise UsageError("say the classes with --classes (one name a line) or --colours, once")
    names = known[""]
    with _progress() as told:
        scored = score_folders(
            predictions,
            truth,
            names,
            ignore_label=settings["ignore_label"],
            colours=tables.get(""),
            binary=settings["binary_masks"],
            leave_out=_numbers(settings["leave_out"], names),
            count_absent=not settings["leave_out_absent"],
            allow_empty_classes=settings["allow_empty_classes"],
            told=told,
        )
    _show([scored], settings, None)


@command.command("net", cls=_naming.NetCommand)
@click.argument("model", type=_nets.MODEL)
@click.argument("weights", type=_nets.WEIGHTS)
@click.option("--images", metavar="[BLOB=]DIR", multiple=True, help="Folder of images; with --masks.")
@click.option(
    "--masks", metavar="[BLOB=]DIR", multiple=True, help="Folder of masks with the images' names (sem=A, geo=B)."
)
@click.option(
    "--data", "data_set", type=click.Choice(list(_DATA_SETS)), help="A published data set; with --root and --split."
)
@click.option(
    "--mean",
    "means",
    metavar="[BLOB=]MEAN",
    multiple=True,
    help="For --images: numbers in BGR order, a .binaryproto or .npy file, or none.",
)
@click.option("--root", type=_path, help="The data set's folder.")
@click.option("--split", help="The split to score, such as seg11valid, val or test.")
@click.option("--voc", type=_path, help="For --data context: the folder that holds VOC2010.")
@click.option("--year", type=int, default=2012, show_default=True, help="For --data voc.")
@click.option("--iterations", type=click.IntRange(min=1), help="Forward passes on the net's own data layers.")
@_result_options
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

    Without --images and --data the net's data layers say what is scored: a published val.prototxt its whole split once,
    others --iterations batches. Where the net is a published one, the published figures are printed beside.
    """
    from fcnproto.preprocessing import zoo_record
    from fcnproto.scoring import score_net

    net = nets.load(model, weights)
    record = zoo_record(model, weights)
    names, tables = _options.classes_and_colours(classes, colours)
    outputs = _outputs(net, record, names, settings["data_set"])
    items, count = _items(net, record, outputs, tables, settings)
    named = next(iter(outputs.values()))[1] if outputs else ()
    with _progress() as told:
        scored = score_net(
            net,
            items,
            outputs,
            count=count,
            ignore_label=settings["ignore_label"],
            leave_out=_numbers(settings["leave_out"], named),
            count_absent=not settings["leave_out_absent"],
            allow_empty_classes=settings["allow_empty_classes"] or settings["data_set"] is not None,
            told=told,
        )
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


def _outputs(
    net: Net, record: ModelInfo | None, names: Mapping[str, Sequence[str]], data_set: str | None
) -> dict[str, tuple[str, Sequence[str]]] | None:
    """Score blobs with their labels and class names (none where unknown); None where the net itself says them."""
    from fcnproto.net.assigning import assign
    from fcnproto.net.roles import judged_blobs, score_blobs

    pairs = judged_blobs(net)
    known: dict[str, Sequence[str]] = {}
    for output in net.meta.outputs:
        labelled = _labelled(data_set, output) if data_set is not None else None
        if output.named or labelled is not None:
            known[output.blob] = labelled or output.classes
    if record is not None and all(output.blob in net.graph.blobs for output in record.outputs):
        pairs = {output.blob: output.label for output in record.outputs}
    if not pairs:
        found = score_blobs(net)
        if not names and len(found) > 1:
            return None
        pairs = {blob: "label" if len(found) == 1 else f"{blob}_label" for blob in found}
    if names:
        known |= assign(names, "--classes", {blob: (label,) for blob, label in pairs.items()}, needed=False)
    return {blob: (label, known.get(blob, ())) for blob, label in pairs.items()}


def _labelled(data_set: str, output: ScoreOutput) -> Sequence[str] | None:
    """The classes that a published data set's labels for a score blob have, if there are as many as the net's."""
    from fcnproto import zoo
    from fcnproto.meta import of_record
    from fcnproto.preprocessing import class_names

    return class_names(output.blob, len(output.classes), of_record(zoo.info(_DATA_SETS[data_set]), ""))


def _items(
    net: Net,
    record: ModelInfo | None,
    outputs: Mapping[str, tuple[str, Sequence[str]]] | None,
    tables: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> tuple[Iterable[Mapping[str, Tensor]], int]:
    """What to score, and how many there are."""
    from fcnproto.scoring import own_batches, own_length

    if settings["images"] or settings["masks"]:
        if not settings["images"] or not settings["masks"] or settings["data_set"] is not None:
            raise UsageError("--images and --masks go together, and without --data")
        folders = _folders(net, outputs or {}, tables, settings)
        return (folders[index] for index in range(len(folders))), len(folders)
    if settings["data_set"] is not None:
        found = _published(record, settings)
        return _renamed(found), len(found)
    count = settings["iterations"] or own_length(net)
    if count is None:
        raise UsageError("say what to score: --images and --masks, --data, or --iterations for the net's data layers")
    return own_batches(net, count), count


def _folders(
    net: Net,
    outputs: Mapping[str, tuple[str, Sequence[str]]],
    tables: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> ImageFolders:
    """The images and masks in the folders of `--images` and `--masks`, by the net's blobs and labels."""
    from fcnproto.data.datasets import ImageFolders, Images, Masks
    from fcnproto.images import parse_mean
    from fcnproto.net.assigning import assign
    from fcnproto.net.roles import image_inputs, score_blobs
    from fcnproto.preprocessing import preprocessing_of

    inputs: dict[str, Sequence[str]] = dict.fromkeys(image_inputs(net, score_blobs(net)), ())
    labels = {label: (blob,) for blob, (label, _) in outputs.items()}
    names = dict(outputs.values())
    if not names or not all(names.values()):
        raise UsageError("say the classes with --classes (one name a line) or --colours")
    places = assign(_options.named(settings["images"], "--images"), "--images", inputs)
    masks = assign(_options.named(settings["masks"], "--masks"), "--masks", labels)
    colours = assign(tables, "--colours", labels, needed=False)
    means = assign(_options.named(settings["means"], "--mean"), "--mean", inputs, needed=False)
    how = {blob: preprocessing_of(net, blob) for blob in inputs}
    for blob, mean in means.items():
        how[blob] = dataclasses.replace(how[blob], mean=parse_mean(mean), why="")
    _preprocessing.tell_assumptions(how)
    return ImageFolders(
        {blob: Images(places[blob], how[blob]) for blob in inputs},
        {
            label: Masks(masks[label], len(names[label]), colours.get(label), settings["binary_masks"])
            for label in labels
        },
    )


def _published(record: ModelInfo | None, settings: Mapping[str, Any]) -> Any:
    from fcnproto.data import datasets

    name, root, split = settings["data_set"], settings["root"], settings["split"]
    if root is None or split is None:
        raise UsageError("--data needs --root and --split")
    if name == "voc":
        return datasets.VOC(root, split, settings["year"])
    if name == "sbd":
        return datasets.SBD(root, split)
    if name == "siftflow":
        return datasets.SIFTFlow(root, split)
    if name == "context":
        if settings["voc"] is None:
            raise UsageError("--data context needs --voc, the folder that holds VOC2010")
        return datasets.PASCALContext(root, settings["voc"], split)
    kinds = {"image": "color", "hha": "hha", "depth": "depth"}
    tops = [kinds[entry.kind] for entry in record.inputs] if record is not None else ["color"]
    return datasets.NYUD(root, split, [*tops, "label"])


def _renamed(items: Any) -> Iterator[dict[str, Tensor]]:
    """The items under the net's names of its inputs: nets on one NYUDv2 image call it data."""
    for index in range(len(items)):
        item = dict(items[index])
        if "data" not in item and len(item) == 2:
            item["data"] = item.pop(next(key for key in item if key != "label"))
        yield item


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
