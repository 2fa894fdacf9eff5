"""Weights of classes in a SoftmaxWithLoss: SegNet's `loss_param.class_weighting`, DeepLab's `softmaxloss_param`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fcnproto.layers.base import Layer
from fcnproto.layers.files import named_file
from fcnproto.layers.labels import Labels

BY_WEIGHT = "BY_WEIGHT"
"""The mode of a loss that divides by the sum of its labels' weights."""


class ClassWeights(NamedTuple):
    """How much the labels of each class count, and which labels don't."""

    values: tuple[float, ...]
    """One for each class; empty: as many times less as there are labels of the class in the batch."""
    ignored: tuple[int, ...] = ()
    divides: bool = False
    """Whether the loss is divided by the sum of the labels' weights."""


def read_class_weights(layer: Layer, classes: int) -> ClassWeights | None:
    """What the settings say of weights; None where nothing. The layer fails where they don't fit `classes`."""
    settings, param = layer.param.loss_param, layer.param
    if param.HasField("softmaxloss_param"):
        if param.HasField("loss_param"):
            layer.fail("loss_param and softmaxloss_param (DeepLab's) are both given; keep one")
        source = param.softmaxloss_param.weight_source
        values = _read_file(layer, source, classes) if source else (1.0,) * classes
        return ClassWeights(values, tuple(param.softmaxloss_param.ignore_label), divides=True)
    values = tuple(settings.class_weighting)
    if not settings.weight_by_label_freqs:
        if values:
            layer.warn("loss_param.class_weighting has no effect without weight_by_label_freqs: true")
        return None
    if values and len(values) != classes:
        layer.fail(f"loss_param.class_weighting has {len(values)} values; {classes} classes need one each")
    return ClassWeights(values)


def _read_file(layer: Layer, name: str, classes: int) -> tuple[float, ...]:
    """The numbers of a text file, one for each class, none below 0."""
    what = "softmaxloss_param.weight_source"
    path = named_file(layer, name, what)
    try:
        values = tuple(float(word) for word in path.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        layer.fail(f"{what} {str(path)!r} is not a file of numbers ({error})")
    if len(values) != classes or not all(0 <= value < math.inf for value in values):
        layer.fail(f"{what} {str(path)!r} must hold {classes} numbers from 0 on, one for each class")
    return values


def join_labels(labels: Tensor, joined: tuple[int, ...]) -> Tensor:
    """The labels, whole numbers of them, where each of those in `joined` has become the first of these."""
    whole = labels.detach().to(torch.int64)
    for label in joined[1:]:
        whole = whole.masked_fill(whole == label, joined[0])
    return whole


def label_weights(read: Labels, weights: tuple[float, ...], classes: int, like: Tensor) -> Tensor:
    """The weight of each label, 0 where it is ignored; without `weights` 1 / how many labels the batch has of it."""
    kept = read.leave_out(torch.ones_like(like))
    if weights:
        by_class = like.new_tensor(weights)
    else:
        counts = like.new_zeros(classes).scatter_add(0, read.classes.flatten(), kept.flatten())
        by_class = 1 / counts.clamp(min=1)
    return by_class[read.classes] * kept
