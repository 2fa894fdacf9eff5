"""Sources in Python 2, translated in memory: the scripts and layers that were written around Caffe from 2014 to 2019.

A source is translated if it does not compile as Python 3, or uses a name that only Python 2 (or the NumPy of its time)
had. fissix rewrites the syntax and the names; `/` is Python 2's between whole numbers, unless the file says
`from __future__ import division`. Line numbers stay those of the file, and nothing is written anywhere. Left alone are
the standard library, installed packages and this one.
"""

from __future__ import annotations

import ast
import difflib
import functools
import io
import operator
import os
import re
import site
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from fcnproto.data.python_faults import GONE_MODULES, GONE_NUMPY
from fcnproto.escaping import printable

_NAMES = frozenset(
    ("xrange", "unicode", "basestring", "long", "raw_input", "unichr", "reduce", "execfile", "cmp", "StandardError")
)
_METHODS = frozenset(
    ("iteritems", "iterkeys", "itervalues", "viewitems", "viewkeys", "viewvalues", "has_key", "getcwdu")
)
_ITERTOOLS = frozenset(("izip", "imap", "ifilter", "izip_longest", "ifilterfalse"))
_SKIPPED = tuple(f"fissix.fixes.fix_{name}" for name in ("future", "idioms", "ws_comma", "buffer"))
_NUMPY_NAMES = ("np", "numpy")
_DIVISION = "__old_division__"

translated: list[str] = []
"""The files translated so far in this process."""


# What translated sources call.


def old_division(a: Any, b: Any, into: bool = False) -> Any:
    """`a / b` as in Python 2: between whole numbers (and arrays of them) rounded down. `into`: `a /= b`."""
    whole = _is_whole(a) and _is_whole(b)
    if into:
        return operator.ifloordiv(a, b) if whole else operator.itruediv(a, b)
    return a // b if whole else a / b


