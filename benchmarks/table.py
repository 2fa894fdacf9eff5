"""The table that all measurements are printed in, a row as soon as it is known."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

HEADER = (
    "| what | subject | seconds (median) | ratio | peak memory, GB | deviation |",
    "|---|---|---|---|---|---|",
)


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median of the rounds' ratios: both took turns, so that what disturbs a round disturbs both."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def row(
    what: str,
    subject: str,
    seconds: float | None = None,
    share: float | None = None,
    memory: float | None = None,
    deviation: float | None = None,
    note: str = "",
) -> str:
    """One line of the table; what is None stays empty. `memory` is in bytes; a `note` stands for the seconds."""
    cells = [
        what,
        subject,
        note or ("" if seconds is None else f"{seconds:.3f}"),
        "" if share is None else f"{share:.2f}",
        "" if memory is None else f"{memory / 1e9:.2f}",
        "" if deviation is None else f"{deviation:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def show(rows: Iterable[str], path: Path | None = None, header: Sequence[str] = HEADER) -> int:
    """Print a table as it grows, and write it to a file in the end. Gives exit status 0."""
    lines = list(header)
    print("\n".join(lines), flush=True)
    for line in rows:
        lines.append(line)
        print(line, flush=True)
    if path is not None:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0
