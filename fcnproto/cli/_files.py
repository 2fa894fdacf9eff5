"""The files that commands write: what `-o` may name, and what is refused before any work begins.

Every option or argument that names an output has the type `OutputFile` or `OutputFolder`; `guard` (called by the
program for each command) then refuses outputs that can't be written and outputs that are inputs. The writing itself,
also to devices and pipes, is in `fcnproto.atomic`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from fcnproto.atomic import STDOUT, file_key, is_stream, protected
from fcnproto.cli import _output
from fcnproto.errors import UsageError

_PATHS = re.compile(r"FILE|DIR|PATH|MEAN|WEIGHTS|\bW\b")
"""Words of a metavar whose option takes paths, perhaps after `BLOB=` or several with commas between them."""
_GUARDED = "guards_outputs"
"""The attribute of a command's function that checks its outputs already."""
Function = Callable[..., Any]


class OutputFile(click.ParamType):
    """A file to be written; `-` is stdout. `may_be_input`: it may be one of the inputs, whose place it then takes;
    `makes_folder`: the command makes its folder where it is missing."""

    name = "file"

    def __init__(self, may_be_input: bool = False, makes_folder: bool = False) -> None:
        self.may_be_input, self.makes_folder = may_be_input, makes_folder

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        """The path. Fails where nothing can be written there."""
        if os.fspath(value) == "-":
            return STDOUT
        path = Path(value)
        reason = None
        if is_stream(path):
            reason = None if os.access(path, os.W_OK) else f"{path} can't be written to"
        elif path.is_dir():
            reason = f"{path} is a folder; expected the name of a file"
        else:
            folder = Path(os.path.realpath(path)).parent
            there = self.makes_folder or folder.is_dir()
            reason = _why_no_folder(folder) if there else f"no folder {path.parent}; make it first"
        if reason is not None:
            self.fail(reason, parameter, context)
        return path


class OutputFolder(click.ParamType):
    """A folder for results, made where it is missing."""

    name = "folder"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        """The path. Fails where there is something else, and where it can't be made or written into."""
        reason = _why_no_folder(Path(value))
        if reason is not None:
            self.fail(reason, parameter, context)
        return Path(value)


class FolderOrSink(OutputFolder):
    """A folder; with `--cluster` (which is read first) also where a corpus's results go, see `_sink`."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path, or the text of an address. Fails where nothing can be written there."""
        return _sink(value, parameter, context) if _of_corpus(context) else super().convert(value, parameter, context)


class FileOrSink(OutputFile):
    """A file; with `--cluster` where a corpus's results go, see `_sink`."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path, or the text of an address. Fails where nothing can be written there."""
        return _sink(value, parameter, context) if _of_corpus(context) else super().convert(value, parameter, context)


def _of_corpus(context: click.Context | None) -> bool:
    return context is not None and isinstance(context.params.get("cluster"), str)


def _sink(value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path | str:
    """A folder, a `.tar` or `.parquet` file, or an address (`s3://...`), which stays a text."""
    text = os.fspath(value)
    if "://" in text:
        return text
    is_file = text.endswith((".tar", ".parquet")) and not os.path.isdir(text)
    return (OutputFile(makes_folder=True) if is_file else OutputFolder()).convert(value, parameter, context)


def _why_no_folder(path: Path) -> str | None:
    """Why no files can be made in a folder that is there or is to be made."""
    folder = Path(os.path.abspath(path))
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is a file; the results go to a folder"
    try:
        # To ask is not enough: root is told that it may write anywhere.
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} can't be written to ({error.strerror})"


def ending(path: Path, chosen: str | None, default: str) -> str:
    """The format of an output as an ending like ".npz": the one of `--format`, else the file's own, of stdout,
    devices and pipes the default."""
    if chosen is not None:
        return f".{chosen}"
    return path.suffix.lower() or default if is_stream(path) else path.suffix.lower()


