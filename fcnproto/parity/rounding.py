"""Whose rounding a departure is: both sides beside the same layer in float64, run on the recorded bottoms.

Caffe adds up some losses one term after the other in float32; over the pixels of an image its sum may be off by far
more than our tolerance. Such a departure is the reference's own rounding, and known as that by one of two signs:

* a loss: the same terms, added up in float32 in Caffe's order, give the reference's value;
* a layer of sums of products: each value is as near to the exact one as float32 can be over so many terms.

A value that is wrong for another reason shows neither; the limits are those of float32, not of taste.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.layers.base import Layer
from fcnproto.layers.labels import read_labels
from fcnproto.layers.loss import SMALLEST_PROBABILITY, SoftmaxWithLoss
from fcnproto.layers.sigmoid_loss import SigmoidCrossEntropyLoss
from fcnproto.net import Net
from fcnproto.parity.measures import measure
from fcnproto.parity.own_layer import Rerun, rerun
from fcnproto.parity.recording import Recording
from fcnproto.parity.report import Judgement

Array = npt.NDArray[Any]
Allowed = tuple[Array, Array]
"""(values that float32 may have given, by how much each may differ from them)."""

_UNIT = 2.0**-24
"""Half a step of float32 below 1: the largest relative error of one operation."""
_SPREADS = 6.0
"""Standard deviations of many roundings, taken as independent, that count as possible."""


def judge(net: Net, reference: Recording, name: str, ours: Array, tolerance: float) -> Judgement | None:
    """Both sides' deviation from float64 of the blob `name`; None where the reference lacks what the layer reads.

    `ours` is what the net gave. The departure is rounding where ours is within the tolerance of float64, or what
    float32 allows, and the reference's within what float32 allows.
    """
    if net.dtype != torch.float32:
        return None
    made = rerun(net, reference, name, torch.float64)
    if made is None:
        return None
    exact, theirs = made.value.cpu().numpy(), reference.blobs[name].astype(np.float64)
    if not all(np.isfinite(values).all() for values in (exact, theirs, ours)):
        return None
    allowed = _allowed(made, exact)
    rounding = False
    if allowed is not None:
        expected, spread = allowed
        limit = np.maximum(tolerance * np.abs(exact).max(initial=0.0), spread)
        rounding = bool((np.abs(theirs - expected) <= spread).all() and (np.abs(ours - exact) <= limit).all())
    return Judgement(measure(ours, exact).max_rel, measure(theirs, exact).max_rel, rounding)


def _allowed(made: Rerun, exact: Array) -> Allowed | None:
    with torch.no_grad():
        if made.layer.type in _TERMS:
            terms, divisor = _TERMS[made.layer.type](made.layer, *made.bottoms)
            return _added_up(terms.cpu().numpy().reshape(-1), divisor, exact) if exact.size == 1 else None
        if made.layer.type in ("Convolution", "Deconvolution", "InnerProduct"):
            return _products(made, exact)
    return None


def _added_up(terms: Array, divisor: float, exact: Array) -> Allowed | None:
    """The sum of a loss's terms (float32) one after the other, and how far another float32 run may be from it.

    Each addition rounds to a step of the sum so far; a term itself is known to a step of float32 at 1, since its
    probability is. None where the terms don't add up to what the layer gives: then the layer has another fault.
    """
    uncertain = 2 * _UNIT * terms.size
    whole = float(terms.sum(dtype=np.float64))
    if not np.abs(exact * divisor - whole).max() <= uncertain + 1e-6 * abs(whole):
        return None
    sums = np.add.accumulate(terms, dtype=np.float32)
    steps = np.spacing(np.abs(sums)).astype(np.float64) / 2
    spread = _SPREADS * math.sqrt(float((steps**2).sum()) / 3) + uncertain
    total = float(sums[-1]) if terms.size else 0.0
    return np.asarray(total / divisor), np.asarray((spread + 4 * _UNIT * abs(total)) / divisor)


def _softmax_terms(layer: Layer, scores: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The costs of SoftmaxWithLoss by place, as float32, and what their sum is divided by."""
    assert isinstance(layer, SoftmaxWithLoss)
    axis = layer.axis(layer.config.axis, scores.shape)
    read = read_labels(layer, labels, scores, axis, layer.ignore_label)
    chosen = scores.softmax(axis).gather(axis, read.classes).float().clamp(min=layer.FLT_MIN)
    divisor = layer.normalizer(math.prod(scores.shape[:axis]), math.prod(scores.shape[axis + 1 :]), read.ignored)
    return read.leave_out(-chosen.double().log().float()), float(divisor)


def _probability_terms(layer: Layer, probabilities: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The same of MultinomialLogisticLoss."""
    items = probabilities.flatten(1)
    chosen = items.gather(1, read_labels(layer, labels, items, 1).classes).float().clamp(min=SMALLEST_PROBABILITY)
    return -chosen.double().log().float(), float(max(len(items), 1))


def _sigmoid_terms(layer: Layer, scores: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """The same of SigmoidCrossEntropyLoss. Caffe's terms lose digits where a score is confident: 1 + e^-|x| rounds."""
    assert isinstance(layer, SigmoidCrossEntropyLoss)
    wanted = targets.reshape(scores.shape)
    ignored = None if layer.ignore_label is None else wanted.to(torch.int64) == layer.ignore_label
    rest = (1 + (-scores.abs()).exp()).float().double().log()
    terms = (scores.clamp(min=0) - scores * wanted + rest).float()
    terms = terms if ignored is None else terms.masked_fill(ignored, 0)
    return terms, float(layer.normalizer(scores.shape[0], math.prod(scores.shape[1:]), ignored))


_TERMS: dict[str, Callable[..., tuple[Tensor, float]]] = {
    "SoftmaxWithLoss": _softmax_terms,
    "MultinomialLogisticLoss": _probability_terms,
    "SigmoidCrossEntropyLoss": _sigmoid_terms,
}
"""The losses that Caffe adds up term by term; others use the sums of a linear algebra library."""


def _products(made: Rerun, exact: Array) -> Allowed:
    """Sums of products: over n terms the sum wanders by the root of its terms' squares, and rounds at every step."""
    shape, config = made.layer.blob(0).shape, made.layer.config
    by_input = made.layer.type == "Deconvolution" or (made.layer.type == "InnerProduct" and config.transpose)
    terms = math.prod(shape) // max(1, shape[1] if by_input else shape[0])
    for name in made.layer.blob_names:  # of a copy: the net's own layer stays
        getattr(made.layer, name).square_()
    sizes = made.layer(made.bottoms[0].square()).sqrt().cpu().numpy() + np.abs(exact)
    return exact, _UNIT * (2 + _SPREADS * math.sqrt(terms / 3)) * sizes
