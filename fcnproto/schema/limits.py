"""How much may be unpacked of one file: the rule that all readers of compressed or sparse files share.

A file of some kilobytes can claim gigabytes: compressed zeros, data sets that were never written, one place of the file
under many names. Real files hold most of what they say. So of one file may come `RATIO` times its own size, and `FLOOR`
bytes in any case; an honest file of 500 MB thus has room for 50 GB, a file of 4 KB for 256 MiB.
"""

from __future__ import annotations

FLOOR = 1 << 28
"""So many bytes may come of any file, however small it is."""
RATIO = 100
"""So many times its own size may come of a file. Label maps pack to some 2%; deflate could give 1032."""


def most_of(file_size: int) -> int:
    """The most bytes that may be unpacked of a file of that size."""
    return max(FLOOR, RATIO * file_size)


class Budget:
    """What may still be unpacked of one file, over all that is read of it."""

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.left = most_of(file_size)

    def refusal(self, size: int) -> str | None:
        """Why `size` more bytes are too many, to follow the name of the file or part; None where they are not."""
        if size <= self.left:
            return None
        most = most_of(self.file_size)
        return (
            f"would take {size:,} bytes of memory; of a file of {self.file_size:,} bytes {most:,} in all are unpacked"
        )

    def take(self, size: int) -> str | None:
        """Like `refusal`; where there is none, the bytes are counted."""
        problem = self.refusal(size)
        if problem is None:
            self.left -= size
        return problem
