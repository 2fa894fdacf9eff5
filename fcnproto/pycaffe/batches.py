"""Passes over any number of items, in batches of a net's size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from fcnproto.pycaffe.blob import Blob


class Batches:
    """What a net does with more items than its batch has."""

    blobs: OrderedDict[str, Blob]
    inputs: list[str]
    outputs: list[str]
    forward: Any
    backward: Any

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: Any) -> dict[str, np.ndarray]:
        """`forward` on inputs of any number of items, in batches of the net's size; copies of the outputs."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        for batch in self._batch(inputs):
            for name, values in self.forward(blobs=blobs, **batch).items():
                found[name].extend(values.copy())
        return _packed(found, len(next(iter(inputs.values()))))

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **arrays: Any
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Both passes in batches; `arrays` hold values of the inputs and gradients of the outputs."""
        values: dict[str, list[np.ndarray]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        slopes: dict[str, list[np.ndarray]] = {name: [] for name in {*self.inputs, *(diffs or ())}}
        ahead = self._batch({name: arrays[name] for name in self.inputs if name in arrays})
        back = self._batch({name: arrays[name] for name in self.outputs if name in arrays})
        nothing: dict[str, np.ndarray] = {}
        for one, other in zip_longest(ahead, back, fillvalue=nothing):
            for name, array in self.forward(blobs=blobs, **one).items():
                values[name].extend(array.copy())
            for name, array in self.backward(diffs=diffs, **other).items():
                slopes[name].extend(array.copy())
        count = len(next(iter(arrays.values())))
        return _packed(values, count), _packed(slopes, count)

    def _batch(self, arrays: Mapping[str, Any]) -> Iterator[dict[str, np.ndarray]]:
        """Items in batches of the first blob's size, the last one filled up with zeros."""
        if not arrays:
            return
        size, count = next(iter(self.blobs.values())).shape[0], len(next(iter(arrays.values())))
        for first in range(0, count, size):
            batch = {}
            for name, values in arrays.items():
                part = np.asarray(values[first : first + size])
                padding = np.zeros((size - len(part), *part.shape[1:]), part.dtype)
                batch[name] = np.concatenate([part, padding]) if len(padding) else part
            yield batch


def _packed(found: Mapping[str, list[np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Arrays of items, those left off that padding gave."""
    return {
        name: np.asarray(items)[:count] if len(items) >= count else np.asarray(items) for name, items in found.items()
    }
