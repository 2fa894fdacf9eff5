"""How losses and Accuracy are said in ordinary PyTorch, for modules that keep them."""

from __future__ import annotations

from typing import Any

from fcnproto.export.code import number
from fcnproto.export.emitters import Piece, Request, Unsayable, says
from fcnproto.schema import caffe_pb2

_COUNTED = ("class_labels", "divisor")


def _mode(request: Request) -> str:
    layer: Any = request.layer
    return f'"{caffe_pb2.LossParameter.NormalizationMode.Name(layer.mode).lower()}"'


def _axis(request: Request) -> int:
    layer: Any = request.layer
    return int(layer.axis(request.config.axis, request.shapes[0]))


def _with_probabilities(request: Request, loss: str, arguments: list[str], helpers: tuple[str, ...]) -> Piece:
    """The loss alone, or together with the probabilities in a second top."""
    if request.layer.num_tops < 2:
        return Piece((loss, arguments), None, helpers)
    softmax = f"F.softmax({request.x}.detach(), dim={_axis(request)})"
    return Piece(("", [f"{loss}({', '.join(arguments)})", softmax]), None, helpers)


@says("SoftmaxWithLoss")
def _softmax_loss(request: Request) -> Piece:
    layer: Any = request.layer
    arguments = [*request.args, str(_axis(request)), f"ignore={layer.ignore_label}", f"mode={_mode(request)}"]
    return _with_probabilities(request, "softmax_loss", arguments, ("raise_to", *_COUNTED, "softmax_loss"))


@says("InfogainLoss")
def _infogain_loss(request: Request) -> Piece:
    layer: Any = request.layer
    if len(request.args) < 3:
        raise Unsayable("its matrix lies in a file of its own (infogain_loss_param.source)")
    arguments = [*request.args, str(_axis(request)), f"ignore={layer.ignore_label}", f"mode={_mode(request)}"]
    return _with_probabilities(request, "infogain_loss", arguments, ("raise_to", *_COUNTED, "infogain_loss"))


@says("SigmoidCrossEntropyLoss")
def _sigmoid_loss(request: Request) -> Piece:
    layer: Any = request.layer
    arguments = [*request.args, f"ignore={layer.ignore_label}", f"mode={_mode(request)}"]
    return Piece(("sigmoid_loss", arguments), None, ("divisor", "sigmoid_loss"))


@says("EuclideanLoss")
def _euclidean_loss(request: Request) -> Piece:
    return Piece(("euclidean_loss", list(request.args)), None, ("euclidean_loss",))


@says("HingeLoss")
def _hinge_loss(request: Request) -> Piece:
    squared = request.config.norm == caffe_pb2.HingeLossParameter.L2
    return Piece(("hinge_loss", [*request.args, f"squared={squared}"]), None, ("hinge_loss",))


@says("MultinomialLogisticLoss")
def _multinomial_loss(request: Request) -> Piece:
    return Piece(("multinomial_loss", list(request.args)), None, ("raise_to", "multinomial_loss"))


@says("ContrastiveLoss")
def _contrastive_loss(request: Request) -> Piece:
    config = request.config
    arguments = [*request.args, f"margin={number(config.margin)}", f"legacy={config.legacy_version}"]
    return Piece(("contrastive_loss", arguments), None, ("contrastive_loss",))


@says("Accuracy")
def _accuracy(request: Request) -> Piece:
    layer: Any = request.layer
    arguments = [*request.args, str(_axis(request)), f"top_k={request.config.top_k}", f"ignore={layer.ignore_label}"]
    if layer.num_tops < 2:
        return Piece(("label_accuracy", arguments), None, ("class_labels", "label_accuracy"))
    both = [f"{name}({', '.join(arguments)})" for name in ("label_accuracy", "class_accuracies")]
    return Piece(("", both), None, ("class_labels", "label_accuracy", "class_accuracies"))
