"""The nets of a fine-tuning: the definitions for training, testing and use, and their first weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcnproto import surgery, zoo
from fcnproto.data.folder_layer import LAYER, MODULE
from fcnproto.errors import UsageError
from fcnproto.layers.registry import lookup
from fcnproto.net import Net, load
from fcnproto.recognise import preprocessing_of, zoo_record
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net
from fcnproto.surgery import Report
from fcnproto.surgery.nets import is_source
from fcnproto.zoo import ModelInfo

IGNORE_LABEL = 255
_MODES = caffe_pb2.LossParameter
_JUDGES = ("Accuracy", "Softmax", "ArgMax", "Silence")
_LEARNS = ("Convolution", "InnerProduct")


@dataclass(frozen=True)
class Base:
    """The net to be fine-tuned: its layers without data and losses, the names of its image and score blobs, the mean
    of its images (BGR), and what the zoo says of it. `report` says which score layers got another size."""

    name: str
    layers: caffe_pb2.NetParameter
    image: str
    score: str
    mean: tuple[float, ...]
    record: ModelInfo | None
    report: Report

    def train(self, source: Mapping[str, Any], loss: caffe_pb2.LayerParameter) -> caffe_pb2.NetParameter:
        """The net on a data layer with these options, with a loss."""
        net = caffe_pb2.NetParameter(name=self.name)
        data = net.layer.add(name="data", type="Python", top=[self.image, "label"])
        data.python_param.module, data.python_param.layer = MODULE, LAYER
        data.python_param.param_str = repr(dict(source))
        net.layer.extend(self.layers.layer)
        net.layer.add().CopyFrom(loss)
        net.layer[-1].bottom.extend([self.score, "label"])
        return net

    def deploy(self, size: tuple[int, int] = (256, 256)) -> caffe_pb2.NetParameter:
        """The net on an input, without dropout and loss."""
        net = caffe_pb2.NetParameter(name=self.name)
        data = net.layer.add(name=self.image, type="Input", top=[self.image])
        data.input_param.shape.add(dim=[1, 3, *size])
        net.layer.extend(one for one in self.layers.layer if one.type != "Dropout" or one.bottom != one.top)
        return net


def read_base(model: str, classes: int) -> Base:
    """A net of the zoo or in a file, made for so many classes.

    Raises `UsageError` for nets of several images or score blobs, and for classification nets.
    """
    path = zoo.path(model, "train") if model in zoo.names() else Path(model)
    if not path.is_file():
        raise UsageError(f"{model!r} is neither a prototxt nor a net of the zoo ({', '.join(zoo.names())})")
    param = read_net(path)
    built = Net(param, "train", base_dir=path.resolve().parent, fill=False)
    layers = caffe_pb2.NetParameter(name=param.name)
    kept = {node.name for node in built.graph.nodes}
    for layer in param.layer:
        judges = lookup(layer.type, layer.name).is_loss or layer.type in _JUDGES
        if layer.name in kept and not is_source(layer) and not judges:
            layers.layer.add().CopyFrom(layer)
    read = {name for layer in layers.layer for name in layer.bottom if name not in layer.top}
    images = [name for name in built.source_shapes if name in read]
    scores = [name for name in dict.fromkeys(top for layer in layers.layer for top in layer.top) if name not in read]
    if len(images) != 1 or len(scores) != 1:
        raise UsageError(
            f"{model}: fine-tuning takes nets of one image and one map of scores; this one has the images "
            f"{', '.join(images)} and the scores {', '.join(scores)}"
        )
    shape = built.source_shapes[images[0]]
    if shape is not None and shape[1] != 3:
        raise UsageError(f"{model}: its input {images[0]!r} has {shape[1]} channels; colour images have 3")
    if not any(layer.type in ("Crop", "Deconvolution") for layer in layers.layer):
        raise UsageError(f"{model}: gives no map as large as the image; see `fcnproto surgery convolutionalise`")
    changed, report = surgery.set_classes(_with_input(layers, images[0]), classes)
    del changed.layer[0]
    record = zoo.info(model) if model in zoo.names() else zoo_record(path)
    found = preprocessing_of(built, images[0], record)
    mean = (0.0, 0.0, 0.0) if found.mean is None else tuple(float(value) for value in found.mean.reshape(3, -1).mean(1))
    generic = path.stem in ("train", "trainval", "val", "test", "deploy")
    name = param.name or (path.resolve().parent.name if generic else path.stem)
    return Base(name, changed, images[0], scores[0], mean, record, report)


def _with_input(layers: caffe_pb2.NetParameter, image: str) -> caffe_pb2.NetParameter:
    net = caffe_pb2.NetParameter(name=layers.name)
    net.layer.add(name=image, type="Input", top=[image])
    net.layer.extend(layers.layer)
    return net


def make_loss(mean: bool, weights: str | None = None) -> caffe_pb2.LayerParameter:
    """The loss over the pixels that are not void, their sum or mean; `weights` is the file of class weights if any."""
    loss = caffe_pb2.LayerParameter(name="loss", type="SoftmaxWithLoss" if weights is None else "InfogainLoss")
    loss.top.append("loss")
    loss.loss_param.ignore_label = IGNORE_LABEL
    if weights is None:
        loss.loss_param.normalize = mean
    else:
        # With the weights on its diagonal, Caffe's InfogainLoss is the cross entropy with every class's share weighted.
        loss.loss_param.normalization = _MODES.VALID if mean else _MODES.BATCH_SIZE
        loss.infogain_loss_param.source = weights
        loss.infogain_loss_param.axis = 1
    return loss


def first_weights(base: Base, weights: Path | None, classes: tuple[str, ...]) -> tuple[Net, Report, bool]:
    """The net for use with its values before training, what was done to get them, and whether it has scores already.

    From `weights` come all layers that fit; score layers of another number of classes begin at zero, but classes whose
    names the old net knows keep their old weights. Layers called up... interpolate. Without weights the convolutions
    begin at random values (He's), the score layers at zero.
    """
    definition = base.deploy()
    if weights is None:
        for layer in definition.layer:
            if layer.type in _LEARNS and not layer.name.startswith("score"):
                settings = layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param
                if not settings.HasField("weight_filler"):
                    settings.weight_filler.type = "msra"
        net = load(definition)
        return net, surgery.with_interpolation(net, Report(list(base.report.steps))), False
    net, report = load(definition), Report(list(base.report.steps))
    resized = base.report.layers("changed")
    with surgery.opened(weights) as layers:
        stored = {layer.name: tuple(layer.blobs[0].shape) for layer in layers}
    misfits = [name for name in resized if name in stored and stored[name] != tuple(net.params[name][0].shape)]
    moved = surgery.transplant(net, weights, leave_out=misfits)
    report += moved
    has_scores = any(name.startswith("score") for name in moved.layers("copied"))
    old = base.record.classes if base.record is not None else ()
    known = {new: old.index(name) for new, name in enumerate(classes) if name in old}
    for name in misfits:
        if known and net.layer(name).type == "Convolution" and stored[name][0] == len(old):
            report += surgery.transfer_classes(net, name, weights, known)
    return net, surgery.with_interpolation(net, report), has_scores
