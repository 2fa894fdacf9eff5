"""Scoring on Ray: folders of label maps, or a net on images with masks; the same numbers as one process gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fcnproto.cluster import places
from fcnproto.cluster.chunks import Chunk, Failure, Item
from fcnproto.cluster.engine import Cluster, Told, cluster_of, run
from fcnproto.cluster.guard import attempt
from fcnproto.cluster.sinks import Sink, sink_of
from fcnproto.cluster.sources import Corpus, PathLike
from fcnproto.cluster.work import Row, Run, Work
from fcnproto.data.mask_sources import ListedMasks, MaskSource, file_of, open_masks, read_file, without_images
from fcnproto.errors import DataError, UsageError
from fcnproto.image_files import SUFFIXES

if TYPE_CHECKING:
    from fcnproto.net import Net
    from fcnproto.scoring import Scored
    from fcnproto.scoring.scoring import Measured

Colour = tuple[int, int, int]


class _Scoring(Work):
    """What both kinds have in common: rows of confusion matrices."""

    tells_kept = True

    def encode(self, item: Item, value: Measured) -> list[Row]:
        """A row for each labelling."""
        return [
            {
                "name": item.name,
                "blob": blob,
                "classes": len(matrix),
                "confusion": matrix.reshape(-1).tolist(),
                "images": value.images,
                "loss": value.loss,
            }
            for blob, matrix in value.matrices.items()
        ]

    def told(self, rows: Sequence[Row]) -> Any:
        """The rows without the name."""
        return [(row["blob"], row["classes"], row["confusion"], row["images"], row["loss"]) for row in rows]

    def schema(self) -> Any:
        """name, blob, classes, confusion (rows of the truth, one after another), images, loss, error."""
        import pyarrow as pa

        return pa.schema(
            [
                ("name", pa.string()),
                ("blob", pa.string()),
                ("classes", pa.int32()),
                ("confusion", pa.list_(pa.int64())),
                ("images", pa.int64()),
                ("loss", pa.float64()),
                ("error", pa.string()),
            ]
        )


@dataclass(frozen=True)
class ScoringFolders(_Scoring):
    """Pairs of masks; a pair's place is (prediction, truth).

    Attributes:
        names: the classes.
        ignore_label, colours, binary: as in `fcnproto.scoring.score_folders`.
        listed: for the predictions and the truth the one file that has all of them, where it is so. Places are names
            in it.
    """

    names: tuple[str, ...]
    ignore_label: int
    colours: Mapping[Colour, int] | None
    binary: bool
    listed: tuple[ListedMasks | None, ListedMasks | None] = (None, None)
    command = "score folders"

    @property
    def settings(self) -> str:
        """What a confusion matrix depends on."""
        return repr((self.names, self.ignore_label, self.colours, self.binary))

    @contextmanager
    def reading(self) -> Iterator[Callable[[Item], Any]]:
        """Reads the bytes of both."""
        yield (
            lambda item: (
                item.data
                or tuple(
                    b"" if source is not None else places.read(place)
                    for place, source in zip(item.place, self.listed, strict=True)
                )
            )
        )

    def decode(self, item: Item, data: tuple[bytes, bytes], room: int) -> Measured:
        """The confusion matrix."""
        from fcnproto.scoring.scoring import Measured, pair_confusion

        labels, mask = (
            read_file(place, self.names, self.colours, self.binary, content=content)
            if source is None
            else source.read(place)
            for place, content, source in zip(item.place, data, self.listed, strict=True)
        )
        shown = [
            place if source is None else str(source.place)
            for place, source in zip(item.place, self.listed, strict=True)
        ]
        matrix = pair_confusion(labels, mask, len(self.names), self.ignore_label, *shown)
        return Measured({"": matrix}, 1, None)


@dataclass(frozen=True)
class ScoringNet(_Scoring):
    """Items of a data set, by their numbers."""

    items: Any
    pairs: Mapping[str, tuple[str, Sequence[str]]]
    ignore_label: int
    device: str
    step: int = 1
    command = "score net"

    @property
    def settings(self) -> str:
        """What a confusion matrix depends on beside the net."""
        return repr((self.ignore_label, {blob: label for blob, (label, _) in self.pairs.items()}))

    @contextmanager
    def reading(self) -> Iterator[Callable[[Item], Any]]:
        """Reads and decodes an item."""
        yield lambda item: {key: np.asarray(value) for key, value in self.items[item.place].items()}

    def decode(self, item: Item, data: dict[str, np.ndarray], room: int) -> dict[str, np.ndarray]:
        """As it was read: the data set decodes."""
        return data

    def on_worker(self, net: Net) -> Net:
        """The net on the worker's device."""
        return net.to(self.device)

    def run(self, net: Net, chunk: Chunk, run: Run) -> dict[int, Any]:
        """Run the net and count: of `step` items those of one size together, where that makes no difference."""
        from fcnproto.net.roles import images_stay_apart

        has_loss = any(node.facts.is_loss for node in net.graph.nodes)
        together = self.step > 1 and not has_loss and images_stay_apart(net, list(self.pairs))
        groups: dict[Any, list[int]] = {}
        for place in chunk.open_places():
            shapes = tuple((key, value.shape) for key, value in chunk.values[place].items())
            groups.setdefault((place // self.step, shapes) if together else place, []).append(place)
        found: dict[int, Any] = {}
        for group in groups.values():
            if not set(group) <= chunk.done:
                names = {place: chunk.items[place].name for place in group}
                found |= run(names, partial(self._measured, net, chunk))
        return found

    def _measured(self, net: Net, chunk: Chunk, numbers: Sequence[int]) -> list[Any]:
        import torch

        from fcnproto.scoring.scoring import measure_together

        def some(wanted: Sequence[int]) -> list[Measured]:
            items = [
                {
                    key: torch.from_numpy(value)[None] if value.ndim == 3 else torch.from_numpy(value)
                    for key, value in chunk.values[place].items()
                }
                for place in wanted
            ]
            places = [chunk.items[place].place + 1 for place in wanted]
            with torch.no_grad():
                return measure_together(net, items, self.pairs, self.ignore_label, places)

        found = attempt(partial(some, numbers))
        if type(found) is not Failure:
            return list(found)
        if len(numbers) == 1:
            return [found]
        return [self._measured(net, chunk, [number])[0] for number in numbers]  # whose fault it is


@dataclass
class _Sums:
    """What the driver gathers: matrices by blob, numbers of images, losses by chunk."""

    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    images: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)

    def take(self, key: str, told: Sequence[Any]) -> None:
        """Add the items of a chunk."""
        for rows in told:
            self.images += max((images for _, _, _, images, _ in rows), default=0)
            losses = {loss for *_, loss in rows if loss is not None}
            self.losses.setdefault(key, []).extend(losses)
            for blob, classes, counts, _, _ in rows:
                matrix = np.asarray(counts, dtype=np.int64).reshape(classes, classes)
                self.matrices[blob] = self.matrices.get(blob, 0) + matrix

    @property
    def all_losses(self) -> list[float]:
        """The losses in the order of the items."""
        return [loss for key in sorted(self.losses) for loss in self.losses[key]]


def score_folders(
    predictions: PathLike,
    truth: PathLike,
    names: Sequence[str],
    *,
    cluster: Cluster | str = "local",
    out: PathLike | None = None,
    ignore_label: int = 255,
    colours: Mapping[Colour, int] | None = None,
    binary: bool = False,
    leave_out: Collection[int] = (),
    count_absent: bool = False,
    allow_empty_classes: bool = False,
    told: Told | None = None,
    **options: Any,
) -> Scored:
    """As `fcnproto.scoring.score_folders`, on Ray; the folders may be fsspec's addresses.

    With `out` (a folder, or a .parquet file) the confusion matrix of each image is a row there, and a run that was
    interrupted is resumed. `cluster` and the further options are those of `Cluster`.
    """
    from fcnproto.scoring.scoring import pairs_of, scored_of

    where = cluster_of(cluster, options)
    first, second = places.address_of(predictions), places.address_of(truth)
    found, expected = (_masks(place, names, colours, binary) for place in (first, second))
    sides = found, expected
    listed = tuple(side if isinstance(side, ListedMasks) else None for side in sides)
    items = []
    for name, key in pairs_of(found, expected, first):
        pair = tuple(
            one if isinstance(side, ListedMasks) else os.fspath(side.path(one) or "")
            for side, one in zip(sides, (key, name), strict=True)
        )
        held = tuple(map(places.read, pair)) if any(map(places.in_memory, pair)) else None
        size = sum(map(_size, pair, sides))
        items.append(Item(name, pair, size, data=held))  # type: ignore[arg-type]
    work = ScoringFolders(tuple(names), ignore_label, colours, binary, listed)  # type: ignore[arg-type]
    sums = _Sums()
    _run(work, items, out, where, sums, told, sources=[first, second])
    matrix = sums.matrices.get("", np.zeros((len(names), len(names)), dtype=np.int64))
    return scored_of(matrix, names, sums.images, second, ignore_label, leave_out, count_absent, allow_empty_classes)


def score_net(
    net: Net,
    items: Any,
    outputs: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    *,
    cluster: Cluster | str = "local",
    out: PathLike | None = None,
    ignore_label: int = 255,
    leave_out: Collection[int] = (),
    count_absent: bool = False,
    allow_empty_classes: bool = False,
    batch: int = 1,
    told: Told | None = None,
    **options: Any,
) -> list[Scored]:
    """As `fcnproto.scoring.score_net`, on Ray; up to `batch` items of one size go through the net together, where it
    has no loss and keeps images apart. `items` is a data set of `fcnproto.data.datasets` (or anything else that
    can be pickled and gives items by number) whose files all machines see; for `out` see `score_folders`."""
    from fcnproto.scoring.scoring import default_pairs, results_of

    where = cluster_of(cluster, options)
    pairs = dict(outputs) if outputs is not None else {blob: (label, ()) for blob, label in default_pairs(net).items()}
    work = ScoringNet(items, pairs, ignore_label, "cuda" if where.gpus_per_worker else "cpu", batch)
    ids = getattr(items, "ids", None) or [f"item {number}" for number in range(1, len(items) + 1)]
    listed = [Item(str(name), number) for number, name in enumerate(ids)]
    if not listed:
        raise UsageError("there is nothing to score")
    sums = _Sums()
    _run(work, listed, out, where, sums, told, net=net)
    matrices = {blob: sums.matrices[blob] for blob in pairs if blob in sums.matrices}
    return results_of(
        pairs, matrices, sums.all_losses, sums.images, ignore_label, leave_out, count_absent, allow_empty_classes
    )


def _run(
    work: Work,
    items: Sequence[Item],
    out: PathLike | None,
    where: Cluster,
    sums: _Sums,
    told: Told | None,
    net: Any = None,
    sources: Sequence[str] = (),
) -> None:
    """Run it, and raise what failed: a score of some of the images is none."""
    sink: Sink | None = None
    if out is not None:
        sink = sink_of(places.address_of(out), None, work.schema(), None)
        if where.resume and sink.complete():
            raise UsageError(f"{os.fspath(out)}: is complete; remove it to score anew")
    elif where.resume:
        raise UsageError("--resume: scores are resumed from what is in the sink; say it with -o")
    summary = run(work, Corpus(list(items), []), sink, where, net=net, sources=sources, told=told, take=sums.take)
    if summary.failed:
        name, reason = min(summary.failed)
        more = f" (and {len(summary.failed) - 1} more failed)" if len(summary.failed) > 1 else ""
        raise DataError(f"{reason if name in reason else f'{name}: {reason}'}{more}")


class _Addressed:
    """The label images in a folder at one of fsspec's addresses (and its subfolders), by the names of their images."""

    def __init__(self, address: str) -> None:
        if not places.is_folder(address):
            raise DataError(f"{address}: no such folder")
        self.sizes = {
            file: size for file, size in places.files_in(address) if PurePosixPath(file).suffix.lower() in SUFFIXES
        }
        self.files = without_images(
            {file[len(address) :].lstrip("/").removesuffix(PurePosixPath(file).suffix): file for file in self.sizes}
        )
        if not self.files:
            raise DataError(f"{address}: holds no images")

    def names(self) -> list[str]:
        """The names of all that has a mask."""
        return list(self.files)

    def path(self, name: str) -> str | None:
        """The address of an image's mask."""
        return file_of(name, self.files)


def _masks(
    address: str, names: Sequence[str], colours: Mapping[Colour, int] | None, binary: bool
) -> MaskSource | _Addressed:
    return open_masks(address, names, colours, binary) if places.is_local(address) else _Addressed(address)


def _size(place: str, source: MaskSource | _Addressed) -> int:
    """Bytes of a mask's file; 0 for what is a name in a file of many."""
    if isinstance(source, _Addressed):
        return source.sizes[place]
    return os.path.getsize(place) if os.path.isfile(place) else 0
