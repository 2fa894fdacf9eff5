"""Importing the module that a Python layer names: only called after the user's opt-in (`allow_python`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
from types import ModuleType

_loaded: dict[str, ModuleType] = {}
"""By file: the modules that could not go by their own name, which another file's module has."""

_LOCK = threading.RLock()
"""Held while `sys.path` and `sys.modules` are changed for an import."""


_FINDER = "fcnproto.pycaffe.finder"
"""Who gives such a module its `caffe`: named here and not imported, as that room stands on nets and solvers."""


def provide_caffe() -> None:
    """Make `import caffe` work from now on, in all threads: the real one where there is one, else the package's own."""
    importlib.import_module(_FINDER).provide_caffe()


def import_python_module(name: str, base_dir: str | None) -> ModuleType:
    """The module `name`, from the working directory, the prototxt's folder or the usual path, in this order.

    Two prototxts in different folders may each have a module of the same name beside them. While it is imported, its
    folder is on `sys.path`, so that it finds its neighbours; `import caffe` works in it. Raises what the import raises.
    """
    provide_caffe()
    with _LOCK:
        for folder in dict.fromkeys([os.getcwd(), os.path.abspath(base_dir or ".")]):
            path = _module_file(folder, name)
            if path is not None:
                return _load(name, path, folder)
        return importlib.import_module(name)


def _module_file(folder: str, name: str) -> str | None:
    stem = os.path.join(folder, *name.split("."))
    for path in (os.path.join(stem, "__init__.py"), stem + ".py"):
        if os.path.isfile(path):
            return path
    return None


def _load(name: str, path: str, folder: str) -> ModuleType:
    if path in _loaded:
        return _loaded[path]
    known = sys.modules.get(name)
    taken = known is not None and _file_of(known) != path
    if taken:
        del sys.modules[name]
    sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(name)
    finally:
        sys.path.remove(folder)
        if taken and known is not None:
            sys.modules[name] = known
    if taken:
        _loaded[path] = module
    return module


def _file_of(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return None if file is None else os.path.abspath(file)
