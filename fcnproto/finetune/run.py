"""Fine-tuning from start to end: training, keeping the best, going on after an interruption, scoring."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcnproto import zoo
from fcnproto.atomic import atomic_write
from fcnproto.data.datasets import ImageFolders
from fcnproto.errors import Error, UsageError
from fcnproto.finetune import progress
from fcnproto.finetune.data import (
    balanced_weights,
    band_counts,
    check_classes,
    class_names,
    count_pixels,
    folders,
    split,
    with_statistics,
)
from fcnproto.finetune.nets import first_weights, read_base
from fcnproto.finetune.output import per_map, write_files, write_table
from fcnproto.finetune.pictures import sample_picture
from fcnproto.finetune.planned import Plan
from fcnproto.finetune.progress import Progress
from fcnproto.finetune.rates import find_rate
from fcnproto.finetune.settings import OPTIMIZATIONS, Settings
from fcnproto.net import Net, load
from fcnproto.net.assigning import by_name
from fcnproto.pictures.chart import write_chart
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_solver
from fcnproto.scoring import Scored, confusion_picture, score_net
from fcnproto.solver import Request, Solver
from fcnproto.solver.listeners import Listener
from fcnproto.solver.progress import Recorder
from fcnproto.solver.signals import SecondInterrupt

Say = Callable[[str], None]
Asked = Callable[[], Request]

_SAMPLES = 6
_ADAM_KEPT, _ADAM_BEGUN = 1e-4, 3e-4
"""Adam's rate for nets whose scores are learned already, and for those that begin with other weights."""


@dataclass
class Outcome:
    """What came of it: validation mean IU by iteration, the iteration of the best, the scores on held-out images (one
    for each map of scores; the mean IU of several maps is their mean). `begun_at` is the iteration it went on from,
    `stopped` whether it was stopped."""

    validations: list[tuple[int, float]] = field(default_factory=list)
    best: int = 0
    scores: list[Scored] = field(default_factory=list)
    begun_at: int = 0
    stopped: bool = False

    @property
    def improved(self) -> bool:
        """Whether a validation after some training was better than the one before it."""
        values = [value for _, value in self.validations if not math.isnan(value)]
        return len(values) < 2 or self.validations[0][0] != 0 or max(values[1:]) > values[0]

    @property
    def score(self) -> Scored | None:
        """The score of the first map."""
        return self.scores[0] if self.scores else None


