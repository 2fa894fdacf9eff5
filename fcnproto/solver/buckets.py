"""Dividing the tensors of an update into buckets: many small ones together, big ones in pieces. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

#: Elements per bucket. On a CPU small enough for its caches, yet few enough operations that handing each to all threads
#: doesn't show on a busy machine; on a GPU temporaries stay within 256 MiB.
SIZE_CPU, SIZE_GPU = 1 << 21, 1 << 26


def pack(rows: Sequence[list[Tensor]], device: torch.device) -> Iterator[list[list[Tensor]]]:
    """Rows of like tensors on a device in buckets of the size that suits it, bigger rows cut where that is possible.

    A row is a parameter with its gradient and states: tensors of one shape.
    """
    limit = SIZE_CPU if device.type == "cpu" else SIZE_GPU
    bucket: list[list[Tensor]] = []
    size = 0
    for row in rows:
        for piece in _cut(row, limit):
            if bucket and size + piece[0].numel() > limit:
                yield bucket
                bucket, size = [], 0
            bucket.append(piece)
            size += piece[0].numel()
    if bucket:
        yield bucket


def _cut(row: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """The row itself, or flat pieces of at most `limit` elements where all its tensors are dense in one layout."""
    first = row[0]
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    alike = all(tensor.stride() in (first.stride(), (0,) * first.dim()) for tensor in row)
    if first.numel() <= limit or not dense or not alike:
        yield row
        return
    flat = [tensor.as_strided((first.numel(),), (1 if any(tensor.stride()) else 0,)) for tensor in row]
    yield from (list(pieces) for pieces in zip(*(tensor.split(limit) for tensor in flat), strict=True))
