"""What the tests of this folder share: the process is as it was after each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import fcnproto.pycaffe as caffe


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    path, argv, main = list(sys.path), list(sys.argv), sys.modules["__main__"]
    modules = set(sys.modules)
    yield
    sys.path[:], sys.argv[:] = path, argv
    sys.modules["__main__"] = main
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if "pytest-of-" in file or name == "caffe" or name.startswith("caffe."):
            del sys.modules[name]
    caffe.set_mode_cpu()
