"""Labels of losses and Accuracy: class numbers of any dtype and shape, checked and laid out beside the scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fcnproto.layers.base import Layer


class Labels(NamedTuple):
    """What `read_labels` gives; all tensors have the scores' shape with extent 1 at the class axis."""

    classes: Tensor
    """int64 class numbers, 0 where ignored or out of range: safe to gather with."""
    ignored: Tensor | None
    """True where the label is the one to ignore; None where none is."""
    wrong: Tensor | None
    """True where the label is out of range and not ignored; None where the values were checked at once."""

    def leave_out(self, values: Tensor) -> Tensor:
        """`values` with 0 at ignored labels, and NaN at wrong ones, so that no wrong label stays unnoticed."""
        if self.ignored is not None:
            values = values.masked_fill(self.ignored, 0)
        return values if self.wrong is None else values.masked_fill(self.wrong, math.nan)


def check_items(layer: Layer, first: Tensor, second: Tensor) -> None:
    """Fail unless both bottoms of a loss have the same first extent (Caffe's rule for every loss)."""
    if first.dim() == 0 or second.dim() == 0 or first.shape[0] != second.shape[0]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        layer.fail(f"the first extents of bottoms 0 and 1 must agree, got shapes {shapes}")


def read_labels(layer: Layer, labels: Tensor, scores: Tensor, axis: int, ignore: int | None = None) -> Labels:
    """One label for each place of `scores` outside `axis`, the class axis; fractions are cut off as in Caffe.

    `labels` may have any shape with that count. A label that is no class and not `ignore` is an error on the CPU. On
    a GPU, where looking at the values would make the processor wait, and while a graph is being captured, it is
    marked in `wrong` instead and makes the result NaN.
    """
    count = scores.shape[axis]
    shape = [*scores.shape[:axis], 1, *scores.shape[axis + 1 :]]
    if labels.numel() != math.prod(shape):
        layer.fail(
            f"scores of shape {tuple(scores.shape)} with classes at axis {axis} need {math.prod(shape)} labels, "
            f"got shape {tuple(labels.shape)}"
        )
    read = place_labels(labels, scores, axis, ignore)
    assert read.wrong is not None
    if read.classes.device.type == "cpu" and not torch.compiler.is_compiling():
        if bool(read.wrong.any()):
            values = labels.detach().to(torch.int64).reshape(shape)
            _fail_at(layer, values[read.wrong], count, labels)
        return read._replace(wrong=None)
    return read


def place_labels(labels: Tensor, scores: Tensor, axis: int, ignore: int | None = None) -> Labels:
    """One label for each place of `scores` outside `axis`, the class axis, laid out like the scores."""
    shape = [*scores.shape[:axis], 1, *scores.shape[axis + 1 :]]
    index = labels.detach().to(device=scores.device, dtype=torch.int64).reshape(shape)
    ignored = None if ignore is None else index == ignore
    wrong = (index < 0) | (index >= scores.shape[axis])
    if ignored is not None:
        wrong = wrong & ~ignored
        index = index.masked_fill(ignored, 0)
    return Labels(index.masked_fill(wrong, 0), ignored, wrong)


def _fail_at(layer: Layer, wrong: Tensor, count: int, labels: Tensor) -> None:
    name = repr(layer.param.bottom[1]) if len(layer.param.bottom) > 1 else "bottom 1"
    layer.fail(
        f"label {int(wrong[0])} in {name} is outside of 0..{count - 1}, and so are {wrong.numel()} of {labels.numel()} "
        "labels; correct them, or say with ignore_label which label to leave out"
    )
