"""Blobs of a corpus on Ray, to Parquet: a row for each image."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fcnproto.cluster.chunks import Chunk, Failure, Item
from fcnproto.cluster.engine import Cluster, Told, cluster_of, run
from fcnproto.cluster.guard import attempt
from fcnproto.cluster.places import address_of
from fcnproto.cluster.segmenting import decoded, shown
from fcnproto.cluster.sinks import sink_of
from fcnproto.cluster.sources import PathLike, Reader, corpus
from fcnproto.cluster.summary import Summary
from fcnproto.cluster.work import Row, Run, Work
from fcnproto.errors import UsageError
from fcnproto.images import Preprocessing, as_image

if TYPE_CHECKING:
    from fcnproto.inspect.features import Pool
    from fcnproto.net import Net

NAME, ERROR = "name", "error"


@dataclass(frozen=True)
class Featuring(Work):
    """`features` for a corpus; the arguments are those of `extract_features`."""

    blobs: tuple[str, ...]
    input: str
    how: Preprocessing
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    pool: Pool | None
    device: str
    column: str | None
    step: int
    command = "features"

    @property
    def settings(self) -> str:
        """What the values depend on beside the net."""
        return repr((self.how.key(), self.size, self.crop, self.pool, self.blobs))

    def reading(self) -> AbstractContextManager[Callable[[Item], Any]]:
        """Reads the bytes."""
        return closing(Reader(self.column))

    def decode(self, item: Item, data: bytes, room: int) -> np.ndarray:
        """The pixels."""
        return decoded(item, data, self.how)

    def on_worker(self, net: Net) -> Net:
        """The net on the worker's device."""
        return net.to(self.device)

    def run(self, net: Net, chunk: Chunk, run: Run) -> dict[int, Any]:
        """The blobs by place; `step` images that are of one size are run together."""
        from fcnproto.inspect.running import value_of

        found: dict[int, Any] = {}
        for start in range(0, len(chunk.items), self.step):
            values = {
                place: attempt(
                    partial(
                        value_of,
                        as_image(chunk.values[place], self.how.kind, self.how.bands),
                        self.how,
                        self.size,
                        self.crop,
                        shown(chunk.items[place]),
                    )
                )
                for place in chunk.open_places()
                if start <= place < start + self.step
            }
            found |= {place: value for place, value in values.items() if type(value) is Failure}
            ready = {place: value for place, value in values.items() if type(value) is not Failure}
            together = len({value.shape for value in ready.values()}) == 1
            for group in [list(ready)] if together else [[place] for place in ready]:
                if not set(group) <= chunk.done:
                    names = {place: chunk.items[place].name for place in group}
                    found |= run(names, partial(self._blobs, net, ready))
        return found

    def _blobs(self, net: Net, values: dict[int, Any], wanted: list[int]) -> list[Any]:
        import torch

        from fcnproto.inspect.features import rows_of

        with torch.no_grad():
            rows = rows_of(net, self.input, torch.cat([values[place] for place in wanted]), self.blobs, self.pool)
        return [{blob: rows[blob][k] for blob in self.blobs} for k in range(len(wanted))]

    def encode(self, item: Item, value: dict[str, np.ndarray]) -> list[Row]:
        """One row: of each blob its values and its shape."""
        row: Row = {NAME: item.name}
        for blob, array in value.items():
            row[blob] = array.reshape(-1)
            row[f"{blob}_shape"] = list(array.shape)
        return [row]

    def schema(self) -> Any:
        """name, each blob (float32, flat) and its shape, error."""
        import pyarrow as pa

        blobs = [
            field
            for blob in self.blobs
            for field in ((blob, pa.list_(pa.float32())), (f"{blob}_shape", pa.list_(pa.int32())))
        ]
        return pa.schema([(NAME, pa.string()), *blobs, (ERROR, pa.string())])


def features(
    net: Net,
    sources: PathLike | Sequence[PathLike],
    blobs: Sequence[str],
    out: PathLike,
    how: Preprocessing | None = None,
    *,
    cluster: Cluster | str = "local",
    size: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    batch: int = 1,
    pool: Pool | None = None,
    column: str | None = None,
    recursive: bool = False,
    told: Told | None = None,
    **options: Any,
) -> Summary:
    """Run a net on a corpus on Ray and write blobs to a Parquet file, or a folder of parts: a row an image.

    For the sources, the sink and the cluster see `segment`, for the rest `inspect.features.extract_features`. The
    columns are `name`, for each blob its values one after another and `BLOB_shape`, and `error`.
    """
    from fcnproto.net.roles import image_inputs
    from fcnproto.preprocessing import preprocessing_of

    inputs = image_inputs(net, blobs)
    if len(inputs) != 1:
        raise UsageError(
            f"the net needs {', '.join(map(repr, inputs))}; features are taken of nets with one image input"
        )
    names = [NAME, ERROR, *(name for blob in blobs for name in (blob, f"{blob}_shape"))]
    if len(set(names)) < len(names):
        raise UsageError(f"the blobs {', '.join(blobs)}: two columns would have one name")
    where = cluster_of(cluster, options)
    work = Featuring(
        tuple(blobs),
        inputs[0],
        how or preprocessing_of(net, inputs[0]),
        size,
        crop,
        pool,
        "cuda" if where.gpus_per_worker else "cpu",
        column,
        batch,
    )
    address = address_of(out)
    sink = sink_of(address, None, work.schema(), None)
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    found = corpus(given, recursive, leave_out=address, arrays=work.how.kind == "bands")
    return run(work, found, sink, where, net=net, sources=list(map(str, given)), column=column, told=told)
