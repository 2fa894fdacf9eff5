"""The check of generated source before anything runs it: only what the writer means to write may stand there.

The text is parsed, never executed. Copied definitions must be those that were copied, word for word; the net's class
and `load` may hold the few kinds of statements and expressions that the writer has, and name only what is listed here,
what they define themselves, and the copied definitions. Whatever a name or setting from a net's files does to the text,
it can't become another statement, import, call or attribute.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from fcnproto.errors import Error

IMPORTS = frozenset(
    [
        "from __future__ import annotations",
        "import math",
        "import torch",
        "import torch.nn.functional as F",
        "from pathlib import Path",
        "from safetensors.torch import load_file",
        "from torch import Tensor, nn",
    ]
)
"""The import statements that every generated module may have."""

_FUNCTIONS = """
    F.adaptive_avg_pool2d F.adaptive_max_pool2d F.avg_pool2d F.dropout F.elu F.embedding F.leaky_relu F.linear
    F.local_response_norm F.max_pool2d F.prelu F.relu F.silu F.softmax F.softplus
    nn.Conv1d nn.Conv2d nn.Conv3d nn.ConvTranspose1d nn.ConvTranspose2d nn.ConvTranspose3d nn.Dropout nn.Embedding
    nn.Linear nn.PReLU
    torch.abs torch.add torch.cat torch.chunk torch.clamp torch.exp torch.full_like torch.log torch.maximum
    torch.sigmoid torch.split torch.tanh torch.tensor_split
    math.inf math.nan
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""What may be read of torch and math, by the names of the generated imports."""

_METHODS = """
    abs detach exp flatten index_select log long mean new_full pow repeat reshape sigmoid square squeeze sum t tanh to
    unflatten unsqueeze
"""
METHODS = frozenset(_METHODS.split())
"""The methods of tensors that may be called."""

VALUES = frozenset(["dtype", "shape", "training"])
"""The attributes of tensors and of the net that may be read."""

_LOAD = frozenset(["Path", "load_file", "__file__", "with_name", "load_state_dict", "eval", "str"])
"""What `load` names beside."""

_EXPRESSIONS = (
    ast.Attribute,
    ast.BinOp,
    ast.Call,
    ast.Compare,
    ast.Constant,
    ast.Dict,
    ast.IfExp,
    ast.List,
    ast.Name,
    ast.Slice,
    ast.Subscript,
    ast.Tuple,
    ast.UnaryOp,
)
_SIGNS = (
    *(ast.Add, ast.BitOr, ast.Div, ast.Mult, ast.Sub, ast.USub),
    *(ast.Eq, ast.Gt, ast.Is, ast.NotEq),
    *(ast.Load, ast.Store, ast.keyword),
)


class _Meant(Exception):
    """Something stands there that was not meant."""

    def __init__(self, node: ast.AST, what: str) -> None:
        super().__init__(f"line {getattr(node, 'lineno', 1)}: {what}")


def check_source(source: str, class_name: str, copied: Iterable[str] = (), imports: Iterable[str] = ()) -> None:
    """Refuse a generated module that holds anything but what the writer writes; nothing of it is run.

    Args:
        source: the module's text.
        class_name: the name of the net's class.
        copied: the sources of the definitions that were copied into it, each any number of statements.
        imports: the import statements that these need.

    Raises:
        Error: it holds something else; the message says the line.
    """
    try:
        known = {ast.dump(node): node for text in copied for node in ast.parse(text).body}
        _check_module(ast.parse(source), class_name, known, IMPORTS.union(imports))
    except (_Meant, SyntaxError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise Error(f"the module was not written, its source would hold what was not meant there ({reason})") from error


def _check_module(module: ast.Module, class_name: str, copied: dict[str, ast.stmt], imports: frozenset[str]) -> None:
    names = {name for node in copied.values() for name in _defined(node)}
    documented, *body = module.body or [ast.Pass()]
    _check_docstring(documented)
    rest = [node for node in body if ast.dump(node) not in copied]
    while rest and isinstance(rest[0], (ast.Import, ast.ImportFrom)):
        if ast.unparse(rest[0]) not in imports:
            raise _Meant(rest[0], "an import")
        del rest[0]
    if len(rest) != 2 or not isinstance(rest[0], ast.ClassDef) or not isinstance(rest[1], ast.FunctionDef):
        raise _Meant(rest[-1] if rest else module, "statements beside the class and load()")
    _check_class(rest[0], class_name, names)
    _check_load(rest[1], class_name)


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _check_docstring(node: ast.stmt) -> None:
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
        raise _Meant(node, "a docstring was expected")


def _check_class(node: ast.ClassDef, class_name: str, names: set[str]) -> None:
    if (
        node.name != class_name
        or node.decorator_list
        or node.keywords
        or [*map(ast.unparse, node.bases)] != ["nn.Module"]
    ):
        raise _Meant(node, "a class of another kind")
    documented, *methods = node.body
    _check_docstring(documented)
    if [getattr(method, "name", "") for method in methods] != ["__init__", "forward"]:
        raise _Meant(node, "the class must have __init__ and forward")
    for method in methods:
        _check_method(method, names)


def _check_method(method: ast.stmt, names: set[str]) -> None:
    """`__init__` or `forward`: assignments, calls of `self`'s own methods, and a return."""
    assert isinstance(method, ast.FunctionDef)
    arguments = method.args
    if method.decorator_list or arguments.posonlyargs or arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        raise _Meant(method, "arguments of another kind")
    if arguments.defaults or any(a.annotation and ast.unparse(a.annotation) != "Tensor" for a in arguments.args):
        raise _Meant(method, "arguments of another kind")
    if method.returns is None or ast.unparse(method.returns) not in ("None", "Tensor", "dict"):
        raise _Meant(method, "a result of another kind")
    local = {argument.arg for argument in arguments.args}
    for statement in method.body:
        if isinstance(statement, ast.Expr) and method.name == "__init__":
            if ast.unparse(statement) == "super().__init__()":
                continue
            called = statement.value
            if not (isinstance(called, ast.Call) and ast.unparse(called.func) == "self.add_module"):
                raise _Meant(statement, "a statement")
            for value in called.args:
                _check_value(value, {*local, *names})
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                local |= _check_target(target, method.name == "__init__", names)
            _check_value(statement.value, {*local, *names})
        elif isinstance(statement, ast.Return) and statement.value is not None:
            _check_value(statement.value, {*local, *names})
        else:
            raise _Meant(statement, f"a statement ({type(statement).__name__})")


