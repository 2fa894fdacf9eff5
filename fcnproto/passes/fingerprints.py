"""Fingerprints of tensors on the CPU: whether any of their bits have changed, as fast as memory is read.

A tensor's bytes are laid out in some rows of 8-byte numbers, which are added up: any one change shows, and so does
another order, but for values that lie whole rows apart. The rows' length is a prime, so that no filter, kernel or
channel of a weight fits into it, and no such part changes places with another unseen. What the additions leave of large
tensors is added up once more. Small tensors, and what is left over at the ends, are their own fingerprints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from fcnproto.passes.sums import flat_view

_ROWS = 16
"""As many places in memory as a processor reads ahead at once: one pass, two thirds of the time of a sum of all."""
_SMALL = 1 << 14
_LARGE = 1 << 19
"""Bytes of tensors that are their own fingerprint, and of those that are added up twice."""
_TOGETHER = 1 << 17
"""Bytes that torch copies together in one go; of more it copies each tensor by itself."""


class Fingerprints:
    """The fingerprints of some tensors, to be taken again and again: of what their memory holds at that time."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._flat = [flat_view(tensor.detach()) for tensor in tensors]
        self.is_lasting = all(
            flat.data_ptr() == tensor.data_ptr() and tensor.device.type == "cpu"
            for flat, tensor in zip(self._flat, tensors, strict=True)
        )
        """Whether it sees later changes: not of tensors that had to be copied for it."""
        parts = [_divided(flat.to("cpu").view(torch.uint8)) for flat in self._flat]
        pieces = [piece for _, rest in parts for piece in rest]
        total = sum(map(len, pieces))
        self._start = -(-total // 8)  # in numbers of 8 bytes
        raw, end, most = 0, self._start, 0
        self._places: list[tuple[slice, slice]] = []
        for numbers, rest in parts:
            first, size = raw, _print_size(numbers)
            raw += sum(map(len, rest))
            self._places.append((slice(first, raw), slice(end, end + size)))
            end += size
            most = max(most, 0 if numbers is None else numbers.shape[1])
        self._taken = torch.zeros(end, dtype=torch.int64, device="cpu")
        between = torch.empty(most, dtype=torch.int64, device="cpu")
        self._copies = list(_together(pieces, self._taken.view(torch.uint8)[:total]))
        self._steps: list[tuple[Tensor, Tensor]] = []
        for (numbers, _), (_, place) in zip(parts, self._places, strict=True):
            if numbers is not None:
                self._add(numbers, self._taken[place], between[: numbers.shape[1]])

    def _add(self, numbers: Tensor, found: Tensor, between: Tensor) -> None:
        if len(found) == len(between):
            self._steps.append((numbers, found))
            return
        length = _row_length(len(between))
        self._steps.append((numbers, between))
        self._steps.append((between[: _ROWS * length].view(_ROWS, length), found[:length]))
        self._steps.append((between[_ROWS * length :].view(1, -1), found[length:]))

    def take(self) -> Tensor:
        """All fingerprints as they are now, in one vector of whole numbers, the same memory every time."""
        for pieces, copy in self._copies:
            torch.cat(pieces, out=copy)
        for numbers, found in self._steps:
            torch.sum(numbers, 0, out=found)
        return self._taken

    def of(self, index: int, taken: Tensor) -> tuple[Tensor, Tensor]:
        """The fingerprint of one tensor among those `taken`."""
        raw, sums = self._places[index]
        return taken.view(torch.uint8)[raw], taken[sums]


def _together(pieces: Sequence[Tensor], room: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Vectors of bytes in groups that are copied at once, each group with its part of `room`."""
    kind = torch.uint8
    if all(len(piece) % 4 == 0 and piece.storage_offset() % 4 == 0 for piece in pieces):
        kind = torch.float32  # torch has a quick copy of floating-point numbers alone
    group: list[Tensor] = []
    first = last = 0
    for piece in pieces:
        if group and last - first + len(piece) > _TOGETHER:
            yield group, room[first:last].view(kind)
            group, first = [], last
        if len(piece):
            group.append(piece.view(kind))
            last += len(piece)
    if group:
        yield group, room[first:last].view(kind)


def _print_size(numbers: Tensor | None) -> int:
    """How many sums are kept of a tensor."""
    if numbers is None:
        return 0
    length = numbers.shape[1]
    if numbers.nbytes < _LARGE:
        return length
    return _row_length(length) + length - _ROWS * _row_length(length)


def _divided(data: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """A vector of bytes as (rows, n) numbers of 8 bytes, None where it is small, and what is left of it at its ends."""
    first = -data.storage_offset() % 8
    count = (len(data) - first) // 8
    if 8 * count < _SMALL:
        return None, [data]
    length = _row_length(count)
    last = first + 8 * _ROWS * length
    return data[first:last].view(torch.int64).view(_ROWS, length), [data[:first], data[last:]]


@cache
def _row_length(count: int) -> int:
    """The largest prime number of columns that `count` numbers fill in all rows."""
    length = count // _ROWS
    while not _is_prime(length):
        length -= 1
    return length


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
