"""The table from Caffe's layer type names to layer classes, open to types of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fcnproto.errors import UnsupportedLayerError

if TYPE_CHECKING:
    from fcnproto.layers.base import Layer

_LAYERS: dict[str, type[Layer]] = {}
_Class = TypeVar("_Class", bound="type[Layer]")


def register(type_name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make a `Layer` subclass the implementation of the Caffe layer type `type_name`.

    A later registration replaces an earlier one, so a project can put its own version of a layer in place.
    """

    def decorate(cls: _Class) -> _Class:
        cls.type = type_name
        _LAYERS[type_name] = cls
        return cls

    return decorate


def lookup(type_name: str, layer_name: str = "") -> type[Layer]:
    """The class registered for a layer type.

    Raises `UnsupportedLayerError` naming the layer, the nearest registered type and the way to add one.
    """
    if not type_name:
        raise UnsupportedLayerError(f'layer {layer_name!r}: has no type; say what it is with type: "..."')
    try:
        return _LAYERS[type_name]
    except KeyError:
        likely = difflib.get_close_matches(type_name, _LAYERS, n=1, cutoff=0.7)
        nearest = likely or difflib.get_close_matches(type_name, _LAYERS, n=1, cutoff=0)
        hint = f"did you mean {nearest[0]!r}?" if likely else f"the nearest known type is {nearest[0]!r};"
        raise UnsupportedLayerError(
            f"layer {layer_name!r}: unknown layer type {type_name!r}; {hint} "
            f"add a type of your own with fcnproto.register_layer({type_name!r}), see docs/custom-layers.md"
        ) from None


def types() -> list[str]:
    """All registered type names, sorted."""
    return sorted(_LAYERS)
