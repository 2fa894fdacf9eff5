"""The nets of a fine-tuning: the definitions for training, testing and use, and their first weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fcnproto import surgery, zoo
from fcnproto.data.augmentation import Augmentation
from fcnproto.data.folder_layer import LAYER, MODULE
from fcnproto.errors import GraphError, UsageError, WeightsError
from fcnproto.images import Preprocessing
from fcnproto.layers.placeholder import class_for
from fcnproto.meta import ByBlob, ImageInput, Meta, ScoreOutput
from fcnproto.net import Net, load
from fcnproto.net.described import take_meta, told_in
from fcnproto.net.roles import judged_blobs
from fcnproto.preprocessing import Chosen, preprocessing_of, zoo_record
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import read_net
from fcnproto.surgery import Report
from fcnproto.surgery.nets import is_source
from fcnproto.surgery.sources import relation
from fcnproto.zoo import ModelInfo

IGNORE_LABEL = 255
_MODES = caffe_pb2.LossParameter
_LEARNS = ("Convolution", "InnerProduct")
_ALSO_LATER = ("allow_python", "dialect", "caffe_proto")
"""What says how the net's layers are read, whichever net they stand in."""
_STATE = ("min_level", "max_level", "stage", "not_stage")
"""A rule's fields about more than the phase."""


@dataclass(frozen=True)
class Scores:
    """A map of scores: its blob, the blob of its labels, the layers that make its classes, and the names of the classes
    that the net was published with (none where they aren't known)."""

    blob: str
    label: str
    layers: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """The net to be fine-tuned: its layers without data and losses, how images become each of its image blobs, its maps
    of scores, and what the zoo says of it. `report` says which score layers got another size, `reading` how nets of
    these layers are loaded (arguments of `load`)."""

    name: str
    layers: caffe_pb2.NetParameter
    images: dict[str, Preprocessing]
    scores: tuple[Scores, ...]
    record: ModelInfo | None
    report: Report
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, list[str]]:
        """The label blobs, each with the score blobs that are trained on it."""
        found: dict[str, list[str]] = {}
        for one in self.scores:
            found.setdefault(one.label, []).append(one.blob)
        return found

    def allowed(self, augmentation: Augmentation) -> Augmentation:
        """The augmentation without changes of colour where the first image is a measurement (HHA, depth)."""
        kinds = {entry.blob: entry.kind for entry in self.record.inputs} if self.record is not None else {}
        if kinds.get(next(iter(self.images)), "image") == "image":
            return augmentation
        return replace(augmentation, colour=0.0)

    def meta(self, classes: Mapping[str, tuple[str, ...]]) -> Meta:
        """What belongs to the net once it is trained on these classes, by score blob."""
        orders = {entry.blob: entry.channels for entry in self.record.inputs} if self.record is not None else {}
        inputs = [
            ImageInput.of(blob, replace(how, why=f"made of {self.name}"), "HHA" if orders.get(blob) == "HHA" else "")
            for blob, how in self.images.items()
        ]
        outputs = [
            ScoreOutput(one.blob, classes[one.blob], True, one.label, IGNORE_LABEL, f"made of {self.name}")
            for one in self.scores
        ]
        return Meta(self.name, ByBlob(inputs), ByBlob(outputs))

    def train(
        self, source: Mapping[str, Any], losses: Mapping[str, caffe_pb2.LayerParameter]
    ) -> caffe_pb2.NetParameter:
        """The net on a data layer with these options, with a loss for each score blob."""
        net = caffe_pb2.NetParameter(name=self.name)
        data = net.layer.add(name="data", type="Python", top=[*self.images, *self.labels])
        data.python_param.module, data.python_param.layer = MODULE, LAYER
        data.python_param.param_str = repr(dict(source))
        net.layer.extend(self.layers.layer)
        for one in self.scores:
            net.layer.add().CopyFrom(losses[one.blob])
            net.layer[-1].bottom.extend([one.blob, one.label])
        return net

    def deploy(self, size: tuple[int, int] = (256, 256)) -> caffe_pb2.NetParameter:
        """The net on inputs, without dropout and loss."""
        net = _on_inputs(self.layers, {blob: how.channels for blob, how in self.images.items()}, size)
        kept = [one for one in net.layer if not class_for(one.type).passes_on or one.bottom != one.top]
        del net.layer[:]
        net.layer.extend(kept)
        return net


