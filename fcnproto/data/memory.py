"""The MemoryData layer: batches out of arrays that the caller hands over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.layers.base import Shape
from fcnproto.layers.registry import register
from fcnproto.layers.source import PartialShape, SourceLayer


@register("MemoryData")
class MemoryData(SourceLayer):
    """Caffe's MemoryData: batches in order from arrays in memory, wrapping around; never transformed.

    `set_input_arrays` hands the arrays over. The label top has shape (batch, 1, 1, 1), as in Caffe after a forward.
    """

    differences = "batches are copies of the rows handed over (Caffe shares the memory)."
    config_field = "memory_data_param"
    tops = (2, 2)
    may_read_ahead = False  # other arrays may be handed over before
    position_fields = ("row",)

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self.row = 0
        self.data: Tensor | None = None
        self.labels: Tensor | None = None

    def setup(self, shapes: Sequence[Shape]) -> None:
        sizes = {name: getattr(self.config, name) for name in ("batch_size", "channels", "height", "width")}
        wrong = [name for name, size in sizes.items() if size == 0]
        if wrong:
            self.fail(f"memory_data_param needs {', '.join(wrong)} above 0")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        config = self.config
        return [
            (config.batch_size, config.channels, config.height, config.width),
            (config.batch_size, 1, 1, 1),
        ]

    def set_input_arrays(self, data: Any, labels: Any) -> None:
        """Set the rows that the batches are taken from and start at the first.

        `data` has shape (n, channels, height, width) as the prototxt says, `labels` (n,) or (n, 1, 1, 1); numpy arrays
        or tensors of any dtype; n a multiple of batch_size. float32 CPU data is referenced, not copied, as in Caffe.
        Raises `DataError`.
        """
        data, labels = self._rows("data", data), self._rows("labels", labels)
        config = self.config
        item = (config.channels, config.height, config.width)
        if data.ndim != 4 or tuple(data.shape[1:]) != item:
            self.data_error(f"data has shape {tuple(data.shape)}, expected (n, {', '.join(map(str, item))})")
        count = data.shape[0]
        if tuple(labels.shape) not in ((count,), (count, 1, 1, 1)):
            self.data_error(f"labels have shape {tuple(labels.shape)}, expected ({count},) or ({count}, 1, 1, 1)")
        if count == 0 or count % config.batch_size:
            self.data_error(f"{count} rows given; expected a multiple of batch_size {config.batch_size}")
        self.data, self.labels, self.row = data, labels.reshape(count, 1, 1, 1), 0

    def _rows(self, what: str, values: Any) -> Tensor:
        """An array, tensor or list as a float32 CPU tensor; float32 memory is shared where it can be."""
        if isinstance(values, Tensor):
            return values.detach().to("cpu", torch.float32)
        try:
            array = np.asarray(values)
        except ValueError as error:
            self.data_error(f"{what} must be an array of numbers: {error}")
        if array.dtype.kind not in "fiub":
            self.data_error(f"{what} must be an array of numbers, got one of type {array.dtype}")
        return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))

    def forward(self) -> tuple[Tensor, ...]:
        if self.data is None or self.labels is None:
            self.data_error("no data yet; hand arrays over with net.set_input_arrays(data, labels) first")
        first = self.row % len(self.data)
        rows = slice(first, first + self.config.batch_size)
        self.row = rows.stop % len(self.data)
        return self.data[rows].clone(), self.labels[rows].clone()
