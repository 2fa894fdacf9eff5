"""The ImageData layer: batches out of a list of image files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.data.images import decode, open_image, resize_bilinear
from fcnproto.data.paths import read_list, resolve
from fcnproto.data.transform import DataTransform
from fcnproto.errors import DataError
from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer

Entry = tuple[str, int | str]
"""(path as in the list, label: a class, or the path of an image)"""


def read_image_list(path: str, labelled: bool = True) -> list[tuple[str, int]]:
    """The lines `path label` of a list file, split at the last blank; the label is a whole number. Unless `labelled` it
    may be missing, and counts as 0.

    Empty lines are passed over. Raises `DataError` with file and line.
    """
    entries = []
    for number, line in enumerate(read_list(path, "list of images").split("\n"), start=1):
        if not line.strip():
            continue
        name, blank, label = line.rstrip().rpartition(" ")
        found = re.match(r"\s*([+-]?\d+)", label)  # the leading digits count, as in C's atoi
        if not labelled and (not blank or found is None):
            name, found = line.strip(), None
        elif not blank or found is None:
            raise DataError(f"{path}:{number}: expected a path, a blank and a whole number, found {line.strip()!r}")
        entries.append((name, 0 if found is None else int(found.group(1))))
    if not entries:
        raise DataError(f"{path}: the list of images is empty")
    return entries


@register("ImageData")
class ImageData(SourceLayer):
    """Caffe's ImageData: images of a list of lines `path label`, in order or shuffled anew every time round.

    Tops: data (batch, 3 or 1, height, width), BGR, resized to new_height x new_width if given, then transformed as
    `transform_param` says; label (batch,), which FlowNet's nets leave out. Images of a batch must have one size then.
    Decoded by Pillow with the colours of OpenCV; resized as OpenCV resizes, bit by bit. `root_folder` is put before the
    paths as it stands. Several workers deal the lines out among them; shuffled, each goes through all in an order of
    its own.
    """

    differences = (
        "images are decoded by Pillow, not OpenCV (the tests compare the two; resizing is equal bit by bit). A line "
        "without a label is an error (Caffe takes a number out of the path). Several workers deal the lines out among "
        "them unless `shuffle` gives each an order of its own (in Caffe all read the same)."
    )
    config_field = "image_data_param"
    also_reads = ("transform_param",)
    fork_fields: ClassVar[tuple[str, ...]] = ("transform_param.crop_h", "transform_param.crop_w")
    tops: ClassVar[tuple[int, int | None]] = (1, 2)
    position_fields = ("line", "offset", "order_seed")
    handles = ("entries",)

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.line: int | None = None
        """The next line's index; None before the first batch."""
        self.offset = 0
        """Images passed since the start, those of other workers included."""
        self.order_seed: int | None = None
        """The seed of the present order, where it is shuffled."""
        self.entries: list[Entry] | None = None
        self.transform = DataTransform(param.transform_param)

    def setup(self, shapes: Sequence[Shape]) -> None:
        config = self.config
        if config.batch_size == 0:
            self.fail(f"{self.config_field} needs a batch_size above 0")
        if (config.new_height > 0) != (config.new_width > 0):
            self.fail(f"{self.config_field}: give both of new_height and new_width, or neither")
        problem = self.transform.problem()
        if problem:
            self.fail(problem)
        self.warn_unread(("scale", "mean_file", "crop_size", "mirror"), "Caffe reads it in transform_param only")
        for name in ("force_color", "force_gray"):
            if self.transform.param.HasField(name):
                self.warn(f"transform_param.{name} has no effect; is_color says how images are read, in Caffe too")
        self.transform.base_dir = self.base_dir

    def declared_shapes(self) -> list[PartialShape]:
        """From the settings; height and width only where they say the size."""
        config = self.config
        size: tuple[int | None, int | None] = (config.new_height or None, config.new_width or None)
        if self.transform.crop[0]:
            size = self.transform.crop
        tops: list[PartialShape] = [(config.batch_size, 3 if config.is_color else 1, *size), (config.batch_size,)]
        return tops[: self.num_tops]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        """From the settings where they say the size, else from the first image of the list, where that is there."""
        data, *label = self.declared_shapes()
        if data is not None and None in data:
            with suppress(DataError):  # said when the first batch is asked for
                data = (*data[:2], *self._first_size())
        return [data, *label]

    def _first_size(self) -> tuple[int, int]:
        with open_image(self._path(self._read_entries()[0])) as image:
            turned = image.getexif().get(0x0112, 1) > 4
            width, height = reversed(image.size) if turned else image.size
        return height, width

    def _path(self, entry: Entry) -> str:
        return resolve(self.config.root_folder + entry[0], self.base_dir, "image")

    def forward(self) -> tuple[Tensor, ...]:
        items: list[np.ndarray] = []
        labels: list[int] = []
        try:
            for entry in self._batch():
                items.append(self._item(entry))
                labels.append(int(entry[1]))
                self._check_size(entry, items)
        except DataError as error:
            self.data_error(str(error))
        tops = torch.from_numpy(np.stack(items)), torch.tensor(labels, dtype=torch.float32, device="cpu")
        return tops[: self.num_tops]

    def _batch(self) -> Iterator[Entry]:
        """The entries of the next batch; one is passed when the following is asked for, or there is none."""
        rank, workers = (0, 1) if self.config.shuffle else self.share()
        count = 0
        while count < self.config.batch_size:
            entries = self._open()
            assert self.line is not None
            if self.offset % workers == rank:
                yield entries[self.line]
                count += 1
            self._advance(len(entries))

    @staticmethod
    def _check_size(entry: Entry, items: Sequence[np.ndarray]) -> None:
        """Refuse an item of another size than those of the batch before it."""
        if items[-1].shape != items[0].shape:
            raise DataError(
                f"{entry[0]} has shape {items[-1].shape}, others of the batch {items[0].shape}; use new_height and "
                "new_width, crop_size, or batch_size 1"
            )

    def _read_entries(self) -> list[Entry]:
        path = resolve(self.config.source, self.base_dir, f"{self.config_field}.source")
        return [*read_image_list(path, labelled=self.num_tops > 1)]

    def _open(self) -> list[Entry]:
        """The entries in the present order."""
        if self.entries is None:
            self.entries = self._read_entries()
            if self.config.shuffle:
                if self.order_seed is None:
                    self.order_seed = int(self.generator.integers(2**62))
                order = np.random.default_rng(self.order_seed).permutation(len(self.entries))
                self.entries = [self.entries[index] for index in order]
        if self.line is None:
            skip = self.config.rand_skip
            self.line = int(self.generator.integers(skip)) if skip else 0
        if self.line >= len(self.entries):
            raise DataError(
                f"{self.config.source} has {len(self.entries)} lines, so there is none to go on with after {self.line} "
                "(a rand_skip beyond the end, or a position in another list)"
            )
        return self.entries

    def _advance(self, count: int) -> None:
        assert self.line is not None
        self.offset += 1
        self.line += 1
        if self.line == count:
            self.line = 0
            if self.config.shuffle:
                self.order_seed, self.entries = None, None

    def _item(self, entry: Entry) -> np.ndarray:
        image = decode(self._path(entry), "color" if self.config.is_color else "gray")
        if self.config.new_height:
            image = resize_bilinear(image, self.config.new_height, self.config.new_width)
        random = self.transform.is_random(self.training)
        return self.transform(image.transpose(2, 0, 1), self.training, self.generator if random else None)
