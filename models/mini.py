"""fcn-mini: an FCN-8s slim enough to come with the package, and the classification net that its training begins with.

Both read drawn images through the data layers of `fcnproto.data.drawn_layer`, so that `fcnproto train` needs their
solvers alone. How one leads to the other is in fcn-mini/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fcnproto.netspec import NetSpec, Top
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2

from . import fcn, sources

NAME = "fcn-mini"
WIDTHS = (12, 24, 48, 64, 64, 112)
OBJECTS = ["ball", "ring", "star", "box", "mug", "flower", "tree", "house", "car", "fish"]
CLASSES = ["background", *OBJECTS]
IMAGE: dict[str, Any] = {"kind": "image", "channels": "BGR", "mean": [112.0, 112.0, 112.0]}
SIZE = (256, 256)
DROPOUT = 0.1

# The seeds of the drawn images: no two of them share an image.
TRAIN_SEED, CHECK_SEED, TEST_SEED, SAMPLE_SEED = 1, 2, 3, 4
CHECK_OBJECTS, CHECK_SCENES = 400, 24


def nets() -> dict[str, caffe_pb2.NetParameter]:
    """The nets by file name (without suffix): of the classifier and of the FCN, as they are trained and checked, and
    the FCN for use."""
    train, check = {"seed": TRAIN_SEED, "batch": 16, "fresh": 8}, {"seed": CHECK_SEED, "batch": 20, "count": CHECK_OBJECTS}
    return {
        "classifier-train": classifier(drawn("DrawnObjectLayer", train)),
        "classifier-val": classifier(drawn("DrawnObjectLayer", check)),
        "train": learning(fcn.fcn8s(scenes("TRAIN"), len(CLASSES), WIDTHS)),
        "val": learning(fcn.fcn8s(scenes("TEST"), len(CLASSES), WIDTHS)),
        "deploy": fcn.fcn8s(sources.inputs({"data": (1, 3, *SIZE)}), len(CLASSES), WIDTHS).to_proto(),
    }


def solvers() -> dict[str, caffe_pb2.SolverParameter]:
    """Their solvers by file name (without suffix)."""
    return {
        "classifier-solver": solver("classifier-", CHECK_OBJECTS // 20, base_lr=3e-3, max_iter=1500),
        "solver": solver("", CHECK_SCENES // 8, base_lr=1e-3, max_iter=3000),
    }


def solver(prefix: str, test_iter: int, **settings: Any) -> caffe_pb2.SolverParameter:
    """Adam at a rate that falls linearly to zero."""
    return caffe_pb2.SolverParameter(
        **{
            "train_net": f"{prefix}train.prototxt",
            "test_net": [f"{prefix}val.prototxt"],
            "test_iter": [test_iter],
            "test_interval": 250,
            "test_initialization": False,
            "type": "Adam",
            "momentum": 0.9,
            "momentum2": 0.98,
            "lr_policy": "poly",
            "power": 1.0,
            "weight_decay": 1e-5,
            "clip_gradients": 5.0,
            "display": 20,
            "average_loss": 20,
            "random_seed": 1,
            "snapshot": 250,
            "snapshot_prefix": f"snapshot/{prefix}train",
            **settings,
        }
    )


def record(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """What `fcnproto.zoo` says of the net, for model.json."""
    return {
        "dataset": "drawn scenes (fcnproto.data.scenes)",
        "base": "VGG16, slim",
        "weights_url": None,
        "initial_weights": [],
        "inputs": [{"blob": "data", **IMAGE}],
        "outputs": [{"blob": "score", "label": "label", "ignore_label": fcn.IGNORE_LABEL, "classes": CLASSES}],
        "scores": scores,
    }


def drawn(layer: str, options: dict[str, Any]) -> NetSpec:
    """A spec with a data layer of drawn images, tops data and label."""
    net = NetSpec()
    param_str = str(options | {"mean": tuple(IMAGE["mean"])})
    net.data, net.label = L.Python(ntop=2, name="data", module="fcnproto_layers", layer=layer, param_str=param_str)
    return net


def scenes(phase: str, batch: int = 8, fresh: int = 3) -> NetSpec:
    """A spec with drawn scenes: for TRAIN ever new ones, `fresh` of a batch, the rest varied; for TEST the same few."""
    if phase == "TRAIN":
        return drawn("DrawnSceneLayer", {"seed": TRAIN_SEED, "batch": batch, "fresh": fresh})
    return drawn("DrawnSceneLayer", {"seed": CHECK_SEED, "batch": 8, "count": CHECK_SCENES})


def learning(spec: NetSpec) -> caffe_pb2.NetParameter:
    """A slim FCN with its settings for training: little dropout, a loss that is a mean, and pixel accuracy."""
    spec.accuracy = L.Accuracy(spec.score, spec.label, ignore_label=fcn.IGNORE_LABEL, include={"phase": "TEST"})
    net = spec.to_proto()
    for layer in net.layer:
        if layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = DROPOUT
        elif layer.type == "SoftmaxWithLoss":
            layer.loss_param.normalize = True
    return net


def classifier(net: NetSpec, widths: Sequence[int] = WIDTHS) -> caffe_pb2.NetParameter:
    """A slim VGG16 with batch normalisation that names the object in the middle of a drawn image.

    Its fc6 and fc7 are convolutions already; the mean of the map that they give is classified.
    """
    top = net.data
    for stage, (width, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=False), start=1):
        for index in range(1, depth + 1):
            top = _normalised(net, top, f"conv{stage}_{index}", width, 3, 1)
        top = net[f"pool{stage}"] = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    top = _normalised(net, top, "fc6", widths[5], 7, 3)
    top = _normalised(net, top, "fc7", widths[5], 1, 0)
    top = net.average = L.Pooling(top, pool="AVE", global_pooling=True)
    net.fc8 = L.InnerProduct(top, num_output=len(OBJECTS), weight_filler={"type": "gaussian", "std": 0.01})
    net.loss = L.SoftmaxWithLoss(net.fc8, net.label)
    net.accuracy = L.Accuracy(net.fc8, net.label, include={"phase": "TEST"})
    return net.to_proto()


def _normalised(net: NetSpec, top: Top, name: str, width: int, kernel: int, pad: int) -> Top:
    """A convolution with batch normalisation and ReLU in place, which make its bias superfluous."""
    top = net[name] = L.Convolution(
        top, num_output=width, kernel_size=kernel, pad=pad, bias_term=False, weight_filler={"type": "msra"}
    )
    top = net[f"bn_{name}"] = L.BatchNorm(top, in_place=True, moving_average_fraction=0.98)
    top = net[f"scale_{name}"] = L.Scale(top, in_place=True, bias_term=True)
    top = net[f"relu_{name}"] = L.ReLU(top, in_place=True)
    return top
