"""Writes docs/dialects.md from the registry of layer types: `python docs/make_dialects.py`."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path

from fcnproto.atomic import atomic_write
from fcnproto.graph.dialect import DIALECTS
from fcnproto.layers.base import Layer
from fcnproto.layers.registry import lookup, types
from fcnproto.schema import caffe_pb2, fork_numbers
from fcnproto.schema.fields import FIRST_ADDED

HERE = Path(__file__).resolve().parent

HEAD = """# The dialects of Caffe's forks

Made by `make docs` from the registry; a test keeps it current. A net written for a fork loads like any other. Where the
same text means several things, the fields that it uses decide which fork it was written for, or
`fcnproto.load(..., dialect=)` and `--dialect` name it: {dialects}.

*Recorded cases* are those recorded from the fork itself in which the type takes part, all of them passed by
tests/dialects/test_recordings.py. What no layer here computes holds its place: the net loads, one warning names it, and
all outputs that don't need it are computed.

In a caffemodel one number means different fields to different forks. `fcnproto extract` and `fcnproto upgrade` read its
definition by the numbers of the fork that the file itself shows ({forks} forks' numbers are known); what several may
have written, and mean differently, is left out with a warning, unless `--dialect` or `--caffe-proto` says whose it is.

"""

FIELDS = """
## Fields that forks add to Caffe's own layer types

| type | fields |
|---|---|
"""


def load_layers_page() -> object:
    """The module docs/make_layers.py, which counts the recorded cases."""
    spec = importlib.util.spec_from_file_location("make_layers", HERE / "make_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(cls: type[Layer]) -> str:
    """A type's own settings fields, or those that forks add to Caffe's messages it reads."""
    parts = []
    for name in dict.fromkeys((cls.config_field, *cls.also_reads)):
        if name is None:
            continue
        message = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name[name]
        own = message.number >= FIRST_ADDED
        fields = [
            f"`{field.name}`"
            for field in message.message_type.fields
            if own or (field.number >= FIRST_ADDED and f"{name}.{field.name}" in cls.fork_fields)
        ]
        if fields:
            parts.append(f"{name}: {', '.join(fields)}")
    return "; ".join(parts)


def document() -> str:
    """The whole page."""
    counted = load_layers_page().cases("dialects")  # type: ignore[attr-defined]
    by_fork: dict[str, list[str]] = defaultdict(list)
    added = []
    for name in sorted(types(), key=str.lower):
        cls = lookup(name)
        if not cls.__module__.startswith("fcnproto."):
            continue  # registered by somebody else
        if cls.fork:
            cells = (f"**{name}**", settings(cls) or "-", str(counted[name]), cls.differences or "-")
            by_fork[cls.fork].append(f"| {' | '.join(cells)} |")
        elif cls.fork_fields:
            added.append(f"| {name} | {', '.join(f'`{field}`' for field in cls.fork_fields)} |")
    parts = [HEAD.format(dialects=", ".join(f"`{name}`" for name in DIALECTS), forks=len(fork_numbers.names()) - 1)]
    for fork in sorted(by_fork, key=str.lower):
        parts.append(
            f"## {fork}\n\n| layer | fields | recorded cases | differences from the fork |\n|---|---|---|---|\n"
        )
        parts.append("\n".join(by_fork[fork]) + "\n\n")
    parts[-1] = parts[-1][:-1]
    parts += [FIELDS, "\n".join(added) + "\n", "\n", (HERE / "public-nets.md").read_text(encoding="utf-8")]
    return "".join(parts)


if __name__ == "__main__":
    with atomic_write(HERE / "dialects.md", "w") as file:
        file.write(document())
    sys.exit(0)