def read_base(
    model: str,
    classes: int | Mapping[str, int] | None = None,
    chosen: Chosen | None = None,
    bands: Mapping[str, int] | None = None,
    reading: Mapping[str, Any] | None = None,
) -> Base:
    """A net of the zoo or in a file, made for so many classes (by score blob where it has several maps of scores).

    `chosen` is what the user says of its images, `bands` the numbers of bands of those that become images of bands,
    by blob: the net then takes so many channels. `reading` are further arguments of `load` for a file's net.

    Raises `UsageError` for nets without images or maps of scores, and for classification nets; `PrototxtError` for what
    is nearly a name of the zoo.
    """
    path = Path(zoo.located(model, "train"))
    if not path.is_file():
        raise UsageError(f"{model!r} is neither a prototxt nor a net of the zoo ({', '.join(zoo.names())})")
    param = read_net(path)
    reading = dict(reading or {})
    built = Net(param, "train", base_dir=path.resolve().parent, file=path, fill=False, **reading)
    take_meta(built, path)
    layers = _between_data_and_losses(param, built)
    read = {name for layer in layers.layer for name in layer.bottom if name not in layer.top}
    record = zoo.info(name) if (name := zoo.owner(path)) else zoo_record(path)
    images = {name: preprocessing_of(built, name) for name in built.source_shapes if name in read}
    blobs = [name for name in dict.fromkeys(top for layer in layers.layer for top in layer.top) if name not in read]
    if not images or not blobs:
        raise UsageError(f"{model}: fine-tuning takes nets that make maps of scores of images; this one has none")
    shapes = dict(built.source_shapes)
    if chosen:
        for name, how in list(images.items()):
            images[name] = chosen.apply(how, name, list(images), (bands or {}).get(name, 0))
            if images[name].kind == "bands" and how.kind != "bands":
                shapes[name] = None
    for name, how in images.items():
        shape = shapes[name]
        if shape is not None and (len(shape) != 4 or shape[1] != how.channels):
            raise UsageError(
                f"{model}: its input {name!r} has the shape {shape}; images have {how.channels} channels (of bands: "
                "--channels bands)"
            )
    later = {key: reading[key] for key in _ALSO_LATER if key in reading}
    labels = _labels(built, record, blobs)
    net = _on_inputs(layers, {name: how.channels for name, how in images.items()})
    if not any(layer.type in ("Crop", "Deconvolution") for layer in layers.layer):
        _check_maps(model, net, built, blobs, later)
    report = Report()
    if classes is not None:
        net, report = surgery.set_classes(net, classes if isinstance(classes, int) else dict(classes))
    makers = surgery.score_layers(net)
    known = {output.blob: output.classes for output in built.meta.outputs if output.named}
    scores = tuple(Scores(blob, labels[blob], tuple(makers[blob]), known.get(blob, ())) for blob in blobs)
    del net.layer[: len(images)]
    generic = path.stem in ("train", "trainval", "val", "test", "deploy")
    name = param.name or (path.resolve().parent.name if generic else path.stem)
    return Base(name, net, images, scores, record, report, later)


def _check_maps(
    model: str, definition: caffe_pb2.NetParameter, built: Net, blobs: Sequence[str], reading: Mapping[str, Any]
) -> None:
    """Raise `UsageError` where the score blobs of a net that enlarges nothing are not as large as the image."""
    net = Net(definition, fill=False, **reading).to("meta")
    values = {}
    for name, shape in net.source_shapes.items():
        said = built.source_shapes.get(name) or (1, None, None, None)
        channels = shape[1] if shape is not None and len(shape) > 1 and shape[1] is not None else 3
        size = [extent or 256 for extent in said[2:]] if len(said) == 4 else [256, 256]
        values[name] = torch.empty((1, channels, *size), device="meta")
    height, width = next(iter(values.values())).shape[2:]
    remedy = f"`fcnproto surgery convolutionalise {model} --classes N -o NEW.prototxt` makes one"
    try:
        found = net(values, blobs=list(blobs))
    except GraphError as error:
        raise UsageError(
            f"{model}: gives no map of scores for images of {width}x{height} ({error}); {remedy}"
        ) from error
    for blob in blobs:
        if tuple(found[blob].shape[2:]) != (height, width):
            raise UsageError(
                f"{model}: its scores {blob!r} are {tuple(found[blob].shape)} for an image of {width}x{height}; "
                f"fine-tuning takes nets that give a map as large as the image, and {remedy}"
            )


