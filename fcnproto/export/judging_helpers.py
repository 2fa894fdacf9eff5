"""Losses and Accuracy for generated modules, in nothing but PyTorch; like `helpers.py` a source to copy from."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def raise_to(x: Tensor, lowest: float) -> Tensor:
    """max(x, lowest), with the gradient let through everywhere."""
    return x + (x.clamp(min=lowest) - x).detach()


def class_labels(labels: Tensor, scores: Tensor, axis: int, ignore: int | None) -> tuple:
    """The labels laid out beside the scores (0 where ignored), and where they count."""
    index = labels.detach().long().reshape([*scores.shape[:axis], 1, *scores.shape[axis + 1 :]])
    counts = torch.ones_like(index, dtype=torch.bool) if ignore is None else index != ignore
    return index.masked_fill(~counts, 0), counts


def divisor(mode: str, counts: Tensor, items: int) -> Any:
    """What a loss's sum is divided by, at least 1: "valid" labels, "full" for all, "batch_size" items, or "none"."""
    if mode == "valid":
        return counts.sum().clamp(min=1)
    return {"full": counts.numel(), "batch_size": items, "none": 1}[mode]


def softmax_loss(scores: Tensor, labels: Tensor, axis: int, ignore: int | None, mode: str) -> Tensor:
    """Caffe's SoftmaxWithLoss; probabilities below the smallest normal float32 count as that."""
    index, counts = class_labels(labels, scores, axis, ignore)
    costs = raise_to(F.log_softmax(scores, axis).gather(axis, index), -87.33654475)
    items = math.prod(scores.shape[:axis])
    return -costs.masked_fill(~counts, 0).sum() / divisor(mode, counts, items)


def sigmoid_loss(scores: Tensor, targets: Tensor, ignore: int | None, mode: str) -> Tensor:
    """Caffe's SigmoidCrossEntropyLoss; targets whose whole part is `ignore` are left out."""
    targets = targets.detach().reshape(scores.shape)
    counts = torch.ones_like(targets, dtype=torch.bool) if ignore is None else targets.long() != ignore
    costs = scores.clamp(min=0) - scores * targets + F.softplus(-scores.abs())
    return costs.masked_fill(~counts, 0).sum() / divisor(mode, counts, scores.shape[0])


def euclidean_loss(first: Tensor, second: Tensor) -> Tensor:
    """Caffe's EuclideanLoss: the sum of (a - b)^2 / (2 N)."""
    return (first - second.reshape(first.shape)).square().sum() / (2 * first.shape[0])


def hinge_loss(scores: Tensor, labels: Tensor, squared: bool) -> Tensor:
    """Caffe's HingeLoss: v or v^2 summed, over N; v = max(0, 1 + x), at the label max(0, 1 - x)."""
    scores = scores.flatten(1)
    index = labels.detach().long().reshape(-1, 1)
    sign = torch.ones_like(scores).scatter(1, index, -1.0)
    margins = F.relu(scores * sign + 1)
    return (margins.square() if squared else margins).sum() / scores.shape[0]


def multinomial_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Caffe's MultinomialLogisticLoss: the sum of -log(max(p, 1e-20)) / N, p being the label's probability."""
    index = labels.detach().long().reshape(-1, 1)
    return -raise_to(probabilities.flatten(1).gather(1, index), 1e-20).log().sum() / probabilities.shape[0]


def infogain_loss(scores: Tensor, labels: Tensor, matrix: Tensor, axis: int, ignore: int | None, mode: str) -> Tensor:
    """Caffe's InfogainLoss: each label's row of the matrix weighs the logarithms of the probabilities."""
    index, counts = class_labels(labels, scores, axis, ignore)
    classes = scores.shape[axis]
    weights = matrix.detach().reshape(classes, classes)[index.squeeze(axis)].movedim(-1, axis)
    costs = (weights * raise_to(F.log_softmax(scores, axis), -46.05170186)).sum(axis, keepdim=True)
    items = math.prod(scores.shape[:axis])
    return -costs.masked_fill(~counts, 0).sum() / divisor(mode, counts, items)


def contrastive_loss(first: Tensor, second: Tensor, similar: Tensor, margin: float, legacy: bool) -> Tensor:
    """Caffe's ContrastiveLoss of pairs: d^2 where similar, else max(margin - d, 0)^2 (legacy: max(margin - d^2, 0))."""
    squared = (first.flatten(1) - second.flatten(1)).square().sum(1)
    gap = (margin - squared).clamp(min=0) if legacy else (margin - squared.sqrt()).clamp(min=0).square()
    pairs = similar.detach().reshape(-1).long() != 0
    return torch.where(pairs, squared, gap).sum() / (2 * first.shape[0])


def label_accuracy(scores: Tensor, labels: Tensor, axis: int, top_k: int, ignore: int | None) -> Tensor:
    """Caffe's Accuracy: the share of labels among the best scores; ties count against them."""
    index, counts = class_labels(labels, scores, axis, ignore)
    rank = (scores >= scores.gather(axis, index)).sum(axis, keepdim=True) - 1
    right = ((rank < top_k) & counts).to(scores.dtype)
    return right.sum() / counts.sum().clamp(min=1)


def class_accuracies(scores: Tensor, labels: Tensor, axis: int, top_k: int, ignore: int | None) -> Tensor:
    """The accuracy of each class, 0 for classes without labels."""
    index, counts = class_labels(labels, scores, axis, ignore)
    rank = (scores >= scores.gather(axis, index)).sum(axis, keepdim=True) - 1
    right = ((rank < top_k) & counts).to(scores.dtype)
    empty = scores.new_zeros(scores.shape[axis])
    found = empty.scatter_add(0, index.flatten(), right.flatten())
    return found / empty.scatter_add(0, index.flatten(), counts.to(scores.dtype).flatten()).clamp(min=1)
