"""Writes what is made from the registry of layer types: `python docs/make_layers.py`.

docs/layers.md, with the numbers of recorded cases, and fcnproto/graph/maps.json, the coordinate rules for what needs no
torch.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections import Counter
from pathlib import Path

import fcnproto.net.net  # noqa: F401  registers every type
from fcnproto.atomic import atomic_write
from fcnproto.graph import facts
from fcnproto.layers.base import Layer
from fcnproto.layers.registry import lookup, types
from fcnproto.schema import caffe_pb2
from fcnproto.schema.fields import FIRST_ADDED

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "tests" / "golden"

HEAD = """# Layer types

Made by `make docs` from the registry; a test keeps it current. All layer types of Caffe 1.0 (with its OpenCV and Python
layers) are here, forward and backward, in both phases, on the CPU and on CUDA; those of Caffe's forks follow.

*Recorded cases*: the cases recorded from the original Caffe in which the type takes part; the tests compare each blob
and gradient with a tolerance of 1e-5 of the largest value (tests/layers/test_golden.py, tests/test_fcn_golden.py), data
and shapes exactly. ImageData and WindowData have none: they are tested against OpenCV and Caffe's documented rules.
`engine` fields choose an implementation in Caffe and have no meaning here.

| type | bottoms | tops | settings | recorded cases |
|---|---|---|---|---|
"""


FORKS = """
## Layer types of Caffe's forks

The forks named have the type; recordings are those of the forks themselves (tests/dialects/test_recordings.py).

| type | forks | bottoms | tops | settings | recorded cases |
|---|---|---|---|---|---|
"""


def count(limits: tuple[int, int | None]) -> str:
    """The range of a count as text: 1, 1-2, 1+."""
    low, high = limits
    return f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"


def settings(cls: type[Layer]) -> str:
    """The settings fields that a type reads, by message."""
    parts = []
    for field in (cls.config_field, *cls.also_reads):
        if field is None:
            continue
        message = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name[field].message_type
        names = [
            f"`{f.name}`"
            for f in message.fields
            if f.name != "engine" and (f.number < FIRST_ADDED or f"{field}.{f.name}" in cls.fork_fields)
        ]
        parts.append(f"{field}: {', '.join(names)}" if names else field)
    return "; ".join(parts)


def cases(*groups: str) -> Counter[str]:
    """In how many recorded cases of the groups each type takes part."""
    found: Counter[str] = Counter()
    for group in groups:
        with zipfile.ZipFile(GOLDEN / f"{group}.zip") as archive:
            for name in archive.namelist():
                if name.endswith("/case.json"):
                    layers = json.loads(archive.read(name)).get("layers", [])
                    found.update({layer["type"] for layer in layers})
    return found


def document() -> str:
    """The whole page."""
    counted, of_forks = cases("layers", "fcn", "fillers"), cases("dialects")
    rows, forks, notes = [], [], []
    for name in sorted(types(), key=str.lower):
        cls = lookup(name)
        if not cls.__module__.startswith("fcnproto."):
            continue  # registered by somebody else
        counts = f"{count(cls.bottoms)} | {count(cls.tops)} | {settings(cls)}"
        if cls.fork:
            forks.append(f"| {name} | {cls.fork} | {counts} | {of_forks[name]} |")
        else:
            rows.append(f"| {name} | {counts} | {counted[name]} |")
        if cls.differences:
            notes.append(f"* **{name}**: {cls.differences}")
    tail = (
        "\n## Differences from Caffe\n\nNone where Caffe is right. Where it aborts the process, is silently wrong or "
        "leaves a value undefined, this is what happens instead:\n\n"
    )
    return HEAD + "\n".join(rows) + "\n" + FORKS + "\n".join(forks) + "\n" + tail + "\n".join(notes) + "\n"


def rules() -> str:
    """The coordinate rules, a line a type."""
    lines = [f"  {json.dumps(name)}: {json.dumps(rule)}" for name, rule in facts.rules().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    with atomic_write(HERE / "layers.md", "w") as file:
        file.write(document())
    with atomic_write(facts.RULES_FILE, "w") as file:
        file.write(rules())
    sys.exit(0)
