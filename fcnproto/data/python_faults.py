"""What went wrong in a user's Python layer, in one line: where in the user's code, what, and whether it is of old age.

Layers for pycaffe were written from 2014 to 2019, in Python 2 and against the NumPy, SciPy and Pillow of their time.
What those had and today's don't shows as errors that say little to who has only the prototxt; here they are named.
"""

from __future__ import annotations

import os
import re
import traceback
from types import TracebackType

_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")

_PYTHON_2 = "this is Python 2, and runs under Python 3 once it is ported (2to3, futurize)"

# Built-in names of Python 2, with what says the same now.
_BUILTINS = {
    "xrange": "range", "unicode": "str", "basestring": "str", "long": "int", "raw_input": "input", "unichr": "chr",
    "reduce": "functools.reduce", "execfile": "exec", "file": "open", "cmp": "", "reload": "importlib.reload",
    "apply": "", "coerce": "", "intern": "sys.intern", "buffer": "memoryview", "StandardError": "Exception",
}  # fmt: skip

# Methods, functions and values that Python 2's objects had.
_ATTRIBUTES = {
    "iteritems": "items", "iterkeys": "keys", "itervalues": "values", "viewitems": "items", "has_key": "in",
    "next": "next(...)", "izip": "zip", "imap": "map", "ifilter": "filter", "izip_longest": "zip_longest",
    "maxint": "sys.maxsize", "getcwdu": "os.getcwd", "decode": "bytes.decode", "func_name": "__name__",
    "im_func": "__func__", "im_self": "__self__", "letters": "string.ascii_letters", "maketrans": "str.maketrans",
    "lowercase": "string.ascii_lowercase", "uppercase": "string.ascii_uppercase", "sort": "sorted(...)",
    "append": "list(...)", "urlopen": "urllib.request.urlopen", "setdefaultencoding": "",
}  # fmt: skip

# Those of them that say Python 2 only where the object is one that Python 3 gives in place of a list.
_OF_LISTS = ("sort", "append")

GONE_MODULES = (
    "cPickle", "StringIO", "cStringIO", "urllib2", "urlparse", "ConfigParser", "Queue", "Tkinter", "commands",
    "httplib", "__builtin__", "HTMLParser", "thread", "copy_reg", "SocketServer", "exceptions", "sets",
)  # fmt: skip

_PYTHON_2_SYNTAX = (
    "Missing parentheses in call to",
    "multiple exception types must be parenthesized",
    "leading zeros in decimal integer literals",
    "invalid decimal literal",
    "inconsistent use of tabs and spaces",
)
_PYTHON_2_LINES = (
    r"^\s*print\b(?!\s*\()", r"^\s*except\b[^:]*,", r"^\s*raise\s+\w[\w.]*\s*,", r"^\s*exec\s+[\"'\w]", r"<>", r"`",
    r"\b\d+[lL]\b", r"\b[uU][rR][\"']", r"lambda\s*\(", r"\bdef\s+\w+\([^)]*\([^)]*\)",
)  # fmt: skip

_VIEWS = r"'(dict_keys|dict_values|dict_items|map|zip|filter|range)'"
_TYPES = (
    (rf"{_VIEWS} object (is not subscriptable|does not support item)", "what was a list in Python 2 isn't: list(...)"),
    (rf"operand type\(s\) for \+: {_VIEWS}", "what was a list in Python 2 isn't: list(...)"),
    (r"object of type '(map|zip|filter|generator)' has no len", "what was a list in Python 2 isn't: list(...)"),
    (r"'float' object cannot be interpreted as an integer", "Python 3's / gives fractions where Python 2's didn't: //"),
    (r"slice indices must be integers", "Python 3's / gives fractions where Python 2's didn't: //"),
    (r"multiply sequence by non-int of type 'float'", "Python 3's / gives fractions where Python 2's didn't: //"),
    (r"'cmp' is an invalid keyword argument", "Python 3 sorts with key= in place of Python 2's cmp="),
    (r"a bytes-like object is required, not 'str'", "Python 3 tells text from bytes, Python 2 didn't"),
)

# Names that NumPy had, with what says the same now.
GONE_NUMPY = {
    "float": "float", "int": "int", "bool": "bool", "object": "object", "str": "str", "complex": "complex",
    "long": "int", "unicode": "str", "float_": "np.float64", "complex_": "np.complex128", "string_": "np.bytes_",
    "unicode_": "np.str_", "NaN": "np.nan", "NAN": "np.nan", "Inf": "np.inf", "infty": "np.inf", "PINF": "np.inf",
    "NINF": "-np.inf", "product": "np.prod", "cumproduct": "np.cumprod", "alltrue": "np.all", "sometrue": "np.any",
    "asscalar": "a.item()", "rank": "np.ndim", "msort": "np.sort(a, axis=0)", "in1d": "np.isin",
    "trapz": "np.trapezoid", "row_stack": "np.vstack", "cast": "np.asarray", "asfarray": "np.asarray(a, dtype=float)",
    "mat": "np.asmatrix", "round_": "np.round", "newaxes": "np.newaxis",
}  # fmt: skip

