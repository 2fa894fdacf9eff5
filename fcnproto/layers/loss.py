"""Loss layers over classes: SoftmaxWithLoss, MultinomialLogisticLoss and InfogainLoss; and what all losses share.

Their tops are scalars without axes; gradients are Caffe's, also where Caffe's is not the derivative.
Labels never get a gradient, nor does what Caffe only hands out: the probabilities in a second top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fcnproto.errors import WeightsError
from fcnproto.layers.backward import Reads
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.dtypes import at_least_float32
from fcnproto.layers.examples import Draw, positive
from fcnproto.layers.files import named_file
from fcnproto.layers.labels import Labels, check_items, place_labels, read_labels
from fcnproto.layers.loss_weights import BY_WEIGHT, join_labels, label_weights, read_class_weights
from fcnproto.layers.plain import Piece, Request, Unsayable, number
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2
from fcnproto.schema.weights import read_blob

_Mode = caffe_pb2.LossParameter

SMALLEST_PROBABILITY = 1e-20
"""Below this, MultinomialLogisticLoss and InfogainLoss take a probability for this (SoftmaxWithLoss: FLT_MIN)."""


LOG_FLT_MIN = -126 * 0.6931471805599453
"""The logarithm of the smallest normal float32, which SoftmaxWithLoss takes for that of smaller probabilities."""
LOG_SMALLEST = -46.051701859880914
"""The logarithm of `SMALLEST_PROBABILITY`."""


class LossLayer(Layer):
    """What the losses have in common: two bottoms, the second one labels, one top with loss weight 1."""

    bottoms = (2, 2)
    kind = "loss"
    is_loss = True
    judges = True
    force_backward_refuses: ClassVar[tuple[int, ...]] = (1,)
    index_bottoms: ClassVar[tuple[int, ...]] = (1,)
    fork_fields: ClassVar[tuple[str, ...]] = ("loss_param.pre_fixed_normalizer",)
    default_mode: ClassVar[int] = _Mode.VALID
    """How the sum is divided where `loss_param` does not say."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        # Read here once: torch.compile can't follow HasField in forward.
        settings = self.param.loss_param
        self.ignore_label = settings.ignore_label if settings.HasField("ignore_label") else None
        # Caffe's rule: `normalization`, else the old `normalize` (true VALID, false BATCH_SIZE), else the default.
        self.mode = self.default_mode
        if settings.HasField("normalization"):
            self.mode = settings.normalization
            if settings.HasField("normalize"):
                self.warn("loss_param.normalize has no effect; normalization is given too")
        elif settings.HasField("normalize"):
            self.mode = _Mode.VALID if settings.normalize else _Mode.BATCH_SIZE
        self.mode_name: str | float = str(_Mode.NormalizationMode.Name(self.mode))
        if self.mode == _Mode.PRE_FIXED:  # R-FCN's and Intel's
            self.mode_name = float(settings.pre_fixed_normalizer)

    def backward_reads(self, in_place: bool) -> Reads:
        # The probabilities or differences are kept, the labels read again.
        return Reads(bottoms=(1,))

    def normalizer(self, items: int, places: int, ignored: Tensor | None) -> float | Tensor:
        """What to divide the sum by: at least 1, as in Caffe. `items` x `places` labels, some of them `ignored`."""
        return divisor(self.mode_name, items, places, ignored)

    @property
    def said_mode(self) -> str:
        """The argument `mode` of the loss's function."""
        return f'mode="{self.mode_name}"' if isinstance(self.mode_name, str) else f"mode={number(self.mode_name)}"

    def said_labels(self, request: Request, scores: str, axis: int) -> str:
        """The expression of the labels laid out beside the scores."""
        ignore = "" if self.ignore_label is None else f", ignore={self.ignore_label}"
        return f"place_labels({request.args[1]}, {scores}, {axis}{ignore})"

    def said_with_probabilities(self, request: Request, loss: Callable[..., Tensor], arguments: list[str]) -> Piece:
        """The piece of a loss over a softmax, whose second top, if any, has the probabilities."""
        if self.num_tops < 2:
            return Piece((loss.__name__, arguments), None, (loss, place_labels))
        axis = self.axis(self.config.axis, request.shapes[0])
        both = [f"{loss.__name__}({', '.join(arguments)})", f"probabilities({request.x}, axis={axis})"]
        return Piece(("", both), None, (loss, place_labels, probabilities))


