"""The base of the layers that give data: position, random numbers, worker's share. Opens no files itself.

What such a layer needs between calls (which item comes next, its random generator) lies in plain attributes, so
that a net can be copied, pickled and resumed at the exact item where it stood.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from fcnproto.errors import DataError
from fcnproto.layers.base import Layer, Shape

PartialShape = tuple[int | None, ...] | None
"""A top's shape as far as it is known without the data: None for an unknown extent or for the whole."""


def worker() -> tuple[int, int]:
    """(rank, number of workers) of this process under `torch.distributed`; (0, 1) where that is not in use."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def fresh_seed() -> int:
    """A seed drawn from torch's global generator: `torch.manual_seed` makes whatever it seeds repeatable."""
    with torch.device("cpu"):
        return int(torch.randint(0, 2**62, (1,), device="cpu").item())


class SourceLayer(Layer):
    """A layer without bottoms that gives the next batch at every call.

    `forward` takes nothing and returns a tuple: one float32 tensor on the CPU per top. Nothing is opened before the
    first call, but `top_shapes` may look into a file that exists for extents that the prototxt doesn't say; a net asks
    for that only where the shape of a parameter depends on them.

    Several processes (`torch.distributed`) each get data of their own: in order, worker r of n takes the items i with
    i mod n = r (Caffe's rule for Data, in the TRAIN phase); where items are drawn at random, by generators that the
    rank seeds.
    """

    is_data = True
    kind = "data"
    bottoms = (0, 0)
    tops: ClassVar[tuple[int, int | None]] = (1, None)
    position_fields: ClassVar[tuple[str, ...]] = ()
    """Attributes that say which item comes next: saved and restored with a snapshot."""
    may_read_ahead: ClassVar[bool] = True
    """Whether the next batch may be read early, in another thread: it depends on the layer and its files alone."""
    handles: ClassVar[tuple[str, ...]] = ()
    """Attributes with open files or what was read from them: None in a copy, and made anew when needed."""

    def __init__(self, param: Any, num_tops: int | None = None) -> None:
        super().__init__(param, num_tops)
        self._generator: np.random.Generator | None = None

    def top_shapes(self, shapes: Sequence[Shape]) -> list[PartialShape]:
        """The tops' shapes as far as they are known before any data is read; see `PartialShape`."""
        raise NotImplementedError

    def declared_shapes(self) -> list[PartialShape]:
        """The tops' shapes as far as the settings alone say them; where `top_shapes` looks into files, this doesn't."""
        return self.top_shapes([])

    def forward(self) -> tuple[Tensor, ...]:
        """The next batch: one float32 CPU tensor per top. Raises `DataError` where the source can't give it."""
        raise NotImplementedError

    @property
    def generator(self) -> np.random.Generator:
        """The layer's own random generator, seeded at its first use from torch's global one and the worker's rank."""
        if self._generator is None:
            self._generator = np.random.default_rng([fresh_seed(), worker()[0]])
        return self._generator

    def share(self) -> tuple[int, int]:
        """(rank, number of workers) by which items are dealt out: (0, 1) outside of the TRAIN phase, where each
        worker gets all of them."""
        return worker() if self.training else (0, 1)

    def get_position(self) -> dict[str, Any]:
        """What a snapshot must hold for the next batch to be the same after a resume; can be written as JSON."""
        position = {name: getattr(self, name) for name in self.position_fields}
        if self._generator is not None:
            position["random"] = self._generator.bit_generator.state
        return position

    def set_position(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `get_position` gave. Raises `DataError` where it is another kind of layer's."""
        if not set(position) <= {*self.position_fields, "random"} or not set(self.position_fields) <= set(position):
            self.data_error(f"a position with {sorted(position)} is not this layer's; expected {self.position_fields}")
        self.close()
        for name in self.position_fields:
            setattr(self, name, position[name])
        if "random" in position:
            self._generator = np.random.default_rng(0)
            self._generator.bit_generator.state = position["random"]
        else:
            self._generator = None

    def origin(self) -> str:
        """Where the last batch came from, for messages about its content; empty where that isn't known."""
        return ""

    def close(self) -> None:
        """Let go of open files; the next `forward` opens them again at the same position."""
        for name in self.handles:
            handle: Any = getattr(self, name, None)
            if hasattr(handle, "close"):
                handle.close()
            setattr(self, name, None)

    def data_error(self, message: str) -> NoReturn:
        """Raise a `DataError` whose message begins with the layer's name and type."""
        raise DataError(f"layer {self.name!r} ({self.type or self.param.type}): {message}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(self.handles)}


def python_random_state(generator: random.Random) -> list[Any]:
    """The state of a `random.Random` as JSON can hold it."""
    version, words, gauss = generator.getstate()
    return [version, list(words), gauss]


def set_python_random_state(generator: random.Random, state: Sequence[Any]) -> None:
    """Set what `python_random_state` gave."""
    version, words, gauss = state
    generator.setstate((version, tuple(words), gauss))
