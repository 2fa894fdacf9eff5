"""Running scripts, modules, commands and a prompt with `caffe` importable and Python 2 understood."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

from fcnproto.errors import Error, UsageError
from fcnproto.escaping import printable
from fcnproto.pycaffe.finder import install
from fcnproto.pycaffe.python2 import compile_source, translate_imports

_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say, in the manner of `python`: SCRIPT (`-`: stdin), `-m` MODULE, `-c` TEXT, or a prompt,
    each with arguments of its own; returns the exit status. Raises `UsageError` for what can't be run."""
    first, *rest = arguments or [""]
    if first in ("", "-i"):
        return run_prompt()
    if first in ("-m", "-c"):
        if not rest:
            raise UsageError(f"{first} needs {'a module' if first == '-m' else 'statements'}")
        return (run_module if first == "-m" else run_command)(rest[0], rest[1:])
    if first == "-":
        return _run(sys.stdin.buffer.read(), "<stdin>", ["-", *rest], "")
    if first.startswith("-"):
        raise UsageError(f"no option {first}; expected SCRIPT, -m MODULE or -c STATEMENTS, and arguments after it")
    return run_script(first, rest)


def run_script(path: str, arguments: Sequence[str]) -> int:
    """Run a file as `python` would: as `__main__`, its folder first on `sys.path`; returns the exit status."""
    if os.path.isdir(path):
        path = os.path.join(path, "__main__.py")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror or error}") from error
    folder = os.path.dirname(os.path.abspath(path))
    return _run(data, path, [path, *arguments], folder)


def run_module(name: str, arguments: Sequence[str]) -> int:
    """Run a module that can be imported, as `python -m` would."""
    sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        raise UsageError(f"no module {name!r} that could be run: {error}") from error
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        raise UsageError(f"no module {name!r} that could be run")
    data = Path(spec.origin).read_bytes()
    return _run(data, spec.origin, [spec.origin, *arguments], None, spec.parent)


def run_command(text: str, arguments: Sequence[str]) -> int:
    """Run statements given as text, as `python -c` would."""
    return _run(text.encode(), "<string>", ["-c", *arguments], "")


def run_prompt() -> int:
    """An interactive prompt in which `caffe` is there, and Python 2 is understood."""
    from fcnproto.pycaffe.prompt import Prompt

    module = _prepare([""], "")
    module.__dict__["caffe"] = install()
    Prompt(module.__dict__).interact("caffe is fcnproto's module; leave with Ctrl-D", exitmsg="")
    return 0


def _prepare(argv: Sequence[str], folder: str | None) -> ModuleType:
    """A fresh `__main__`, arguments and path for what is to run."""
    install()
    translate_imports()
    sys.argv = list(argv)
    if folder is not None:
        sys.path.insert(0, folder)
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    return module


def _run(data: bytes, path: str, argv: Sequence[str], folder: str | None, package: str | None = None) -> int:
    module = _prepare(argv, folder)
    module.__file__ = path
    module.__package__ = package
    try:
        execute(compile_source(data, path), module)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except Error as error:
        # The package's own errors say what to do in a line; where the script was is put before it.
        print(printable(f"{_place(error, path)}{error}"), file=sys.stderr)
        return 1
    except Exception as error:
        _show(error)
        return 1
    finally:
        sys.stdout.flush()
    return 0


def execute(code: CodeType, module: ModuleType) -> None:
    """Run code in a module."""
    exec(code, module.__dict__)


def _place(error: BaseException, path: str) -> str:
    """The last line of the script, or of what it imported, on the way to an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}, line {frames[-1].lineno}: " if frames else ""


def _show(error: BaseException) -> None:
    """The traceback from where the script begins, as Python shows it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_HERE):
        trace = trace.tb_next
    sys.stdout.flush()
    traceback.print_exception(type(error), error, trace)
