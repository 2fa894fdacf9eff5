"""Fully convolutional nets: base nets, heads with skips, and the published ways to put them together.

Every function here adds layers to a NetSpec that already has its data tops, and gives the spec back:

    net = NetSpec()
    net.data, net.label = layers.Data(ntop=2, ...)
    prototxt = fcn8s(net, classes=9, widths=(16, 32, 64, 96, 96, 256)).to_proto()

A spec that has the labels as well gets dropout and losses, as for training and testing; one without is a deploy net.
`classes` is a number, or a number per task: {"sem": 33, "geo": 3} reads the labels `sem` and `geo`, makes the scores
`score_sem` and `score_geo` and the losses `loss` (the first task's) and `loss_geo`. `widths` are the channels of the
five stages, then of fc6 and fc7 alike. The offsets of all crops follow from the layers' coordinate maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcnproto.netspec import NetSpec, Top, crop
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2

from . import googlenet

Classes = int | Mapping[str, int]

VGG16 = (64, 128, 256, 512, 512, 4096)
CAFFENET = (96, 256, 384, 384, 256, 4096)
IGNORE_LABEL = 255

# The padding of the first layer, so that the deepest map of even a small image keeps a position.
FIRST_PAD = 100
# Weights learn at the base rate, biases at twice that and without decay.
LEARNED = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]
FIXED = [{"lr_mult": 0}]


@dataclass(frozen=True)
class Task:
    """One labelling that a net predicts: the names that its layers get, and its number of classes."""

    suffix: str
    label: str
    loss: str
    classes: int


def tasks(classes: Classes) -> Iterator[Task]:
    """The tasks that a `classes` argument stands for."""
    if isinstance(classes, int):
        yield Task("", "label", "loss", classes)
        return
    for index, (name, count) in enumerate(classes.items()):
        yield Task(f"_{name}", name, f"loss_{name}" if index else "loss", count)


def fcn32s(net: NetSpec, classes: Classes = 21, widths: Sequence[int] = VGG16) -> NetSpec:
    """FCN-32s on VGG16: one stream, upsampled 32 times in one step."""
    return _fcn_vgg16(net, classes, widths)


def fcn16s(net: NetSpec, classes: Classes = 21, widths: Sequence[int] = VGG16) -> NetSpec:
    """FCN-16s on VGG16: pool4 is scored too and joined at stride 16."""
    return _fcn_vgg16(net, classes, widths, skips=(4,))


def fcn8s(net: NetSpec, classes: Classes = 21, widths: Sequence[int] = VGG16) -> NetSpec:
    """FCN-8s on VGG16: pool4 and pool3 are scored too and joined at strides 16 and 8."""
    return _fcn_vgg16(net, classes, widths, skips=(4, 3))


def fcn8s_at_once(net: NetSpec, classes: Classes = 21, widths: Sequence[int] = VGG16) -> NetSpec:
    """FCN-8s for training in one go: fixed scales bring pool4 and pool3 to the size of the deepest features."""
    return _fcn_vgg16(net, classes, widths, skips=(4, 3), scales={4: 0.01, 3: 0.0001})


def fcn32s_early_fusion(net: NetSpec, classes: Classes = 40, widths: Sequence[int] = VGG16) -> NetSpec:
    """FCN-32s on the tops `color` and `depth` joined to one four-channel image."""
    net.data = L.Concat(net.color, net.depth)
    return _fcn_vgg16(net, classes, widths, first="conv1_1_bgrd")


def fcn32s_late_fusion(net: NetSpec, classes: int = 40, widths: Sequence[int] = VGG16) -> NetSpec:
    """Two FCN-32s streams, on the tops `color` and `hha`, whose scores are averaged before upsampling."""
    (task,) = tasks(classes)
    scores = []
    for stream in ("color", "hha"):
        top = vgg16(net, net[stream], widths, dropout=task.label in net, suffix=stream)
        scores.append(L.Convolution(top, num_output=classes, kernel_size=1, pad=0, param=LEARNED))
        net[f"score_fr{stream}"] = scores[-1]
    fused = net["score_fused"] = L.Eltwise(*scores, operation="SUM", coeff=[0.5, 0.5])
    upscored = net["upscore"] = upsampling(fused, classes, 32)
    net.score = crop(upscored, net.color)
    return _with_loss(net, task)


def fcn_alexnet(net: NetSpec, classes: int = 21, widths: Sequence[int] = CAFFENET) -> NetSpec:
    """FCN-32s on CaffeNet, with a loss that is the mean over the labelled pixels."""
    (task,) = tasks(classes)
    top = caffenet(net, net.data, widths, dropout=task.label in net)
    _add_scores(net, top, task, kernel=63)
    return _with_loss(net, task, normalize=True)


def fcn_googlenet(net: NetSpec, classes: int = 21, slimness: int = 1) -> NetSpec:
    """FCN-32s on GoogLeNet: its last inception module is scored instead of averaged.

    No later layer eats into the map, so the padding of 3 that it was trained with suffices and no position is without
    image.
    """
    (task,) = tasks(classes)
    top = googlenet.features(net, net.data, slimness=slimness)
    _add_scores(net, top, task, kernel=63)
    return _with_loss(net, task, normalize=True)


def fixed_features(net: caffe_pb2.NetParameter) -> caffe_pb2.NetParameter:
    """The net with only its scoring layers learning: the "fixed" row of the CVPR paper's table 2."""
    for layer in net.layer:
        if layer.type == "Convolution" and not layer.name.startswith("score"):
            del layer.param[:]
            for _ in range(2):
                layer.param.add(lr_mult=0, decay_mult=0)
    return net


