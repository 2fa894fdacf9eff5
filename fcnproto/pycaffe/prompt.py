"""Python 2 piece by piece: at a prompt, and in the cells of a notebook.

What was once seen to be Python 2 makes the rest of the session so, as one process was: `7 / 2` is 3 from then on.
"""

from __future__ import annotations

import ast
import code
import codeop
import re
from types import CodeType
from typing import Any

from fcnproto.pycaffe.old_names import Age, Modern
from fcnproto.pycaffe.python2 import asks_for, modern_tree, translated_text


class Prompt(code.InteractiveConsole):
    """Python's interactive prompt, which understands Python 2 as well."""

    _age = Age.TODAY

    def runsource(self, source: str, filename: str = "<input>", symbol: str = "single") -> bool:
        """Run what was typed so far; true if more must come."""
        try:
            compiled = self._compiled(source, filename, symbol)
        except (SyntaxError, OverflowError, ValueError):
            self.showsyntaxerror(filename)
            return False
        if compiled is None:
            return True
        self.runcode(compiled)
        return False

    def _compiled(self, source: str, filename: str, symbol: str) -> CodeType | None:
        """The code of a piece; None while it is incomplete."""
        try:
            if codeop.compile_command(source, filename, symbol) is None:
                return None
        except SyntaxError:
            block = source.lstrip().partition("\n")[0].rstrip().endswith(":")
            if block and source.rpartition("\n")[2].strip():
                return None  # a block of Python 2 ends with an empty line, as every block does here
        tree, self._age = modern_tree(source, filename, self._age)
        return compile(ast.Interactive(tree.body), filename, symbol)


def _magics(lines: list[str]) -> list[str]:
    """A cell with its magics as IPython wants them today: without a space after the sign."""
    return [re.sub(r"^(%%?)[ \t]+(?=[A-Za-z_])", r"\1", line) for line in lines]


class Cells:
    """Translates a notebook's cells: the text before IPython compiles it, then what a tree can say."""

    def __init__(self) -> None:
        self._age, self._true_division = Age.TODAY, False

    def listen_to(self, shell: Any) -> None:
        """Have an IPython shell send its cells through here (once, however often the extension is loaded)."""
        if shell is None or any(isinstance(one, Cells) for one in shell.ast_transformers):
            return
        shell.input_transformers_cleanup.append(_magics)
        shell.input_transformers_post.append(self.lines)
        shell.ast_transformers.append(self)

    def lines(self, lines: list[str]) -> list[str]:
        """A cell's lines in today's syntax; those of what can't be read stay, for IPython to complain of."""
        text = "".join(lines)
        self._true_division = self._true_division or asks_for("division", text)
        try:
            _, age = modern_tree(text, "<cell>", self._age)
            if age is not Age.PYTHON_2:
                return lines
            text = translated_text(text, "<cell>", None)
        except SyntaxError:
            return lines
        self._age = age
        return text.splitlines(keepends=True)

    def visit(self, tree: ast.AST) -> ast.AST:
        """A cell's tree, with Python 2's division and files once the session is Python 2's."""
        old = self._age is Age.PYTHON_2
        return ast.fix_missing_locations(Modern(old, self._true_division).visit(tree))
