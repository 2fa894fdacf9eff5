"""Scoring segmentations: folders of label maps against the truth, or a net on a data set or on its own data layers.

The metrics themselves are in `scoring/metrics.py`; here is what reads, runs and sums, and the picture of
a confusion matrix.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fcnproto.data.datasets import VOID
from fcnproto.data.mask_sources import ENDINGS, ListedMasks, open_masks
from fcnproto.data.masks import Colour
from fcnproto.data.published import PublishedLayer
from fcnproto.errors import DataError, GraphError, LayerError, UsageError
from fcnproto.escaping import printable
from fcnproto.layers.source import SourceLayer
from fcnproto.net import Net
from fcnproto.net.roles import judged_blobs, score_blobs
from fcnproto.scoring.metrics import Metrics, absent, confusion_matrix, metrics

_LONGEST_NAME = 60  # characters of a class in the picture

PathLike = str | os.PathLike[str]
Told = Callable[[int, int], None]
"""Called after each image with its number (from 1) and how many there are."""


@dataclass(frozen=True)
class Scored:
    """What scoring one labelling gave.

    `confusion` (classes, classes) int64 has the truth in rows; `names` are the classes'; `leave_out` the classes
    without a part in the means; `images` how many were scored; `blob` is the score blob (empty for folders); `loss` the
    mean loss over the forward passes where the net has one.
    """

    confusion: np.ndarray
    names: tuple[str, ...]
    images: int
    leave_out: tuple[int, ...] = ()
    blob: str = ""
    loss: float | None = None

    @property
    def metrics(self) -> Metrics:
        """The metrics of the confusion matrix."""
        return metrics(self.confusion, self.leave_out)

    def as_dict(self) -> dict[str, Any]:
        """All of it in dicts, lists, texts and numbers, for JSON; None for what is not defined."""
        found = self.metrics
        classes = {
            name: {
                "IU": _defined(found.class_iu[index]),
                "accuracy": _defined(found.class_accuracy[index]),
                "pixels": int(self.confusion[index].sum()),
                "predicted": int(self.confusion[:, index].sum()),
                "in the means": index not in self.leave_out,
            }
            for index, name in enumerate(self.names)
        }
        result: dict[str, Any] = {"blob": self.blob} if self.blob else {}
        result |= {"images": self.images, **{name: _defined(value) for name, value in found.named()}}
        if self.loss is not None:
            result["loss"] = self.loss
        return result | {"classes": classes, "confusion": self.confusion.tolist()}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def score_folders(
    predictions: PathLike,
    truth: PathLike,
    names: Sequence[str],
    *,
    ignore_label: int = 255,
    colours: Mapping[Colour, int] | None = None,
    binary: bool = False,
    leave_out: Collection[int] = (),
    count_absent: bool = False,
    allow_empty_classes: bool = False,
    told: Told | None = None,
) -> Scored:
    """Score label images in a folder against those of the same names in another.

    The prediction for cat.png is cat.png, cat_labels.png (as `segment` writes it) or cat_mask.png. Every truth must
    have one. Either place may hold whatever `mask_sources.open_masks` reads, annotation files for example.
    `colours` is the table of colour-coded images, of both sides; `binary` says that values 0 and 255 are the labels 0
    and 1. Classes that the truth lacks have no part in the means, unless `count_absent` (then their IU is 0 as soon as
    one pixel is taken for them). A truth of nothing but label 0 and void is refused, unless `allow_empty_classes`.

    Raises `DataError` naming the file that is missing, can't be read, or has another size or labels than expected.
    """
    found, expected = (open_masks(place, names, colours, binary) for place in (predictions, truth))
    pairs = pairs_of(found, expected, predictions)
    matrix = np.zeros((len(names), len(names)), dtype=np.int64)
    for number, (name, key) in enumerate(pairs, start=1):
        labels, mask = found.read(key), expected.read(name)
        places = str(found.path(key)), str(expected.path(name))
        matrix += pair_confusion(labels, mask, len(names), ignore_label, *places)
        if told:
            told(number, len(pairs))
    return scored_of(
        matrix, names, len(pairs), os.fspath(truth), ignore_label, leave_out, count_absent, allow_empty_classes
    )


class Named(Protocol):
    """Masks by the names of their images, as `mask_sources.MaskSource` has them."""

    def names(self) -> Sequence[str]:
        """The names of all that has a mask."""

    def path(self, name: str) -> PathLike | None:
        """The file that has an image's mask; None where there is none."""


