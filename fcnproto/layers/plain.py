"""How a layer is said in plain PyTorch: the vocabulary in which layers answer the exporter.

A layer says what it runs itself: a `torch.nn` module, an expression, or a pure function of its own file, whose source
the exporter copies together with all that it calls. Such functions and classes use nothing but torch, math, each other
and constants of their module, so that the copies stand alone. This module is not for writing source; `fcnproto.export`
puts the pieces together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

MODULE = "@module@"
"""Where a layer's module is to stand in a piece of code."""


class Unsayable(Exception):
    """The layer has no equal in plain PyTorch; the message says why."""


@dataclass
class Piece:
    """What a layer becomes. `call` is the expression's function and arguments; an expression without a call is
    (text, None), several in a row are ("", texts); None: the bottom is handed on. `module` is (class, arguments) of the
    layer's module; `MODULE` in the expressions stands for it. `copies` are the functions and classes that they name.
    """

    call: tuple[str, list[str] | None] | None
    module: tuple[str, list[str]] | None = None
    copies: tuple[Callable[..., Any], ...] = ()
    own: bool = field(default=False, kw_only=True)
    """Say it by the source of the class's own `forward`; nothing else counts then."""


@dataclass(frozen=True)
class Request:
    """What a layer is asked with: its bottoms' variables and shapes, and how the phase is said (Dropout and the like):
    "self.training", or True or False where the layer's own `phase` fixes it."""

    args: Sequence[str]
    shapes: Sequence[Shape]
    training: str = "self.training"

    @property
    def x(self) -> str:
        """The variable of bottom 0."""
        return self.args[0]


class Parameters(nn.Module):
    """A layer's learned values, by name, for the function that computes with them."""

    def __init__(self, **shapes: Sequence[int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(tuple(shape))))


class Statistics(nn.Module):
    """A layer's values that are not learned but counted, by name."""

    def __init__(self, **shapes: Sequence[int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(tuple(shape)))


class Blobs(nn.Module):
    """A layer's values by name, those in `counted` counted, the others learned."""

    def __init__(self, counted: Sequence[str] = (), **shapes: Sequence[int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            if name in counted:
                self.register_buffer(name, torch.zeros(tuple(shape)))
            else:
                self.register_parameter(name, nn.Parameter(torch.zeros(tuple(shape))))


def parameters_of(names: Sequence[str], shapes: Sequence[Shape]) -> tuple[str, list[str]]:
    """The module of a layer that has parameters and is said by a function."""
    return "Parameters", [f"{name}={list(shape)}" for name, shape in zip(names, shapes, strict=True)]


def blob_or_none(names: Sequence[str], index: int) -> str:
    """How a layer's parameter is said, None where it has fewer."""
    return f"{MODULE}.{names[index]}" if index < len(names) else "None"


def number(value: float) -> str:
    """A number as short as reads back the same: float32 settings without the digits that double precision adds.

    What is no finite number is a constant of the module math.
    """
    import numpy as np

    if isinstance(value, int):
        return repr(value)
    if not math.isfinite(value):
        return "math.nan" if math.isnan(value) else ("math.inf" if value > 0 else "-math.inf")
    if float(value).is_integer():
        return repr(float(value)).replace("e+", "e")
    with np.errstate(over="ignore"):  # a double beyond float32 is no float32 setting
        short = float(str(np.float32(value)))
    exact = short if np.float32(short) == np.float32(value) and np.float32(value) == value else value
    return repr(exact).replace("e+", "e")


def extents(values: Sequence[int]) -> str:
    """One number where all are the same, else a tuple."""
    unique = set(values)
    return str(values[0]) if len(unique) == 1 else f"({', '.join(map(str, values))})"


def constant_like(x: Tensor, value: float) -> Tensor:
    """The value everywhere; the gradient is 0 also where x is infinite, since every element is replaced."""
    return x.masked_fill(torch.ones((), dtype=torch.bool, device=x.device), value)
