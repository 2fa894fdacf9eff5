"""What the graph floor knows of layer types: the table that registering a layer class fills. No torch here.

The table holds the layer classes themselves; `TypeFacts` is the part of them that may be asked without torch. A type
that is not registered yet (nothing has loaded torch, as when a definition is only written) still has its coordinate
rule if it is one of the package's own: `maps.json` says which rule of `maps.py` each of them names. That file is
written by `docs/make_layers.py` from the classes, and a test keeps it current.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Protocol

from fcnproto.graph import maps
from fcnproto.graph.maps import CoordMap
from fcnproto.schema import caffe_pb2

RULES_FILE = Path(__file__).with_name("maps.json")


class TypeFacts(Protocol):
    """What the graph floor, and all that build on it, ask of a layer type; meanings are in `layers/base.py`."""

    fork: str
    bottoms: tuple[int, int | None]
    tops: tuple[int, int | None]
    fork_bottoms: int
    is_loss: bool
    is_data: bool
    in_place: bool
    size_bottoms: tuple[int, ...]
    idle: bool
    moves_values: bool
    gradient_reads_top: bool
    may_overwrite: bool
    judges: bool
    makes_data: bool
    passes_on: bool
    gradient_memory: str
    holds_place: bool

    @staticmethod
    def coordinates(param: caffe_pb2.LayerParameter) -> CoordMap | None:
        """The map from the bottoms' positions to the top's; None for a layer that has none."""

    @classmethod
    def bottoms_of(cls, param: caffe_pb2.LayerParameter) -> tuple[int, int | None]:
        """Fewest and most bottoms with these settings."""

    @classmethod
    def shares_memory(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether the tops are the first bottom's memory in Caffe."""

    @classmethod
    def fixes_image_size(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether a net with such a layer is made for one size of image."""

    @classmethod
    def ranks(cls, param: caffe_pb2.LayerParameter) -> bool:
        """Whether the top only ranks or normalises the scores of the classes in the bottom."""


_table: dict[str, TypeFacts] = {}


def put(type_name: str, facts: TypeFacts) -> None:
    """Enter a layer type; a later entry replaces an earlier one."""
    _table[type_name] = facts


def coordinates(param: caffe_pb2.LayerParameter) -> CoordMap | None:
    """The map of one layer, from its bottoms to its top; None for a type that has no such map.

    Raises `GraphError` for a window given by `*_h`/`*_w` fields, or without `kernel_size`.
    """
    known = _table.get(param.type)
    if known is not None:
        return known.coordinates(param)
    rule, _ = _rules().get(param.type, (maps.nowhere.__name__, ()))
    found: CoordMap | None = getattr(maps, rule)(param)
    return found


def size_bottoms(type_name: str) -> tuple[int, ...]:
    """The bottoms of a type that lend it their size, not their values."""
    known = _table.get(type_name)
    return _rules().get(type_name, ("", ()))[1] if known is None else known.size_bottoms


def rules() -> dict[str, tuple[str, tuple[int, ...]]]:
    """What `maps.json` holds: for every type of the package whose coordinate rule stands in `maps.py` the rule's name,
    and the bottoms that lend their size alone."""
    found = {}
    for name in sorted(_table):
        known = _table[name]
        rule, own = known.coordinates, str(getattr(known, "__module__", "")).startswith("fcnproto.")
        if own and rule is not maps.nowhere and getattr(maps, rule.__name__, None) is rule:
            found[name] = rule.__name__, known.size_bottoms
    return found


@cache
def _rules() -> dict[str, tuple[str, tuple[int, ...]]]:
    content = json.loads(RULES_FILE.read_text(encoding="utf-8"))
    return {name: (rule, tuple(bottoms)) for name, (rule, bottoms) in content.items()}