def pairs_of(found: Named, expected: Named, predictions: PathLike) -> list[tuple[str, str]]:
    """The names of the images in `expected`, each with its name in `found`; see `score_folders`.

    Raises `DataError` for one without a prediction; `predictions` says where these were looked for.
    """
    pairs = []
    for name in _bare_names(expected):
        key = name
        if found.path(name) is None and isinstance(expected, ListedMasks):
            key = name.rpartition("/")[2]  # lists may have folders of their own
        if found.path(key) is None:
            where = f"{expected.path(name)}: has no prediction {name}.png or {name}_labels.png"
            raise DataError(f"{where} in {os.fspath(predictions)}")
        pairs.append((name, key))
    return pairs


def _bare_names(source: Named) -> list[str]:
    """The names of the images that masks are of: cat for cat_mask.png."""
    names = source.names()
    known = set(names)
    bare = []
    for name in names:
        short = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
        bare.append(short if short and short not in known and source.path(short) is not None else name)
    return list(dict.fromkeys(bare))


def pair_confusion(
    labels: np.ndarray, mask: np.ndarray, classes: int, ignore_label: int, predicted: str, truth: str
) -> np.ndarray:
    """The confusion matrix of two label maps. `DataError` naming the file whose size or labels don't fit."""
    if labels.shape != mask.shape:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (labels.shape, mask.shape)]
        raise DataError(f"{predicted}: is {sizes[0]}, but {truth} is {sizes[1]}")
    return _confusion(mask, labels, classes, ignore_label, truth, predicted)


def scored_of(
    matrix: np.ndarray,
    names: Sequence[str],
    images: int,
    truth: str,
    ignore_label: int,
    leave_out: Collection[int],
    count_absent: bool,
    allow_empty_classes: bool,
) -> Scored:
    """The result of label images whose confusion matrices have been added up; see `score_folders`."""
    if not allow_empty_classes:
        _check_truth(matrix, names, truth)
    return Scored(matrix, tuple(names), images, _left_out(leave_out, ignore_label, matrix, count_absent))


def _left_out(leave_out: Collection[int], ignore_label: int, matrix: np.ndarray, count_absent: bool) -> tuple[int, ...]:
    """The classes without a part in the means: one whose label is ignored, or that the truth lacks, can only be
    predicted, and wrongly. (One that is neither in the truth nor predicted has no IU at all.)"""
    ignored = {ignore_label} & set(range(len(matrix)))
    lacking = set() if count_absent else {index for index in absent(matrix) if matrix[:, index].any()}
    return tuple(sorted({*leave_out, *ignored, *lacking}))


def _check_truth(matrix: np.ndarray, names: Sequence[str], where: str) -> None:
    """Raise `DataError` where the truth of a confusion matrix holds nothing but label 0."""
    if not matrix[1:].any():
        held = f"nothing but label 0 ({names[0]!r}) and void" if matrix[0].any() else "nothing but void"
        raise DataError(f"{where}: {nothing_to_see(held)}")


def nothing_to_see(held: str) -> str:
    """What to say of masks that hold nothing that is worth a score or a training, with the ways out."""
    return (
        f"the masks hold {held} (255); are they masks of 0 and 255 (--binary-masks reads these as the labels 0 and 1), "
        "or do colours stand for classes (--colours)? --allow-empty-classes takes them as they are"
    )


def _confusion(
    truth: np.ndarray, labels: np.ndarray, classes: int, ignore_label: int, source: str, predicted: str
) -> np.ndarray:
    strange = truth[(truth != ignore_label) & (truth != VOID) & (truth >= classes)]
    if strange.size:
        raise DataError(f"{source}: has label {strange[0]}, expected 0 to {classes - 1}, or {ignore_label} for void")
    try:
        return confusion_matrix(truth, labels, classes, ignore_label)
    except UsageError as error:
        raise DataError(f"{predicted}: {error}") from None


def own_length(net: Net) -> int | None:
    """How many images the split of the net's published data layer has; None where it has no such layer."""
    for layer in net.data_layers():
        if isinstance(layer, PublishedLayer):
            return len(layer.read_ids())
    return None


