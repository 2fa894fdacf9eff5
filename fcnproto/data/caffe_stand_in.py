"""A small module `caffe` for layers written for pycaffe.

It has what such layers use: `caffe.Layer`, TRAIN and TEST, `caffe.io`, `caffe.proto.caffe_pb2`, and the calls that
choose a device, which do nothing. Not a replacement of pycaffe: no nets, no solvers. Where a real `caffe` can be
imported, that one is used and this one stays away.
"""

from __future__ import annotations

import importlib.abc
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from fcnproto.data.python_layer import PythonBlob, PythonLayer

_NAME = "caffe"
_LOCK = threading.Lock()


def _ignore(*args: Any) -> None:
    """Choosing a device or a seed: the net that runs the layer has done it."""


def _make() -> dict[str, ModuleType]:
    """The stand-in's modules by their full names."""
    import fcnproto.data.io as io
    from fcnproto.schema import caffe_pb2

    caffe = ModuleType(_NAME, __doc__)
    proto = ModuleType("caffe.proto", "Caffe's messages.")
    proto.caffe_pb2 = caffe_pb2  # type: ignore[attr-defined]
    members: dict[str, Any] = {
        "Layer": PythonLayer,
        "Blob": PythonBlob,
        "TRAIN": caffe_pb2.TRAIN,
        "TEST": caffe_pb2.TEST,
        "io": io,
        "proto": proto,
    }
    ignored = ("set_mode_cpu", "set_mode_gpu", "set_device", "set_random_seed")
    caffe.__dict__.update(members, **dict.fromkeys(ignored, _ignore))
    return {_NAME: caffe, "caffe.proto": proto, "caffe.proto.caffe_pb2": caffe_pb2, "caffe.io": io}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-in where nothing else finds a `caffe`.

    It is asked first and asks the others, because a mere folder of that name (a checkout of Caffe that is not built)
    counts as a module for Python's own finder, but not here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the real `caffe`, or else of the stand-in; None for other names."""
        if fullname != _NAME:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(fullname, path, target)
            if spec is not None and spec.origin is not None:
                return spec
        return ModuleSpec(_NAME, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The stand-in; its submodules become importable with it (Python holds the lock of the name meanwhile)."""
        modules = _make()
        caffe = modules.pop(_NAME)
        sys.modules.update(modules)
        return caffe

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def provide_caffe() -> None:
    """Make `import caffe` work from now on: the real one where there is one, else the stand-in.

    Called when the first layer written for pycaffe is set up or its module imported, from whatever thread; nothing is
    taken away again, so that a layer may import `caffe` at any time, in any thread.
    """
    with _LOCK:
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
