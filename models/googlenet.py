"""GoogLeNet without its auxiliary classifiers, under the layer names of its published Caffe model.

`features` are the layers up to the last inception module; `classifier` adds the average and the inner product that make
it the classification net again. For the FCN on it see `fcn.fcn_googlenet`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fcnproto.netspec import NetSpec, Top
from fcnproto.netspec import layers as L

Widths = tuple[int, int, int, int, int, int]

# Per module the channels of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5 and pool_proj.
MODULES: dict[str, Widths] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
STEM = (64, 64, 192)
LEARNED = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]


def features(net: NetSpec, data: Top, *, pad: int = 3, slimness: int = 1) -> Top:
    """The layers on `data` up to inception_5b/output, at stride 32.

    `pad` is the first layer's padding; all widths are divided by `slimness` (but stay 2 or more).
    """
    stem = [max(2, width // slimness) for width in STEM]
    top = _convolve(net, data, "conv1/7x7_s2", stem[0], 7, pad, stride=2)
    top = _pool(net, top, "pool1/3x3_s2")
    top = net["pool1/norm1"] = L.LRN(top, local_size=5, alpha=1e-4, beta=0.75)
    top = _convolve(net, top, "conv2/3x3_reduce", stem[1], 1)
    top = _convolve(net, top, "conv2/3x3", stem[2], 3, 1)
    top = net["conv2/norm2"] = L.LRN(top, local_size=5, alpha=1e-4, beta=0.75)
    top = _pool(net, top, "pool2/3x3_s2")
    for name, widths in MODULES.items():
        top = _inception(net, top, f"inception_{name}", [max(2, width // slimness) for width in widths])
        if name in ("3b", "4e"):
            top = _pool(net, top, f"pool{name[0]}/3x3_s2")
    return top


def classifier(net: NetSpec, top: Top, classes: int = 1000) -> Top:
    """The head of the classification net, for images of 224 x 224: average, inner product, softmax."""
    top = net["pool5/7x7_s1"] = L.Pooling(top, pool="AVE", kernel_size=7, stride=1)
    top = net["pool5/drop_7x7_s1"] = L.Dropout(top, dropout_ratio=0.4, in_place=True)
    top = net["loss3/classifier"] = L.InnerProduct(top, num_output=classes, param=LEARNED)
    net.prob = L.Softmax(top)
    return net.prob


def _convolve(net: NetSpec, top: Top, name: str, width: int, kernel: int, pad: int = 0, stride: int = 1) -> Top:
    """A convolution and its ReLU, which is called relu_ after it, as in conv1/relu_7x7."""
    settings = {"num_output": width, "kernel_size": kernel, "pad": pad, "stride": stride}
    top = net[name] = L.Convolution(top, param=LEARNED, **settings)
    folder, _, last = name.rpartition("/")
    net[f"{folder}/relu_{last.removesuffix('_s2')}"] = top = L.ReLU(top, in_place=True)
    return top


def _pool(net: NetSpec, top: Top, name: str) -> Top:
    net[name] = L.Pooling(top, pool="MAX", kernel_size=3, stride=2)
    return net[name]


def _inception(net: NetSpec, top: Top, name: str, widths: Sequence[int]) -> Top:
    one, three_reduced, three, five_reduced, five, projected = widths
    branches = [_convolve(net, top, f"{name}/1x1", one, 1)]
    reduced = _convolve(net, top, f"{name}/3x3_reduce", three_reduced, 1)
    branches.append(_convolve(net, reduced, f"{name}/3x3", three, 3, 1))
    reduced = _convolve(net, top, f"{name}/5x5_reduce", five_reduced, 1)
    branches.append(_convolve(net, reduced, f"{name}/5x5", five, 5, 2))
    pooled = net[f"{name}/pool"] = L.Pooling(top, pool="MAX", kernel_size=3, stride=1, pad=1)
    branches.append(_convolve(net, pooled, f"{name}/pool_proj", projected, 1))
    net[f"{name}/output"] = L.Concat(*branches)
    return net[f"{name}/output"]