def own_batches(net: Net, count: int) -> Iterable[dict[str, Tensor]]:
    """What the net's data layers give in `count` forward passes, by blob."""
    for _ in range(count):
        yield {name: value for layer in net.data_layers() for name, value in zip(layer.param.top, layer(), strict=True)}


def score_net(
    net: Net,
    items: Iterable[Mapping[str, Tensor]],
    outputs: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    *,
    count: int | None = None,
    ignore_label: int = 255,
    leave_out: Collection[int] = (),
    count_absent: bool = False,
    allow_empty_classes: bool = False,
    told: Told | None = None,
) -> list[Scored]:
    """Score a net on items that hold its inputs and the labels, one image (or batch) each; a result per labelling.

    The prediction is the class with the highest score, the lowest of equals.

    Args:
        items: the inputs and labels by blob, (1, channels, height, width) or without the first axis.
        outputs: by score blob the label's key and the class names; by default as the net's losses say, or its score
            blob and "label".
        count: how many items there are, for `told`.
        leave_out: classes of the first output without a part in the means.
        count_absent: give the classes that no label names a part in the means: an IU of 0 as soon as one is predicted.
        allow_empty_classes: score labels of nothing but 0 and void, too.

    Raises `UsageError` where an item lacks a label, `DataError` where its labels or size don't fit, or where all labels
    are 0 and void.
    """
    pairs = dict(outputs) if outputs is not None else {blob: (label, ()) for blob, label in default_pairs(net).items()}
    tally = _Tally(net, pairs, ignore_label)
    with torch.no_grad():
        for item in items:
            try:
                tally.add({key: value[None] if value.ndim == 3 else value for key, value in item.items()})
            except (DataError, LayerError) as error:
                origins = _origins(net)
                raise type(error)(f"{error}; the batch is {', '.join(origins)}" if origins else str(error)) from error
            if told:
                told(tally.items, count or tally.items)
    if not tally.items:
        raise UsageError("there is nothing to score")
    return results_of(
        pairs, tally.matrices, tally.losses, tally.images, ignore_label, leave_out, count_absent, allow_empty_classes
    )


def _origins(net: Net) -> list[str]:
    """Where the net's data layers have read last, where they have."""
    return [origin for layer in net.data_layers() if isinstance(layer, SourceLayer) and (origin := layer.origin())]


class _Tally:
    """The sums over the items scored so far."""

    def __init__(self, net: Net, pairs: Mapping[str, tuple[str, Sequence[str]]], ignore_label: int) -> None:
        self.net, self.pairs, self.ignore_label = net, pairs, ignore_label
        self.matrices: dict[str, np.ndarray] = {}
        self.losses: list[float] = []
        self.items = self.images = 0

    def add(self, item: Mapping[str, Tensor]) -> None:
        """Run the net on an item and count."""
        self.items += 1
        found = measure(self.net, item, self.pairs, self.ignore_label, self.items)
        if found.loss is not None:
            self.losses.append(found.loss)
        for blob, matrix in found.matrices.items():
            self.matrices[blob] = self.matrices.get(blob, 0) + matrix
        self.images += found.images


@dataclass(frozen=True)
class Measured:
    """What one item gave: confusion matrices by score blob, the number of images, the loss where the net has one."""

    matrices: dict[str, np.ndarray]
    images: int
    loss: float | None


def measure(
    net: Net,
    item: Mapping[str, Tensor],
    pairs: Mapping[str, tuple[str, Sequence[str]]],
    ignore_label: int,
    number: int,
) -> Measured:
    """Run a net on item `number` and count; `pairs` are the `outputs` of `score_net`."""
    (found,) = measure_together(net, [item], pairs, ignore_label, [number])
    return found