def _between_data_and_losses(param: caffe_pb2.NetParameter, built: Net) -> caffe_pb2.NetParameter:
    """The layers that make scores of images; Crops have the offset that they were read with, and of the rules that say
    when there is a layer, those for stages and levels are met."""
    layers = caffe_pb2.NetParameter(name=param.name)
    kept = {node.name: node.param for node in built.graph.nodes}
    for layer in param.layer:
        known = class_for(layer.type, layer.name)
        judges = known.is_loss or known.judges or known.idle or known.ranks(layer)
        if layer.name in kept and not is_source(layer) and not judges:
            copied = layers.layer.add()
            copied.CopyFrom(layer)
            if offset := kept[layer.name].crop_param.offset:
                copied.crop_param.offset[:] = offset
            for rule in copied.include:
                for name in _STATE:
                    rule.ClearField(name)
            excluding = [
                rule for rule in copied.exclude if not any(name.name in _STATE for name, _ in rule.ListFields())
            ]
            del copied.exclude[:]
            copied.exclude.extend(excluding)
    return layers


def _labels(built: Net, record: ModelInfo | None, blobs: Sequence[str]) -> dict[str, str]:
    """The label blob of each score blob: the one that its loss reads, else the published one, else one made up."""
    found = {blob: "label" if len(blobs) == 1 else f"{blob}_label" for blob in blobs}
    if record is not None:
        found |= {output.blob: output.label for output in record.outputs if output.blob in found}
    return found | {blob: label for blob, label in judged_blobs(built).items() if blob in found}


def _on_inputs(
    layers: caffe_pb2.NetParameter, channels: Mapping[str, int], size: tuple[int, int] = (256, 256)
) -> caffe_pb2.NetParameter:
    net = caffe_pb2.NetParameter(name=layers.name)
    for name, count in channels.items():
        data = net.layer.add(name=name, type="Input", top=[name])
        data.input_param.shape.add(dim=[1, count, *size])
    net.layer.extend(layers.layer)
    return net


def make_loss(name: str, mean: bool, weights: str | None = None) -> caffe_pb2.LayerParameter:
    """The loss over the pixels that are not void, their sum or mean; `weights` is the file of class weights if any."""
    loss = caffe_pb2.LayerParameter(name=name, type="SoftmaxWithLoss" if weights is None else "InfogainLoss")
    loss.top.append(name)
    loss.loss_param.ignore_label = IGNORE_LABEL
    if weights is None:
        loss.loss_param.normalize = mean
    else:
        # With the weights on its diagonal, Caffe's InfogainLoss is the cross entropy with every class's share weighted.
        loss.loss_param.normalization = _MODES.VALID if mean else _MODES.BATCH_SIZE
        loss.infogain_loss_param.source = weights
        loss.infogain_loss_param.axis = 1
    return loss


def first_weights(
    base: Base, weights: Mapping[str, Path], classes: Mapping[str, tuple[str, ...]]
) -> tuple[Net, Report, bool]:
    """The net for use with its values before training, what was done to get them, and whether it has scores already.

    From `weights` (by suffix of the net's layers) come all layers that fit; score layers of another number of classes
    begin at zero, but classes (by score blob) whose names the old net knows keep their old weights. A first layer that
    sees more channels than the old one gets the mean of the old for each. Layers called up... interpolate. Without
    weights the convolutions begin at random values (He's), the score layers at zero.
    """
    definition = base.deploy()
    if not weights:
        scoring = {name for one in base.scores for name in one.layers}
        for layer in definition.layer:
            if layer.type in _LEARNS and layer.name not in scoring:
                settings = layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param
                if not settings.HasField("weight_filler"):
                    settings.weight_filler.type = "msra"
        net = load(definition, **base.reading)
        net.meta = base.meta(classes)
        return net, surgery.with_interpolation(net, Report(list(base.report.steps))), False
    net, report = load(definition, **base.reading), Report(list(base.report.steps))
    net.meta = base.meta(classes)
    has_scores = False
    for suffix, file in weights.items():
        moved, scored = _move(base, net, file, suffix, classes)
        report = _then(report, moved)
        has_scores |= scored
    return net, _without_detours(surgery.with_interpolation(net, report)), has_scores


