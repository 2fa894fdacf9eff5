# A Caffe net in plain PyTorch.
# What this net wants of its images, and what its scores mean (fcnproto reads the lines with #:)
#: { "format": "fcnproto.meta", "version": 1, "name": "voc-fcn8s", "inputs": [ { "blob": "data", "kind": "bgr",
#: "order": "BGR", "mean": [ 104.00699, 116.66877, 122.67892 ], "scale": 1.0 } ], "outputs": [ { "blob": "score",
#: "classes": [ "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
#: "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
#: "tvmonitor" ], "label": "label", "ignore_label": 255 } ], "scores": [ { "data": "PASCAL VOC 2011 seg11valid",
#: "metrics": { "mean IU": 0.655 }, "source": "FCN repository (fcn.berkeleyvision.org)", "verified": true }, {
#: "data": "PASCAL VOC 2012 test", "metrics": { "mean IU": 0.672 },
#: "source": "FCN repository (fcn.berkeleyvision.org)", "verified": true }, {
#: "data": "PASCAL VOC 2011 seg11valid", "metrics": { "pixel accuracy": 0.912, "mean accuracy": 0.776,
#: "mean IU": 0.655, "frequency weighted IU": 0.845 },
#: "source": "Shelhamer, Long, Darrell, PAMI 2017; recalled, not checked against the paper", "verified": false } ]
#: }
"""voc-fcn8s: a Caffe net in plain PyTorch, written by fcnproto.

`load()` gives the module with the weights in voc_fcn8s.safetensors, which lies beside this file.
The comments say each blob's shape for the inputs' size in the prototxt; other sizes work too where no fully connected
layer follows.

Input data: BGR, mean 104.007 116.669 122.679, scale 1 (known of voc-fcn8s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

_LOWEST = -3.4028234663852886e38


def _max_pool(x: Tensor, windows: Windows, with_mask: bool) -> tuple[Tensor, Tensor | None]:
    size, kernel, stride = x.shape[2:], windows.kernel, windows.stride
    if windows.covers(size):  # programs of any size can't have a kernel of the same
        return F.adaptive_max_pool2d(x, 1, return_indices=True)
    windows = windows.settled(size)
    if windows.suits_torch(size):
        if not with_mask:
            return F.max_pool2d(x, kernel, stride, windows.pad, ceil_mode=not windows.floor), None
        return F.max_pool2d(x, kernel, stride, windows.pad, ceil_mode=not windows.floor, return_indices=True)
    padded = F.pad(x, windows.margins(size), value=max(_LOWEST, torch.finfo(x.dtype).min))
    values, index = F.max_pool2d(padded, kernel, stride, return_indices=True)
    if not with_mask:
        return values, None
    row = index // padded.shape[3] - windows.pad[0]
    column = index % padded.shape[3] - windows.pad[1]
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    return values, torch.where(inside, row * size[1] + column, -1)


def computing_type(x: Tensor) -> torch.dtype:
    """float32 for half types, in which squares and sums over an image overflow; the tensor's own for others."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def looks_finite(values: Tensor) -> bool:
    """False where some value, or only their sum, is not finite; True where values can't be looked at or should not."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    try:
        return math.isfinite(values.detach().sum(dtype=computing_type(values)).item())
    except RuntimeError:  # inside a transformation that has no values, such as vmap
        return True


def find_maxima(x: Tensor, windows: Windows, with_mask: bool) -> tuple[Tensor, Tensor | None]:
    """The maximum of each window and, `with_mask`, its index h * W + w within the plane (-1 for an empty window).

    Among equal values the first in row-major order is chosen, and alone gets the gradient. An empty window
    gives the lowest float32. Caffe starts from that value and takes what is larger, so never NaN or minus infinity; so
    it is here on the CPU, while elsewhere, and in compiled graphs, both are taken as PyTorch takes them.
    """
    values, index = _max_pool(x, windows, with_mask)
    if looks_finite(values):
        return values, index
    lowest = max(_LOWEST, torch.finfo(x.dtype).min)
    values, index = _max_pool(torch.where(x > lowest, x, lowest), windows, with_mask)
    return values, None if index is None else torch.where(values > lowest, index, -1)


def max_pool(x: Tensor, windows: Windows) -> Tensor:
    """The maximum of each window."""
    return find_maxima(x, windows, False)[0]


def is_centred(kernel: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether SAME puts the windows' middles on every position: the padding is half a kernel then, for every size."""
    return all(k % 2 == 1 for k in kernel) and all(s == 1 for s in stride)