def measure_together(
    net: Net,
    items: Sequence[Mapping[str, Tensor]],
    pairs: Mapping[str, tuple[str, Sequence[str]]],
    ignore_label: int,
    numbers: Sequence[int],
) -> list[Measured]:
    """As `measure`, for items of one shape that go through a net together, which mustn't mix images nor have a loss if
    they are several."""
    keys = [key for key in items[0] if key in net.source_shapes]
    found = net({key: torch.cat([item[key] for item in items]).to(net.device) for key in keys}, blobs=list(pairs))
    loss = float(net.loss(found)) if found.weighted else None
    measured = []
    for place, (item, number) in enumerate(zip(items, numbers, strict=True)):
        matrices, images = {}, 0
        for blob, (key, names) in pairs.items():
            if key not in item:
                raise UsageError(f"the items hold no {key!r} for score blob {blob!r}; they hold {', '.join(item)}")
            count = found[blob].shape[0] // len(items)
            scores, label = found[blob][place * count :][:count], item[key].reshape(-1, *item[key].shape[-2:])
            classes = scores.shape[1]
            if names and len(names) != classes:
                raise UsageError(f"{len(names)} class names are given, but blob {blob!r} has {classes} classes")
            where = f"item {number}, {key!r}"
            if scores.shape[2:] != label.shape[1:]:
                raise DataError(f"{where}: scores {tuple(scores.shape)}, labels {tuple(label.shape)}")
            truth = label.cpu().numpy().astype(np.int64)
            matrices[blob] = _confusion(truth, scores.argmax(1).cpu().numpy(), classes, ignore_label, where, where)
            images = max(images, count)
        measured.append(Measured(matrices, images, loss))
    return measured


def results_of(
    pairs: Mapping[str, tuple[str, Sequence[str]]],
    matrices: Mapping[str, np.ndarray],
    losses: Sequence[float],
    images: int,
    ignore_label: int,
    leave_out: Collection[int],
    count_absent: bool,
    allow_empty_classes: bool,
) -> list[Scored]:
    """One result for each labelling, of matrices that have been added up; see `score_net`."""
    loss = float(np.mean(losses)) if losses else None
    results: list[Scored] = []
    for blob, matrix in matrices.items():
        names = tuple(pairs[blob][1]) or tuple(f"class {index}" for index in range(len(matrix)))
        if not allow_empty_classes:
            _check_truth(matrix, names, f"labels {pairs[blob][0]!r}")
        left_out = _left_out(() if results else leave_out, ignore_label, matrix, count_absent)
        results.append(Scored(matrix, names, images, left_out, blob, loss))
    return results


def default_pairs(net: Net) -> dict[str, str]:
    judged = judged_blobs(net)
    if judged:
        return judged
    found = score_blobs(net)
    if len(found) > 1:
        raise GraphError(f"{net.graph.title}: has the score blobs {', '.join(found)}; say which labels belong to each")
    return {found[0]: "label"}


def confusion_picture(scored: Scored) -> Image.Image:
    """The confusion matrix as an image: a row per true class, the shares of its pixels by predicted class.

    The darker, the larger the share; the diagonal is green, errors are red. Classes without pixels have empty rows.
    """
    count = len(scored.names)
    cell = 34 if count <= 30 else 18
    font = ImageFont.load_default(12)
    names = [printable(name, _LONGEST_NAME) for name in scored.names]
    left = round(max(map(font.getlength, names))) + 16
    top = left + 8
    image = Image.new("RGB", (left + count * cell + 12, top + count * cell + 12), "white")
    draw = ImageDraw.Draw(image)
    totals = scored.confusion.sum(axis=1, keepdims=True)
    shares = scored.confusion / np.maximum(totals, 1)
    for row in range(count):
        y = top + row * cell
        draw.text((left - 6, y + cell / 2), names[row], "black", font, anchor="rm")
        for column in range(count):
            x, share = left + column * cell, float(shares[row, column])
            box = (x, y, x + cell, y + cell)
            draw.rectangle(box, _shade(share, row == column) if totals[row] else "white", (225, 225, 225))
            if cell >= 30 and share >= 0.005:
                colour = "white" if share > 0.55 else "black"
                draw.text((x + cell / 2, y + cell / 2), f"{share:.2f}", colour, font, anchor="mm")
    for column, name in enumerate(names):
        strip = Image.new("RGB", (top - 6, cell), "white")
        ImageDraw.Draw(strip).text((0, cell / 2), name, "black", font, anchor="lm")
        image.paste(strip.rotate(90, expand=True), (left + column * cell, 0))
    return image


def _shade(share: float, right: bool) -> tuple[int, int, int]:
    """White for 0 to a full colour for 1; small shares stand out by the square root."""
    full = np.array((20, 110, 60) if right else (170, 30, 30))
    red, green, blue = np.rint(255 + (full - 255) * math.sqrt(share)).astype(int)
    return int(red), int(green), int(blue)
