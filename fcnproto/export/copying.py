"""Copies the source of functions and classes into a generated module, with all that they name, in order.

What they name must be of torch, math or the language, constants, or functions and classes that can be copied in turn;
everything else is refused with its name.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import math
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, GenericAlias, ModuleType
from typing import Any

import torch

from fcnproto.export.code import text
from fcnproto.layers.plain import Unsayable, number

_ROOTS = frozenset(["torch", "math", "typing", "collections", "dataclasses", "itertools", "functools", "operator"])
"""The packages that a generated module may import."""

_TAKEN = frozenset(["load", "load_file", "Path", "self", "super"])
_USUAL = {"nn": "from torch import nn", "F": "import torch.nn.functional as F", "Tensor": "from torch import Tensor"}


class Copies:
    """The definitions of a generated module, dependencies first, and what they import."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        """The source of each definition by its name; copied ones end with a newline."""
        self.imports: set[str] = set()
        self._things: dict[str, Any] = {}

    def add(self, thing: Callable[..., Any]) -> str:
        """Copy a function or class; its name. `Unsayable` where it can't stand alone."""
        name = thing.__name__
        if self._claim(name, thing):
            return name
        thing = inspect.unwrap(thing)  # decorators stand in the source
        source = source_of(thing)
        if isinstance(thing, FunctionType) and thing.__code__.co_freevars:
            raise Unsayable(f"{name} uses {thing.__code__.co_freevars[0]!r} of the function around it")
        space = thing.__globals__ if isinstance(thing, FunctionType) else vars(sys.modules[thing.__module__])
        self.add_names(source, space, name)
        self.sources[name] = source
        return name

    @property
    def names(self) -> set[str]:
        """All names that the definitions and imports give a meaning."""
        return set(self._things)

    def add_source(self, name: str, source: str, space: Mapping[str, Any]) -> None:
        """Add a definition by its text, whose names are looked up in `space`."""
        if self._claim(name, source):
            return
        self.add_names(source, space, name)
        self.sources[name] = source

    def add_names(self, source: str, space: Mapping[str, Any], own: str = "") -> None:
        """Copy or import what a text names outside itself."""
        for name in sorted(outside_names(source) - {own}):
            if name in space:
                self._bind(name, space[name], own)
            elif not hasattr(builtins, name):
                raise Unsayable(f"{own or 'it'} uses {name!r}, which is not defined")
        for name in sorted(annotated_names(source) - {own}):
            value = space.get(name)
            if isinstance(value, GenericAlias) and not self._claim(name, repr(value)):
                self.sources[name] = f"{name} = {value!r}\n"
                if "torch." in repr(value):
                    self.imports.add("import torch")
            elif isinstance(value, ModuleType) or str(getattr(value, "__module__", "")).split(".")[0] in _ROOTS:
                self._bind(name, value, own)

    def _claim(self, name: str, thing: Any) -> bool:
        """Whether the module has this thing by this name already; `Unsayable` where it has another one."""
        if name in _TAKEN:
            raise Unsayable(f"{name!r} has another meaning in an exported module; give it another name")
        if name not in self._things:
            self._things[name] = thing
            return False
        there = self._things[name]
        if there is thing or (isinstance(thing, str) and isinstance(there, str) and there == thing):
            return True
        raise Unsayable(f"two different things are called {name!r}; give one of them another name")

    def _bind(self, name: str, value: Any, user: str) -> None:
        """Make a name mean in the generated module what it means here."""
        if isinstance(value, ModuleType):
            self._claim(name, value)
            self._import_module(name, value, user)
            return
        constant = literal(value)
        if constant is not None:
            if not self._claim(name, constant):
                self.sources[name] = f"{name} = {constant}\n"
                if "math." in constant:
                    self.imports.add("import math")
                if "torch." in constant:
                    self.imports.add("import torch")
            return
        module = getattr(value, "__module__", None) or ""
        if module.split(".")[0] in _ROOTS:
            self._claim(name, value)
            self._import_name(name, value, module)
        elif inspect.isfunction(value) or inspect.isclass(value):
            if not _may_copy(module):
                raise Unsayable(f"{user} uses {name!r} of the package {module.split('.')[0]}")
            if value.__name__ != name and value.__name__ != "<lambda>":
                raise Unsayable(f"{user} uses {value.__name__!r} by the other name {name!r}")
            if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
                self.add_source(name, source_of(value), value.__globals__)
            else:
                self.add(value)
        else:
            raise Unsayable(f"{user} uses {name!r}, which is a {type(value).__name__} and no constant")

    def _import_module(self, name: str, value: ModuleType, user: str) -> None:
        if value.__name__.split(".")[0] not in ("torch", "math"):
            raise Unsayable(f"{user} uses {name!r}, a module that the exported one can't import")
        if name in _USUAL and value.__name__ in ("torch.nn", "torch.nn.functional"):
            self.imports.add(_USUAL[name])
        else:
            self.imports.add(f"import {value.__name__}" + (f" as {name}" if name != value.__name__ else ""))

    def _import_name(self, name: str, value: Any, module: str) -> None:
        """An import of something of torch or the standard library."""
        own = getattr(value, "__name__", name)
        for place in dict.fromkeys([module.removeprefix("torch._C._").replace("_nn", "torch"), module, "torch"]):
            try:
                found = getattr(importlib.import_module(place), own, None)
            except ImportError:
                continue
            if found is value:
                self.imports.add(f"from {place} import {own}" + (f" as {name}" if name != own else ""))
                return
        raise Unsayable(f"it uses {name!r}, which can't be imported by its name")