def format_option(*formats: str) -> Callable[[Function], Function]:
    """`--format`: the format of the output where its name doesn't say it; read it with `ending`."""
    return click.option(
        "--format", "chosen_format", type=click.Choice(formats), help="Format of the output.  [default: by its ending]"
    )


def guard(command: click.Command) -> None:
    """Let a command (or a group's commands) check its outputs against its inputs before its work begins."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.commands[name]
            guard(inner)
        return
    work = command.callback
    if work is None or hasattr(work, _GUARDED) or not _outputs(command):
        return

    @functools.wraps(work)
    def guarded(*arguments: Any, **values: Any) -> Any:
        with _checked(click.get_current_context()):
            return work(*arguments, **values)

    setattr(guarded, _GUARDED, True)
    command.callback = guarded


def _outputs(command: click.Command) -> list[click.Parameter]:
    return [one for one in command.params if isinstance(one.type, OutputFile | OutputFolder)]


@contextlib.contextmanager
def _checked(context: click.Context) -> Iterator[None]:
    """UsageError where an output is an input or two outputs are one; for the block, inputs are safe from writing."""
    inputs = _inputs(context)
    keys = {file_key(path): path for path in inputs}
    keys.pop(None, None)
    seen: dict[Any, str] = {}
    replaced: list[Path] = []
    to_stdout = False
    for parameter in _outputs(context.command):
        path, name = context.params.get(parameter.name or ""), _called(parameter)
        if path is None or isinstance(path, str):  # an address elsewhere is no file of this machine
            continue
        stream = isinstance(parameter.type, OutputFile) and is_stream(path)
        to_stdout = to_stdout or (path == STDOUT)
        key = file_key(path)
        if key in keys and not stream:
            if isinstance(parameter.type, OutputFile) and parameter.type.may_be_input:
                replaced.append(path)
                continue
            raise UsageError(f"{name} {path}: {_what_input(path, keys[key])}; write to another place")
        folder = None if stream else _read_from(path, inputs)
        if folder is not None:
            raise UsageError(f"{name} {path}: is one of the images in the input {folder}; write to another place")
        place = os.path.realpath(path) if not stream or path == STDOUT else None
        if place is not None and place in seen:
            raise UsageError(f"{seen[place]} and {name} both write to {'stdout' if path == STDOUT else path}")
        seen[place] = name
    safe = [path for path in inputs if not any(file_key(path) == file_key(other) for other in replaced)]
    with protected(safe), _output.results_to_stderr(to_stdout):
        yield


def _what_input(path: Path, given: Path) -> str:
    """How an output that is the input `given` is called."""
    if path.is_dir():
        return "is the folder of the inputs"
    return "is an input" if path == given else f"is the input {given}"


def _read_from(path: Path, inputs: Sequence[Path]) -> Path | None:
    """The input folder among whose images the output is already; None where it is in none."""
    from fcnproto.image_files import SUFFIXES

    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    place = Path(os.path.realpath(path))
    return next((one for one in inputs if one.is_dir() and place.is_relative_to(os.path.realpath(one))), None)


def _called(parameter: click.Parameter) -> str:
    return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name


def _inputs(context: click.Context) -> list[Path]:
    """Everything in the command line that names something that is there and is no output."""
    outputs = _outputs(context.command)
    found: list[Path] = []
    for parameter in context.command.params:
        words = f"{parameter.metavar or ''} {parameter.human_readable_name if parameter.metavar is None else ''}"
        if parameter in outputs or not (isinstance(parameter.type, click.Path) or _PATHS.search(words.upper())):
            continue
        for text in _texts(context.params.get(parameter.name or "")):
            candidates = [text, text.partition("=")[2], *text.partition("=")[2].split(","), *text.split(",")]
            found += [Path(one) for one in dict.fromkeys(candidates) if one and os.path.exists(one)]
    return found


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str | os.PathLike):
        return [os.fspath(value)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []
