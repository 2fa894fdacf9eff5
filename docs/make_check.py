"""Writes docs/check.md, what `fcnproto check` finds, from the findings' own texts: `python docs/make_check.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from fcnproto.atomic import atomic_write
from fcnproto.checking.kinds import GROUPS, Kind

HERE = Path(__file__).resolve().parent

HEAD = """# What keeps a net from learning: `fcnproto check`

Made by `make docs` from the findings' own texts; a test keeps it current.

```
fcnproto check solver.prototxt weights.caffemodel               # or a net's prototxt, examined in phase TRAIN
fcnproto check net.prototxt --images photos --masks masks --classes classes.txt
fcnproto check solver.prototxt W --steps 20 --html check.html   # watch the first steps, on a copy; nothing is written
fcnproto check solver.prototxt W --overfit                      # can it learn one batch by heart? the surest test
fcnproto check net.prototxt --caffe                             # does it load and train in the original Caffe?
```

and in Python `fcnproto.check("solver.prototxt", "weights.caffemodel")`, which takes nets and solvers, too: a list of
findings with `level`, `code`, `where` (file and line, layer, blob, image), `seen`, `why` and `remedy`. `--json` prints
the same. The exit status is 1 where there is a fault.

A **fault** certainly spoils training or output, a **suspect** depends on what is meant, a **note** is good to know.
Without --images and --masks the net's own data layers are looked at, as far as their sources are there: up to 500
images of folders, the first 50 items of others. Input layers of a net that is given without a solver are the caller's
to fill, and a net without a loss is then one for use. The published nets with weights and data give neither fault nor
suspect.
"""


def document() -> str:
    """The page's text."""
    parts = [HEAD]
    for group, kinds in GROUPS.items():
        parts.append(f"\n## {group}\n\n| code | level | what is found | so | what to do |\n|---|---|---|---|---|\n")
        parts += [_row(code, kind) for code, kind in kinds.items()]
    return "".join(parts)


def _row(code: str, kind: Kind) -> str:
    cells = [f"`{code}`", " or ".join(kind.levels), kind.title, kind.why, kind.remedy]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    with atomic_write(HERE / "check.md", "w") as file:
        file.write(document())
    sys.stdout.write(f"wrote {HERE / 'check.md'}\n")
