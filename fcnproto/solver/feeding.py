"""The next batch of a train net on a GPU, read and sent while the net works on the last one.

A thread reads, a stream of its own sends, through pinned memory. What is read is what would have been read without:
the same batches in the same order, and before a snapshot or an end the layers are put back where they would stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcnproto.layers.base import Layer
from fcnproto.layers.source import SourceLayer
from fcnproto.net import Net
from fcnproto.net.arriving import send
from fcnproto.net.net import Batch, read_batch


@dataclass
class _Read:
    """A batch as it was read, its tops on the net's device, and the event that tells when they are there (None: by
    then)."""

    batch: Batch
    sent: tuple[Tensor, ...]
    event: Any = None


@dataclass
class _Ahead:
    """A batch of one layer that is being read: where the layer stood before, and what is on its way."""

    position: dict[str, Any]
    batch: Future[_Read]


class Feeder:
    """Gives a net its data layers' batches (`Net.feed`), each next one read while the last one is worked on.

    Only layers of the package's own read ahead: they have random numbers of their own, and can be put back. Not those
    that somebody watches by hooks, which would run in another thread and at another time.

    Attributes:
        reads_ahead: whether to do so; where not, a batch is read when it is wanted.
        goes_on: whether another pass follows the one that comes next, and nothing else in between.
        batch: what the layers gave since it was emptied, by top, as they gave it.
    """

    def __init__(self, net: Net, reads_ahead: bool) -> None:
        self.net, self.reads_ahead, self.goes_on = net, reads_ahead, False
        self.batch: dict[str, Tensor] = {}
        self._ahead: dict[Layer, _Ahead] = {}
        self._reader: ThreadPoolExecutor | None = None
        self._stream: Any = None

    def __call__(self, layer: Layer) -> Batch:
        """The next batch of a data layer, on the net's device."""
        ahead = self._ahead.pop(layer, None)
        found = self._read(layer) if ahead is None else ahead.batch.result()
        if found.event is not None:
            stream = torch.cuda.current_stream(self.net.device)
            stream.wait_event(found.event)
            for value in found.sent:
                value.record_stream(stream)
        self.batch.update(zip(layer.param.top, found.batch.tops, strict=False))
        if self.reads_ahead and self.goes_on and _may_read_ahead(layer):
            self._read_ahead(layer)
        return Batch(found.sent, found.batch.origin)

    def stand_back(self) -> None:
        """Put the layers that have read ahead back to where they would stand without."""
        for layer, ahead in self._ahead.items():
            assert isinstance(layer, SourceLayer)
            ahead.batch.exception()  # waits; what went wrong goes wrong again when it is wanted
            layer.set_position(ahead.position)
        self._ahead.clear()

    def _read_ahead(self, layer: Layer) -> None:
        assert isinstance(layer, SourceLayer)
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        if self.net.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self.net.device)
        position = layer.get_position()  # before the thread begins
        self._ahead[layer] = _Ahead(position, self._reader.submit(self._read, layer, self._stream))

    def _read(self, layer: Layer, stream: Any = None) -> _Read:
        """A layer's next batch, sent by a stream of its own or by the current one."""
        batch, device = read_batch(layer), self.net.device
        if stream is None:
            return _Read(batch, tuple(send(value, device) for value in batch.tops))
        with torch.cuda.stream(stream):
            return _Read(batch, tuple(send(value, device) for value in batch.tops), stream.record_event())


def _may_read_ahead(layer: Layer) -> bool:
    watched = layer._forward_hooks or layer._forward_pre_hooks
    own = type(layer).__module__.startswith("fcnproto.")
    return isinstance(layer, SourceLayer) and layer.may_read_ahead and own and not watched


def batch_size(batch: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> int:
    """How many images a pass is of: the extent of its first input or top."""
    first = next(iter([*inputs.values(), *batch.values()]), None)
    return first.shape[0] if first is not None and first.dim() else 1