def _without_detours(report: Report) -> Report:
    """The same without layers left out of the plain copy that got their values in another way."""
    filled = {*report.layers("copied"), *report.layers("coerced"), *report.layers("made")}
    return Report([step for step in report.steps if step.action != "dropped" or step.layer not in filled])


def _then(report: Report, more: Report) -> Report:
    """Both reports; what got something in the second isn't "kept" in the first."""
    filled = {*more.layers("copied"), *more.layers("coerced"), *more.layers("made")}
    return Report([step for step in report.steps if step.action != "kept" or step.layer not in filled]) + more


def _move(base: Base, net: Net, file: Path, suffix: str, classes: Mapping[str, tuple[str, ...]]) -> tuple[Report, bool]:
    """Fill the layers whose names end in the suffix from one file; whether scores came over as they were."""
    with surgery.opened(file) as layers:
        stored = {layer.name: tuple(layer.blobs[0].shape) for layer in layers}
    left_out: list[str] = []
    by_class: dict[str, dict[int, int]] = {}
    said = told_in(file)
    for one in base.scores:
        new = classes[one.blob]
        if said is not None and any(output.blob == one.blob for output in said.outputs):
            one = replace(one, known=said.outputs[one.blob].classes)  # the weights' own word of their classes
        known = {place: one.known.index(name) for place, name in enumerate(new) if name in one.known}
        for layer in one.layers:
            old = layer[: len(layer) - len(suffix)] if suffix and layer.endswith(suffix) else layer
            if old not in stored or layer not in net.params:
                continue
            fits = stored[old] == tuple(net.params[layer][0].shape)
            # As many classes as before, but others: their weights are of no use in the old order.
            if fits and (not one.known or one.known == new or stored[old][0] != len(one.known)):
                continue
            left_out.append(old)
            if known and net.layer(layer).type == "Convolution" and stored[old][0] == len(one.known):
                by_class[layer] = known
    report, scoring = Report(), {name for one in base.scores for name in one.layers}
    widened = _widened(net, stored, suffix)
    if widened is not None:
        report += surgery.widen_input(net, widened[0], file, widened[1])
        left_out.append(widened[1])
    for name, shape in stored.items():
        target = net.params.get(name + suffix)
        if target is not None and name not in left_out and relation(shape, tuple(target[0].shape)) is None:
            raise WeightsError(
                f"{file}: layer {name!r} has weights of shape {shape}, but {base.name}'s {name + suffix!r} has "
                f"{tuple(target[0].shape)}; they are the weights of another net; "
                "`fcnproto surgery transplant` moves the layers that fit (--leave-out A,B for the others)"
            )
    try:
        moved = surgery.transplant(net, file, suffix, leave_out=left_out)
    except WeightsError as error:
        if suffix or "none of its layers" not in str(error):
            raise
        raise WeightsError(
            f"{error}; for a net of several streams say which: --weights STREAM=FILE, repeated"
        ) from None
    report += Report([step for step in moved.steps if widened is None or step.layer not in widened])
    has_scores = any(name in scoring and net.layer(name).type != "Deconvolution" for name in moved.layers("copied"))
    for layer, known in by_class.items():
        old = layer[: len(layer) - len(suffix)] if suffix else layer
        report = _then(report, surgery.transfer_classes(net, layer, file, known, old))
    return report, has_scores


def _widened(net: Net, stored: Mapping[str, tuple[int, ...]], suffix: str) -> tuple[str, str] | None:
    """The net's first layer and the file's, where the net's reads more channels: by another name (early fusion), or by
    the same (images of more bands)."""
    target = next((name for name, blobs in net.params.items() if blobs[0].ndim == 4), None)
    source = next((name for name, shape in stored.items() if len(shape) == 4), None)
    if suffix or target is None or source is None or (target != source and (target in stored or source in net.params)):
        return None
    old, new = stored[source], tuple(net.params[target][0].shape)
    return (target, source) if old[0] == new[0] and old[2:] == new[2:] and old[1] < new[1] else None