def _is_whole(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in "iub"
    return isinstance(value, int)


# Translating.


def compile_source(data: bytes, path: str) -> CodeType:
    """The code of a source file, translated if it is Python 2 (then a line on stderr says so, once for each file).

    Raises `SyntaxError` for what is neither.
    """
    text = _decoded(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(text, path)
        except SyntaxError as error:
            return _translate(text, path, error)
        if not uses_old_names(tree):
            return compile(tree, path, "exec", dont_inherit=True)
    return _translate(text, path, None)


def _decoded(data: bytes) -> str:
    """A file's text in the encoding that it declares; what Python 2 took without a declaration is Latin-1."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        text = data.decode("latin-1")
    return io.IncrementalNewlineDecoder(None, True).decode(text, True)


def uses_old_names(tree: ast.Module) -> bool:
    """Whether a module that compiles uses a name that is gone, and has not made one of that name itself."""
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _NAMES - own:
            return True
        if isinstance(node, ast.Attribute) and (node.attr in _METHODS or _gone_from_numpy(node) is not None):
            return True
        if isinstance(node, ast.Expr) and _prints(node.value):
            return True
        if isinstance(node, ast.ImportFrom) and any(alias.name in _ITERTOOLS for alias in node.names):
            return True
        if id(node) not in tried and any(name in GONE_MODULES for name in _imported(node)):
            return True
    return False


def _prints(value: ast.expr) -> bool:
    """Whether what Python 3 takes for an expression is Python 2's print: `print`, `print >>f, x`, `print (x), y`."""
    first = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
    alone = value is first
    if isinstance(first, ast.BinOp) and isinstance(first.op, ast.RShift):
        first, alone = first.left, True
    elif isinstance(first, ast.Call) and not alone:
        first, alone = first.func, True
    return alone and isinstance(first, ast.Name) and first.id == "print"


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def _gone_from_numpy(node: ast.Attribute) -> str | None:
    """What says the same now as a name that NumPy has taken away; None for others."""
    if not (isinstance(node.value, ast.Name) and node.value.id in _NUMPY_NAMES) or node.attr not in GONE_NUMPY:
        return None
    now = GONE_NUMPY[node.attr]
    return now if re.fullmatch(r"-?[\w.]+", now) and node.attr not in dir(np) else None


def _translate(text: str, path: str, why: SyntaxError | None) -> CodeType:
    lines = text.splitlines(keepends=True)
    if any(re.match(r" *\t", line) for line in lines):  # Python 2 took a tab for eight columns
        lines = [_expanded(line) for line in lines]
    source = "".join(lines)
    try:
        tool = _tool(_asks_for("print_function", source))
        result = str(tool.refactor_string(_ended(source), path))
        tree = ast.parse(result, path)
    except SyntaxError as error:
        raise why or error from None
    except Exception as error:  # the parser's errors have no common base
        raise why or SyntaxError(f"can't be translated from Python 2: {error}", (path, 1, 1, "")) from error
    _restore_lines(tree, source, result)
    tree = ast.fix_missing_locations(_Modern(not _asks_for("division", source)).visit(tree))
    _announce(path)
    return compile(tree, path, "exec", dont_inherit=True)


def _expanded(line: str) -> str:
    body = line.lstrip(" \t")
    return line[: len(line) - len(body)].expandtabs(8) + body


def _ended(source: str) -> str:
    return source if source.endswith("\n") else source + "\n"


def _asks_for(feature: str, source: str) -> bool:
    """Whether a source has a feature of Python 3 from `__future__`."""
    return re.search(rf"^from\s+__future__\s+import\s[^\n]*\b{feature}\b", source, re.M) is not None


@functools.cache
def _tool(print_function: bool) -> Any:
    from fissix.refactor import RefactoringTool, get_fixers_from_package

    fixers = [name for name in get_fixers_from_package("fissix.fixes") if name not in _SKIPPED]
    return RefactoringTool(fixers, {"print_function": print_function})


def _restore_lines(tree: ast.AST, before: str, after: str) -> None:
    """Give a translated tree the lines of its file where the translation has added or taken some."""
    old, new = _ended(before).splitlines(), after.splitlines()
    if len(old) == len(new):
        return
    place = list(range(len(new) + 2))
    for tag, i, i_end, j, j_end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for k in range(j, j_end):
            place[k + 1] = (i + (k - j) if tag == "equal" else min(i + (k - j), max(i, i_end - 1))) + 1
    for node in ast.walk(tree):
        for name in ("lineno", "end_lineno"):
            line = getattr(node, name, None)
            if line is not None and line < len(place):
                setattr(node, name, place[line])


class _Modern(ast.NodeTransformer):
    """Writes Python 2's division, and what says the same as names gone from NumPy, into a tree."""

    def __init__(self, old_division_wanted: bool) -> None:
        self._divides = old_division_wanted

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        if self._divides:
            first = 1 if ast.get_docstring(node, clean=False) is not None else 0
            while first < len(node.body) and _imported(node.body[first])[:1] == ["__future__"]:
                first += 1
            names = [ast.alias(name="old_division", asname=_DIVISION)]
            node.body.insert(first, ast.ImportFrom(module=__name__, names=names, level=0, lineno=1, col_offset=0))
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if not (self._divides and isinstance(node.op, ast.Div)):
            return node
        return ast.copy_location(_call(node.left, node.right), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        self.generic_visit(node)
        if not (self._divides and isinstance(node.op, ast.Div)):
            return node
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        value = _call(read, node.value)
        value.keywords.append(ast.keyword(arg="into", value=ast.Constant(value=True)))
        return ast.copy_location(ast.Assign(targets=[node.target], value=_at(value, node)), node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        now = _gone_from_numpy(node)
        return node if now is None else _at(ast.parse(now, mode="eval").body, node)


def _call(left: ast.expr, right: ast.expr) -> ast.Call:
    return ast.Call(func=ast.Name(id=_DIVISION, ctx=ast.Load()), args=[left, right], keywords=[])


def _at(tree: ast.expr, node: ast.AST) -> ast.expr:
    """An expression all of which stands where `node` does."""
    for inner in ast.walk(tree):
        ast.copy_location(inner, node)
    return tree


def _announce(path: str) -> None:
    if path not in translated:
        translated.append(path)
        print(f"{printable(path)}: Python 2, translated in memory", file=sys.stderr)


# Importing.


class _Loader(SourceFileLoader):
    """Loads a source that may be Python 2; bytecode is neither read nor written."""

    def source_to_code(self, data: Any, path: Any = "", **options: Any) -> CodeType:  # type: ignore[override]
        return compile_source(bytes(data), os.fspath(path))

    def path_stats(self, path: Any) -> Any:
        raise OSError("no bytecode is kept of what may be translated")


class _Finder:
    """Finds what Python's own finder finds on `sys.path`, and loads users' sources by `_Loader`."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or not spec.origin or not is_users(spec.origin):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        spec.cached = None
        return spec


def translate_imports() -> None:
    """From now on, modules on `sys.path` that are Python 2 are translated as they are imported."""
    if _Finder not in sys.meta_path:
        place = next((i for i, finder in enumerate(sys.meta_path) if finder is PathFinder), len(sys.meta_path))
        sys.meta_path.insert(place, _Finder)


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*site.getsitepackages(), site.getusersitepackages(), os.path.dirname(os.__file__)}
    paths.add(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return tuple(os.path.join(os.path.realpath(path), "") for path in paths if path)


def is_users(path: str) -> bool:
    """Whether a file is neither the standard library's nor an installed package's nor this one's."""
    real = os.path.realpath(path)
    return not real.startswith(_libraries()) and not re.search(r"[\\/](site|dist)-packages[\\/]", real)
