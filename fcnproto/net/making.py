"""Making the layers of a graph, and what is said of their settings: what has no effect, is deprecated, or is left out.

Internal to `fcnproto.net`; shapes are found in `net/shapes.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from fcnproto.errors import FcnprotoWarning, GraphError
from fcnproto.graph import Graph, Node
from fcnproto.graph.graph import check_counts
from fcnproto.layers.base import Layer
from fcnproto.layers.fillers import unread_fields
from fcnproto.layers.placeholder import PlaceHolder, reason
from fcnproto.layers.registry import find, lookup
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import FIRST_ADDED


def make_layers(
    graph: Graph,
    base_dir: Path | None,
    allow_python: bool,
    file: str | None = None,
    allow_writes: bool = False,
    dialect: str | None = None,
    strict: bool = False,
) -> list[Layer]:
    """One layer object for each node, not yet set up: a place-holder where it can't be computed, unless `strict`."""
    folder = None if base_dir is None else str(base_dir)
    layers = [make_layer(graph, node, folder, allow_python, strict) for node in graph.nodes]
    for node, layer in zip(graph.nodes, layers, strict=True):
        layer.prototxt = file
        layer.allow_writes = allow_writes
        layer.dialect = dialect
        node.held = layer.held
    warn_unread_settings([layer for layer in layers if not layer.held])
    _warn_engines(layers)
    _warn_deprecated(layers)
    if not allow_writes:
        _warn_writers(layers)
    return layers


def _warn_writers(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of files that won't be written."""
    writers = [layer for layer in layers if layer.files_written()]
    if writers:
        files = _some([file for layer in writers for file in layer.files_written()])
        warnings.warn(
            f"{files} would be written by {_some([layer.name for layer in writers])}: left out, as outside training "
            "and testing a net writes nothing unless allow_writes=True (--allow-writes) is given",
            FcnprotoWarning,
            stacklevel=2,
        )


def make_layer(graph: Graph, node: Node, base_dir: str | None, allow_python: bool, strict: bool = False) -> Layer:
    """The layer of a node; unless `strict` a place-holder where its type or a setting is unknown or it may not run."""
    held = _miscounted(node, strict) or ("" if strict else reason(node.param))
    layer = PlaceHolder(node.param, len(node.tops), held) if held else _new(node)
    layer.base_dir = base_dir
    layer.allow_python = allow_python
    if not strict and not held and (held := layer.withheld()):
        layer = PlaceHolder(node.param, len(node.tops), held)
        layer.base_dir, layer.allow_python = base_dir, allow_python
    layer.train(graph.state.phase == caffe_pb2.TRAIN)
    return layer


def _miscounted(node: Node, strict: bool) -> str:
    """What is wrong with the number of a layer's bottoms or tops where its type is a fork's: another fork's layer of
    the same name may be meant. With `strict` a `GraphError`."""
    cls = find(node.type)
    if cls is None or not (cls.fork or cls.fork_bottoms):
        return ""
    try:
        check_counts(f"layer {node.name!r} ({node.type})", len(node.bottoms), cls.bottoms, len(node.tops), cls.tops)
    except GraphError as error:
        if strict:
            raise
        return f"{error}, and nothing here computes another layer of that name"
    return ""


def _new(node: Node) -> Layer:
    return lookup(node.type, node.name)(node.param, len(node.tops))


def _warn_engines(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of fields that choose one of Caffe's implementations."""
    chosen: dict[str, list[str]] = {}
    for layer in layers:
        if layer.config_field is not None:
            for field, value in layer.config.ListFields():
                if field.name in ("engine", "force_nd_im2col") and value:
                    chosen.setdefault(field.name, []).append(layer.name)
    for field_name, names in chosen.items():
        message = f"{field_name} has no effect ({_some(names)}): torch chooses how to compute, the results are the same"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def _warn_deprecated(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of fields that others have replaced; they work as they did."""
    used: dict[tuple[str, str, str], list[str]] = {}
    for layer in layers:
        for old, new in layer.replaced_fields.items():
            if any(field.name == old for field, _ in layer.config.ListFields()):
                used.setdefault((str(layer.config_field), old, new), []).append(layer.name)
    for (message_name, old, new), names in used.items():
        message = f"{message_name}.{old} is deprecated ({_some(names)}); use {new}"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def warn_fillers(layers: Sequence[Layer]) -> None:
    """Warn, once for all layers, of settings that a filler's type doesn't read."""
    unread: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        for filler in layer.blob_fillers:
            for name in unread_fields(filler):
                unread.setdefault((filler.type, name), []).append(layer.name)
    for (type_name, name), names in unread.items():
        message = f"{name} has no effect on fillers of type {type_name!r} ({_some(list(dict.fromkeys(names)))})"
        warnings.warn(message, FcnprotoWarning, stacklevel=2)


def tell(notes: Sequence[tuple[Layer, str]]) -> None:
    """Warn of what layers noted while they were set up, once for all layers of a type that say the same."""
    said: dict[tuple[str, str], list[str]] = {}
    for layer, message in notes:
        said.setdefault((layer.type, message), []).append(layer.name)
    for (kind, message), names in said.items():
        who = f"layer{'s' if len(set(names)) > 1 else ''} {_some(list(dict.fromkeys(names)))}"
        warnings.warn(f"{who} ({kind}): {message}", FcnprotoWarning, stacklevel=2)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def warn_unread_settings(layers: Sequence[Layer]) -> None:
    """Warn, once a setting and type, of settings that belong to another layer type, or only to one of a fork."""
    found: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        for name in unread_settings(layer):
            found.setdefault((name, layer.type), []).append(layer.name)
    for (name, kind), names in found.items():
        who = f"layer{'s' if len(names) > 1 else ''} {_some(names)}"
        warnings.warn(f"{who} ({kind}): {name} has no effect on this layer type", FcnprotoWarning, stacklevel=2)


def unread_settings(layer: Layer) -> list[str]:
    """The settings in a layer's message that its type doesn't read, as `pooling_param.ceil_mode` or `clip_param`."""
    unread = []
    for field, value in layer.param.ListFields():
        if not field.name.endswith("_param"):
            continue
        if field.name != layer.config_field and field.name not in layer.also_reads:
            unread.append(field.name)
        elif field.number < FIRST_ADDED:
            added = [inner.name for inner, _ in value.ListFields() if inner.number >= FIRST_ADDED]
            unread += [f"{field.name}.{name}" for name in added if f"{field.name}.{name}" not in layer.fork_fields]
    return unread
