"""Writes docs/check.md and docs/troubleshooting.md, what `fcnproto check` finds by kind and by symptom, from the
findings' own texts: `python docs/make_check.py`."""

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
fcnproto check two-headed.prototxt --images photos --masks sem=masks --masks geo=others     # a folder for each label
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

SYMPTOMS_HEAD = """# Troubleshooting

Made by `make docs` from the findings of [`fcnproto check`](check.md), which looks for all of these at once:

```
fcnproto check solver.prototxt weights.caffemodel --images photos --masks masks --steps 20 --html check.html
```

For errors: the line says file, line and column or layer and blob, and what to do; `--debug` adds the traceback.
"""

SYMPTOMS = {
    "The loss stays where it began (3.04 for 21 classes: ln K)": (
        "never-learns unfilled no-weights few-weights rate-too-small no-loss loss-weight-forgotten constant-loss "
        "vanishing-gradient dead-relu loss-normalisation not-memorised"
    ),
    "Everything is background": (
        "ungrouped-bilinear rare-class class-never-occurs constant-scores binary-masks interpolated-masks old-classes "
        "small-receptive-field"
    ),
    "Mean IU is 1.0, or far too good": "binary-masks class-never-occurs duplicates test-leaves-out colour-masks",
    "The loss becomes NaN or grows without end": (
        "not-a-number exploding-gradient loss-normalisation momentum update-ratio saturated-scores label-out-of-range "
        "loss-scales iter-size steps-beyond"
    ),
    "The loss falls, the pictures are wrong": (
        "crop-offset shifted-masks unaligned-random upsampling-gain score-stride void-not-ignored interpolated-masks "
        "size-mismatch padding"
    ),
    "Good in training, bad on other images": (
        "mean-twice scale-twice no-mean channel-order dark-images duplicates crop-larger warned"
    ),
    "It stops over its data": (
        "missing-files list-bom database-size unreadable size-mismatch crop-larger infogain-size label-out-of-range "
        "snapshot-folder no-gpu unfed-input"
    ),
    "Caffe trained it, or refuses it, otherwise": "caffe-gradient caffe-refuses crop-offset loss-normalisation",
}


def troubleshooting() -> str:
    """The page of symptoms."""
    kinds = {code: kind for group in GROUPS.values() for code, kind in group.items()}
    parts = [SYMPTOMS_HEAD]
    for symptom, codes in SYMPTOMS.items():
        parts.append(f"\n## {symptom}\n\n| it may be | so | what to do | finding |\n|---|---|---|---|\n")
        for code in codes.split():
            kind = kinds[code]
            cells = [kind.title, kind.why, kind.remedy, f"`{code}`"]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


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
    for name, text in {"check.md": document(), "troubleshooting.md": troubleshooting()}.items():
        with atomic_write(HERE / name, "w") as file:
            file.write(text)
        sys.stdout.write(f"wrote {HERE / name}\n")
