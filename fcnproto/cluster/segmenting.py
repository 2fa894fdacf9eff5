"""Segmenting a corpus: label files of one process's bytes, or rows of them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fcnproto.bands import Bands
from fcnproto.cluster.chunks import Chunk, Failure, Item
from fcnproto.cluster.engine import Cluster, Told, cluster_of, run
from fcnproto.cluster.guard import attempt
from fcnproto.cluster.places import address_of
from fcnproto.cluster.sinks import sink_of
from fcnproto.cluster.sources import PathLike, Reader, corpus
from fcnproto.cluster.summary import Summary
from fcnproto.cluster.work import Row, Run, Work
from fcnproto.errors import DataError, UsageError
from fcnproto.images import Preprocessing, pixel_count, read_picture
from fcnproto.pictures.labels import label_image, parts, save_png

if TYPE_CHECKING:
    from fcnproto.net import Net
    from fcnproto.segment.segmenter import Scene, Segmenter


@dataclass
class Picture:
    """An image on its way: encoded bytes, or its pixels; `size` is the number of pixels that its header says."""

    size: int
    content: bytes | np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of the pixels, where it is decoded."""
        return 0 if isinstance(self.content, bytes) else self.content.nbytes


class Labels(NamedTuple):
    """What a score says of an image: the labels (height, width) and the classes' shares; `part` is added to names."""

    blob: str
    part: str
    labels: np.ndarray
    shares: dict[str, float]


def decoded(item: Item, data: bytes, how: Preprocessing) -> np.ndarray:
    """The pixels of an encoded image as nets are given them: uint8 (height, width, 3), or numbers of any other depth.
    Raises `DataError` that names the item."""
    picture = read_picture(shown(item), how.kind, how.bands, data)
    return picture.values if isinstance(picture, Bands) else np.asarray(picture)


def shown(item: Item) -> str:
    """What an item is called in messages: its address, in a shard with its name."""
    return str(item.place) if item.offset < 0 and item.row < 0 else f"{item.place}: {item.name}"


@dataclass(frozen=True)
class Segmenting(Work):
    """`segment` for a corpus."""

    how: Preprocessing
    device: str
    column: str | None
    told_apart: str
    step: int
    command = "segment"

    @property
    def settings(self) -> str:
        """Those of the segmenter, in words."""
        return self.told_apart

    def reading(self) -> AbstractContextManager[Callable[[Item], Any]]:
        """Reads the bytes."""
        return closing(Reader(self.column))

    def decode(self, item: Item, data: bytes, room: int) -> Picture:
        """The pixels, where there is room."""
        size = pixel_count(shown(item), data)
        needed = max(len(data), size * (4 * self.how.channels if self.how.kind in ("depth", "bands") else 3))
        return Picture(size, data if needed > room else decoded(item, data, self.how))

    def on_worker(self, net: Segmenter) -> Segmenter:
        """The segmenter on the worker's device."""
        net.net.to(self.device)
        return net

    def run(self, net: Segmenter, chunk: Chunk, run: Run) -> dict[int, Any]:
        """Label maps by place, in the batches in which one process runs these images."""
        from fcnproto.segment.pipeline import Grouping, alike
        from fcnproto.segment.segmenter import PIXELS_AHEAD, Scene

        grouping = Grouping(self.step, PIXELS_AHEAD)
        groups: dict[int, list[int]] = {}
        for place, value in enumerate(chunk.values):
            number = grouping.place(value.size if isinstance(value, Picture) else 0)
            if isinstance(value, Picture):
                groups.setdefault(number, []).append(place)
        found: dict[int, Any] = {}
        for members in groups.values():
            names = {place: chunk.items[place].name for place in members}
            scenes = {place: self._scene(net, chunk, place, run) for place in members}
            found |= {place: value for place, value in scenes.items() if not isinstance(value, Scene)}
            ready = {place: value for place, value in scenes.items() if isinstance(value, Scene)}
            while ready:
                batch = alike(ready, lambda scene: scene.shape, net.most_at_once)
                if not set(batch) <= chunk.done:
                    wanted = {place: names[place] for place in batch}
                    scenes = {place: ready[place] for place in batch}
                    found |= run(wanted, partial(self._labels, net, chunk, scenes))
                for place in batch:
                    del ready[place]
        return found

    def _scene(self, net: Segmenter, chunk: Chunk, place: int, run: Run) -> Any:
        """The image at a place made ready for the net, or the `Failure`; decoded here where it hasn't been."""
        item, content = chunk.items[place], chunk.values[place].content
        if isinstance(content, bytes):
            prepared = lambda: self._prepared(net, item, decoded(item, content, self.how))  # noqa: E731
            return run({place: item.name}, lambda _: [attempt(prepared)])[place]
        return attempt(lambda: self._prepared(net, item, content))

    def _prepared(self, net: Segmenter, item: Item, pixels: np.ndarray) -> Scene:
        try:
            return net.prepare({net.inputs[0]: pixels})
        except DataError as error:
            raise DataError(f"{shown(item)}: {error}") from error

    def _labels(self, net: Segmenter, chunk: Chunk, scenes: Mapping[int, Scene], places: list[int]) -> list[Any]:
        """The results of scenes that are run together, a `Failure` in the place of each that fails."""
        results: list[Any] = []
        for place, found in zip(places, net.run([scenes[place] for place in places]), strict=True):
            if isinstance(found, Exception):
                results.append(Failure(f"{shown(chunk.items[place])}: {found}"))
                continue
            names = parts([one.blob for one in found])
            pairs = zip(found, names, strict=True)
            results.append([Labels(one.blob, part, one.labels, one.shares()) for one, part in pairs])
        return results

    def encode(self, item: Item, value: Sequence[Labels]) -> list[Row]:
        """A row for each score: PNG bytes and shares."""
        rows = []
        for found in value:
            file = io.BytesIO()
            save_png(label_image(found.labels), file)
            rows.append({"name": item.name, **found._asdict(), "labels": file.getvalue()})
        return rows

    def schema(self) -> Any:
        """name, blob, labels (PNG), shares by class, error."""
        import pyarrow as pa

        return pa.schema(
            [
                ("name", pa.string()),
                ("blob", pa.string()),
                ("labels", pa.binary()),
                ("shares", pa.map_(pa.string(), pa.float64())),
                ("error", pa.string()),
            ]
        )


