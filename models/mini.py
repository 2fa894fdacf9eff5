"""fcn-mini: an FCN-8s slim enough to come with the package, and the classification net that its training begins with.

Both read drawn images through the data layers of `fcnproto.scenes.layer`, so that `fcnproto train` needs their
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
# The share of the old in the moving averages of batch normalisation.
STATISTICS = 0.98

# Both FCNs of the training see a pixel at the same place of every map: the warm-up net pads the image by 3 * 32 less
# and gives fc6 those 3 positions back. What pool4 and pool3 lose at their edges, their scores get back as padding; the
# crops of these begin earlier by the 6 and 12 positions of the image's padding, and later by their own.
LESS_PADDING = 96
FC6_PAD = 3
SKIP_PADS = {"score_pool4": 2, "score_pool3": 6}
SKIP_OFFSETS = {"score_pool4": -6 + 2, "score_pool3": -12 + 6}

# The seeds of the drawn images: no two of them share an image.
TRAIN_SEED, CHECK_SEED, TEST_SEED, SAMPLE_SEED = 1, 2, 3, 4
CHECK_OBJECTS, CHECK_SCENES = 400, 24


def nets() -> dict[str, caffe_pb2.NetParameter]:
    """The nets by file name (without suffix): the classifier, the FCN that its features warm up in, and the FCN itself,
    each as it is trained and as it is checked; and the FCN for use."""
    train, check = (
        {"seed": TRAIN_SEED, "batch": 16, "fresh": 8},
        {"seed": CHECK_SEED, "batch": 20, "count": CHECK_OBJECTS},
    )
    return {
        "classifier-train": classifier(drawn("DrawnObjectLayer", train)),
        "classifier-val": classifier(drawn("DrawnObjectLayer", check)),
        "warmup-train": warm_up(learning(fcn.fcn8s(scenes("TRAIN"), len(CLASSES), WIDTHS))),
        "warmup-val": warm_up(learning(fcn.fcn8s(scenes("TEST"), len(CLASSES), WIDTHS))),
        "train": learning(fcn.fcn8s(scenes("TRAIN"), len(CLASSES), WIDTHS)),
        "val": learning(fcn.fcn8s(scenes("TEST"), len(CLASSES), WIDTHS)),
        "deploy": fcn.fcn8s(sources.inputs({"data": (1, 3, *SIZE)}), len(CLASSES), WIDTHS).to_proto(),
    }


def solvers() -> dict[str, caffe_pb2.SolverParameter]:
    """Their solvers by file name (without suffix)."""
    return {
        "classifier-solver": solver("classifier-", CHECK_OBJECTS // 20, base_lr=1e-3, max_iter=1500),
        "warmup-solver": solver(
            "warmup-", CHECK_SCENES // 8, base_lr=2e-3, max_iter=2000, weights=["warmup-start.caffemodel"]
        ),
        "solver": solver("", CHECK_SCENES // 8, base_lr=1e-3, max_iter=1700, weights=["start.caffemodel"]),
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
        "dataset": "drawn scenes (fcnproto.scenes.scenes)",
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
    """An FCN with its settings for training, and pixel accuracy where it is tested."""
    spec.accuracy = L.Accuracy(spec.score, spec.label, ignore_label=fcn.IGNORE_LABEL, include={"phase": "TEST"})
    return averaged(spec.to_proto())


def averaged(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """A slim net's settings for training: little dropout, and losses that are means over the pixels."""
    for layer in net.layer:
        if layer.type == "Dropout":
            layer.dropout_param.dropout_ratio = DROPOUT
        elif layer.type == "SoftmaxWithLoss":
            layer.loss_param.normalize = True
    return net


def warm_up(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """An FCN on VGG16 with little padding, and batch normalisation after the convolutions of its five stages.

    It learns several times faster, and `surgery.fold_normalisation` turns its weights into the FCN's.
    """
    result = caffe_pb2.NetParameter(name=net.name)
    for layer in net.layer:
        skip = layer.name[: len("score_pool4")]
        settings = layer.convolution_param
        if layer.type == "Crop" and skip in SKIP_OFFSETS:
            layer.crop_param.offset[0] += SKIP_OFFSETS[skip]
        elif layer.type == "Convolution" and list(settings.pad) == [fcn.FIRST_PAD]:
            settings.pad[:] = [fcn.FIRST_PAD - LESS_PADDING]
        elif layer.type == "Convolution" and layer.name.startswith("fc6"):
            settings.pad[:] = [FC6_PAD]
        elif layer.type == "Convolution" and skip in SKIP_PADS:
            settings.pad[:] = [SKIP_PADS[skip]]
        result.layer.add().CopyFrom(layer)
        if layer.name.startswith("conv"):
            _normalise(result)
    return result


def _normalise(net: caffe_pb2.NetParameter) -> None:
    """Follow the net's last layer by BatchNorm and Scale in place, which make its bias superfluous."""
    convolution = net.layer[-1]
    convolution.convolution_param.bias_term = False
    del convolution.param[1:]
    blob = {"bottom": [convolution.top[0]], "top": [convolution.top[0]]}
    norm = net.layer.add(name=f"bn_{convolution.name}", type="BatchNorm", **blob)
    norm.batch_norm_param.moving_average_fraction = STATISTICS
    net.layer.add(name=f"scale_{convolution.name}", type="Scale", **blob).scale_param.bias_term = True


def classifier(net: NetSpec, widths: Sequence[int] = WIDTHS) -> caffe_pb2.NetParameter:
    """A slim VGG16, with batch normalisation in its five stages, that names the object in the middle of an image."""
    top = net.data
    for stage, (width, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=False), start=1):
        for index in range(1, depth + 1):
            top = _normalised(net, top, f"conv{stage}_{index}", width)
        top = net[f"pool{stage}"] = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    for number, count in ((6, widths[5]), (7, widths[5]), (8, len(OBJECTS))):
        filler = {"type": "gaussian", "std": 0.01} if number == 8 else {"type": "msra"}
        top = net[f"fc{number}"] = L.InnerProduct(top, num_output=count, weight_filler=filler)
        if number < 8:
            top = net[f"relu{number}"] = L.ReLU(top, in_place=True)
            top = net[f"drop{number}"] = L.Dropout(top, dropout_ratio=DROPOUT, in_place=True)
    net.loss = L.SoftmaxWithLoss(net.fc8, net.label)
    net.accuracy = L.Accuracy(net.fc8, net.label, include={"phase": "TEST"})
    return net.to_proto()


def _normalised(net: NetSpec, top: Top, name: str, width: int) -> Top:
    """A convolution with batch normalisation and ReLU in place, which make its bias superfluous."""
    top = net[name] = L.Convolution(
        top, num_output=width, kernel_size=3, pad=1, bias_term=False, weight_filler={"type": "msra"}
    )
    top = net[f"bn_{name}"] = L.BatchNorm(top, in_place=True, moving_average_fraction=STATISTICS)
    top = net[f"scale_{name}"] = L.Scale(top, in_place=True, bias_term=True)
    top = net[f"relu{name.removeprefix('conv')}"] = L.ReLU(top, in_place=True)
    return top
