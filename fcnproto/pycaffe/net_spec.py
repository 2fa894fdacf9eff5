"""pycaffe's `net_spec`: the package's `netspec`, with the errors that pycaffe raised."""

from __future__ import annotations

from typing import Any

from fcnproto import netspec
from fcnproto.netspec import Function, NetSpec, Top, params, to_proto

__all__ = ["Function", "NetSpec", "Top", "layers", "params", "to_proto"]


class _Layers:
    """`layers.<Type>(*tops, **settings)`; raises TypeError for an input that is no top."""

    def __getattr__(self, type_name: str) -> Any:
        make = getattr(netspec.layers, type_name)

        def layer(*bottoms: Any, **settings: Any) -> Any:
            for index, bottom in enumerate(bottoms):
                if not isinstance(bottom, Top):
                    raise TypeError(f"{type_name} input {index} is not a Top (type is {type(bottom)})")
            return make(*bottoms, **settings)

        layer.__name__ = layer.__qualname__ = type_name
        return layer


layers = _Layers()
