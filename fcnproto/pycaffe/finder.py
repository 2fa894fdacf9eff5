"""Putting the package's own module under the name `caffe`, for scripts that say `import caffe`.

`install` does it for a process, whatever else is there. `provide_caffe` is for layers written for pycaffe in nets that
the package runs: where a real `caffe` can be imported, that one is used, and this one stays away.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from fcnproto.pycaffe.python2 import translate_imports, users_spec

_NAME = "caffe"
_PACKAGE = "fcnproto.pycaffe"
_LOCK = threading.Lock()

_PARTS = {
    "_caffe": _PACKAGE,
    "pycaffe": _PACKAGE,
    "classifier": f"{_PACKAGE}.classifier",
    "coord_map": f"{_PACKAGE}.coord_map",
    "detector": f"{_PACKAGE}.classifier",
    "draw": f"{_PACKAGE}.draw",
    "io": "fcnproto.data.io",
    "net_spec": f"{_PACKAGE}.net_spec",
    "proto": f"{_PACKAGE}.proto",
    "proto.caffe_pb2": "fcnproto.schema.caffe_pb2",
}
"""pycaffe's modules, each with the package's that has its names."""


def install() -> ModuleType:
    """Make `import caffe` give the package's own module from now on; returns it."""
    if not any(isinstance(finder, _OthersParts) for finder in sys.meta_path):
        sys.meta_path.append(_OthersParts())
    module = importlib.import_module(_PACKAGE)
    parts = {f"{_NAME}.{name}": importlib.import_module(source) for name, source in _PARTS.items()}
    sys.modules.update({_NAME: module, **parts})
    for name in ("_caffe", "pycaffe", "detector"):
        vars(module)[name] = parts[f"{_NAME}.{name}"]
    return module


class _OthersParts(importlib.abc.MetaPathFinder):
    """Finds `caffe.<part>` where no part of that name is the package's: in a folder `caffe` on `sys.path`.

    Forks brought modules of their own, such as SSD's `caffe.model_libs`; scripts put the fork's folder on the path.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of such a part; None for other names."""
        if not fullname.startswith(f"{_NAME}.") or fullname.count(".") != 1:
            return None
        folders = [os.path.join(folder or os.curdir, _NAME) for folder in sys.path]
        return users_spec(fullname, [folder for folder in folders if os.path.isdir(folder)])


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the package's module where nothing else finds a `caffe`.

    It is asked first and asks the others, because a mere folder of that name (a checkout of Caffe that is not built)
    counts as a module for Python's own finder, but not here.
    """

    def __init__(self) -> None:
        self._own_spec: ModuleSpec | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the real `caffe`, or else of the package's own; None for other names."""
        if fullname != _NAME:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(fullname, path, target)
            if spec is not None and spec.origin is not None:
                return spec
        return ModuleSpec(_NAME, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The package's module; its parts become importable with it (Python holds the lock of the name meanwhile)."""
        module = install()
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name, and keeps that."""
        module.__spec__ = self._own_spec


def provide_caffe() -> None:
    """Make `import caffe` work from now on: the real one where there is one, else the package's own.

    Called when the first layer written for pycaffe is set up or its module imported, from whatever thread; nothing is
    taken away again, so that a layer may import `caffe` at any time, in any thread. Modules in Python 2 are translated.
    """
    translate_imports()
    with _LOCK:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