def _check_target(target: ast.expr, attributes: bool, names: set[str]) -> set[str]:
    """The local names that an assignment defines; modules and parameters of `self` in `__init__` alone."""
    if isinstance(target, ast.Tuple):
        return {name for part in target.elts for name in _check_target(part, attributes, names)}
    if isinstance(target, ast.Name):
        if target.id in names or target.id in ("self", "torch", "F", "nn", "math") or target.id.startswith("_"):
            raise _Meant(target, "a name that is taken")
        return {target.id}
    if attributes and isinstance(target, ast.Attribute) and not target.attr.startswith("_"):
        owner = target.value
        if _is_own(owner) or (isinstance(owner, ast.Name) and owner.id == "self"):
            return set()
    raise _Meant(target, "an assignment")


def _is_own(node: ast.AST) -> bool:
    """Whether an expression is a part of the net: `self.name`, or `getattr(self, "name")`."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "self" and not node.attr.startswith("_")
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"):
        return False
    if len(node.args) != 2 or node.keywords or not isinstance(node.args[1], ast.Constant):
        return False
    return isinstance(node.args[0], ast.Name) and node.args[0].id == "self" and isinstance(node.args[1].value, str)


def _check_value(node: ast.AST, names: set[str]) -> None:
    """Refuse an expression with nodes, names, attributes or calls that the writer doesn't have."""
    if isinstance(node, _SIGNS) or _is_own(node):
        for child in ast.iter_child_nodes(node) if isinstance(node, ast.keyword) else ():
            _check_value(child, names)
        return
    if not isinstance(node, _EXPRESSIONS):
        raise _Meant(node, f"an expression ({type(node).__name__})")
    if isinstance(node, ast.Attribute):
        _check_attribute(node, names)
        return
    if isinstance(node, ast.Name) and node.id not in names:
        raise _Meant(node, f"the name {node.id[:60]}")
    if isinstance(node, ast.Call):
        _check_function(node.func, names)
        children: list[ast.AST] = [*node.args, *node.keywords]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        _check_value(child, names)


def _check_function(function: ast.expr, names: set[str]) -> None:
    """What is called: a copied definition, a listed function of torch, a listed method, or a module of the net."""
    if isinstance(function, ast.Name) and function.id in names:
        return
    if _is_own(function) or ast.unparse(function) in FUNCTIONS:
        return
    if isinstance(function, ast.Attribute) and function.attr in METHODS:
        _check_value(function.value, names)
        return
    raise _Meant(function, f"a call of {ast.unparse(function)[:60]}")


def _check_attribute(node: ast.Attribute, names: set[str]) -> None:
    """What is read: a listed name of torch or math, a listed value of a tensor, a parameter of a module of the net."""
    if ast.unparse(node) in FUNCTIONS:
        return
    if not node.attr.startswith("_") and _is_own(node.value):
        return
    if node.attr not in VALUES:
        raise _Meant(node, f"the attribute {node.attr[:60]}")
    _check_value(node.value, names)


def _check_load(node: ast.FunctionDef, class_name: str) -> None:
    """The function `load`, whose only free part is the name of the file of weights, a string."""
    if node.name != "load" or node.decorator_list or [argument.arg for argument in node.args.args] != ["path"]:
        raise _Meant(node, "a function of another kind")
    documented, *body = node.body
    _check_docstring(documented)
    allowed = {*_LOAD, class_name, "path", "net", "beside"}
    for part in (inner for statement in body for inner in ast.walk(statement)):
        if not isinstance(part, (ast.Assign, ast.Expr, ast.Return, *_EXPRESSIONS, *_SIGNS)):
            raise _Meant(part, f"a statement ({type(part).__name__})")
        name = part.id if isinstance(part, ast.Name) else part.attr if isinstance(part, ast.Attribute) else "path"
        if name not in allowed:
            raise _Meant(part, f"the name {name[:60]}")
