"""fcn-mini: an FCN-8s slim enough to come with the package, trained on drawn scenes by `fcn-mini/train.py`."""

from __future__ import annotations

from typing import Any

from fcnproto.schema import caffe_pb2

from . import fcn, sources

NAME = "fcn-mini"
WIDTHS = (12, 24, 48, 64, 64, 112)
CLASSES = ["background", "ball", "ring", "star", "box", "mug", "flower", "tree", "house", "car", "fish"]
IMAGE: dict[str, Any] = {"kind": "image", "channels": "BGR", "mean": [112.0, 112.0, 112.0]}
SIZE = (256, 256)
BATCH = 8
DROPOUT = 0.1

# Both nets of the training see a pixel at the same place of every map: the warm-up net pads the image by 3 * 32 less
# and gives fc6 those 3 positions back. What pool4 and pool3 lose at their edges, their scores get back as padding:
# map -> (padding of the score layer, offset of its crop), the offset being the real net's, less 6 and 12 positions of
# the image's padding, plus the score layer's own.
WARM_UP_PADS = {"conv1_1": fcn.FIRST_PAD - 96, "fc6": 3, "score_pool4": 2, "score_pool3": 6}
WARM_UP_OFFSETS = {"score_pool4c": 5 - 6 + 2, "score_pool3c": 9 - 12 + 6}


def nets() -> dict[str, caffe_pb2.NetParameter]:
    """The nets by file name (without suffix): deploy, train, and warmup for the first part of the training."""
    return {"deploy": _deploy(), "train": _train(), "warmup": _warm_up()}


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


def _deploy() -> caffe_pb2.NetParameter:
    return fcn.fcn8s(sources.inputs({"data": (1, 3, *SIZE)}), len(CLASSES), WIDTHS).to_proto()


def _train() -> caffe_pb2.NetParameter:
    """The net proper with its loss, a mean over the pixels; the weights begin at random values."""
    spec = sources.inputs({"data": (BATCH, 3, *SIZE), "label": (BATCH, 1, *SIZE)})
    net = fcn.fcn8s(spec, len(CLASSES), WIDTHS).to_proto()
    for layer in net.layer:
        if layer.type == "Convolution":
            scores = layer.name.startswith("score")
            filler = {"type": "gaussian", "std": 0.01} if scores else {"type": "msra"}
            layer.convolution_param.weight_filler.MergeFrom(caffe_pb2.FillerParameter(**filler))
        elif layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = DROPOUT
        elif layer.type == "SoftmaxWithLoss":
            layer.loss_param.normalize = True
    return net


def _warm_up() -> caffe_pb2.NetParameter:
    """The train net with little padding, and batch normalisation after all convolutions but the scoring ones."""
    train, net = _train(), caffe_pb2.NetParameter()
    for layer in train.layer:
        if layer.name in WARM_UP_PADS:
            layer.convolution_param.pad[:] = [WARM_UP_PADS[layer.name]]
        if layer.name in WARM_UP_OFFSETS:
            layer.crop_param.offset[:] = [WARM_UP_OFFSETS[layer.name]]
        net.layer.add().CopyFrom(layer)
        if layer.type == "Convolution" and not layer.name.startswith("score"):
            _normalise(net)
    return net


def _normalise(net: caffe_pb2.NetParameter) -> None:
    """Follow the net's last layer by BatchNorm and Scale in place, which make its bias superfluous."""
    convolution = net.layer[-1]
    name, blob = convolution.name, convolution.top[0]
    convolution.convolution_param.bias_term = False
    del convolution.param[1:]
    norm = net.layer.add(name=f"bn_{name}", type="BatchNorm", bottom=[blob], top=[blob])
    norm.batch_norm_param.moving_average_fraction = 0.98
    scale = net.layer.add(name=f"scale_{name}", type="Scale", bottom=[blob], top=[blob])
    scale.scale_param.bias_term = True
