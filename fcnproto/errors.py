"""The errors that the package raises on purpose; everything else that escapes is a bug.

Each message is one line: where (file, line and column, layer, blob), what was expected, what to do. Whatever the names
in it hold, it is printable (`escaping.one_line`).
"""

from __future__ import annotations

from pathlib import Path

from fcnproto.escaping import one_line


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def net_title(name: str) -> str:
    """How messages call a net: by its name where it has one."""
    return f"net {name!r}" if name else "the net"


def _plain(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(one_line(argument) if isinstance(argument, str) else argument for argument in arguments)


def page(name: str) -> str:
    """Where the manual's page `name` (without .md) lies on this machine: in the installed package or the checkout."""
    package = Path(__file__).parent
    for folder in (package / "_docs", package.parent / "docs"):
        if (folder / f"{name}.md").is_file():
            return str(folder / f"{name}.md")
    return f"docs/{name}.md of the source distribution"


class Error(Exception):
    """Base of all errors of the package; the command line prints it as one line and exits 1."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*_plain(arguments))


class PrototxtError(Error):
    """A text file does not follow the schema. `file`, `line` and `column` (from 1) say where."""

    def __init__(
        self, message: str, file: str | None = None, line: int | None = None, column: int | None = None
    ) -> None:
        self.message, self.file, self.line, self.column = message, file, line, column
        where = [str(part) for part in (file or "<text>", line, column) if part is not None]
        super().__init__(f"{':'.join(where)}: {message}")

    def __reduce__(self) -> tuple[type, tuple[str, str | None, int | None, int | None]]:
        return type(self), (self.message, self.file, self.line, self.column)


class WeightsError(Error):
    """A weight or state file is damaged, of another kind, or does not fit the net."""


class GraphError(Error):
    """The layers of a net do not fit together."""


class LayerError(GraphError):
    """One layer's settings or inputs are wrong; the message begins with the layer's name and type."""


class UnsupportedLayerError(GraphError):
    """A layer type that is not registered."""


class DataError(Error):
    """A data source, image or label file is missing, unreadable or has the wrong content."""


class SolverError(Error):
    """A solver file or a training run that can't go on."""


class UsageError(Error):
    """Options that contradict each other; the command line exits 2."""


class FcnprotoWarning(UserWarning):
    """Something in a file that is understood but not acted on, or is deprecated."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*_plain(arguments))