def segment(
    net: Net | Segmenter,
    sources: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    cluster: Cluster | str = "local",
    format: str | None = None,
    column: str | None = None,
    recursive: bool = False,
    told: Told | None = None,
    **options: Any,
) -> Summary:
    """Segment a corpus on Ray, and write label maps to a sink.

    Label files (`cat_labels.png`) are, on CPUs, those that `fcnproto.segment.segment` writes for the same sources, byte
    for byte. In tar files each has a `cat_labels.json` with the shares beside it; a Parquet file has rows of name,
    blob, labels (PNG), shares and error.

    Args:
        net: a net with one image input, or a `Segmenter` for other than its defaults; on the CPU.
        sources: folders of images, lists of them (`.txt`), `.tar` shards, `.parquet` files with a column of images, and
            folders of these; local paths or fsspec's addresses.
        out: a folder, or a `.tar` or `.parquet` file; a path or an address. The manifest is `manifest.json` in the
            folder, `NAME.manifest.json` beside a file.
        cluster: a `Cluster`, or its address, with the other fields of `Cluster` as further arguments.
        format: of the files in a folder: "files" (default), "tar", "parquet".
        column: the Parquet column that holds the images.
        recursive: look into subfolders.

    Raises `UsageError` where the options don't fit, the sink holds results and isn't resumed, or Ray can't be reached.
    """
    from fcnproto.segment.segmenter import AHEAD, Segmenter

    segmenter = net if isinstance(net, Segmenter) else Segmenter(net)
    if len(segmenter.inputs) != 1:
        raise UsageError(f"the net has the image inputs {', '.join(segmenter.inputs)}; a corpus feeds nets with one")
    if segmenter.probabilities:
        raise UsageError("probabilities are not written of a corpus; leave them out")
    where = cluster_of(cluster, options)
    (name,) = segmenter.inputs
    how = segmenter.preprocessing[name]
    size = segmenter.longest_side, segmenter.fixed_size
    told_apart = repr((how.key(), size, segmenter.blobs, segmenter.precision, segmenter.crf))
    work = Segmenting(how, "cuda" if where.gpus_per_worker else "cpu", column, told_apart, AHEAD)
    address = address_of(out)
    sink = sink_of(address, format, work.schema(), parts(segmenter.blobs))
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    found = corpus(given, recursive, leave_out=address, arrays=how.kind == "bands")
    if address in map(address_of, given):
        raise UsageError(f"{address} holds the images to be read; write the results to another place")
    return run(work, found, sink, where, net=segmenter, sources=list(map(str, given)), column=column, told=told)