def source_of(thing: Callable[..., Any]) -> str:
    """The source of a function or class, from the margin on; `Unsayable` where there is none."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
        (definition,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError):
        raise Unsayable(f"there is no source of {thing.__name__}") from None
    if thing.__name__ != "<lambda>" and getattr(definition, "name", "") != thing.__name__:
        raise Unsayable(f"the source of {thing.__name__} has changed since it was imported")
    return source.rstrip() + "\n"


def outside_names(source: str) -> set[str]:
    """The names that a piece of source reads and doesn't define, annotations left out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    table = symtable.symtable(ast.unparse(tree), "<source>", "exec")
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned()}
    return {name for name in _globals(table) if name not in own}


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or (top and not symbol.is_assigned())):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals(child)


def annotated_names(source: str) -> set[str]:
    """The names within a piece of source's annotations."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for part in parts:
            if part is not None:
                found |= {inner.id for inner in ast.walk(part) if isinstance(inner, ast.Name)}
    return found


def literal(value: Any) -> str | None:
    """A constant's source: numbers, strings, dtypes, None, and collections of them; None for everything else."""
    if value is None or isinstance(value, (bool, int)):
        return repr(value) if type(value) in (bool, int, type(None)) else None
    if isinstance(value, float):
        return number(value) if not math.isfinite(value) else repr(float(value)).replace("e+", "e")
    if isinstance(value, str):
        return text(value)
    if isinstance(value, torch.dtype):
        return repr(value)
    if type(value) in (list, tuple):
        parts = [literal(part) for part in value]
        if None in parts:
            return None
        inner = ", ".join(part for part in parts if part is not None)
        return f"[{inner}]" if type(value) is list else f"({inner}{',' if len(parts) == 1 else ''})"
    if type(value) is dict:
        pairs = [(literal(key), literal(part)) for key, part in value.items()]
        if any(part is None for pair in pairs for part in pair):
            return None
        return f"{{{', '.join(f'{key}: {part}' for key, part in pairs)}}}"
    return None


def _may_copy(module: str) -> bool:
    """Whether a module's source may be taken along: the layers' own and the user's, not other packages'."""
    if module.split(".")[0] == "fcnproto":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return module == "__main__" or file is None or not {"site-packages", "dist-packages"} & set(file.split("/"))