def vgg16(
    net: NetSpec, data: Top, widths: Sequence[int] = VGG16, *, dropout: bool, suffix: str = "", first: str = "conv1_1"
) -> Top:
    """The convolutional VGG16 on `data`, up to fc7. `suffix` ends all names; `first` names the first layer."""
    top = data
    for stage, (width, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=False), start=1):
        for number in (f"{stage}_{index}{suffix}" for index in range(1, depth + 1)):
            name, pad = (first + suffix, FIRST_PAD) if top is data else (f"conv{number}", 1)
            top = L.Convolution(top, num_output=width, kernel_size=3, pad=pad, stride=1, param=LEARNED)
            net[name] = top
            top = net[f"relu{number}"] = L.ReLU(top, in_place=True)
        top = net[f"pool{stage}{suffix}"] = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    return _fully_connected(net, top, widths[5], 7, suffix, dropout, param=LEARNED)


def caffenet(net: NetSpec, data: Top, widths: Sequence[int] = CAFFENET, *, dropout: bool) -> Top:
    """The convolutional CaffeNet on `data`, up to fc7: weights and biases learn alike."""
    settings = [
        {"kernel_size": 11, "stride": 4, "pad": FIRST_PAD, "group": 1},
        {"kernel_size": 5, "stride": 1, "pad": 2, "group": 2},
        {"kernel_size": 3, "stride": 1, "pad": 1, "group": 1},
        {"kernel_size": 3, "stride": 1, "pad": 1, "group": 2},
        {"kernel_size": 3, "stride": 1, "pad": 1, "group": 2},
    ]
    top = data
    for stage, (width, window) in enumerate(zip(widths, settings, strict=False), start=1):
        top = net[f"conv{stage}"] = L.Convolution(top, num_output=width, **window)
        top = net[f"relu{stage}"] = L.ReLU(top, in_place=True)
        if stage in (1, 2, 5):
            top = net[f"pool{stage}"] = L.Pooling(top, pool="MAX", kernel_size=3, stride=2)
        if stage in (1, 2):
            top = net[f"norm{stage}"] = L.LRN(top, local_size=5, alpha=1e-4, beta=0.75)
    return _fully_connected(net, top, widths[5], 6, "", dropout, group=1)


def upsampling(scores: Top, classes: int, factor: int, kernel: int | None = None) -> Top:
    """A fixed Deconvolution that enlarges by `factor`; surgery (or whoever trains) fills it with bilinear weights."""
    kernel = kernel or 2 * factor
    return L.Deconvolution(scores, num_output=classes, kernel_size=kernel, stride=factor, bias_term=False, param=FIXED)


def _fcn_vgg16(
    net: NetSpec,
    classes: Classes,
    widths: Sequence[int],
    skips: Sequence[int] = (),
    scales: Mapping[int, float] | None = None,
    first: str = "conv1_1",
) -> NetSpec:
    dropout = any(task.label in net for task in tasks(classes))
    top = vgg16(net, net.data, widths, dropout=dropout, first=first)
    for task in tasks(classes):
        _add_scores(net, top, task, skips, scales or {})
        _with_loss(net, task)
    return net


def _fully_connected(
    net: NetSpec, top: Top, width: int, kernel: int, suffix: str, dropout: bool, **settings: Any
) -> Top:
    """fc6 and fc7 as convolutions."""
    for number, size in ((6, kernel), (7, 1)):
        top = L.Convolution(top, num_output=width, kernel_size=size, pad=0, stride=1, **settings)
        net[f"fc{number}{suffix}"] = top
        top = net[f"relu{number}{suffix}"] = L.ReLU(top, in_place=True)
        if dropout:
            top = net[f"drop{number}{suffix}"] = L.Dropout(top, dropout_ratio=0.5, in_place=True)
    return top


def _add_scores(
    net: NetSpec,
    top: Top,
    task: Task,
    skips: Sequence[int] = (),
    scales: Mapping[int, float] | None = None,
    kernel: int | None = None,
) -> None:
    """Score `top` and the pools named in `skips`, join them going up, and upsample to the size of `net.data`."""

    def score(features: Top) -> Top:
        return L.Convolution(features, num_output=task.classes, kernel_size=1, pad=0, param=LEARNED)

    top = net[f"score_fr{task.suffix}"] = score(top)
    stride, up = 32, "upscore2"
    for pool in skips:
        upscored = net[f"{up}{task.suffix}"] = upsampling(top, task.classes, 2)
        features = net[f"pool{pool}"]
        if scales and pool in scales:
            filler = {"type": "constant", "value": scales[pool]}
            features = net[f"scale_pool{pool}{task.suffix}"] = L.Scale(features, filler=filler, param=FIXED)
        scored = net[f"score_pool{pool}{task.suffix}"] = score(features)
        cropped = net[f"score_pool{pool}{task.suffix}c"] = crop(scored, upscored)
        top = net[f"fuse_pool{pool}{task.suffix}"] = L.Eltwise(upscored, cropped, operation="SUM")
        stride, up = stride // 2, f"upscore_pool{pool}"
    name = f"upscore{stride}" if skips else "upscore"
    upscored = net[f"{name}{task.suffix}"] = upsampling(top, task.classes, stride, kernel)
    net[f"score{task.suffix}"] = crop(upscored, net.data)


def _with_loss(net: NetSpec, task: Task, normalize: bool = False) -> NetSpec:
    """The loss where the spec has the label: by default the sum over the labelled pixels of an image."""
    if task.label in net:
        settings = {"ignore_label": IGNORE_LABEL, "normalize": normalize}
        net[task.loss] = L.SoftmaxWithLoss(net[f"score{task.suffix}"], net[task.label], loss_param=settings)
    return net
