"""pycaffe's `net_spec`: the package's `netspec`, with the errors that pycaffe raised, and what SSD's added to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcnproto import netspec
from fcnproto.netspec import Function, Top, params, to_proto

__all__ = ["Function", "NetSpec", "Top", "layers", "params", "to_proto"]


class NetSpec(netspec.NetSpec):
    """A net under construction, with what pycaffe's own has (`tops`) and SSD's has besides (the other four)."""

    @property
    def tops(self) -> dict[str, Top | Function]:
        """What has been named so far, by name."""
        return self._tops

    def keys(self) -> list[str]:
        """The names given so far."""
        return list(self._tops)

    def vals(self) -> list[Top | Function]:
        """What they name."""
        return list(self._tops.values())

    def update(self, name: str, settings: Mapping[str, Any]) -> None:
        """Change settings of the layer that makes a top."""
        top = self[name]
        (top.producer if isinstance(top, Top) else top).update(settings)

    def __delitem__(self, name: str) -> None:
        del self._tops[name]


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
