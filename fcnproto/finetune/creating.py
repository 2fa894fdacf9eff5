"""Nets of the zoo by name, for classes of one's own: `fcnproto.create_model`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fcnproto import zoo
from fcnproto.errors import UsageError
from fcnproto.finetune.nets import first_weights, read_base
from fcnproto.meta import ByBlob, ScoreOutput, of_record
from fcnproto.net import Net, load
from fcnproto.net.described import told_in

PathLike = str | os.PathLike[str]
Classes = int | Sequence[str]


def create_model(
    name: str,
    *,
    classes: Classes | Mapping[str, Classes] | None = None,
    weights: PathLike | bool | None = None,
    device: str | torch.device | None = None,
) -> Net:
    """A net of the zoo, ready for use or for training on other classes.

    Args:
        name: one of `list_models()`, or the path of a prototxt.
        classes: how many classes, or their names; for a net of several score maps by score blob. Without, its own.
        weights: a file of weights, the name of a net of the zoo, or True for those that come along or were fetched.
            Layers of another number of classes begin at zero, but classes whose names the old net knows keep their
            weights. Without, the net begins at random values.
        device: where the parameters go; the CPU by default.

    Raises:
        UsageError: an unknown net, weights that are not here, or classes for several score maps given as one.
    """
    file = zoo.path(name, "weights") if weights is True else zoo.located(weights, "weights") if weights else None
    if name not in zoo.names() and not os.path.exists(name):
        zoo.info(name)  # raises, and says what is near
    if classes is None:
        return load(name, file, device=device)
    base = read_base(name)
    given = classes if isinstance(classes, Mapping) else {one.blob: classes for one in base.scores[:1]}
    known = {one.blob: one.known for one in base.scores}
    missing = [blob for blob, names in known.items() if blob not in given and not names]
    if missing or not set(given) <= set(known) or (len(known) > 1 and not isinstance(classes, Mapping)):
        raise UsageError(f"{name}: give the classes by score blob; these are {', '.join(map(repr, known))}")
    names = {blob: _names(given.get(blob, own)) for blob, own in known.items()}
    for output in () if file is None else _said(Path(file)):
        if given.get(output.blob) == len(output.classes):  # as many as the weights have: those
            names[output.blob] = output.classes
            given = {**given, output.blob: output.classes}
    made = read_base(name, {blob: len(each) for blob, each in names.items()})
    net, _, _ = first_weights(made, {} if file is None else {"": Path(file)}, names)
    counted = {blob for blob, value in given.items() if isinstance(value, int)}
    outputs = [replace(one, named=one.blob not in counted) for one in net.meta.outputs]
    net.meta = replace(net.meta, outputs=ByBlob(outputs))
    return net if device is None else net.to(device)


def _said(weights: Path) -> Sequence[ScoreOutput]:
    """The classes that a file of weights says, or that it is known to have by its bytes."""
    said, name = told_in(weights), zoo.weights_of(weights)
    if said is None and name is not None:
        said = of_record(zoo.info(name), f"its weights are {name}'s")
    return () if said is None else said.outputs


def _names(classes: Classes) -> tuple[str, ...]:
    """The classes' names; "class 0", "class 1", ... where only their number is given."""
    if isinstance(classes, int):
        return tuple(f"class {label}" for label in range(classes))
    return tuple(classes)
