"""What the commands print: results on stdout, everything about the work (progress, warnings, errors) on stderr."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@functools.cache
def stderr() -> Console:
    """The console for stderr, shared so that lines printed while a progress bar is shown stand above it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


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
    text = " ".join(message.split())
    stderr().print("fcnproto: " + (f"{kind}: " if kind else "") + text, markup=False)


def print_line(text: str = "") -> None:
    """A line of the result on stdout."""
    print(text, file=sys.stdout)


def print_json(value: Any) -> None:
    """A value as indented JSON on stdout."""
    print_line(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[str] = ()) -> None:
    """A table on stdout, the columns named in `numeric` right-aligned; as wide as need be where that is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print_line(line.rstrip())


def progress(what: str) -> Progress:
    """A progress bar on stderr (shown on a terminal only), to be used as a context manager."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=stderr(),
        transient=True,
        disable=not stderr().is_terminal,
        # Lines of results go above the bar where both share a terminal, and to their own file where they don't.
        redirect_stdout=sys.stdout.isatty(),
    )
