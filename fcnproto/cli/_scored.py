"""What `score net` scores: the score blobs with their labels and classes, and the items of folders and data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcnproto.cli import _options, _preprocessing
from fcnproto.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fcnproto.data.datasets import ImageFolders
    from fcnproto.meta import ScoreOutput
    from fcnproto.net import Net
    from fcnproto.zoo import ModelInfo

DATA_SETS = {
    "voc": "voc-fcn32s",
    "sbd": "voc-fcn32s",
    "nyud": "nyud-fcn32s-color",
    "siftflow": "siftflow-fcn32s",
    "context": "pascalcontext-fcn32s",
}
"""The published data sets, each with a net of the zoo that is trained on its classes."""


def outputs_of(
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

    return class_names(output.blob, len(output.classes), of_record(zoo.info(DATA_SETS[data_set]), ""))


def items_of(
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
        return Items(folders), len(folders)
    if settings["data_set"] is not None:
        found = _published(record, settings)
        return Items(found, renamed=True), len(found)
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
    how = {blob: _preprocessing.override(preprocessing_of(net, blob), blob, list(inputs), settings) for blob in inputs}
    _preprocessing.tell_assumptions(how)
    return ImageFolders(
        {blob: Images(places[blob], how[blob]) for blob in inputs},
        {
            label: Masks(
                masks[label], len(names[label]), colours.get(label), settings["binary_masks"], tuple(names[label])
            )
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


@dataclasses.dataclass(frozen=True)
class Items:
    """A data set's items, `renamed` to the net's names of its inputs: nets on one NYUDv2 image call it data."""

    found: Any
    renamed: bool = False

    @property
    def ids(self) -> Sequence[str]:
        """Their names."""
        return list(self.found.ids)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = dict(self.found[index])
        if self.renamed and "data" not in item and len(item) == 2:
            item["data"] = item.pop(next(key for key in item if key != "label"))
        return item
