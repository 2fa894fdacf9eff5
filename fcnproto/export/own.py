"""Layers of one's own, said by the source of their class: `forward` and what it uses, as a small module.

The copy has the layer's parameters under the same names, its settings as plain values, and what `setup` worked out, as
far as these are numbers, strings and the like.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from fcnproto.export.code import prose, text
from fcnproto.export.copying import Copies, literal, source_of
from fcnproto.layers.base import Layer
from fcnproto.layers.plain import MODULE, Piece, Request, Unsayable


class Settings:
    """A layer's settings: each field's value, and which of them were given."""

    def __init__(self, given: Sequence[str] = (), **values: Any) -> None:
        self.__dict__.update(values)
        self._given = given

    def HasField(self, name: str) -> bool:
        """Whether the prototxt gives the field."""
        return name in self._given


class OwnLayer(nn.Module):
    """What a layer has beside its `forward`: settings, parameters in their order, and other values by name."""

    name: str
    blob_names: list

    def __init__(self, config: Any, parameters: dict, statistics: dict, **values: Any) -> None:
        super().__init__()
        self.config = config
        for name, value in values.items():
            setattr(self, name, value)
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        for name, shape in statistics.items():
            self.register_buffer(name, torch.zeros(shape))

    def blob(self, index: int) -> Tensor:
        """A parameter by its place."""
        return getattr(self, self.blob_names[index])

    def optional_blob(self, index: int) -> Tensor | None:
        """A parameter by its place, None where there are fewer."""
        return self.blob(index) if index < len(self.blob_names) else None

    def axis(self, axis: int, shape: Sequence[int], what: str = "axis") -> int:
        """An axis counted from the end where it is negative."""
        if not -len(shape) <= axis < len(shape):
            self.fail(f"{what} {axis} is outside of the axes of a bottom of shape {tuple(shape)}")
        return axis % len(shape)

    def fail(self, message: str) -> None:
        """Raise an error that names the layer."""
        raise ValueError(f"layer {self.name!r} ({type(self).__name__}): {message}")


_OFFERED = frozenset([*vars(OwnLayer), *dir(nn.Module), "config", "name", "type", "num_tops", "blob_names", "training"])
"""What `forward` may ask of `self` without more ado."""
_OUTSIDE = ("fcnproto.data.", "fcnproto.scenes.")
"""Packages whose layers open files, or run what others wrote."""


def say_own(layer: Layer, request: Request, copies: Copies) -> Piece:
    """A piece for a layer whose class says nothing of itself. `Unsayable` names what can't be taken along."""
    cls = type(layer)
    if layer.is_data or cls.__module__.startswith(_OUTSIDE):
        raise Unsayable("the type has no equal in plain PyTorch")
    methods, values = _members(layer)
    sources = {name: source_of(function) for name, function in methods.items()}
    copies.add(OwnLayer)
    space: dict[str, Any] = {}
    for function in methods.values():
        space.update(function.__globals__)
    summary = prose((cls.__doc__ or layer.type).strip().splitlines()[0])
    body = "\n".join(textwrap.indent(source, "    ") for source in sources.values())
    copies.add_source(
        cls.__name__, f'class {cls.__name__}(OwnLayer):\n    """{summary}"""\n\n{body}', {**space, "OwnLayer": OwnLayer}
    )
    config = "None"
    if layer.config_field is not None and "config" in _asked_of_self(sources.values()):
        copies.add(Settings)
        config = _settings(layer.config)
    arguments = [f"config={config}", *_blobs(layer), *(f"{name}={value}" for name, value in values.items())]
    return Piece((MODULE, list(request.args)), (cls.__name__, arguments))


def _blobs(layer: Layer) -> list[str]:
    """The arguments that say the parameters."""
    for name in layer.blob_names:
        if not (name.isascii() and name.isidentifier()):
            raise Unsayable(f"its parameter {name!r} has no name that Python could have")
    shapes: dict[bool, list[str]] = {True: [], False: []}
    for name, shape in zip(layer.blob_names, layer.blob_shapes, strict=True):
        shapes[name in layer._parameters].append(f"{text(name)}: {list(shape)}")
    names = ", ".join(map(text, layer.blob_names))
    return [
        f"parameters={{{', '.join(shapes[True])}}}",
        f"statistics={{{', '.join(shapes[False])}}}",
        f"blob_names=[{names}]",
        f"name={text(layer.name)}",
        f"type={text(layer.type)}",
        f"num_tops={layer.num_tops}",
    ]


def _asked_of_self(sources: Any) -> set[str]:
    """The attributes of `self` that methods name."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                found.add(node.attr)
            elif isinstance(node, ast.Name) and node.id == "super":
                raise Unsayable("its forward uses 'super'")
    return found


def _members(layer: Layer) -> tuple[dict[str, FunctionType], dict[str, str]]:
    """The methods that `forward` needs, itself among them, by name; and the plain values."""
    methods: dict[str, FunctionType] = {}
    values: dict[str, str] = {}
    open_names = ["forward"]
    while open_names:
        name = open_names.pop()
        member = inspect.getattr_static(type(layer), name, None)
        function = _function(member)
        if function is not None and _is_own(layer, name):
            if function.__code__.co_freevars and function.__code__.co_freevars != ("__class__",):
                raise Unsayable(f"{name} uses {function.__code__.co_freevars[0]!r} of the function around its class")
            methods[name] = function
            asked = _asked_of_self([source_of(function)])
            known = {*methods, *values, *layer.blob_names, *open_names}
            open_names += sorted(one for one in asked - known if one not in _OFFERED or _is_own(layer, one))
            continue
        value = literal(getattr(layer, name, _MISSING))
        if value is None or name in layer._buffers or name in layer._modules:
            raise Unsayable(f"its forward uses self.{name}, which is no number, string or the like")
        values[name] = value
    return methods, values


_MISSING = object()


def _function(member: Any) -> FunctionType | None:
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if isinstance(member, property):
        member = member.fget
    member = inspect.unwrap(member) if callable(member) else member  # decorators stand in the source
    return member if isinstance(member, FunctionType) else None


def _is_own(layer: Layer, name: str) -> bool:
    """Whether a class of the user's defines a member."""
    owner = next((cls for cls in type(layer).__mro__ if name in vars(cls)), object)
    return owner is not object and owner.__module__ != Layer.__module__ and owner.__module__.split(".")[0] != "torch"


def _settings(message: Any) -> str:
    """A settings message as the source of a `Settings`."""
    parts, given = [], []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None:
            repeated = hasattr(value, "add")
            if not repeated and not message.HasField(field.name):
                continue
            said: str | None = f"[{', '.join(map(_settings, value))}]" if repeated else _settings(value)
        elif not isinstance(value, (str, bytes, int, float, bool)):
            said = literal([_plain(part) for part in value])
        else:
            said = literal(_plain(value))
        if said is None:
            continue
        parts.append(f"{field.name}={said}")
        if field.has_presence and message.HasField(field.name):
            given.append(text(field.name))
    return f"Settings([{', '.join(given)}]{''.join(f', {part}' for part in parts)})"


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, float) else value
