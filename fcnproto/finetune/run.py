"""Fine-tuning from start to end: splitting the images, writing the files, training, keeping the best, scoring."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcnproto import zoo
from fcnproto.data.datasets import ImageFolder
from fcnproto.errors import Error, UsageError
from fcnproto.files import atomic_write
from fcnproto.finetune.nets import Base, first_weights, make_loss, read_base
from fcnproto.finetune.pictures import sample_picture
from fcnproto.finetune.settings import OPTIMIZATIONS, Settings
from fcnproto.net import Net, load
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_solver, write_message
from fcnproto.schema.weights import write_blob
from fcnproto.scoring import Scored, confusion_picture, score_net
from fcnproto.solver import Solver
from fcnproto.solver.chart import write_chart
from fcnproto.solver.progress import Recorder
from fcnproto.surgery import Report

Say = Callable[[str], None]

_MOST_COUNTED = 500
_SAMPLES = 6


@dataclass
class Plan:
    """A fine-tuning ready to start: its files, its nets and the values they begin with.

    `splits` are the images' names under "train", "val" and "test"; `solver` is the solver.prototxt; `class_weights` has
    a factor for each class, or is None.
    """

    settings: Settings
    base: Base
    net: Net
    report: Report
    splits: dict[str, list[str]]
    solver: caffe_pb2.SolverParameter
    interval: int
    class_weights: np.ndarray | None = None

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        settings, solver = self.settings, self.solver
        yield f"net {self.base.name}: image blob {self.base.image!r}, score blob {self.base.score!r}"
        yield f"{len(settings.classes)} classes: {', '.join(settings.classes)}"
        counts = ", ".join(f"{name} {len(ids)}" for name, ids in self.splits.items())
        yield f"{sum(map(len, self.splits.values()))} images: {counts}"
        yield f"weights: {settings.weights or 'none, random values'}"
        yield from (f"  {line}" for line in self.report.lines())
        rates = f"base_lr {solver.base_lr:g}, momentum {solver.momentum:g}, iter_size {solver.iter_size}"
        yield f"optimization {settings.optimization}: {OPTIMIZATIONS[settings.optimization].what}"
        yield f"  {solver.type}, {rates}, weight_decay {solver.weight_decay:g}"
        yield f"augmentation: {settings.augmentation or 'none'}"
        if self.class_weights is not None:
            pairs = zip(settings.classes, self.class_weights, strict=True)
            yield "class weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in pairs)
        yield f"{solver.max_iter} iterations, validated every {self.interval}; results in {settings.output}"


@dataclass
class Outcome:
    """What came of it: validation mean IU by iteration, the iteration of the best, the score on held-out images."""

    validations: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    score: Scored | None = None


def plan(settings: Settings) -> Plan:
    """Look at everything that a fine-tuning needs, and write nothing.

    Raises `UsageError` and `DataError` where something is missing or doesn't fit.
    """
    base = read_base(settings.model, len(settings.classes))
    splits = split(_folder(settings, base).ids, settings)
    torch.manual_seed(settings.seed)
    net, report, has_scores = first_weights(base, settings.weights, settings.classes)
    iterations = settings.iterations or max(2000, 20 * len(splits["train"]))
    interval = settings.interval or max(1, iterations // 10)
    made = Plan(settings, base, net, report, splits, _solver(settings, has_scores, iterations), interval)
    if settings.class_weights == "balanced":
        made.class_weights = balanced_weights(_folder(settings, base, splits["train"]), len(settings.classes))
    return made


def split(ids: Sequence[str], settings: Settings) -> dict[str, list[str]]:
    """The images' names for training, validation and the final score, drawn by the seed; each in alphabetical order."""
    if len(ids) < 3:
        raise UsageError(f"{settings.images}: {len(ids)} images; 3 are needed, to train, to validate and to score")
    shuffled = list(ids)
    random.Random(settings.seed).shuffle(shuffled)
    counts = [max(1, round(share * len(ids))) for share in (settings.validation, settings.held_out)]
    while sum(counts) >= len(ids):
        counts[counts.index(max(counts))] -= 1
    ends = counts[0], counts[0] + counts[1]
    parts = {"train": shuffled[ends[1] :], "val": shuffled[: ends[0]], "test": shuffled[ends[0] : ends[1]]}
    return {name: sorted(part) for name, part in parts.items()}


