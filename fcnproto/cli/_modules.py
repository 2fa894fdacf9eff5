"""Importing modules that register layer types of the user's own: `--layers` of the command line.

They are the user's code and run with the user's rights; nothing here is called for what a prototxt names.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from fcnproto.data.python_faults import fault_line
from fcnproto.errors import Error, UsageError

_imported: dict[str, ModuleType] = {}
"""By file: the modules that were imported from files."""
imported: list[str] = []
"""What was imported, in order: files by their absolute paths, modules by their names."""


def import_layers(text: str) -> ModuleType:
    """The module that a text names, as a file (`own.py`, `folder/own.py`) or as Python does (`own.module`), imported.

    A file's folder, or the working directory, is on `sys.path` meanwhile. `UsageError` where there is no such file or
    module; an `Error` of one line, with place, for what the module itself raises.
    """
    is_file = text.endswith(".py") or os.path.sep in text
    path = os.path.abspath(text)
    if is_file and not os.path.isfile(path):
        raise UsageError(f"--layers {text}: no such file")
    if is_file and path in _imported:
        return _imported[path]
    sys.path.insert(0, os.path.dirname(path) if is_file else os.getcwd())
    try:
        importlib.invalidate_caches()
        module = _import_file(path) if is_file else _import_module(text)
        imported.append(path if is_file else text)
        return module
    except Error:
        raise
    except Exception as error:
        raise Error(f"--layers {text}: can't be imported: {fault_line(error)}") from error
    finally:
        del sys.path[0]


def _import_file(path: str) -> ModuleType:
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules:
        name = f"fcnproto_layers_{len(_imported)}_{name}"  # the name is another module's
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--layers {path}: no Python module; give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _imported[path] = module
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UsageError(
            f"--layers {name}: no module {error.name!r}; give a .py file or the name of a module"
        ) from None
