"""The files in a fine-tuning's folder that its training reads, and tables of its results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcnproto.atomic import atomic_write
from fcnproto.escaping import file_name
from fcnproto.finetune.data import folders, layer_options
from fcnproto.finetune.nets import make_loss
from fcnproto.finetune.planned import Plan
from fcnproto.finetune.settings import OPTIMIZATIONS
from fcnproto.meta import comment
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import write_message
from fcnproto.schema.weights import write_blob


def write_files(made: Plan, fresh: bool = True) -> None:
    """Write what training reads. File names in it are absolute: where it is started, others may have the same names.

    Unless `fresh`, the first weights stay as they are.
    """
    settings, output, base = made.settings, made.settings.output, made.base
    output.mkdir(parents=True, exist_ok=True)
    for name, ids in made.splits.items():
        _write_lines(output / f"{name}.txt", ids)
    for name, blob in per_map(made, "classes.txt").items():
        _write_lines(output / name, made.classes[blob])
    losses = {}
    mean_loss = OPTIMIZATIONS[settings.optimization].mean_loss
    for name, blob in per_map(made, "loss").items():
        file = None
        if blob in made.class_weights:
            file = str((output / f"{name.replace('loss', 'class-weights', 1)}.binaryproto").resolve())
            count = len(made.class_weights[blob])
            write_blob(file, np.diag(made.class_weights[blob]).astype(np.float32).reshape(1, 1, count, count))
        losses[blob] = make_loss(name, mean_loss, file)
    for part in ("train", "test"):
        data = folders(settings, base, part=part)
        listed = str((output / f"{part}.txt").resolve())
        options = layer_options(settings, base, data, listed, part == "train")
        write_message(output / f"{part}.prototxt", base.train(options, losses))
    write_message(output / "deploy.prototxt", base.deploy(), comment(base.meta(made.classes)))
    solver = caffe_pb2.SolverParameter()
    solver.CopyFrom(made.solver)
    solver.train_net = str((output / "train.prototxt").resolve())
    solver.weights[:] = [str((output / "initial.caffemodel").resolve())]
    solver.snapshot_prefix = str((output / "snapshot").resolve())
    write_message(output / "solver.prototxt", solver)
    if fresh:
        made.net.save(output / "initial.caffemodel")


def per_map(made: Plan, name: str) -> dict[str, str]:
    """Names for what there is of each map of scores, with its score blob: `loss` and `loss_geo` for two."""
    stem, dot, suffix = name.partition(".")
    labels = made.base.labels
    found = {}
    for index, one in enumerate(made.base.scores):
        own = one.label if len(labels[one.label]) == 1 else one.blob
        found[name if index == 0 else f"{file_name(f'{stem}_{own}')}{dot}{suffix}"] = one.blob
    return found


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_write(path, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def write_table(path: Path, rows: Sequence[tuple[int, float]]) -> None:
    """Write the validations as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", "mean IU"])
    writer.writerows(rows)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())
