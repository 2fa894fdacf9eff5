"""The `fcnproto` program: finds the commands, runs one, turns whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import os
import pkgutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TextIO

import click

import fcnproto
from fcnproto.cli import _files, _output
from fcnproto.escaping import printable

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
TERMINATED = 128 + signal.SIGTERM


class Commands(click.Group):
    """A group whose commands are the modules of `fcnproto.cli`, imported when they are run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names in alphabetical order."""
        package = importlib.import_module("fcnproto.cli")
        modules = (module.name for module in pkgutil.iter_modules(package.__path__))
        return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module imported; None if there is no such command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(_module_name(cmd_name))
        command: click.Command = module.command
        _files.guard(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with the nearest name in the message about an unknown command."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by the first lines of their modules' docstrings, without importing them."""
        if not self.list_commands(ctx):
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, _headline(name)) for name in self.list_commands(ctx)])


def _module_name(command: str) -> str:
    return f"fcnproto.cli.{command.replace('-', '_')}"


def _headline(command: str) -> str:
    spec = importlib.util.find_spec(_module_name(command))
    source = spec.loader.get_source(spec.name) if spec and spec.loader else ""  # type: ignore[attr-defined]
    docstring = ast.get_docstring(ast.parse(source or "")) or ""
    return docstring.partition("\n")[0].rstrip(".")


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(fcnproto.__version__, message="fcnproto %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error (may stand anywhere).")
def commands(debug: bool) -> None:
    """Read Caffe's nets (.prototxt, .caffemodel, .solverstate) and run, inspect and train them with PyTorch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments` (the process's own by default) and return its exit status.

    0: done; 1: the work or a comparison failed; 2: the command line is wrong; 130: interrupted; 143: terminated.
    """
    arguments, debug = _take_debug(sys.argv[1:] if arguments is None else list(arguments))
    with warnings.catch_warnings(), _cleaning_up():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            result = commands.main(arguments, prog_name="fcnproto", standalone_mode=False)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except BaseException as error:
            if debug and not isinstance(error, click.ClickException):
                for line in traceback.format_exc().splitlines():
                    click.echo(printable(line), err=True)
            return _report(error, _help_command(arguments))


class _TerminatedError(BaseException):
    """SIGTERM has come."""


@contextlib.contextmanager
def _cleaning_up() -> Iterator[None]:
    """Let SIGTERM end the work as an error does, so that half-written files go; where nobody handles it yet."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _TerminatedError

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _help_command(arguments: Sequence[str]) -> str:
    """The command that shows how these arguments should have been: that of the innermost command they name."""
    words: list[str] = ["fcnproto"]
    command: click.Group = commands
    for argument in arguments:
        inner = command.get_command(click.Context(command), argument)
        if inner is None:
            break
        words.append(argument)
        if not isinstance(inner, click.Group):
            break
        command = inner
    return " ".join([*words, "--help"])


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """`--debug` is understood after a command too, up to a `--`, or up to a script's own arguments."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    command = next((place for place, argument in enumerate(arguments) if argument != "--debug"), 0)
    if arguments[command : command + 1] == ["python"]:
        end = command + 1
    kept = [argument for argument in arguments[:end] if argument != "--debug"] + arguments[end:]
    return kept, len(kept) < len(arguments)


def _report(error: BaseException, help_command: str) -> int:
    """Print one line about an error and return the exit status."""
    status = FAILED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return WRONG_USAGE
    if isinstance(error, (click.UsageError, fcnproto.UsageError)):
        status, message = WRONG_USAGE, f"{_usage_message(error)} (see: {help_command})"
    elif isinstance(error, (KeyboardInterrupt, click.Abort)):
        _output.note("interrupted")
        return INTERRUPTED
    elif isinstance(error, _TerminatedError):
        _output.note("terminated")
        return TERMINATED
    elif isinstance(error, BrokenPipeError):
        # The reader of our output has gone; what is still buffered must not raise the same error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    elif isinstance(error, click.ClickException):
        message = error.format_message()
    elif isinstance(error, fcnproto.Error):
        message = str(error)
    elif isinstance(error, OSError):
        message = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    elif isinstance(error, MemoryError) or _is_out_of_memory(error):
        message = f"out of memory: {str(error) or type(error).__name__}"
    elif isinstance(error, Exception):
        message = _unexpected(error)
    else:
        raise error
    _output.error(message)
    return status


def _unexpected(error: Exception) -> str:
    """What to say of an error that nobody foresaw: whose code it is from."""
    from fcnproto.data.python_faults import fault_line, is_users

    if is_users(error):
        return f"{fault_line(error)} (in code that isn't fcnproto's; --debug shows more)"
    return f"unexpected {type(error).__name__}: {error} (a fault of the program; --debug shows where)"


def _usage_message(error: click.UsageError | fcnproto.UsageError) -> str:
    message = error.format_message() if isinstance(error, click.UsageError) else str(error)
    return message.rstrip(".")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _output.warning(str(message))
