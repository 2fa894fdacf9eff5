"""The well-known classifiers and pose nets, slim: their layers and wiring as published, with few channels, for training.

Each function gives a net with the inputs `data` and `label` and one loss; `CLASSIC` names them with their images' shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fcnproto import zoo
from fcnproto.netspec import NetSpec, Top
from fcnproto.netspec import layers as L
from fcnproto.schema import caffe_pb2

CLASSES = 7
FILL = {"weight_filler": {"type": "msra"}, "bias_filler": {"type": "constant", "value": 0.1}}


def _convolve(top: Top, outputs: int, kernel: int, stride: int = 1, pad: int | None = None, **more: Any) -> Top:
    settings = {"num_output": outputs, "kernel_size": kernel, "stride": stride}
    return L.Convolution(top, pad=kernel // 2 if pad is None else pad, **settings, **FILL, **more)


def _relu(top: Top, **more: Any) -> Top:
    return L.ReLU(top, in_place=True, **more)


def _normed(top: Top, outputs: int, kernel: int, stride: int = 1, group: int = 1) -> Top:
    """Convolution, BatchNorm and Scale, as in ResNet and its heirs."""
    settings = {"num_output": outputs, "kernel_size": kernel, "stride": stride, "pad": kernel // 2, "group": group}
    top = L.Convolution(top, bias_term=False, weight_filler=FILL["weight_filler"], **settings)
    return L.Scale(L.BatchNorm(top, in_place=True), bias_term=True, in_place=True)


def _max(top: Top, kernel: int = 3, stride: int = 2) -> Top:
    return L.Pooling(top, pool="MAX", kernel_size=kernel, stride=stride)


def _classified(net: NetSpec, top: Top, pooled: bool = True) -> caffe_pb2.NetParameter:
    top = L.Pooling(top, pool="AVE", global_pooling=True) if pooled else top
    net.score = L.InnerProduct(top, num_output=CLASSES, **FILL)
    net.loss = L.SoftmaxWithLoss(net.score, net.label)
    return net.to_proto()


def lenet(net: NetSpec) -> caffe_pb2.NetParameter:
    top = _max(_convolve(net.data, 4, 5, pad=0), 2)
    top = _max(_convolve(top, 6, 5, pad=0), 2)
    return _classified(net, _relu(L.InnerProduct(top, num_output=16, **FILL)), pooled=False)


def alexnet(net: NetSpec) -> caffe_pb2.NetParameter:
    norm = {"local_size": 5, "alpha": 1e-4, "beta": 0.75}
    top = L.LRN(_max(_relu(_convolve(net.data, 8, 11, 4, 0))), **norm)
    top = L.LRN(_max(_relu(_convolve(top, 12, 5, group=2))), **norm)
    for outputs, group in ((12, 1), (12, 2), (8, 2)):
        top = _relu(_convolve(top, outputs, 3, group=group))
    for _ in range(2):
        top = L.Dropout(_relu(L.InnerProduct(top, num_output=16, **FILL)), dropout_ratio=0.0, in_place=True)
    return _classified(net, top, pooled=False)


def vgg16(net: NetSpec) -> caffe_pb2.NetParameter:
    top = net.data
    for outputs, count in ((4, 2), (4, 2), (8, 3), (8, 3), (8, 3)):
        for _ in range(count):
            top = _relu(_convolve(top, outputs, 3))
        top = _max(top, 2)
    return _classified(net, _relu(L.InnerProduct(top, num_output=16, **FILL)), pooled=False)


def googlenet(net: NetSpec) -> caffe_pb2.NetParameter:
    return _classified(net, zoo.definitions("googlenet").features(net, net.data, slimness=16))


def resnet50(net: NetSpec) -> caffe_pb2.NetParameter:
    top = _max(_relu(_normed(net.data, 4, 7, 2)))
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            side = top if block else _normed(top, 16, 1, stride)
            inner = _relu(_normed(_relu(_normed(top, 4, 1, stride)), 4, 3))
            top = _relu(L.Eltwise(side, _normed(inner, 16, 1)))
    return _classified(net, top)


def squeezenet(net: NetSpec) -> caffe_pb2.NetParameter:
    top = _max(_relu(_convolve(net.data, 8, 3, 2, 0)))
    for module in range(8):
        squeezed = _relu(_convolve(top, 3, 1))
        top = L.Concat(_relu(_convolve(squeezed, 4, 1)), _relu(_convolve(squeezed, 4, 3)))
        top = _max(top) if module in (1, 3) else top
    return _classified(net, _relu(_convolve(top, 9, 1)))


def mobilenet_v1(net: NetSpec) -> caffe_pb2.NetParameter:
    top, width = _relu(_normed(net.data, 4, 3, 2)), 4
    for outputs, stride in ((8, 1), (16, 2), (16, 1), (16, 2), (16, 1), (24, 2), (24, 1)):
        top = _relu(_normed(top, width, 3, stride, group=width))
        top, width = _relu(_normed(top, outputs, 1)), outputs
    return _classified(net, top)


def mobilenet_v2(net: NetSpec) -> caffe_pb2.NetParameter:
    top, width = _relu(_normed(net.data, 4, 3, 2), relu6=True), 4
    for outputs, stride in ((4, 1), (6, 2), (6, 1), (8, 2), (8, 1), (8, 1), (10, 2)):
        wide = _relu(_normed(top, width * 3, 1), relu6=True)
        inner = _normed(_relu(_normed(wide, width * 3, 3, stride, group=width * 3), relu6=True), outputs, 1)
        top = L.Eltwise(top, inner) if stride == 1 and outputs == width else inner
        width = outputs
    return _classified(net, top)


def densenet(net: NetSpec) -> caffe_pb2.NetParameter:
    def first(top: Top) -> Top:
        return _relu(L.Scale(L.BatchNorm(top), bias_term=True, in_place=True))

    top, width = _max(_relu(_normed(net.data, 6, 7, 2))), 6
    for count in (3, 4, 3):
        for _ in range(count):
            top = L.Concat(top, _convolve(first(_convolve(first(top), 8, 1)), 3, 3))
            width += 3
        width //= 2
        top = L.Pooling(_convolve(first(top), width, 1), pool="AVE", kernel_size=2, stride=2)
    return _classified(net, first(top))


def sphereface(net: NetSpec) -> caffe_pb2.NetParameter:
    def prelu(top: Top) -> Top:
        return L.PReLU(top, in_place=True, filler={"type": "uniform", "min": 0.1, "max": 0.4})

    top = net.data
    for outputs, count in ((4, 1), (6, 2), (8, 4), (12, 1)):
        top = prelu(_convolve(top, outputs, 3, 2))
        for _ in range(count):
            top = L.Eltwise(top, prelu(_convolve(prelu(_convolve(top, outputs, 3)), outputs, 3)))
    return _classified(net, L.InnerProduct(top, num_output=16, **FILL), pooled=False)


def network_in_network(net: NetSpec) -> caffe_pb2.NetParameter:
    top = net.data
    for outputs, kernel, stride in ((8, 11, 4), (12, 5, 1), (12, 3, 1)):
        top = _relu(_convolve(top, outputs, kernel, stride))
        top = _max(_relu(_convolve(_relu(_convolve(top, outputs, 1)), outputs, 1)))
    return _classified(net, top)


def openpose(net: NetSpec) -> caffe_pb2.NetParameter:
    """Stages that refine maps of confidence, each reading the features and the maps before."""
    top = net.data
    for outputs, count in ((4, 2), (8, 2), (12, 4)):
        for _ in range(count):
            top = _relu(_convolve(top, outputs, 3))
        top = _max(top, 2) if outputs < 12 else top
    features = maps = _relu(_convolve(top, 6, 3))
    for stage in range(3):
        joined = features if not stage else L.Concat(maps, features)
        for _ in range(3):
            joined = _relu(_convolve(joined, 6, 7 if stage else 3))
        maps = _convolve(joined, 5, 1)
    return _classified(net, maps)


def u_net(net: NetSpec) -> caffe_pb2.NetParameter:
    def twice(top: Top, outputs: int) -> Top:
        return _relu(_convolve(_relu(_convolve(top, outputs, 3)), outputs, 3))

    kept = [twice(net.data, 4)]
    for outputs in (6, 8):
        kept.append(twice(_max(kept[-1], 2), outputs))
    top = kept.pop()
    for outputs in (6, 4):
        up = L.Deconvolution(top, num_output=outputs, kernel_size=2, stride=2, weight_filler={"type": "msra"})
        top = twice(L.Concat(kept.pop(), up), outputs)
    return _classified(net, _convolve(top, 5, 1))


CLASSIC: dict[str, tuple[Callable[[NetSpec], caffe_pb2.NetParameter], tuple[int, ...]]] = {
    "LeNet": (lenet, (2, 1, 28, 28)),
    "AlexNet": (alexnet, (2, 3, 67, 67)),
    "VGG-16": (vgg16, (2, 3, 32, 32)),
    "GoogLeNet": (googlenet, (2, 3, 64, 64)),
    "ResNet-50": (resnet50, (2, 3, 64, 64)),
    "SqueezeNet": (squeezenet, (2, 3, 63, 63)),
    "MobileNet-v1": (mobilenet_v1, (2, 3, 64, 64)),
    "MobileNet-v2": (mobilenet_v2, (2, 3, 64, 64)),
    "DenseNet": (densenet, (2, 3, 64, 64)),
    "SphereFace-20": (sphereface, (2, 3, 56, 48)),
    "Network in Network": (network_in_network, (2, 3, 67, 67)),
    "OpenPose": (openpose, (2, 3, 32, 40)),
    "U-Net": (u_net, (2, 3, 32, 32)),
}
