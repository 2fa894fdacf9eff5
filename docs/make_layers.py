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


MEMORY = """
## Where Caffe's gradient is not the derivative

Caffe's layers share memory, and its backward pass reads what blobs hold after the whole forward pass. Some nets
therefore train on another gradient than the derivative of their loss. Here the gradient is the true one. Loading such
a net in TRAIN warns, once, and names the layers; `fcnproto.load(..., caffe_exact=True)`, `Solver(...,
caffe_exact=True)` and `fcnproto train --caffe-exact` compute what Caffe computes (compared with recorded gradients of
Caffe for nets of all these kinds, most of them random: tests/net/test_caffe_memory.py). The places:

* A layer behind works in place on a blob whose values a layer before reads for its gradient (the table below): ReLU
  before BatchNorm in place, Sigmoid, TanH, ELU, Softmax, LRN before any layer in place (TanH, then Dropout in place),
  also through Split, Flatten, Reshape, Slice with one top and Concat with one bottom, whose tops are their bottom's
  memory. Right in Caffe, and silent here: ReLU in place before what keeps signs (Dropout, ReLU), PReLU in place, and
  BatchNorm, Dropout, max pooling, which keep copies, before anything: BatchNorm, Scale and ReLU in place.
* A layer in place reads its own bottom, which it has overwritten: Power, Log, BNLL, Clip, ReLU with a negative slope
  below 0, LRN. Power, Log and LRN write the bottom's gradient over the top's before they have read that, so Power
  with power 1 gives scale * scale whatever comes from behind; LRN's and Eltwise's values are others, too (Eltwise
  leaves bottom 0 out).
* Flatten behind Reshape, LSTM, RNN, Parameter, Slice with one top or Concat with one bottom: the gradient is written
  to other memory than it is read from, and everything before gets 0.
* Scale with a blob as large as its bottom, and Parameter, overwrite their gradient instead of adding to it: with
  `iter_size`, or shared by name, the last pass counts alone.
* LSTM and RNN whose recurrent blobs are shared by name, in TRAIN: all time steps but the first go on with the values
  of the layer's own fillers, which nothing learns. Their blobs with `lr_mult: 0` have a gradient, which counts for
  `clip_gradients`.

Not copied: what an in-place layer does to the inside of the LSTM or RNN before it where there is one time step alone,
to the weights of the Parameter before it, to a weighted top (whose loss weight Caffe loses), and to the positions in
the second top of a Pooling; nor that a Scale of images overwrites its gradient where the batch is one item.

What Caffe's backward pass reads, with the default settings, of bottoms and tops; types of Caffe's own that are not
listed read neither, or keep what they need (of types of forks and of your own it is assumed):

| type | reads |
|---|---|
"""


def reads(cls: type[Layer]) -> str:
    """What Caffe's backward pass of a type reads, in words."""
    param = caffe_pb2.LayerParameter(name=cls.type, type=cls.type, bottom=["x"] * cls.bottoms[0], top=["y"])
    found = cls(param).backward_reads(in_place=False)
    parts = [f"bottom {i}" for i in found.bottoms] + [f"the signs of bottom {i}" for i in found.signs]
    return ", ".join(parts + [f"top {j}" for j in found.tops])


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
    rows, forks, notes, memory = [], [], [], []
    for name in sorted(types(), key=str.lower):
        cls = lookup(name)
        if not cls.__module__.startswith("fcnproto."):
            continue  # registered by somebody else
        counts = f"{count(cls.bottoms)} | {count(cls.tops)} | {settings(cls)}"
        if cls.fork:
            forks.append(f"| {name} | {cls.fork} | {counts} | {of_forks[name]} |")
        else:
            rows.append(f"| {name} | {counts} | {counted[name]} |")
        if text := reads(cls):
            memory.append(f"| {name} | {text} |")
        if cls.differences:
            notes.append(f"* **{name}**: {cls.differences}")
    tail = (
        "\n## Differences from Caffe\n\nNone where Caffe is right. Where it aborts the process, is silently wrong or "
        "leaves a value undefined, this is what happens instead:\n\n"
    )
    parts = [HEAD, rows, FORKS, forks, tail, notes, MEMORY, memory]
    return "".join(part if isinstance(part, str) else "\n".join(part) + "\n" for part in parts)


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