def plan(settings: Settings, verify: bool = True) -> Plan:
    """Look at everything that a fine-tuning needs, and write nothing.

    With `verify` every image and mask is read once: a file that can't be used shows before the training, not in it.

    Raises `UsageError` and `DataError` where something is missing or doesn't fit.
    """
    plain = read_base(settings.model, reading=settings.reading)
    classes = class_names(settings, plain)
    counts = {blob: len(names) for blob, names in classes.items()}
    bands = band_counts(settings, plain)
    base = read_base(settings.model, counts, settings.preprocessing, bands, settings.reading)
    data = folders(settings, base)
    splits = split(data.ids, settings, base)
    base = with_statistics(settings, base, data, splits["train"])
    parts = {part: folders(settings, base, ids, part) for part, ids in splits.items()}
    pixels = count_pixels(parts) if verify else {}
    if not settings.allow_empty_classes:
        names = {one.label: classes[one.blob] for one in base.scores}
        check_classes(pixels, names, {label: one.folder for label, one in data.masks.items()})
    torch.manual_seed(settings.seed)
    net, report, has_scores = first_weights(base, by_name(settings.weights), classes)
    iterations = settings.iterations or max(2000, 20 * len(splits["train"]))
    interval = settings.interval or max(1, iterations // 10)
    solver = _solver(settings, has_scores, iterations)
    made = Plan(settings, base, net, report, splits, solver, interval, classes, pixels)
    if settings.class_weights == "balanced":
        train = folders(settings, base, splits["train"])
        made.class_weights = {one.blob: balanced_weights(train, one.label) for one in base.scores}
    return made


def _solver(settings: Settings, has_scores: bool, iterations: int) -> caffe_pb2.SolverParameter:
    chosen = OPTIMIZATIONS[settings.optimization]
    fields = dict(chosen.solver)
    if settings.optimization == "heavy" and has_scores and settings.model in zoo.names():
        # A net whose coarsest scores are learned goes on at its own published rate (a hundredth for each finer net).
        with contextlib.suppress(UsageError):
            fields["base_lr"] = read_solver(zoo.path(settings.model, "solver")).base_lr
    if settings.optimization == "adam" and settings.weights:
        # Steps of Adam's size soon undo what is learned already.
        fields["base_lr"] = _ADAM_KEPT if has_scores else _ADAM_BEGUN
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


def run(
    made: Plan,
    say: Say = lambda line: None,
    asked: Asked = lambda: Request.NONE,
    listeners: Sequence[Listener] = (),
) -> Outcome:
    """Train as planned; everything goes into the output folder.

    `train.prototxt`, `test.prototxt` (of the held-out images), `deploy.prototxt`, `solver.prototxt`, `classes.txt` and
    the lists of images (with which `fcnproto train` does the same), `initial.caffemodel`, `weights.caffemodel` (the
    best by validation mean IU), `validation.csv`, `curves.png`, `scores.json`, `confusion.png`, `samples.png`.

    Where the folder holds the same fine-tuning, interrupted, it goes on from its last validation. `asked` is asked
    after each iteration whether to stop; stopped so, or by Ctrl-C, it scores the best so far and can be gone on with.
    `listeners` hear of every iteration, as a solver's. What is no better than before training is said so.

    Raises `UsageError` where the folder holds the results of another fine-tuning, or of this one finished.
    """
    output = made.settings.output
    before = progress.begun(output, made.request())
    if before is not None and before.has_done(made.solver.max_iter):
        raise UsageError(
            f"{output}: holds the results of this fine-tuning, which has done its {before.finished} iterations; give "
            "more iterations to go on, or choose a new folder"
        )
    fresh = before is None or before.iteration < 0
    reached = Progress(made.request()) if before is None or fresh else before
    if made.settings.lr_finder:
        made.solver.base_lr = _found_rate(made, say) if fresh else read_solver(output / "solver.prototxt").base_lr
    write_files(made, fresh)
    reached.write(output)
    training = _Training(made, reached, say, asked, listeners)
    training.run()
    write_chart(output / "curves.png", reached.curves, made.base.name)
    write_table(output / "validation.csv", reached.validations)
    outcome = Outcome(reached.validations, reached.best, begun_at=training.begun_at, stopped=training.stopped)
    if not outcome.improved:
        last = [value for _, value in reached.validations if not math.isnan(value)][-1]
        say(
            f"no better than before training: validation mean IU was {reached.validations[0][1]:.4f} before and is "
            f"{last:.4f} now; weights.caffemodel holds the values of before (a lower --base-lr, --lr-finder, more "
            "--iterations or more images may help)"
        )
    _finish(made, outcome)
    reached.finished = reached.iteration
    reached.write(output)
    return outcome


def _found_rate(made: Plan, say: Say) -> float:
    """The rate that a short training with growing rates finds; `lr-finder.csv` shows how it went."""
    trial = find_rate(made)
    made.settings.output.mkdir(parents=True, exist_ok=True)
    rows = zip(trial.rates, trial.losses, strict=True)
    with atomic_write(made.settings.output / "lr-finder.csv", "w") as file:
        file.write("rate,smoothed loss\n" + "".join(f"{rate:.6g},{loss:.6g}\n" for rate, loss in rows))
    tried = f"{len(trial.rates)} steps from {trial.rates[0]:.2g} to {trial.rates[-1]:.2g}"
    say(f"learning rate {trial.rate:.3g}, found in {tried} (lr-finder.csv)")
    return trial.rate


class _Training:
    """The loop of training and validating, with what it has reached."""

    def __init__(self, made: Plan, reached: Progress, say: Say, asked: Asked, listeners: Sequence[Listener]) -> None:
        self.made, self.reached, self.say = made, reached, say
        self.output = made.settings.output
        self.solver = Solver(self.output / "solver.prototxt", device=made.settings.device, **made.base.reading)
        self.solver.request = asked
        recorder = Recorder()
        recorder.curves = reached.curves
        self.solver.listeners += [recorder, *listeners]
        self.tester = load(self.output / "deploy.prototxt", **made.base.reading).to(self.solver.net.device)
        if reached.iteration >= 0:
            self.solver.restore(self.output / reached.snapshot)
            say(f"goes on at iteration {self.solver.iter}")
        self.begun_at, self.stopped = self.solver.iter, False
        self.solver.share_weights(self.tester)
        self.validation = folders(made.settings, made.base, made.splits["val"], "val")

    def run(self) -> None:
        """Train and validate until all is done, or until stopped."""
        solver, interval = self.solver, self.made.interval
        if self.reached.iteration < 0:
            self._validate()
        while solver.iter < self.made.solver.max_iter and not solver.stopping:
            try:
                solver.step(min(interval - solver.iter % interval, self.made.solver.max_iter - solver.iter))
            except SecondInterrupt:
                raise
            except KeyboardInterrupt:
                self.say(
                    f"interrupted in iteration {solver.iter}; the best so far, of iteration {self.reached.best}, is "
                    "scored; the same command goes on from the last validation"
                )
                self.stopped = True
                return
            self._validate()
            solver.obey()
        self.stopped = solver.stopping
        if solver.iter < self.made.solver.max_iter:
            self.say(f"stopped after iteration {solver.iter}; the same command goes on from here")

    def _validate(self) -> None:
        """Measure, keep the weights if they are the best, and note how far it has come."""
        solver, reached, made = self.solver, self.reached, self.made
        value = float(np.mean([one.metrics.mean_iu for one in _score(made, self.tester, self.validation)]))
        smoothed = reached.curves.smoothed
        loss = f", loss {smoothed[-1]:.6g}" if smoothed else ""
        self.say(f"iteration {solver.iter}: validation mean IU {value:.4f}{loss}")
        best = reached.best_value
        if not reached.validations or value > best or math.isnan(best):
            reached.best = solver.iter
            self.tester.save(self.output / "weights.caffemodel")
        reached.validations.append((solver.iter, value))
        reached.curves.tests.setdefault("validation mean IU", []).append((solver.iter, value))
        previous, reached.iteration = reached.snapshot, solver.iter
        reached.snapshot = Path(solver.snapshot()).name
        reached.write(self.output)
        if previous:
            for path in self.output.glob(f"{previous.partition('.')[0]}.*"):
                path.unlink()


def _score(made: Plan, net: Net, data: ImageFolders) -> list[Scored]:
    """The net's scores on images, one for each of its maps of scores."""
    outputs = {one.blob: (one.label, made.classes[one.blob]) for one in made.base.scores}
    return score_net(net, _each(data), outputs, count=len(data), allow_empty_classes=True)


def _each(data: ImageFolders) -> Iterator[Any]:
    return (data[index] for index in range(len(data)))


def _finish(made: Plan, outcome: Outcome) -> None:
    """Score the best weights on the held-out images, as a user would load them, and draw."""
    output, settings = made.settings.output, made.settings
    best = output / "weights.caffemodel"
    net = load(output / "deploy.prototxt", best, device=settings.device, **made.base.reading)
    data = folders(settings, made.base, made.splits["test"], "test")
    outcome.scores = _score(made, net, data)
    several = len(outcome.scores) > 1
    result = {
        "net": made.base.name,
        "best iteration": outcome.best,
        "better than before training": outcome.improved,
        "validation": [[step, None if math.isnan(value) else value] for step, value in outcome.validations],
        "held out": {one.blob: one.as_dict() for one in outcome.scores} if several else outcome.scores[0].as_dict(),
    }
    with atomic_write(output / "scores.json", "w") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    by_blob = {one.blob: one for one in outcome.scores}
    pictures = {name: confusion_picture(by_blob[blob]) for name, blob in per_map(made, "confusion.png").items()}
    pictures["samples.png"] = sample_picture(net, made.base, data, made.classes, _SAMPLES)
    for name, picture in pictures.items():
        with atomic_write(output / name) as file:
            picture.save(file, "PNG")


def staged(settings: Settings) -> list[Settings]:
    """The steps that lead to a finer net: 32s, then 16s, then 8s, each from the weights of the one before.

    For the zoo's nets that begin with a coarser one's weights. From step to step the rate is divided by 100; with
    "heavy" and no rate of the user's own, each net's is the one that it was published with. Adam keeps its rate, since
    its steps don't grow with the gradients. The weights of all but the first step are filled in by `run_staged`.
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
        solver = dict(settings.solver)
        chosen = OPTIMIZATIONS[settings.optimization]
        if number > 1 and settings.optimization == "heavy" and "base_lr" not in solver:
            solver["base_lr"] = read_solver(zoo.path(model, "solver")).base_lr
        elif number > 1 and chosen.solver["type"] == "SGD":
            solver["base_lr"] = {**chosen.solver, **solver}["base_lr"] / 100 ** (number - 1)
        steps.append(replace(settings, model=model, output=folder, solver=solver))
    return steps


def run_staged(
    settings: Settings,
    say: Say = lambda line: None,
    asked: Asked = lambda: Request.NONE,
    listeners: Sequence[Listener] = (),
) -> Outcome:
    """Train all stages; the last one's results are in the output folder itself. See `staged` and `run`.

    Stages that are finished already are passed over. Stopped in one, it ends there.
    """
    outcome = None
    weights = settings.weights
    steps = staged(settings)
    for number, step in enumerate(steps):
        made = plan(replace(step, weights=weights), verify=number == 0)
        weights = step.output / "weights.caffemodel"
        done = progress.begun(step.output, made.request()) if number < len(steps) - 1 else None
        if done is not None and done.has_done(made.solver.max_iter):
            say(f"stage {number + 1}: {step.model} is finished")
            continue
        say(f"stage {number + 1}: {step.model}, base_lr {made.solver.base_lr:g}")
        outcome = run(made, say, asked, listeners)
        if outcome.stopped:
            break
    if outcome is None:
        raise Error("there are no stages")
    return outcome
