"""What in a source is Python 2's, or gone from a library: finding it, and writing what says the same now into the tree.

It works on syntax trees that Python 3 can read; what it can't read is fissix's, see `python2`.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import os
import re
import sys
from enum import Enum

import numpy as np

from fcnproto.data.python_faults import GONE_MODULES, GONE_NUMPY

_NAMES = frozenset((
    "xrange", "unicode", "basestring", "long", "raw_input", "unichr", "reduce", "execfile", "cmp", "StandardError",
    "reload", "file", "apply", "coerce", "intern", "buffer",
))  # fmt: skip
_METHODS = frozenset((
    "iteritems", "iterkeys", "itervalues", "viewitems", "viewkeys", "viewvalues", "has_key", "getcwdu", "maxint",
    "setdefaultencoding",
))  # fmt: skip
_ITERTOOLS = frozenset(("izip", "imap", "ifilter", "izip_longest", "ifilterfalse"))
_NUMPY_NAMES = ("np", "numpy")
_GONE_ELSEWHERE = {
    ("Image", "ANTIALIAS"): "LANCZOS", ("Image", "LINEAR"): "BILINEAR", ("Image", "CUBIC"): "BICUBIC",
    ("time", "clock"): "perf_counter",
}  # fmt: skip
"""Names that Pillow and Python 3 have taken away."""
_ORDERS_BY_TYPE: dict[type, str] = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}
_ORDERS = tuple(_ORDERS_BY_TYPE)
_WAYS = "fcnproto.pycaffe.old_ways"
_BUILTINS = ("open", "round")
"""Built-in functions of which translated sources get Python 2's."""
_WAYS_BY_MODULE = {"tempfile": ("NamedTemporaryFile",), "io": ("StringIO",)}
"""Names of modules that translated sources get from `old_ways`."""


class Age(Enum):
    """Which of its age a source shows."""

    TODAY = "today"
    LIBRARIES = "libraries"
    """It is Python 3, and uses what NumPy and others have taken away."""
    PYTHON_2 = "Python 2"


def age_of(tree: ast.Module, path: str = "") -> Age:
    """The age of a module that Python 3 can read, by the names it uses and has not made itself, and by what it imports
    from beside its file in a package as if that were the top."""
    own = bound_names(tree)
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    age = Age.TODAY
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in _NAMES - own:
            return Age.PYTHON_2
        if isinstance(node, ast.Attribute):
            of_itertools = isinstance(node.value, ast.Name) and node.value.id == "itertools" and node.attr in _ITERTOOLS
            if node.attr in _METHODS or of_itertools:
                return Age.PYTHON_2
        if isinstance(node, ast.Expr) and _prints(node.value):
            return Age.PYTHON_2
        if isinstance(node, ast.Compare) and _compares_a_function(node, own):
            return Age.PYTHON_2
        if isinstance(node, ast.ImportFrom) and any(alias.name in _ITERTOOLS for alias in node.names):
            return Age.PYTHON_2
        if id(node) not in tried and any(name in GONE_MODULES for name in _imported(node)):
            return Age.PYTHON_2
        if any(_lies_beside(name.partition(".")[0], path) for name in _imported(node)):
            return Age.PYTHON_2
        if gone(node) is not None or (isinstance(node, ast.Call) and _old_call(node) is not None):
            age = Age.LIBRARIES
    return age


def bound_names(tree: ast.Module) -> set[str]:
    """The names that a module gives a meaning anywhere."""
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    return own


def _prints(value: ast.expr) -> bool:
    """Whether what Python 3 takes for an expression is Python 2's print: `print`, `print >>f, x`, `print (x), y`,
    `print (x) % y`, `print (x).format(y)`. A plain `print(x)` is both."""
    first = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else value
    call = first is value
    while not isinstance(first, ast.Name):
        if isinstance(first, ast.BinOp):
            first, call = first.left, False
        elif isinstance(first, ast.Call):
            inner = first.func
            if isinstance(inner, ast.Name) and call:
                return False
            first = inner
        elif isinstance(first, (ast.Attribute, ast.Subscript)):
            first, call = first.value, False
        else:
            return False
    return first.id == "print"


def _compares_a_function(node: ast.Compare, own: set[str]) -> bool:
    """Whether a built-in function is asked whether it is more than something, which Python 2 answered: `len > 0`."""
    sides = (node.left, *node.comparators)
    names = (side.id for side in sides if isinstance(side, ast.Name))
    return any(isinstance(one, _ORDERS) for one in node.ops) and any(
        inspect.isbuiltin(getattr(builtins, name, None)) and name not in own for name in names
    )


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def _lies_beside(name: str, path: str) -> bool:
    """Whether Python 2 found a module in the package of the file that imports it, and Python 3 finds none."""
    folder = os.path.dirname(path)
    if not os.path.isfile(os.path.join(folder, "__init__.py")) or name in sys.modules or not name:
        return False
    beside = os.path.join(folder, name)
    if not (os.path.isfile(f"{beside}.py") or os.path.isfile(os.path.join(beside, "__init__.py"))):
        return False
    return importlib.util.find_spec(name) is None