def same_pads(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """SAME's padding before the first position along each axis: the smaller half of what the windows need in all.

    A dilation isn't counted, in the fork neither.
    """
    needed = (torch.sym_max(0, (n - 1) // s * s + k - n) for n, k, s in zip(size, kernel, stride, strict=True))
    return tuple(both // 2 for both in needed)


Pair = tuple[int, int]


class Windows(NamedTuple):
    """The windows of one pooling: kernel, stride and pad as (height, width), and the rounding of the output size."""

    kernel: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)
    floor: bool = False
    pad_after: Pair | None = None
    """The padding below and to the right where it isn't `pad`."""
    same: bool = False
    inside: bool = False
    """An average is over the positions inside the input alone."""

    @property
    def is_even(self) -> bool:
        """Whether both ends of each axis have the same padding at any size."""
        return self.pad_after is None and not self.same

    def settled(self, size: Sequence[int]) -> Windows:
        """The windows with the padding that SAME gives an input of `size`."""
        if not self.same:
            return self
        height, width = same_pads(size, self.kernel, self.stride)
        needed = [
            torch.sym_max(0, (n - 1) // s * s + k - n) for n, k, s in zip(size, self.kernel, self.stride, strict=True)
        ]
        return self._replace(pad=(height, width), pad_after=(needed[0] - height, needed[1] - width), same=False)

    def simplified(self) -> Windows:
        """The same windows without `pad_after` and `same` where `pad` alone says it."""
        if self.pad_after == self.pad:
            return self._replace(pad_after=None)
        if self.same and is_centred(self.kernel, self.stride):
            return self._replace(pad=(self.kernel[0] // 2, self.kernel[1] // 2), same=False)
        return self

    def end(self, i: int) -> int:
        """The padding behind along axis `i`."""
        return self.pad[i] if self.pad_after is None else self.pad_after[i]

    def output(self, size: Sequence[int]) -> Pair:
        """Output (height, width) for an input of `size` by Caffe's rule; may be 0 or negative."""
        if self.same:
            height, width = ((size[i] - 1) // self.stride[i] + 1 for i in (0, 1))
        else:
            height, width = (self._output(size[i], i) for i in (0, 1))
        return height, width

    def _output(self, size: int, i: int) -> int:
        room, stride = size + self.pad[i] + self.end(i) - self.kernel[i], self.stride[i]
        count = (room if self.floor else room + stride - 1) // stride + 1
        if self.pad_after is None and not any(self.pad):
            return count
        # No window lies in the padding alone. Without a question, which would bind an exported program to its size.
        return torch.sym_min(count, (size + self.pad[i] - 1) // stride + 1)

    def suits_torch(self, size: Sequence[int]) -> bool:
        """Whether PyTorch's pooling (ceil_mode unless `floor`) makes the same windows of an input of `size`."""
        if not self.is_even:
            return False
        for i in (0, 1):
            # Without padding, a window that begins behind the end is one for Caffe and none for PyTorch.
            if 2 * self.pad[i] > self.kernel[i] or (not any(self.pad) and self.stride[i] > self.kernel[i]):
                return False
            if size[i] + 2 * self.pad[i] < self.kernel[i]:
                return False
        return True

    def covers(self, size: Sequence[int]) -> bool:
        """Whether the one window is the whole plane, as in global pooling."""
        return self.is_even and not any(self.pad) and self.kernel[0] == size[0] and self.kernel[1] == size[1]

    def margins(self, size: Sequence[int]) -> list[int]:
        """Padding for `F.pad` after which the windows tile the input exactly (negative where its end is not read)."""
        after = [
            (self._output(n, i) - 1) * self.stride[i] + self.kernel[i] - n - self.pad[i] for i, n in enumerate(size)
        ]
        return [self.pad[1], after[1], self.pad[0], after[0]]


class VocFcn8s(nn.Module):
    """voc-fcn8s: takes data, gives score."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1_1 = nn.Conv2d(3, 64, 3, padding=100)
        self.conv1_2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2_1 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv2_2 = nn.Conv2d(128, 128, 3, padding=1)
        self.conv3_1 = nn.Conv2d(128, 256, 3, padding=1)
        self.conv3_2 = nn.Conv2d(256, 256, 3, padding=1)
        self.conv3_3 = nn.Conv2d(256, 256, 3, padding=1)
        self.conv4_1 = nn.Conv2d(256, 512, 3, padding=1)
        self.conv4_2 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv4_3 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5_1 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5_2 = nn.Conv2d(512, 512, 3, padding=1)
        self.conv5_3 = nn.Conv2d(512, 512, 3, padding=1)
        self.fc6 = nn.Conv2d(512, 4096, 7)
        self.fc7 = nn.Conv2d(4096, 4096, 1)
        self.score_fr = nn.Conv2d(4096, 21, 1)
        self.upscore2 = nn.ConvTranspose2d(21, 21, 4, stride=2, bias=False)
        self.score_pool4 = nn.Conv2d(512, 21, 1)
        self.upscore_pool4 = nn.ConvTranspose2d(21, 21, 4, stride=2, bias=False)
        self.score_pool3 = nn.Conv2d(256, 21, 1)
        self.upscore8 = nn.ConvTranspose2d(21, 21, 16, stride=8, bias=False)

    def forward(self, data: Tensor) -> Tensor:
        conv1_1 = self.conv1_1(data)  # 1 x 64 x 698 x 698
        conv1_1 = F.relu(conv1_1)  # 1 x 64 x 698 x 698
        conv1_2 = self.conv1_2(conv1_1)  # 1 x 64 x 698 x 698
        conv1_2 = F.relu(conv1_2)  # 1 x 64 x 698 x 698
        pool1 = max_pool(conv1_2, Windows((2, 2), (2, 2)))  # 1 x 64 x 349 x 349
        conv2_1 = self.conv2_1(pool1)  # 1 x 128 x 349 x 349
        conv2_1 = F.relu(conv2_1)  # 1 x 128 x 349 x 349
        conv2_2 = self.conv2_2(conv2_1)  # 1 x 128 x 349 x 349
        conv2_2 = F.relu(conv2_2)  # 1 x 128 x 349 x 349
        pool2 = max_pool(conv2_2, Windows((2, 2), (2, 2)))  # 1 x 128 x 175 x 175
        conv3_1 = self.conv3_1(pool2)  # 1 x 256 x 175 x 175
        conv3_1 = F.relu(conv3_1)  # 1 x 256 x 175 x 175
        conv3_2 = self.conv3_2(conv3_1)  # 1 x 256 x 175 x 175
        conv3_2 = F.relu(conv3_2)  # 1 x 256 x 175 x 175
        conv3_3 = self.conv3_3(conv3_2)  # 1 x 256 x 175 x 175
        conv3_3 = F.relu(conv3_3)  # 1 x 256 x 175 x 175
        pool3 = max_pool(conv3_3, Windows((2, 2), (2, 2)))  # 1 x 256 x 88 x 88
        conv4_1 = self.conv4_1(pool3)  # 1 x 512 x 88 x 88
        conv4_1 = F.relu(conv4_1)  # 1 x 512 x 88 x 88
        conv4_2 = self.conv4_2(conv4_1)  # 1 x 512 x 88 x 88
        conv4_2 = F.relu(conv4_2)  # 1 x 512 x 88 x 88
        conv4_3 = self.conv4_3(conv4_2)  # 1 x 512 x 88 x 88
        conv4_3 = F.relu(conv4_3)  # 1 x 512 x 88 x 88
        pool4 = max_pool(conv4_3, Windows((2, 2), (2, 2)))  # 1 x 512 x 44 x 44
        conv5_1 = self.conv5_1(pool4)  # 1 x 512 x 44 x 44
        conv5_1 = F.relu(conv5_1)  # 1 x 512 x 44 x 44
        conv5_2 = self.conv5_2(conv5_1)  # 1 x 512 x 44 x 44
        conv5_2 = F.relu(conv5_2)  # 1 x 512 x 44 x 44
        conv5_3 = self.conv5_3(conv5_2)  # 1 x 512 x 44 x 44
        conv5_3 = F.relu(conv5_3)  # 1 x 512 x 44 x 44
        pool5 = max_pool(conv5_3, Windows((2, 2), (2, 2)))  # 1 x 512 x 22 x 22
        fc6 = self.fc6(pool5)  # 1 x 4096 x 16 x 16
        fc6 = F.relu(fc6)  # 1 x 4096 x 16 x 16
        fc7 = self.fc7(fc6)  # 1 x 4096 x 16 x 16
        fc7 = F.relu(fc7)  # 1 x 4096 x 16 x 16
        score_fr = self.score_fr(fc7)  # 1 x 21 x 16 x 16
        upscore2 = self.upscore2(score_fr)  # 1 x 21 x 34 x 34
        score_pool4 = self.score_pool4(pool4)  # 1 x 21 x 44 x 44
        score_pool4c = score_pool4[:, :, 5 : 5 + upscore2.shape[2], 5 : 5 + upscore2.shape[3]]  # 1 x 21 x 34 x 34
        fuse_pool4 = upscore2 + score_pool4c  # 1 x 21 x 34 x 34
        upscore_pool4 = self.upscore_pool4(fuse_pool4)  # 1 x 21 x 70 x 70
        score_pool3 = self.score_pool3(pool3)  # 1 x 21 x 88 x 88
        # 1 x 21 x 70 x 70
        score_pool3c = score_pool3[:, :, 9 : 9 + upscore_pool4.shape[2], 9 : 9 + upscore_pool4.shape[3]]
        fuse_pool3 = upscore_pool4 + score_pool3c  # 1 x 21 x 70 x 70
        upscore8 = self.upscore8(fuse_pool3)  # 1 x 21 x 568 x 568
        score = upscore8[:, :, 31 : 31 + data.shape[2], 31 : 31 + data.shape[3]]  # 1 x 21 x 500 x 500
        return score


def load(path: str | Path | None = None) -> VocFcn8s:
    """The net with its weights, ready for inference; `path` is the file of weights."""
    net = VocFcn8s()
    net.load_state_dict(load_file(Path(__file__).with_name("voc_fcn8s.safetensors") if path is None else path))
    return net.eval()