# What other libraries have taken away, by what the error says.
_REMOVED = (
    (r"module 'PIL.Image' has no attribute '(ANTIALIAS|LINEAR|CUBIC)'", "Pillow 10 removed it: use Image.LANCZOS, ..."),
    (r"load\(\) missing 1 required positional argument: 'Loader'", "PyYAML 6 wants yaml.safe_load"),
    (
        r"scipy\.misc|from 'scipy.misc'",
        "SciPy removed it: use imageio.v3.imread, PIL.Image.fromarray(...).resize",
    ),
    (
        r"inhomogeneous shape|setting an array element with a sequence",
        "NumPy 1.24 and newer make no arrays of unlike rows: say dtype=object",
    ),
    (
        r"only integers, slices|only integer scalar arrays|'numpy\.float\d+' object cannot be interpreted as",
        "NumPy 1.12 and newer take no fractions as indices, and Python 3's / gives fractions: use //",
    ),
    (r"allow_pickle=False", "NumPy 1.16.3 and newer load objects only with allow_pickle=True"),
)


def fault_line(error: BaseException) -> str:
    """What a user's code raised as one line: its place (file, line), type, message, and what it comes from if known."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place, hint = _place(error), _age(error)
    return (f"{place}: " if place else "") + what + (f"; {hint}" if hint else "")


def is_users(error: BaseException) -> bool:
    """Whether an error was raised in code that belongs neither to the package nor to a library."""
    return bool(_users_frames(error))


def _place(error: BaseException) -> str:
    """The file and line where the user's code went wrong: the innermost frame outside of libraries, if there is one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = _users_frames(error) or _frames(error.__traceback__)
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _users_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = _frames(error.__traceback__)
    return [frame for frame in frames if not re.search(r"[\\/](site|dist)-packages[\\/]", frame.filename)]


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """The frames of a traceback that are neither this package's nor Python's own."""
    standard = os.path.dirname(os.__file__)
    return [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith((_PACKAGE, "<")) and os.path.dirname(frame.filename) != standard
    ]


def _age(error: BaseException) -> str:
    """Whether an error comes of Python 2 or of a library's older version; empty where it doesn't."""
    text = str(error)
    if isinstance(error, SyntaxError):
        line = error.text or ""
        old = isinstance(error, TabError) or any(one in text for one in _PYTHON_2_SYNTAX)
        return _PYTHON_2 if old or any(re.search(one, line) for one in _PYTHON_2_LINES) else ""
    if isinstance(error, AttributeError) and (found := re.search(r"module 'numpy' has no attribute '(\w+)'", text)):
        return _of_numpy(found[1])
    for pattern, hint in _REMOVED:
        if re.search(pattern, text):
            return hint
    name = _missing_name(error, text)
    if name is not None:
        return _PYTHON_2 + (f"; here: {name}" if name else "")
    if isinstance(error, TypeError):
        return next((hint for pattern, hint in _TYPES if re.search(pattern, text)), "")
    if isinstance(error, UnicodeDecodeError) and "pickle" in "".join(_lines(error)):
        return "a pickle of Python 2 is read with encoding='latin1'"
    return ""


def _lines(error: BaseException) -> list[str]:
    return [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.line]


def _of_numpy(name: str) -> str:
    import numpy as np

    now = f": say {GONE_NUMPY[name]}" if name in GONE_NUMPY else ""
    return f"NumPy had np.{name} once, the installed {np.__version__} doesn't{now}"


def _missing_name(error: BaseException, text: str) -> str | None:
    """What to write instead of a name that Python 2 had; empty where nothing short says it, None for other errors."""
    if isinstance(error, NameError) and (found := re.search(r"name '(\w+)' is not defined", text)):
        name = found[1]
        return _instead(name, _BUILTINS[name]) if name in _BUILTINS else None
    if isinstance(error, ImportError):
        named = re.search(r"No module named '([\w.]+)'|cannot import name '(\w+)'", text)
        name = (named[1] or named[2]) if named else ""
        return "" if name in GONE_MODULES or name in _ATTRIBUTES else None
    if isinstance(error, AttributeError) and (found := re.search(r"has no attribute '(\w+)'", text)):
        name = found[1]
        if name in _OF_LISTS and not re.match(_VIEWS, text):
            return None
        return _instead(name, _ATTRIBUTES[name]) if name in _ATTRIBUTES else None
    return None


def _instead(old: str, new: str) -> str:
    return f"{old} is {new} now" if new else f"{old} is gone"
