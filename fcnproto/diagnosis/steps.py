"""Rules that need a few steps: the course of the loss, gradients, activations and updates. Nothing is written.

The steps are those of the solver, on a copy of the net; a net without a solver is trained with Adam.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fcnproto.checking.findings import Finding
from fcnproto.checking.kinds import found
from fcnproto.diagnosis.batches import Batch, Batches
from fcnproto.diagnosis.samples import ignored_label
from fcnproto.diagnosis.subject import Subject
from fcnproto.diagnosis.watching import Row, Watch, tiny_weights, updates, weights_now
from fcnproto.errors import GraphError, LayerError
from fcnproto.net import Net
from fcnproto.net.roles import judged_blobs, score_blobs
from fcnproto.schema import caffe_pb2
from fcnproto.solver.policies import LearningRatePolicy
from fcnproto.solver.settings import make_optimizer

_LIKE_CHANCE, _STAYS = 0.02, 1e-4
"""Shares of ln K: how near to it a loss is that knows nothing, and how much it moves where anything is learned."""
_FEW = 5
_FADED, _GROWN = 1e-4, 1e3
"""The gradient's norm behind the first layer over that behind the last one. Healthy nets reach a thousandth (small
Gaussian fillers, average pooling), but not a hundred: batch normalisation alone makes 1.2 a layer of it, msra 1."""
_DEAD = 0.95
_GAP = 20.0
_ALIKE = 1e-5
_SLOW, _FAST, _REACH = 1e-5, 1e-1, 1e-2
"""Updates over weights: too small (unless max_iter of them reach so far), too large."""
_MEMORISED = 0.5
"""Of the loss of the best constant answer: a batch whose loss is below it is being learned by heart."""
_RATES = (1e-3, 1e-2, 1e-4)
OVERFIT_STEPS = 100


@dataclass
class Head:
    """A blob of scores with the blob of its labels.

    Attributes:
        score, label: the blobs; no label in a net for use.
        ignored: the label that the loss leaves out.
        losses: the mean loss of a label in each step (natural logarithm), as far as there are labels.
        last: the scores of the last step.
    """

    score: str
    label: str | None = None
    ignored: int | None = None
    losses: list[float] = field(default_factory=list)
    last: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def chance(self) -> float | None:
        """The loss of who knows nothing: ln K."""
        return math.log(self.last.shape[1]) if self.last.dim() > 1 and self.last.shape[1] > 1 else None

    def loss(self, values: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> float | None:
        """The mean loss of a label of a batch; None without labels."""
        if self.label is None or self.label not in values:
            return None
        return mean_loss(outputs[self.score], values[self.label], self.ignored)


@dataclass
class Course:
    """What some steps showed.

    Attributes:
        heads: what has scores and labels.
        rows: gradients, updates and activations by layer, of the last step.
        images: names of images with their loss after the steps, the worst first.
        fastest: the largest update over weights of any step, by layer.
        overfit: steps done on one batch, and its loss before and after; None where that was not asked.
    """

    heads: list[Head] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    images: list[tuple[Batch, float]] = field(default_factory=list)
    fastest: dict[str, float] = field(default_factory=dict)
    overfit: tuple[int, float, float] | None = None

    @property
    def losses(self) -> list[float]:
        """The mean loss of a label of the first head, in each step."""
        return self.heads[0].losses if self.heads else []


def mean_loss(scores: Tensor, labels: Tensor, ignored: int | None) -> float | None:
    """The mean of -log p of the labels under scores (N, C, ...); None where no label counts."""
    rows = scores.detach().movedim(1, -1).reshape(-1, scores.shape[1])
    index = labels.detach().reshape(-1).to(rows.device, torch.int64)
    if len(index) != len(rows):
        return None
    keep = (index >= 0) & (index < rows.shape[1])
    if ignored is not None:
        keep &= index != ignored
    if not bool(keep.any()):
        return None
    return float(-rows.double().log_softmax(1)[keep].gather(1, index[keep, None]).mean())


def heads_of(net: Net) -> list[Head]:
    """What has scores: with the labels that they are judged by, where the net knows them. `GraphError` without any."""
    judged = judged_blobs(net)
    found = [Head(score, label, ignored_label(net, label)) for score, label in judged.items()]
    return found or [Head(score) for score in score_blobs(net)[:1]]


def run_steps(subject: Subject, net: Net, batches: Batches, steps: int) -> tuple[Course, list[Finding]]:
    """Train `net` (a copy that may be changed) for some steps; what was seen, and what is wrong with it."""
    param = _solver_of(subject)
    course, watch = Course(), Watch(net)
    try:
        course.heads = heads_of(net)
    except GraphError:
        return course, []
    optimizer, policy = make_optimizer(param, net), LearningRatePolicy(param)
    for index in range(steps):
        batch = batches.turn(index)
        optimizer.zero_grad(set_to_none=True)
        before = weights_now(net)
        with watch:
            outputs = net(batch.values, blobs=[head.score for head in course.heads])
            loss = net.loss(outputs) if net.graph.weighted() else None
            if loss is not None and loss.requires_grad:
                loss.backward()
        if watch.broken is not None:
            name, blob = watch.broken
            seen = f"step {index}: blob {blob!r} is the first that holds values that are no numbers ({batch.name})"
            return course, [found("not-a-number", [name], seen)]
        for head in course.heads:
            head.last = outputs[head.score].detach()
            value = head.loss(batch.values, outputs)
            head.losses += [] if value is None else [value]
        _update(optimizer, policy, index)
        changes = updates(net, before)
        course.rows = watch.rows(changes)
        course.fastest = {name: max(value, course.fastest.get(name, 0.0)) for name, value in changes.items()}
    if not steps:
        return course, []
    course.images = _by_image(net, batches, course.heads)
    return course, list(_rules(subject, net, course, watch))


def _update(optimizer: Any, policy: LearningRatePolicy, index: int) -> None:
    for group in optimizer.param_groups:
        group["lr"], group["iteration"] = policy(index), index
    optimizer.step()


def _solver_of(subject: Subject) -> caffe_pb2.SolverParameter:
    param = caffe_pb2.SolverParameter()
    if subject.solver is None:
        param.CopyFrom(_adam(_RATES[0]))
        return param
    param.CopyFrom(subject.solver)
    param.iter_size = 1
    return param


def _adam(rate: float) -> caffe_pb2.SolverParameter:
    return caffe_pb2.SolverParameter(
        type="Adam", base_lr=rate, momentum=0.9, momentum2=0.999, delta=1e-8, lr_policy="fixed"
    )


def _by_image(net: Net, batches: Batches, heads: Sequence[Head]) -> list[tuple[Batch, float]]:
    """The batches with their mean losses (the sum of all heads'), the worst first."""
    result = []
    with torch.no_grad():
        for batch in batches.items:
            outputs = {} if batch.drawn else net(batch.values, blobs=[head.score for head in heads])
            values = [value for head in heads if outputs and (value := head.loss(batch.values, outputs)) is not None]
            result += [(batch, sum(values))] if values else []
    return sorted(result, key=lambda pair: -pair[1])


def _rules(subject: Subject, net: Net, course: Course, watch: Watch) -> Iterator[Finding]:
    for head in course.heads:
        yield from _loss(head)
    yield from _gradients(net, course.rows)
    for name, share, channels in watch.dead():
        if share >= _DEAD:
            seen = f"{round(share * channels)} of {channels} channels are 0 everywhere in every step"
            yield found("dead-relu", [name], seen)
    for head in course.heads:
        yield from _scores(head)
    if subject.solver is not None:
        yield from _updates(watch.untrained, course, subject.solver)


def _loss(head: Head) -> Iterator[Finding]:
    if head.chance is None or len(head.losses) < _FEW:
        return
    first, end = head.losses[0], head.losses[-1]
    near = abs(first - head.chance) < _LIKE_CHANCE * head.chance
    if near and max(head.losses) - min(head.losses) < _STAYS * head.chance:
        seen = f"the loss of a label is {first:.5g}, after {len(head.losses)} steps {end:.5g}; ln K is"
        yield found("constant-loss", f"blob {head.score!r}", f"{seen} {head.chance:.5g}")


def _gradients(net: Net, rows: Sequence[Row]) -> Iterator[Finding]:
    """Gradients of the layers' tops, compared from the first to the last layer that is no untrained score layer."""
    tiny = tiny_weights(net)
    chain = [row for row in rows if row.gradient is not None and row.name not in tiny]
    if len(chain) < 2:
        return
    first, end = chain[0], chain[-1]
    assert first.gradient is not None and end.gradient is not None
    if end.gradient == 0 or not math.isfinite(first.gradient):
        return
    ratio = first.gradient / end.gradient
    seen = f"the gradient's norm is {first.gradient:.2g} behind {first.name!r}, {end.gradient:.2g} behind {end.name!r}"
    if ratio < _FADED:
        yield found("vanishing-gradient", [first.name], seen)
    elif ratio > _GROWN:
        yield found("exploding-gradient", [first.name], seen)


def _scores(head: Head) -> Iterator[Finding]:
    scores = head.last
    if scores.dim() < 2 or scores.shape[1] < 2:
        return
    where, largest = f"blob {head.score!r}", float(scores.abs().max())
    best = scores.topk(2, dim=1).values
    gap = float((best[:, 0] - best[:, 1]).median())
    if gap > _GAP and head.chance is not None and head.losses and head.losses[-1] > head.chance:
        seen = f"the best score leads by {gap:.3g} in half of the places, and a label costs {head.losses[-1]:.3g}"
        yield found("saturated-scores", where, seen)
    if not largest > 0:
        return
    by_class = float((scores.amax(1) - scores.amin(1)).max())
    flat = scores.movedim(1, 0).flatten(1)
    by_place = float((flat.amax(1) - flat.amin(1)).max()) if flat.shape[1] > 1 else math.inf
    if by_class < _ALIKE * largest:
        yield found("constant-scores", where, f"all {scores.shape[1]} classes have one score at every place")
    elif by_place < _ALIKE * largest:
        yield found("constant-scores", where, f"each class has one score at all {flat.shape[1]} places")


def _updates(untrained: set[str], course: Course, solver: caffe_pb2.SolverParameter) -> Iterator[Finding]:
    """Layers whose updates are too large in any step, or too small in the last one."""
    gain = 1 / max(1 - solver.momentum, 1e-3)
    slow: dict[str, float] = {}
    fast: dict[str, float] = {}
    for row in course.rows:
        if row.update is None or row.name in untrained:
            continue
        largest = course.fastest.get(row.name, row.update)
        if largest > _FAST:
            fast[row.name] = largest
        elif row.update * gain < _SLOW and row.update * gain * solver.max_iter < _REACH:
            slow[row.name] = row.update
    for which, value, what in ((slow, min, "smallest"), (fast, max, "largest")):
        if which:
            seen = f"an update is {value(which.values()):.2g} of the weights ({what} of {len(course.rows)} layers)"
            yield found("update-ratio", list(which), seen)


# One batch by heart.


def memorise(net: Net, batches: Batches, steps: int) -> tuple[tuple[int, float, float] | None, list[Finding]]:
    """Try to learn one batch by heart with Adam: (steps, loss before, loss after), and a finding where it failed.

    The batch is the one whose labels differ most. Learned by heart is what has half of the loss of the best constant
    answer; the losses of several labellings are added. `net` is not changed.
    """
    try:
        heads = [head for head in heads_of(net) if head.label is not None]
    except GraphError:
        return None, []
    known = [(least, one) for one in batches.items if (least := _least(heads, one.values)) is not None]
    if not known or not net.graph.weighted():
        return None, []
    constant, batch = max(known, key=lambda pair: pair[0])
    results = []
    for rate in _RATES:
        done, before, after = _learn(copy.deepcopy(net), batch, steps, rate, heads, constant)
        results.append((done, before, after))
        if after < _MEMORISED * max(constant, 1e-3):
            return results[-1], []
    best = min(results, key=lambda result: result[2])
    seen = (
        f"{batch.name}: after {best[0]} steps of Adam (rates {', '.join(map(str, _RATES))}) a label costs "
        f"{best[2]:.3g}, before {best[1]:.3g}; the best constant answer costs {constant:.3g}"
    )
    return best, [found("not-memorised", f"blob {heads[0].score!r}", seen)]


def _least(heads: Sequence[Head], values: Mapping[str, Tensor]) -> float | None:
    """The loss of the best constant answers; None without labels."""
    labelled = [(values[head.label], head.ignored) for head in heads if head.label is not None and head.label in values]
    return sum(entropy(labels, ignored) for labels, ignored in labelled) if labelled else None


def entropy(labels: Tensor, ignored: int | None) -> float:
    """The mean loss of the best answer that is the same everywhere."""
    values = labels.reshape(-1).to(torch.int64)
    if ignored is not None:
        values = values[values != ignored]
    if not len(values):
        return 0.0
    shares = values.unique(return_counts=True)[1].double() / len(values)
    return float(-(shares * shares.log()).sum())


def _learn(
    net: Net, batch: Batch, steps: int, rate: float, heads: Sequence[Head], constant: float
) -> tuple[int, float, float]:
    param = _adam(rate)
    optimizer, policy = make_optimizer(param, net), LearningRatePolicy(param)
    first = last = math.inf
    for index in range(steps):
        optimizer.zero_grad(set_to_none=True)
        try:
            outputs = net(batch.values, blobs=[head.score for head in heads])
        except LayerError:
            break
        values = [value for head in heads if (value := head.loss(batch.values, outputs)) is not None]
        last = sum(values) if values and all(map(math.isfinite, values)) else math.inf
        first = last if index == 0 else first
        loss = net.loss(outputs)
        if last < _MEMORISED * max(constant, 1e-3) or not loss.requires_grad or not math.isfinite(last):
            return index, first, last
        loss.backward()
        _update(optimizer, policy, index)
    return steps, first, last
