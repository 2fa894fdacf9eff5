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

from fcnproto.escaping import printable
from fcnproto.pycaffe import compiled, scipy_misc
from fcnproto.pycaffe.old_names import Age, Modern, age_of

_SKIPPED = tuple(f"fissix.fixes.fix_{name}" for name in ("future", "idioms", "ws_comma", "buffer"))

translated: list[str] = []
"""The files translated so far in this process."""


# Translating.


def compile_source(data: bytes, path: str) -> CodeType:
    """The code of a source file, translated if it is Python 2 (then a line on stderr says so, once for each file).

    Raises `SyntaxError` for what is neither.
    """
    tree, age = modern_tree(_decoded(data), path)
    _announce(path, age)
    return compile(tree, path, "exec", dont_inherit=True)


def modern_tree(text: str, path: str, at_least: Age = Age.TODAY) -> tuple[ast.Module, Age]:
    """The syntax tree of a source in today's Python, and of which age it was: what it shows, or `at_least` that.

    Raises `SyntaxError` for what is neither.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(text, path)
        except SyntaxError as error:
            return _translated(text, path, error), Age.PYTHON_2
        age = age_of(tree, path)
        if Age.PYTHON_2 in (age, at_least):
            return _translated(text, path, None), Age.PYTHON_2
        if age is Age.LIBRARIES:
            tree = ast.fix_missing_locations(Modern(False, True).visit(tree))
        return tree, age


def _decoded(data: bytes) -> str:
    """A file's text in the encoding that it declares; what Python 2 took without a declaration is Latin-1."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        text = data.decode("latin-1")
    return io.IncrementalNewlineDecoder(None, True).decode(text, True)


def _translated(text: str, path: str, why: SyntaxError | None) -> ast.Module:
    """The tree of a source in Python 2. `why` is what Python 3 said of it."""
    source, result = _without_tabs(text), translated_text(text, path, why)
    try:
        tree = ast.parse(result, path)
    except SyntaxError as error:
        raise why or error from None
    _restore_lines(tree, source, result)
    return ast.fix_missing_locations(Modern(True, asks_for("division", source)).visit(tree))


def translated_text(text: str, path: str, why: SyntaxError | None) -> str:
    """A source in Python 2 with the syntax and the names of Python 3. `why` is what Python 3 said of it."""
    source = _without_tabs(text)
    try:
        return str(_tool(asks_for("print_function", source)).refactor_string(_ended(source), path))
    except Exception as error:  # the parser's errors have no common base
        raise _neither(error, path, source.splitlines(), why) from None


def _without_tabs(text: str) -> str:
    """A source whose indents are spaces: Python 2 took a tab for eight columns."""
    lines = text.splitlines(keepends=True)
    if any(re.match(r" *\t", line) for line in lines):
        lines = [_expanded(line) for line in lines]
    return "".join(lines)


def _neither(error: Exception, path: str, lines: Sequence[str], why: SyntaxError | None) -> SyntaxError:
    """What to say of a source in which both Pythons find a fault: the later one, since one Python got as far."""
    context = getattr(error, "context", None)
    line = context[1][0] if context else 1
    if why is not None and (why.lineno or 0) >= line:
        return why
    text = lines[line - 1] if 0 < line <= len(lines) else ""
    what = "is neither Python 3 nor Python 2" if context else f"can't be translated from Python 2: {error}"
    return SyntaxError(what, (path, line, 1, text))


def _expanded(line: str) -> str:
    body = line.lstrip(" \t")
    return line[: len(line) - len(body)].expandtabs(8) + body


def _ended(source: str) -> str:
    return source if source.endswith("\n") else source + "\n"


def asks_for(feature: str, source: str) -> bool:
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


def _announce(path: str, age: Age) -> None:
    if age is Age.TODAY or path in translated:
        return
    translated.append(path)
    what = "Python 2, translated in memory"
    if age is Age.LIBRARIES:
        what = "uses what libraries have taken away; today's names take their place in memory"
    print(f"{printable(path)}: {what}", file=sys.stderr)


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
        return users_spec(fullname, path, target)


def users_spec(fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
    """The spec of a module of the user's own that Python's own finder finds, to be translated if need be."""
    spec = PathFinder.find_spec(fullname, path, target)
    if spec is None or type(spec.loader) is not SourceFileLoader or not spec.origin or not is_users(spec.origin):
        return None
    spec.loader = _Loader(spec.loader.name, spec.loader.path)
    spec.cached = None
    return spec


def translate_imports() -> None:
    """From now on, modules on `sys.path` that are Python 2 are translated as they are imported.

    `scipy.misc` then has the functions on images that it had at the time, and the parts of R-CNN's folders that are to
    be compiled are there without.
    """
    scipy_misc.provide()
    compiled.provide()
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
