"""What the commands print: results on stdout, everything about the work (progress, warnings, errors) on stderr."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fcnproto.escaping import json_text, one_line, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fcnproto.net import Net
    from fcnproto.solver import Solver


@functools.cache
def stderr() -> Console:
    """The console for stderr, shared so that lines printed while a progress bar is shown stand above it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def error(message: str) -> None:
    """One line `fcnproto: error: ...` on stderr."""
    _line("error", message)


def warning(message: str) -> None:
    """One line `fcnproto: warning: ...` on stderr."""
    _line("warning", message)


def note(message: str) -> None:
    """One line `fcnproto: ...` on stderr."""
    _line("", message)


def _line(kind: str, message: str) -> None:
    text = one_line(message)
    stderr().print("fcnproto: " + (f"{kind}: " if kind else "") + text, markup=False, emoji=False)


def say_faults(given: Net | Solver) -> None:
    """Warn of what is certainly wrong with a solver or a net before it begins (`fcnproto check` says more)."""
    from fcnproto.diagnosis import grave_findings

    for finding in grave_findings(given):
        warning(str(finding))


_results_go_to_stderr = False


@contextlib.contextmanager
def results_to_stderr(wanted: bool) -> Iterator[None]:
    """While the block runs, lines of results go to stderr if `wanted`: stdout is an output file then."""
    global _results_go_to_stderr
    before, _results_go_to_stderr = _results_go_to_stderr, wanted
    try:
        yield
    finally:
        _results_go_to_stderr = before


def print_line(*columns: str) -> None:
    """A line of the result on stdout, printable whatever the names in it hold; several columns are parted by tabs.

    On stderr where a file goes to stdout."""
    print_text("\t".join(map(printable, columns)))


def print_text(text: str = "") -> None:
    """Text of the program's own making on stdout as it is, of several lines perhaps; see `print_line`."""
    stream = sys.stderr if _results_go_to_stderr else sys.stdout
    try:
        print(text, file=stream)
    except UnicodeEncodeError:  # a terminal or pipe that knows but a few signs
        print(text.encode("ascii", "backslashreplace").decode("ascii"), file=stream)


def print_json(value: Any) -> None:
    """A value as indented JSON on stdout; numbers that are not finite become null, paths texts."""
    print_text(json_text(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """A table on stdout, the columns named in `numeric` right-aligned; as wide as need be where that is no terminal.

    Cells are shown as printable text. On a terminal too narrow the columns in `optional` are left out, the first one
    first, then long texts are shortened in their middle; numbers are never broken.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    shown = [[printable(cell, _LONGEST_CELL) for cell in row] for row in rows]
    names = list(columns)
    if console.is_terminal:
        names, shown = _fitted(names, shown, numeric, optional, console.width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        table.add_column(Text(name), justify="right" if name in numeric else "left", no_wrap=True)
    for cells in shown:
        table.add_row(*map(Text, cells))
    console.width = sum(_widths(names, shown)) + _GAP * len(names)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print_text(line.rstrip())


_LONGEST_CELL, _LEAST_CELL, _LONGEST_DESCRIPTION = 1000, 12, 60
_GAP = 3  # places between two columns


def _widths(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The places that each column takes on a terminal."""
    from rich.cells import cell_len

    return [max(map(cell_len, cells)) for cells in zip(names, *rows, strict=True)]


def _fitted(
    names: list[str], rows: list[list[str]], numeric: Sequence[str], optional: Sequence[str], width: int
) -> tuple[list[str], list[list[str]]]:
    """The columns and rows that a terminal of this width has room for, as far as that can be."""

    def excess() -> int:
        return sum(_widths(names, rows)) + _GAP * (len(names) - 1) - width

    for name in optional:
        if excess() <= 0:
            break
        place = names.index(name)
        names = [*names[:place], *names[place + 1 :]]
        rows = [[*row[:place], *row[place + 1 :]] for row in rows]
    while (over := excess()) > 0:
        texts = [(size, place) for place, size in enumerate(_widths(names, rows)) if names[place] not in numeric]
        size, place = max(texts, default=(0, 0))
        if size <= _LEAST_CELL:
            break
        # Not below the next widest, so that no column pays for another.
        least = max(_LEAST_CELL, size - over, *(other for other, where in texts if where != place and other < size))
        rows = [[shortened(cell, least) if at == place else cell for at, cell in enumerate(row)] for row in rows]
        if _widths(names, rows)[place] >= size:
            break
    return names, rows


def progress(what: str) -> Progress:
    """A progress bar on stderr (shown on a terminal only), to be used as a context manager."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Description(TextColumn):
        """What is being worked on: a file's name, shown as it is."""

        def render(self, task: Task) -> Text:
            return Text(printable(task.description, _LONGEST_DESCRIPTION), no_wrap=True)

    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        Description(""),
        console=stderr(),
        transient=True,
        disable=not stderr().is_terminal,
        # Lines of results go above the bar where both share a terminal, and to their own file where they don't.
        redirect_stdout=sys.stdout.isatty(),
    )