def divisor(mode: str | float, items: int, places: int, ignored: Tensor | None) -> float | Tensor:
    """What a loss's sum is divided by, at least 1: the labels not `ignored` (VALID), all of `items` x `places` (FULL),
    the items (BATCH_SIZE), nothing (NONE), or the number that `mode` is (PRE_FIXED)."""
    if not isinstance(mode, str):
        return max(mode, 1)
    if mode == "VALID" and ignored is not None:
        return ignored.numel() - ignored.sum().clamp(max=ignored.numel() - 1)
    return max({"BATCH_SIZE": items, "NONE": 1}.get(mode, items * places), 1)


def per_item(x: Tensor) -> Tensor:
    """`x` (N, ...) as (N, values of an item); (N,) becomes (N, 1)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


class RaiseTo(torch.autograd.Function):
    """max(x, lowest), with the gradient let through everywhere: Caffe's losses clamp the value alone."""

    @staticmethod
    def forward(x: Tensor, lowest: float) -> Tensor:
        return x.clamp(min=lowest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def raise_to(x: Tensor, lowest: float) -> Tensor:
    result: Tensor = RaiseTo.apply(x, lowest)
    return result


def probabilities(scores: Tensor, axis: int) -> Tensor:
    """The softmax over an axis, without a gradient: what a second top of a loss hands out."""
    return at_least_float32(scores).log_softmax(axis).detach().exp()


def softmax_costs(scores: Tensor, read: Labels, axis: int) -> Tensor:
    """-log(max(p, FLT_MIN)) of each label's softmax probability over an axis, which keeps the extent 1."""
    return -read.leave_out(raise_to(at_least_float32(scores).log_softmax(axis).gather(axis, read.classes), LOG_FLT_MIN))


def softmax_loss(
    scores: Tensor, read: Labels, axis: int, mode: str | float, weights: tuple[float, ...] | None = None
) -> Tensor:
    """-1/Z * sum of log(max(p, FLT_MIN)), p being each label's softmax probability over an axis, times its class'
    weight where there are `weights` (see `label_weights`), by whose sum BY_WEIGHT divides."""
    costs = softmax_costs(scores, read, axis)
    if weights is not None:
        shares = label_weights(read, weights, scores.shape[axis], costs.detach())
        costs = costs * shares
        if mode == BY_WEIGHT:
            total = shares.sum()
            return costs.sum() / torch.where(total == 0, 1, total)
    items, places = math.prod(scores.shape[:axis]), math.prod(scores.shape[axis + 1 :])
    return costs.sum() / divisor(mode, items, places, read.ignored)


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(LossLayer):
    """Caffe's SoftmaxWithLoss: -1/Z * sum of log(max(p, FLT_MIN)), p being the label's softmax probability.

    Scores with the classes at `softmax_param.axis` (1), and one label for each place: any shape of that count and the
    same first extent. Labels equal to `ignore_label` are left out. Z, at least 1, is by `loss_param.normalization`:
    VALID (default) the labels not left out, FULL all, BATCH_SIZE the extents before the class axis, NONE 1, PRE_FIXED
    (a fork's) `pre_fixed_normalizer`. The gradient is (p - onehot) / Z, also where the logarithm's argument was raised.
    The second top has the probabilities, the third (cascade-rcnn's) the cost of each label in the labels' shape, 0
    where ignored; both without a gradient. A label out of range is an error on the CPU; on a GPU it makes the loss NaN.

    SegNet's `loss_param.weight_by_label_freqs: true` multiplies each label's logarithm by its class' number in
    `class_weighting`, without which it is divided by how many labels of the class the batch has; Z stays. DeepLab's
    `softmaxloss_param` lists several labels to ignore, `weight_source` names a file of a number for each class, and Z
    is the sum of the labels' weights.
    """

    differences = (
        "the second top (probabilities) works, without a gradient of its own; Caffe aborts. Labels out of "
        "range are an error on the CPU and NaN on CUDA; Caffe reads past the blob."
    )

    config_field = "softmax_param"
    also_reads: ClassVar[tuple[str, ...]] = ("loss_param", "softmaxloss_param")
    fork_fields: ClassVar[tuple[str, ...]] = (
        *LossLayer.fork_fields,
        "loss_param.weight_by_label_freqs",
        "loss_param.class_weighting",
    )
    tops = (1, 3)

    FLT_MIN = 2.0**-126

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        self.weights = read_class_weights(self, shapes[0][self.axis(self.config.axis, shapes[0])])
        if self.weights is not None and self.weights.divides:
            self.mode_name, ignored = BY_WEIGHT, self.weights.ignored
            self.ignore_label = ignored[0] if ignored else None

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        check_items(self, scores, labels)
        axis, weights = self.axis(self.config.axis, scores.shape), self.weights
        if weights is not None and len(weights.ignored) > 1:
            labels = join_labels(labels, weights.ignored)
        read = read_labels(self, labels, scores, axis, self.ignore_label)
        loss = softmax_loss(scores, read, axis, self.mode_name, None if weights is None else weights.values)
        if self.num_tops < 3:
            return loss if self.num_tops < 2 else (loss, probabilities(scores, axis))
        return loss, probabilities(scores, axis), softmax_costs(scores, read, axis).detach().reshape(labels.shape)

    def plain(self, request: Request) -> Piece:
        axis = self.axis(self.config.axis, request.shapes[0])
        labels = self.said_labels(request, request.x, axis)
        arguments = [request.x, labels, f"axis={axis}", self.said_mode]
        if self.weights is not None:
            arguments.append(f"weights=({''.join(f'{number(value)}, ' for value in self.weights.values)})")
        if self.num_tops < 3:
            piece = self.said_with_probabilities(request, softmax_loss, arguments)
        else:
            values = [
                f"softmax_loss({', '.join(arguments)})",
                f"probabilities({request.x}, axis={axis})",
                f"softmax_costs({request.x}, {labels}, axis={axis}).detach().reshape({request.args[1]}.shape)",
            ]
            piece = Piece(("", values), None, (softmax_loss, softmax_costs, place_labels, probabilities))
        return replace(piece, copies=(*piece.copies, join_labels)) if self._joins() else piece

    def _joins(self) -> bool:
        return self.weights is not None and len(self.weights.ignored) > 1

    def said_labels(self, request: Request, scores: str, axis: int) -> str:
        if self.weights is None or not self._joins():
            return super().said_labels(request, scores, axis)
        labels = f"join_labels({request.args[1]}, {self.weights.ignored})"
        return f"place_labels({labels}, {scores}, {axis}, ignore={self.ignore_label})"


def multinomial_loss(likelihoods: Tensor, read: Labels) -> Tensor:
    """-1/N * sum of log(max(p, 1e-20)), p being each label's of the probabilities (N, C)."""
    costs = raise_to(at_least_float32(likelihoods).gather(1, read.classes), SMALLEST_PROBABILITY).log()
    return -read.leave_out(costs).sum() / max(len(likelihoods), 1)


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(LossLayer):
    """Caffe's MultinomialLogisticLoss: -1/N * sum of log(max(p, 1e-20)), p being the label's probability.

    Bottoms: probabilities (N, ...), numbered through in an item, and one label per item.
    """

    differences = "labels out of range are an error on the CPU and NaN on CUDA; Caffe reads past the blob."

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return positive if bottom == 0 else super().suitable_values(bottom, first)

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0, 1))

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        check_items(self, probabilities, labels)
        rows = per_item(probabilities)
        return multinomial_loss(rows, read_labels(self, labels, rows, 1))

    def plain(self, request: Request) -> Piece:
        rows = f"per_item({request.x})"
        arguments = [rows, f"place_labels({request.args[1]}, {rows}, 1)"]
        return Piece(("multinomial_loss", arguments), None, (multinomial_loss, per_item, place_labels))


