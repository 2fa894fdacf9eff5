"""Names of a package that are loaded on first use: what a package's `__getattr__` and `__dir__` need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package for names that stand in other modules.

    `names` gives for each name its module, and after a colon the name there if it is another; an empty name after the
    colon is the module itself.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, colon, attribute = names[name].partition(":")
        value = importlib.import_module(module)
        if not colon or attribute:
            value = getattr(value, attribute or name)
        setattr(sys.modules[package], name, value)
        return value

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, names_of


def later(name: str) -> Any:
    """The object "module:attribute", its module imported now: for what a room hands on to one on a floor below its own,
    such as the methods of a net that segment an image or draw it."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