def gone(node: ast.AST) -> str | None:
    """What says the same now as a name that a library has taken away; None for others."""
    if not isinstance(node, ast.Attribute):
        return None
    if _is_numpy(node.value):
        now = GONE_NUMPY.get(node.attr, "")
        return now if re.fullmatch(r"-?[\w.]+", now) and node.attr not in dir(np) else None
    now = _GONE_ELSEWHERE.get((ast.unparse(node.value).rpartition(".")[2], node.attr), "")
    return f"{ast.unparse(node.value)}.{now}" if now else None


def _is_numpy(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in _NUMPY_NAMES


def _old_call(node: ast.Call) -> str | None:
    """Which function of a library is called in a way that it has taken away; None for other calls."""
    if not isinstance(node.func, ast.Attribute):
        return None
    name, keywords = node.func.attr, {keyword.arg: keyword.value for keyword in node.keywords}
    if name == "tostring" and not node.args and not keywords:
        return "tobytes"
    if isinstance(node.func.value, ast.Name) and node.func.value.id == "yaml":
        return "safe_load" if name == "load" and len(node.args) == 1 and not keywords else None
    if not _is_numpy(node.func.value):
        return None
    if name == "fromstring" and "sep" not in keywords and len(node.args) < 4:
        return name
    if name == "loadtxt" and _is_constant(keywords.get("delimiter"), "\n"):
        return name
    return "array" if name == "array" and _is_constant(keywords.get("copy"), False) else None


def _is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is type(value) and node.value == value


class Modern(ast.NodeTransformer):
    """Writes what says the same now into a tree: for names and calls gone from libraries, and with `python_2` for what
    Python 2 did otherwise (its division, order of unlike things, files, StringIO, pickles, rounding)."""

    def __init__(self, python_2: bool, true_division: bool) -> None:
        self._old, self._divides = python_2, python_2 and not true_division
        self._ways: dict[str, str] = {}
        self._own: set[str] = set()

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self._own = bound_names(node)
        self.generic_visit(node)
        if self._ways:
            first = 1 if ast.get_docstring(node, clean=False) is not None else 0
            while first < len(node.body) and _imported(node.body[first])[:1] == ["__future__"]:
                first += 1
            names = [ast.alias(name=name, asname=asname) for name, asname in self._ways.items()]
            node.body.insert(first, ast.ImportFrom(module=_WAYS, names=names, level=0, lineno=1, col_offset=0))
        return node

    def _way(self, name: str, node: ast.AST) -> ast.Name:
        """The name under which a function of `old_ways` is there."""
        self._ways[name] = f"__old_{name}__"
        return ast.copy_location(ast.Name(id=self._ways[name], ctx=ast.Load()), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if not (self._divides and isinstance(node.op, ast.Div)):
            return node
        return ast.copy_location(ast.Call(self._way("old_division", node), [node.left, node.right], []), node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if not self._old or len(node.ops) != 1 or not isinstance(node.ops[0], _ORDERS):
            return node
        order = ast.Constant(value=_ORDERS_BY_TYPE[type(node.ops[0])])
        return ast.copy_location(ast.Call(self._way("compare", node), [node.left, order, *node.comparators], []), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        self.generic_visit(node)
        if not (self._divides and isinstance(node.op, ast.Div)):
            return node
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        into = [ast.keyword(arg="into", value=ast.Constant(value=True))]
        value = ast.Call(self._way("old_division", node), [read, node.value], into)
        return ast.copy_location(ast.Assign(targets=[node.target], value=_at(value, node)), node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if self._old and isinstance(node.ctx, ast.Load) and node.id in _BUILTINS and node.id not in self._own:
            return self._way(node.id, node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        now = gone(node)
        if now is not None:
            return _at(ast.parse(now, mode="eval").body, node)
        module = node.value.id if isinstance(node.value, ast.Name) else ""
        if self._old and node.attr in _WAYS_BY_MODULE.get(module, ()) and isinstance(node.ctx, ast.Load):
            return self._way(node.attr, node)
        if self._old and (module, node.attr) == ("sys", "setdefaultencoding"):
            return self._way("set_default_encoding", node)
        if self._old and _is_numpy(node.value) and node.attr == "load":
            return self._way("load", node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        old = _old_call(node)
        self.generic_visit(node)
        if old in ("fromstring", "loadtxt"):
            node.func = self._way(old, node)
        elif old in ("tobytes", "safe_load") and isinstance(node.func, ast.Attribute):
            node.func.attr = old
        elif old == "array":
            keyword = next(keyword for keyword in node.keywords if keyword.arg == "copy")
            keyword.value = ast.copy_location(ast.Constant(value=None), keyword.value)
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if self._old and alias.name == "pickle":
                alias.name, alias.asname = "fcnproto.pycaffe.old_pickle", alias.asname or "pickle"
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | list[ast.stmt]:
        if not self._old or node.level:
            return node
        if node.module == "pickle":
            node.module = "fcnproto.pycaffe.old_pickle"
        moved = [alias for alias in node.names if alias.name in _WAYS_BY_MODULE.get(node.module or "", ())]
        if not moved:
            return node
        node.names = [alias for alias in node.names if alias not in moved]
        replaced = ast.copy_location(ast.ImportFrom(module=_WAYS, names=moved, level=0), node)
        return [*([node] if node.names else []), replaced]


def _at(tree: ast.expr, node: ast.AST) -> ast.expr:
    """An expression all of which stands where `node` does."""
    for inner in ast.walk(tree):
        ast.copy_location(inner, node)
    return tree
