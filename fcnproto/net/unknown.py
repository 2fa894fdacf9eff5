"""What a net holds that nobody here knows: told of in one warning, refused in one error, listed as `Net.unknown`.

Internal to `fcnproto.net`, but for `Unknown`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from fcnproto.errors import FcnprotoWarning, PrototxtError
from fcnproto.graph import Graph, Node
from fcnproto.layers.registry import find, types
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fork_schema import ForkSchema
from fcnproto.schema.unknown import told, unknown_fields


class Unknown(NamedTuple):
    """A layer that can't be computed for now, by its name and type."""

    name: str
    type: str


def warn_unknown(
    param: caffe_pb2.NetParameter, graph: Graph, file: str | None, schema: ForkSchema | None = None
) -> None:
    """One FcnprotoWarning of all unknown fields in a definition and all layers of the graph that only hold a place."""
    missing = Counter(node.type for node in graph.nodes if node.held and find(node.type) is None)
    forbidden = [node for node in graph.nodes if node.held and node.type == "Python" and not unknown_fields(node.param)]
    beyond = [node for node in graph.nodes if node.held and node.type != "Python" and find(node.type) is not None]
    said = [
        part
        for part in (
            told(unknown_fields(param), missing, param, None if schema is None else schema.has, types()),
            _forbidden(forbidden),
            _beyond(beyond),
        )
        if part
    ]
    if said:
        where = graph.title if file is None else file
        warnings.warn(f"{where}: {'; '.join(said)}", FcnprotoWarning, stacklevel=4)


def _forbidden(nodes: Sequence[Node]) -> str:
    names = Counter(f"{node.param.python_param.module}.{node.param.python_param.layer}" for node in nodes)
    if not names:
        return ""
    listed = ", ".join(name if count == 1 else f"{name} ({count} times)" for name, count in names.items())
    return (
        f"Python layers hold their places, what needs them can't be computed: {listed} (if you trust their modules, "
        "allow_python=True, --allow-python imports them)"
    )


def _beyond(nodes: Sequence[Node]) -> str:
    """What is said of layers of known types that nothing here computes as they are set: the first's reason."""
    if not nodes:
        return ""
    more = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
    return f"layers hold their places, what needs them can't be computed: {nodes[0].held}{more}"


def refuse_unknown(param: caffe_pb2.NetParameter, file: str | None, schema: ForkSchema | None = None) -> None:
    """`PrototxtError` for a definition with unknown fields, those aside that a fork's own schema has."""
    fields = [
        name for name in unknown_fields(param) if schema is None or not schema.has(*name.partition(":")[0].split("."))
    ]
    if fields:
        raise PrototxtError(f"unknown fields: {', '.join(fields)}", file)