def balanced_weights(data: ImageFolder, classes: int) -> np.ndarray:
    """Median frequency balancing: for each class the median frequency over its own, (classes,) float64.

    A class's frequency is its share of the pixels of the images in which it occurs; one that never occurs weighs 1. At
    most 500 images are counted.
    """
    pixels, totals = np.zeros(classes), np.zeros(classes)
    step = -(-len(data.ids) // _MOST_COUNTED)
    for id in data.ids[::step]:
        _, mask = data.read(id)
        counts = np.bincount(mask.ravel(), minlength=256)[:classes]
        pixels += counts
        totals += np.where(counts > 0, counts.sum(), 0)
    seen = pixels > 0
    frequencies = pixels[seen] / totals[seen]
    weights = np.ones(classes)
    weights[seen] = np.median(frequencies) / frequencies
    return weights


def _folder(settings: Settings, base: Base, ids: Sequence[str] | None = None) -> ImageFolder:
    return ImageFolder(
        settings.images, settings.masks, len(settings.classes), colours=settings.colours, mean=base.mean, ids=ids
    )


def _solver(settings: Settings, has_scores: bool, iterations: int) -> caffe_pb2.SolverParameter:
    chosen = OPTIMIZATIONS[settings.optimization]
    fields = dict(chosen.solver)
    if settings.optimization == "heavy" and has_scores and settings.model in zoo.names():
        # A net whose coarsest scores are learned goes on at its own published rate (a hundredth for each finer net).
        with contextlib.suppress(UsageError):
            fields["base_lr"] = read_solver(zoo.path(settings.model, "solver")).base_lr
    fields |= settings.solver
    return caffe_pb2.SolverParameter(
        **{
            "train_net": "train.prototxt",
            "lr_policy": "fixed",
            "max_iter": iterations,
            "display": 20,
            "average_loss": 20,
            "snapshot_prefix": "snapshot",
            "snapshot_after_train": False,
            "random_seed": settings.seed,
            "weights": ["initial.caffemodel"],
            **fields,
        }
    )


def run(made: Plan, say: Say = lambda line: None) -> Outcome:
    """Train as planned; everything goes into the output folder. Ctrl-C ends the training, and the best is scored.

    `train.prototxt`, `test.prototxt` (of the held-out images), `deploy.prototxt`, `solver.prototxt`, `classes.txt` and
    the lists of images (with which `fcnproto train` does the same), `initial.caffemodel`, `weights.caffemodel` (the
    best by validation mean IU), `validation.csv`, `curves.png`, `scores.json`, `confusion.png`, `samples.png`.
    """
    output = made.settings.output
    write_files(made)
    solver = Solver(output / "solver.prototxt", device=made.settings.device)
    recorder = Recorder()
    solver.listeners.append(recorder)
    tester = load(output / "deploy.prototxt").to(solver.net.device)
    solver.share_weights(tester)
    outcome = Outcome()
    folder = _folder(made.settings, made.base, made.splits["val"])
    best = math.nan
    while True:
        value = _score(made, tester, folder).metrics.mean_iu
        outcome.validations.append((solver.iter, value))
        recorder.curves.tests.setdefault("validation mean IU", []).append((solver.iter, value))
        say(f"iteration {solver.iter}: validation mean IU {value:.4f}" + _loss(recorder))
        if solver.iter == 0 or value > best or math.isnan(best):
            outcome.best, best = solver.iter, value
            tester.save(output / "weights.caffemodel")
        if solver.iter >= made.solver.max_iter or solver.stopping:
            break
        try:
            solver.step(min(made.interval, made.solver.max_iter - solver.iter))
        except KeyboardInterrupt:
            say(f"interrupted in iteration {solver.iter}; the best so far, of iteration {outcome.best}, is scored")
            break
    write_chart(output / "curves.png", recorder.curves, made.base.name)
    _write_table(output / "validation.csv", outcome.validations)
    _finish(made, outcome)
    return outcome


def _loss(recorder: Recorder) -> str:
    return f", loss {recorder.curves.smoothed[-1]:.6g}" if recorder.curves.smoothed else ""


def _score(made: Plan, net: Net, folder: ImageFolder) -> Scored:
    """The net's score on a folder's images, under the net's name of its input."""
    items = ({made.base.image: item["data"], "label": item["label"]} for item in _each(folder))
    (scored,) = score_net(net, items, {made.base.score: ("label", made.settings.classes)}, count=len(folder))
    return scored


def _each(folder: ImageFolder) -> Iterator[Any]:
    return (folder[index] for index in range(len(folder)))


def write_files(made: Plan) -> None:
    """Write what training reads. File names in it are absolute: where it is started, others may have the same names.

    Raises `UsageError` where another training's results lie in the folder.
    """
    settings, output = made.settings, made.settings.output
    if (output / "weights.caffemodel").exists():
        raise UsageError(f"{output}: holds the results of another fine-tuning; choose a new folder")
    output.mkdir(parents=True, exist_ok=True)
    for name, ids in made.splits.items():
        (output / f"{name}.txt").write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")
    (output / "classes.txt").write_text("".join(f"{name}\n" for name in settings.classes), encoding="utf-8")
    weights_file = None
    if made.class_weights is not None:
        weights_file = str((output / "class-weights.binaryproto").resolve())
        count = len(made.class_weights)
        write_blob(weights_file, np.diag(made.class_weights).astype(np.float32).reshape(1, 1, count, count))
    loss = make_loss(OPTIMIZATIONS[settings.optimization].mean_loss, weights_file)
    for part in ("train", "test"):
        write_message(output / f"{part}.prototxt", made.base.train(_data_layer(made, part), loss))
    write_message(output / "deploy.prototxt", made.base.deploy())
    solver = caffe_pb2.SolverParameter()
    solver.CopyFrom(made.solver)
    solver.train_net = str((output / "train.prototxt").resolve())
    solver.weights[:] = [str((output / "initial.caffemodel").resolve())]
    solver.snapshot_prefix = str((output / "snapshot").resolve())
    write_message(output / "solver.prototxt", solver)
    made.net.save(output / "initial.caffemodel")


def _data_layer(made: Plan, part: str) -> dict[str, Any]:
    """The options of the data layer for a part of the images: in random order and augmented for training."""
    settings = made.settings
    source: dict[str, Any] = {
        "images": str(settings.images.resolve()),
        "masks": str(settings.masks.resolve()),
        "split": str((settings.output / f"{part}.txt").resolve()),
        "classes": len(settings.classes),
        "mean": made.base.mean,
    }
    if part == "train":
        source |= {"randomize": True, "seed": settings.seed}
    if settings.colours is not None:
        source["colours"] = list(settings.colours.items())
    if settings.augmentation and part == "train":
        source["augment"] = settings.augmentation.as_dict()
    return source


def _write_table(path: Path, rows: Sequence[tuple[int, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", "mean IU"])
    writer.writerows(rows)
    with atomic_write(path, "w") as file:
        file.write(text.getvalue())


def _finish(made: Plan, outcome: Outcome) -> None:
    """Score the best weights on the held-out images, as a user would load them, and draw."""
    output, settings = made.settings.output, made.settings
    net = load(output / "deploy.prototxt", output / "weights.caffemodel", device=settings.device)
    folder = _folder(settings, made.base, made.splits["test"])
    outcome.score = _score(made, net, folder)
    result = {
        "net": made.base.name,
        "best iteration": outcome.best,
        "validation": [[step, None if math.isnan(value) else value] for step, value in outcome.validations],
        "held out": outcome.score.as_dict(),
    }
    with atomic_write(output / "scores.json", "w") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    pictures = {
        "confusion.png": confusion_picture(outcome.score),
        "samples.png": sample_picture(net, made.base, folder, settings.classes, _SAMPLES),
    }
    for name, picture in pictures.items():
        with atomic_write(output / name) as file:
            picture.save(file, "PNG")


def staged(settings: Settings) -> list[Settings]:
    """The steps that lead to a finer net: 32s, then 16s, then 8s, each from the weights of the one before.

    For the zoo's nets that begin with a coarser one's weights. With "heavy", each step has the rate that its net was
    published with, a hundredth of the one before. The weights of all but the first step are filled in by `run_staged`.
    """
    chain = [settings.model]
    while chain[0] in zoo.names() and (before := zoo.info(chain[0]).initial_weights):
        if len(before) != 1 or before[0] not in zoo.names():
            break
        chain.insert(0, before[0])
    if len(chain) == 1:
        raise UsageError(f"{settings.model} is no finer net of the zoo, so there are no stages to train it in")
    steps = []
    for number, model in enumerate(chain, start=1):
        folder = settings.output / f"{number}-{model}" if number < len(chain) else settings.output
        steps.append(replace(settings, model=model, output=folder))
    return steps


def run_staged(settings: Settings, say: Say = lambda line: None) -> Outcome:
    """Train all stages; the last one's results are in the output folder itself. See `staged`."""
    outcome = None
    weights = settings.weights
    rate = settings.solver.get("base_lr")
    for number, step in enumerate(staged(settings)):
        solver = dict(settings.solver)
        if rate is not None:
            solver["base_lr"] = rate / 100**number
        made = plan(replace(step, weights=weights, solver=solver))
        say(f"stage {number + 1}: {step.model}, base_lr {made.solver.base_lr:g}")
        outcome = run(made, say)
        weights = step.output / "weights.caffemodel"
    if outcome is None:
        raise Error("there are no stages")
    return outcome
