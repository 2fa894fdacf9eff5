"""The table from Caffe's layer type names to layer classes, open to types of the user's own.

Registering fills the table of `graph/facts.py` too, for what needs no torch.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from fcnproto.errors import UnsupportedLayerError, UsageError, page
from fcnproto.graph import facts
from fcnproto.schema.settings import add_settings

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from fcnproto.atomic import PathLike
    from fcnproto.layers.base import Layer

_LAYERS: dict[str, type[Layer]] = {}
_Class = TypeVar("_Class", bound="type[Layer]")


def register(
    type_name: str, *, settings: PathLike | type[Message] | None = None, number: int | None = None
) -> Callable[[_Class], _Class]:
    """Class decorator: make a `Layer` subclass the implementation of the Caffe layer type `type_name`.

    A later registration replaces an earlier one, so a project can put its own version of a layer in place; the
    package's own types, which are registered when a net is first loaded, replace none from outside.

    Args:
        settings: the type's own settings message, a class of protobuf's or a `.proto` file with a message called
            `<Type>Parameter` (looked up from the registering module's folder, then from the working directory). It is
            the field `blend_param` for `BlendParameter`, and the layer's `config`.
        number: the field's number in binary files; by default one made from its name.

    Raises `PrototxtError` and `UsageError` as `schema.settings.add_settings`.
    """

    def decorate(cls: _Class) -> _Class:
        if settings is not None:
            cls.config_field = add_settings(type_name, settings, _folder(cls), number)
        elif number is not None:
            raise UsageError(f"register_layer({type_name!r}): number= is that of settings=, which is missing")
        cls.type = type_name
        if _is_own(cls) and not _is_own(_LAYERS.get(type_name, cls)):
            return cls
        _LAYERS[type_name] = cls
        facts.put(type_name, cast("facts.TypeFacts", cls))
        return cls

    return decorate


def _is_own(cls: type) -> bool:
    """Whether a class is one of the package's own."""
    return cls.__module__.startswith("fcnproto.")


def _folder(cls: type) -> str:
    """The folder of the module that a class is from; the working directory where it has no file."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return os.path.dirname(os.path.abspath(file)) if file else os.getcwd()


def find(type_name: str) -> type[Layer] | None:
    """The class registered for a layer type, None where there is none."""
    return _LAYERS.get(type_name)


def lookup(type_name: str, layer_name: str = "") -> type[Layer]:
    """The class registered for a layer type.

    Raises `UnsupportedLayerError` naming the layer, a registered type spelt much like it, and the way to add one.
    """
    if not type_name:
        raise UnsupportedLayerError(f'layer {layer_name!r}: has no type; say what it is with type: "..."')
    found = find(type_name)
    if found is not None:
        return found
    likely = difflib.get_close_matches(type_name, types(), n=1, cutoff=0.8)
    hint = f"did you mean {likely[0]!r}? " if likely else ""
    raise UnsupportedLayerError(
        f"layer {layer_name!r}: unknown layer type {type_name!r}; {hint}"
        f"add a type of your own with fcnproto.register_layer({type_name!r}), see {page('custom-layers')}"
    )


def types() -> list[str]:
    """All registered type names, sorted."""
    return sorted(_LAYERS)
