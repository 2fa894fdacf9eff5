"""The pages of an LMDB looked through before the library maps them: with a damaged one it ends the whole process.

A database is a tree of pages: branches name pages, leaves hold records or name the run of pages that holds a large one.
The search is by level, all pages of one at once. What is not looked at: the contents of records, and in a database of
more than a gigabyte of leaves, the leaves.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from fcnproto.errors import DataError

Numbers = npt.NDArray[np.int64]

# Of a page that describes the database: after 16 bytes of its head a magic number, the version, address and size of the
# map, two trees of 48 bytes (the first begins with the size of a page), the last page's number, the transaction's.
_META = struct.Struct("<16x I I 8x Q I 44x 4x H H Q Q Q Q Q Q Q")
_MAGIC = 0xBEEFC0DE
_BRANCH, _LEAF, _BIG = 0x01, 0x02, 0x01
_HEAD, _NODE = 16, 8
_MOST_LEAVES = 1 << 30
_EMPTY = (1 << 64) - 1


def check_lmdb(path: str) -> None:
    """`DataError` for an LMDB (a folder or its file) that is cut off or whose tree of pages doesn't hold together.

    A file that is not there is left to who opens it.
    """
    file = os.path.join(path, "data.mdb") if os.path.isdir(path) else path
    try:
        size = os.path.getsize(file)
        with open(file, "rb") as opened:
            meta = _newest(opened.read(1 << 17), file)
            needed = (meta.last + 1) * meta.page
            if size < needed:
                raise DataError(f"{file}: the file is cut off: it says to have {needed:,} bytes, {size:,} are there")
            if meta.root != _EMPTY:
                _Tree(file, meta).check()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror or error}") from None


class _Meta:
    """What one of the first two pages says of the database."""

    def __init__(self, values: tuple[int, ...]) -> None:
        self.magic, _, _, self.page, self.flags, self.depth, _, self.leaves, _, self.entries = values[:10]
        self.root, self.last, self.transaction = values[10:]


def _newest(head: bytes, file: str) -> _Meta:
    """The description in force: the one of the later transaction. The page's size says where the second is."""
    found = []
    for place in (0, *(1 << power for power in range(8, 17))):
        if len(head) >= place + _META.size:
            meta = _Meta(_META.unpack_from(head, place))
            if meta.magic == _MAGIC and 256 <= meta.page <= 1 << 16 and place in (0, meta.page):
                found.append(meta)
    if not found:
        raise DataError(f"{file}: not a readable LMDB (its first page is none of an LMDB's)")
    return max(found, key=lambda meta: meta.transaction)


class _Tree:
    def __init__(self, file: str, meta: _Meta) -> None:
        self.meta, self.file = meta, file
        self.words: Any = np.memmap(file, "<u2", "r", shape=(meta.last + 1) * meta.page // 2)

    def check(self) -> None:
        """Walk down level by level."""
        if self.meta.root > self.meta.last:
            raise self._damaged("its root is a page that the file doesn't have")
        pages, seen = np.array([self.meta.root], np.int64), 0
        for level in range(self.meta.depth, 1, -1):
            seen += len(pages)
            pages = self._branches(self._checked(pages, _BRANCH, f"level {level}"))
            if seen + len(pages) > self.meta.last + 1:
                raise self._damaged("its tree has more pages than the file")
        if self.meta.leaves * self.meta.page <= _MOST_LEAVES:
            self._leaves(self._checked(pages, _LEAF, "the leaves"))

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.file}: the database is damaged ({reason})")

    def _checked(self, pages: Numbers, kind: int, what: str) -> tuple[Numbers, Numbers]:
        """The first word of each page, and that of each of its nodes, behind all checks of heads and places."""
        size = self.meta.page
        if len(pages) == 0 or int(pages.min()) < 2 or int(pages.max()) > self.meta.last:
            raise self._damaged(f"{what}: a page that the file doesn't have")
        if len(np.unique(pages)) != len(pages):
            raise self._damaged(f"{what}: a page is named twice")
        first = pages * (size // 2)
        heads = self.words[first[:, None] + np.arange(8)].astype(np.int64)
        number = heads[:, 0] | heads[:, 1] << 16 | heads[:, 2] << 32 | heads[:, 3] << 48
        lower, upper = heads[:, 6], heads[:, 7]
        bad = (number != pages) | (heads[:, 5] & 0x3F & ~0x10 != kind)
        bad |= (lower < _HEAD) | (lower % 2 == 1) | (lower > upper) | (upper > size) | (lower == _HEAD)
        if bad.any():
            raise self._damaged(f"{what}: page {int(pages[bad][0])} is none")
        counts = (lower - _HEAD) // 2
        owner = np.repeat(np.arange(len(pages)), counts)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self.words[first[owner] + _HEAD // 2 + within].astype(np.int64)
        if ((places < upper[owner]) | (places > size - _NODE) | (places % 2 == 1)).any():
            raise self._damaged(f"{what}: a node lies outside of its page")
        return places, first[owner] + places // 2

    def _branches(self, nodes: tuple[Numbers, Numbers]) -> Numbers:
        """The pages that the nodes of branches name."""
        places, words = nodes
        low, high, top, key = (self.words[words + i].astype(np.int64) for i in range(4))
        if (places + _NODE + key > self.meta.page).any():
            raise self._damaged("a key reaches beyond its page")
        return low | high << 16 | top << 32

    def _leaves(self, nodes: tuple[Numbers, Numbers]) -> None:
        places, words = nodes
        low, high, flags, key = (self.words[words + i].astype(np.int64) for i in range(4))
        size, big = low | high << 16, flags & _BIG != 0
        if (places + _NODE + key + np.where(big, 8, size) > self.meta.page).any():
            raise self._damaged("a record reaches beyond its page")
        if len(places) != self.meta.entries:
            raise self._damaged(f"it says to have {self.meta.entries} records, {len(places)} are found")
        # The number of a large record's first page stands behind its key, at any byte.
        at = (words * 2 + _NODE + key)[big]
        octets = self.words.view(np.uint8)
        number = sum(octets[at + i].astype(np.int64) << 8 * i for i in range(7)) if len(at) else np.zeros(0, np.int64)
        runs = (size[big] + _HEAD + self.meta.page - 1) // self.meta.page
        if len(at) and ((number < 2) | (number + runs - 1 > self.meta.last)).any():
            raise self._damaged("a large record lies outside of the file")