@register("InfogainLoss")
class InfogainLoss(LossLayer):
    """Caffe's InfogainLoss on scores: -1/Z * sum over places and classes l of H[label, l] * log(max(p_l, 1e-20)).

    p is the softmax over `infogain_loss_param.axis`, H the matrix (C * C values, no gradient) in the third bottom or,
    with two bottoms, in the BlobProto file `infogain_loss_param.source`. Z and ignored labels are as for
    SoftmaxWithLoss, but the old field `normalize` is refused, as in Caffe. The gradient is the softmax's, also where
    the logarithm's argument was raised. The second top has the probabilities, without a gradient.
    """

    differences = "labels out of range are an error on the CPU and NaN on CUDA; Caffe reads past the blob."

    config_field = "infogain_loss_param"
    also_reads = ("loss_param",)
    bottoms = (2, 3)
    tops = (1, 2)
    force_backward_refuses = (1, 2)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return positive if bottom == 2 else super().suitable_values(bottom, first)

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        if self.param.loss_param.HasField("normalize"):
            self.fail("loss_param.normalize is not for this type; give loss_param.normalization")
        self.register_buffer("matrix", None, persistent=False)
        if len(shapes) < 3:
            if not self.config.source:
                self.fail("needs the matrix H as a third bottom or in infogain_loss_param.source")
            self.matrix = self._read_matrix()

    def _read_matrix(self) -> Tensor:
        """H as float32, from the BlobProto file `source`: looked up as named, then in the prototxt's folder."""
        path = named_file(self, self.config.source, "infogain_loss_param.source")
        try:
            return torch.from_numpy(read_blob(path).astype(np.float32))
        except (OSError, WeightsError) as error:
            self.fail(f"infogain_loss_param.source can't be read: {error}")

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=tuple(range(1, len(self.param.bottom))))

    def forward(self, scores: Tensor, labels: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        check_items(self, scores, labels)
        axis = self.axis(self.config.axis, scores.shape)
        classes = scores.shape[axis]
        matrix = self.matrix if matrix is None else matrix
        if matrix.numel() != classes**2:
            self.fail(f"H has {matrix.numel()} values; {classes} classes need {classes} x {classes}")
        read = read_labels(self, labels, scores, axis, self.ignore_label)
        loss = infogain_loss(scores, read, matrix, axis, self.mode_name)
        return loss if self.num_tops < 2 else (loss, probabilities(scores, axis))

    def plain(self, request: Request) -> Piece:
        if len(request.args) < 3:
            raise Unsayable("its matrix lies in a file of its own (infogain_loss_param.source)")
        axis = self.axis(self.config.axis, request.shapes[0])
        labels = self.said_labels(request, request.x, axis)
        arguments = [request.x, labels, request.args[2], f"axis={axis}", self.said_mode]
        return self.said_with_probabilities(request, infogain_loss, arguments)


def infogain_loss(scores: Tensor, read: Labels, matrix: Tensor, axis: int, mode: str | float) -> Tensor:
    """-1/Z * sum over places and classes l of H[label, l] * log(max(p_l, 1e-20)), p being the softmax over an axis."""
    scores, classes = at_least_float32(scores), scores.shape[axis]
    matrix = matrix.detach().to(device=scores.device, dtype=scores.dtype).reshape(classes, classes)
    # The row of H for each label, laid out like the scores.
    weights = matrix[read.classes.squeeze(axis)].movedim(-1, axis)
    costs = (weights * raise_to(scores.log_softmax(axis), LOG_SMALLEST)).sum(axis, keepdim=True)
    items, places = math.prod(scores.shape[:axis]), math.prod(scores.shape[axis + 1 :])
    return -read.leave_out(costs).sum() / divisor(mode, items, places, read.ignored)
