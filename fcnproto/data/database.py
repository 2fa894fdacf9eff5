"""The Data layer: batches out of an LMDB or LevelDB of Datum records."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.datum import datum_array, parse_datum
from fcnproto.data.images import Mode
from fcnproto.data.paths import resolve
from fcnproto.data.records import Record, Records, is_lmdb, open_records
from fcnproto.data.transform import DataTransform
from fcnproto.errors import DataError
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer
from fcnproto.schema import caffe_pb2

_LEVELDB, _LMDB = caffe_pb2.DataParameter.LEVELDB, caffe_pb2.DataParameter.LMDB


@register("Data")
class Data(SourceLayer):
    """Caffe's Data: records in the order of their keys, wrapping around, also in the middle of a batch.

    Tops: data (batch, channels, height, width), transformed as `transform_param` says, and optionally label (batch,).
    Items of a batch must have one size, after cropping. Encoded images are decoded by Pillow, to their own channels
    unless force_color or force_gray. Reading is done when the batch is asked for; `prefetch` makes no difference. An
    LMDB is read as such even where the prototxt says LEVELDB (the default), with a warning.

    With `shuffle`, which forks have, each time round goes through all records in an order of its own: Intel's way.
    NVIDIA needs `cache` for it, which only says so here; then, in TRAIN alone, the first time round is in order.
    Several workers go through all records then, each in its own order.
    """

    differences = (
        "encoded images are decoded by Pillow, not OpenCV (the tests compare the two). An LMDB is read as such, with a "
        "warning, where the prototxt says LEVELDB. `prefetch` makes no difference: nothing is read ahead."
    )
    config_field = "data_param"
    also_reads: ClassVar[tuple[str, ...]] = ("transform_param",)
    fork_fields: ClassVar[tuple[str, ...]] = (
        *("transform_param.crop_h", "transform_param.crop_w", "data_param.shuffle", "data_param.cache"),
    )
    tops = (1, 2)
    position_fields: ClassVar[tuple[str, ...]] = ("key", "offset")
    handles = ("records", "keys")

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.key: str | None = None
        """The next record's key, in hexadecimal digits."""
        self.offset = 0
        """Records passed since the start, those of other workers included."""
        self.records: Records | None = None
        self.order_seed: int | None = None
        """What the orders follow from, where records are shuffled."""
        self.keys: list[bytes] | None = None
        self._order: tuple[tuple[int, int], np.ndarray] | None = None
        self.transform = DataTransform(param.transform_param)
        if self.config.shuffle:
            self.position_fields = ("key", "offset", "order_seed")  # type: ignore[misc]

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.config.batch_size == 0:
            self.fail("data_param needs a batch_size above 0")
        problem = self.transform.problem()
        if problem:
            self.fail(problem)
        self.warn_unread(("scale", "mean_file", "crop_size", "mirror"), "Caffe reads it in transform_param only")
        self.warn_unread(("rand_skip", "force_encoded_color"), "nor has it in Caffe")
        self.transform.base_dir = self.base_dir

    def declared_shapes(self) -> list[PartialShape]:
        """From crop_size, and the number of mean values where it is that of the channels."""
        channels, (rows, columns) = len(self.transform.param.mean_value), self.transform.crop
        return self._tops((channels if channels > 1 else None, rows or None, columns or None))

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        """From the first record, where the database is there."""
        with suppress(DataError), closing(self._open()) as records:  # said when the first batch is asked for
            return self._tops(self.transform.output_shape(*self._item(records.seek(None))[0].shape))
        return self.declared_shapes()

    def _tops(self, item: tuple[int | None, ...]) -> list[PartialShape]:
        tops: list[PartialShape] = [(self.config.batch_size, *item), (self.config.batch_size,)]
        return tops[: self.num_tops]

    def forward(self) -> tuple[Tensor, ...]:
        try:
            if self.records is None:
                self.records = self._open()
            records, key, offset = self._next_records(self.records)
            tops = self._batch(records)
        except DataError as error:
            self.data_error(str(error))
        self.key, self.offset = key, offset  # the layer moves on where all went well
        return tops[: self.num_tops]

    def _next_records(self, database: Records) -> tuple[list[Record], str, int]:
        """This worker's records for a batch, and the key and number of the record after them."""
        if self.shuffles:
            found = [
                database.seek(self._shuffled_key(database, self.offset + k)) for k in range(self.config.batch_size)
            ]
            offset = self.offset + len(found)
            return found, self._shuffled_key(database, offset).hex(), offset
        rank, workers = self.share()
        found = []
        record = database.seek(None if self.key is None else bytes.fromhex(self.key))
        offset = self.offset
        while len(found) < self.config.batch_size:
            if offset % workers == rank:
                found.append(record)
            record = database.next()
            offset += 1
        return found, record[0].hex(), offset

    @property
    def shuffles(self) -> bool:
        """Whether records come in orders drawn at random."""
        return bool(self.config.shuffle) and not (self._as_nvidia and not (self.training and self.config.cache))

    @property
    def _as_nvidia(self) -> bool:
        return self.dialect == "nvidia" or bool(self.config.HasField("cache"))

    def _shuffled_key(self, database: Records, number: int) -> bytes:
        """The key of the record that comes as the `number`-th since the start."""
        if self.keys is None:
            self.keys = database.keys()
        if self.order_seed is None:
            self.order_seed = int(self.generator.integers(2**62))
        turn, place = divmod(number, len(self.keys))
        if turn == 0 and self._as_nvidia:
            return self.keys[place]
        if self._order is None or self._order[0] != (self.order_seed, turn):
            self._order = (
                (self.order_seed, turn),
                np.random.default_rng([self.order_seed, turn]).permutation(len(self.keys)),
            )
        return self.keys[int(self._order[1][place])]

    def _batch(self, records: Sequence[Record]) -> tuple[Tensor, ...]:
        """The tops for the records of a batch."""
        items: list[np.ndarray] = []
        labels: list[int] = []
        for record in records:
            item, label = self._item(record)
            items.append(self._transformed(item))
            labels.append(label)
            self._check_size(items, record)
        return torch.from_numpy(np.stack(items)), torch.tensor(labels, dtype=torch.float32, device="cpu")

    def _open(self) -> Records:
        path = resolve(self.config.source, self.base_dir, "data_param.source")
        backend = self.config.backend
        if backend == _LEVELDB and is_lmdb(path):
            self.warn(f"{path} is an LMDB, but the prototxt says LEVELDB (the default); reading it as an LMDB")
            backend = _LMDB
        return open_records(path, backend)

    def _name(self, record: Record) -> str:
        return f"record {record[0].decode(errors='backslashreplace')!r} of {self.config.source}"

    def _item(self, record: Record) -> tuple[np.ndarray, int]:
        name = self._name(record)
        datum = parse_datum(record[1], name)
        return self._pixels(datum, name), datum.label

    def _pixels(self, datum: caffe_pb2.Datum, name: str) -> np.ndarray:
        """The item (channels, height, width), decoded as the settings force it."""
        forced: Mode | None = None
        if self.transform.param.force_color:
            forced = "color"
        elif self.transform.param.force_gray:
            forced = "gray"
        if forced and not datum.encoded:
            self.warn(f"force_{forced} has no effect on records that are not encoded images")
        return datum_array(datum, name, forced or "native")

    def _transformed(self, item: np.ndarray) -> np.ndarray:
        random = self.transform.is_random(self.training)
        return self.transform(item, self.training, self.generator if random else None)

    def _check_size(self, items: list[np.ndarray], record: Record) -> None:
        if items[-1].shape != items[0].shape:
            raise DataError(
                f"{self._name(record)} has shape {items[-1].shape}, others of the batch {items[0].shape}; "
                "use crop_size or batch_size 1"
            )
