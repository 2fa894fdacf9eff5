"""Noticing, without waiting for a GPU, that the values of tensors have changed behind torch's back.

Torch counts the writes to a tensor, but not those through `.data`. Here the values' bits are summed up on the GPU, and
compared at the first call that finds the sums on this side. Tensors are summed up in portions that take turns, one a
call: a change in the tensors of one portion shows at the next call but one, one in a large net some calls later.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from fcnproto.net.arriving import Arriving

_BYTES_AT_ONCE = 16 * 2**20
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of so many bytes."""

_Portion = tuple[Hashable, ...]


class LateSums:
    """Sums of tensors on GPUs, by keys that say which tensor it is."""

    def __init__(self) -> None:
        self._counts: dict[_Portion, list[Hashable]] = {}
        self._known: dict[_Portion, int] = {}
        self._pending: list[tuple[Arriving, _Portion]] = []

    def look(self, tensors: Mapping[Hashable, Tensor], counts: Mapping[Hashable, Hashable]) -> set[Hashable]:
        """The keys whose tensors, or others in one portion with them, have been found changed since the last look.

        `counts` says how often torch saw each written to. Asks about the portions that are new or were written to,
        else about the one that was looked at longest ago.
        """
        changed = self._judge()
        portions = _portions(tensors)
        before, self._counts = self._counts, {each: [counts[key] for key in each] for each in portions}
        for portion in portions:
            if before.get(portion, self._counts[portion]) != self._counts[portion]:
                # What the sum of the others is now can't be told from what it should be.
                changed.update(portion)
                self._known.pop(portion, None)
                self._pending = [each for each in self._pending if each[-1] != portion]
        self._known = {portion: total for portion, total in self._known.items() if portion in self._counts}
        if not self._pending and tensors:
            for portion in [each for each in portions if each not in self._known] or [next(iter(self._known))]:
                self._pending.append((_ask([tensors[key] for key in portion]), portion))
        return changed

    def _judge(self) -> set[Hashable]:
        if not all(total.is_here for total, _ in self._pending):
            return set()
        changed: set[Hashable] = set()
        for total, portion in self._pending:
            before, found = self._known.pop(portion, None), int(total.value)  # at the end of the line from now on
            if before is not None and before != found:
                changed.update(portion)
            self._known[portion] = found
        self._pending.clear()
        return changed


def _portions(tensors: Mapping[Hashable, Tensor]) -> list[_Portion]:
    """The tensors of one dtype and place in their order, as many together as have few enough bytes."""
    portions: list[list[Hashable]] = []
    size, kind = 0, None
    for key, tensor in tensors.items():
        if kind != (tensor.dtype, tensor.device) or size + tensor.nbytes > _BYTES_AT_ONCE:
            portions.append([])
            size, kind = 0, (tensor.dtype, tensor.device)
        portions[-1].append(key)
        size += tensor.nbytes
    return [tuple(portion) for portion in portions]


def _ask(tensors: Sequence[Tensor]) -> Arriving:
    """The sum of all bits, read as whole numbers, on its way to the CPU.

    Of numbers of 4 bytes at most, whose sum has room for their signs.
    """
    values = torch.cat([flat_view(tensor) for tensor in tensors]) if len(tensors) > 1 else flat_view(tensors[0])
    return Arriving(values.view(INTEGERS[min(4, values.element_size())]).sum(dtype=torch.int64))


def flat_view(tensor: Tensor) -> Tensor:
    """All values as a vector: a view where the tensor lies densely in any order of its axes, else a copy."""
    if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.flatten().contiguous()
