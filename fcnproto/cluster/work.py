"""What each kind of run does with an item, stage by stage; objects of these classes travel to the workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fcnproto.cluster.chunks import Chunk, Item

Row = dict[str, Any]
"""What becomes of an item in the sink: a row of a Parquet file, or what other sinks make of it."""
Run = Callable[[Mapping[int, str], Callable[[list[int]], Sequence[Any]]], dict[int, Any]]
"""`Guard.together`."""


class Work(ABC):
    """One kind of run.

    Attributes:
        step: items are read in steps of so many or not at all, and chunks begin at multiples of it.
        command: what it is called.
        tells_kept: whether the driver is told of results that an earlier run has left, too.
    """

    step = 1
    command = ""
    tells_kept = False

    @property
    def settings(self) -> str:
        """What results depend on beside the net and the items: a run with others is none that goes on with them."""
        return ""

    def reading(self) -> AbstractContextManager[Callable[[Item], Any]]:
        """What reads items, for the length of a chunk."""
        raise NotImplementedError

    @abstractmethod
    def decode(self, item: Item, data: Any, room: int) -> Any:
        """What reading gave, made ready for the net; `room` is how many more bytes the chunk may take."""

    def run(self, net: Any, chunk: Chunk, run: Run) -> dict[int, Any]:
        """What the net makes of a chunk's values, by place; only for the places that aren't done."""
        raise NotImplementedError

    @abstractmethod
    def encode(self, item: Item, value: Any) -> list[Row]:
        """The rows of an item's result."""

    def told(self, rows: Sequence[Row]) -> Any:
        """What the driver wants to know of the rows of an item."""
        return None

    def schema(self) -> Any:
        """The rows' schema in a Parquet file: always with `name` and `error`."""
        raise NotImplementedError

    def on_worker(self, net: Any) -> Any:
        """The net as the worker's computing wants it."""
        return net
