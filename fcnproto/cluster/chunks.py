"""A corpus in chunks: so many items that pass the stages together and are committed to a part of the sink as one.

Chunks depend on the source alone, so that a resumed run has those of the first one.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PART = 64
"""Items in a chunk by default, where they are small."""
_BYTES_AN_ITEM = 2**17


class Item(NamedTuple):
    """One image (or pair, or record) of a corpus: the name of its results and where it is.

    `place` is an address, or for a pair two. In a tar file `offset` is where its `size` bytes begin, in a Parquet file
    `row` is the number in the row group `group`. `data` is there where only the driver can read the place.
    """

    name: str
    place: Any
    size: int = 0
    offset: int = -1
    group: int = -1
    row: int = -1
    data: bytes | None = None


class Failure(NamedTuple):
    """In the place of what an item could not be made into."""

    reason: str


@dataclass
class Chunk:
    """A chunk on its way through the stages.

    `values` has for each item what the last stage made of it, a `Failure`, or None where nothing is to be done; `done`
    are the places of items whose results are in the sink already.
    """

    key: str
    items: list[Item]
    values: list[Any] = field(default_factory=list)
    done: frozenset[int] = frozenset()
    bytes_read: int = 0

    def row(self) -> dict[str, bytes]:
        """As a row of a Ray dataset."""
        return {"chunk": pickle.dumps(self, protocol=5)}

    def open_places(self) -> list[int]:
        """The places of items that have a value that is no failure."""
        return [place for place, value in enumerate(self.values) if value is not None and type(value) is not Failure]


def from_row(row: dict[str, Any]) -> Chunk:
    """The chunk of a row."""
    chunk = pickle.loads(row["chunk"])
    assert isinstance(chunk, Chunk)
    return chunk


def key(shard: int, first: int) -> str:
    """The name of the chunk that begins with item number `first` of a shard; in the corpus's order by alphabet."""
    return f"part-{shard:06d}-{first:010d}"


def cut(items: Sequence[Item], step: int, part: int, shard: int = 0) -> Iterator[Chunk]:
    """Items in chunks of up to `part` items, and fewer where these have many bytes; each but the last of a multiple of
    `step` items."""
    start = 0
    most = part * _BYTES_AN_ITEM
    while start < len(items):
        stop, size = start, 0
        while stop < len(items) and (stop == start or (stop + step - start <= part and size < most)):
            size += sum(item.size for item in items[stop : stop + step])
            stop += step
        yield Chunk(key(shard, start), list(items[start:stop]))
        start = stop


def reasons(chunks: Iterable[Chunk]) -> list[tuple[str, str]]:
    """Names and reasons of what failed in chunks."""
    return [
        (item.name, value.reason)
        for chunk in chunks
        for item, value in zip(chunk.items, chunk.values, strict=True)
        if type(value) is Failure
    ]
