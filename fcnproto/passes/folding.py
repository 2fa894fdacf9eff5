"""Pad folding: a chain of layers run on the part of each blob that the image can reach, exactly.

Far from the image a blob holds, in every channel, one constant c, or an edge pattern that depends on the weights and
the size alone. The chain carries x - c on the reached rectangle, whose true surroundings are then zeros, and puts the
rest back from a border map where a blob is wanted in full. Preconditions are proven by `intervals` for each size; where
they end, the remaining layers run in full. Inference only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnproto.layers.base import Layer
from fcnproto.layers.convolution import Convolution
from fcnproto.layers.pooling import Pooling
from fcnproto.passes.intervals import Span, Sweep, canvas, expansion, reads, spans
from fcnproto.passes.kernels import FastConvolution, blobs_of, version_of

# Layers that act on every position of a blob by itself, so that a constant stays one.
POINTWISE = frozenset(
    [
        *("AbsVal", "BNLL", "Clip", "Dropout", "ELU", "Exp", "Log", "Power", "PReLU", "ReLU", "Sigmoid", "Swish"),
        *("TanH", "Threshold", "BatchNorm", "Bias", "LRN", "Scale"),
    ]
)
_SIZES_KEPT = 4


@dataclass(frozen=True)
class Step:
    """One layer of a chain: a convolution (with its ReLU if `relu`), a max pooling, or a pointwise layer."""

    layer: Layer
    relu: bool = False

    @property
    def sweeps(self) -> tuple[Sweep | None, Sweep | None]:
        """How the layer moves along the two axes."""
        layer = self.layer
        if isinstance(layer, Pooling):
            windows = layer.windows
            sweeps = [
                Sweep(k, s, 0, ceil=not windows.floor, clips=True)
                for k, s in zip(windows.kernel, windows.stride, strict=True)
            ]
        elif isinstance(layer, Convolution):
            window = layer.window
            sweeps = [Sweep(*values) for values in zip(window.extent, window.stride, window.pad, strict=True)]
        else:
            return None, None
        return sweeps[0], sweeps[1]


@dataclass(frozen=True)
class _Sized:
    """All that depends on the image's size: spans of every blob by axis, and the border maps of the wanted ones."""

    rows: list[Span]
    columns: list[Span]
    borders: dict[int, Tensor]


class FoldedChain(nn.Module):
    """A chain of steps from one blob, giving the blobs after the steps in `taps` in full."""

    def __init__(self, steps: Sequence[Step], taps: Sequence[int]) -> None:
        super().__init__()
        self._steps = list(steps)  # the layers belong to the net
        self.taps = tuple(taps)
        self._fast = [
            FastConvolution(step.layer, step.relu) if isinstance(step.layer, Convolution) else None for step in steps
        ]
        self._seen: tuple[object, ...] | None = None
        self._constants: list[tuple[Tensor, Tensor]] = []
        self._sizes: OrderedDict[tuple[int, int], _Sized] = OrderedDict()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        self._refresh()
        sized = self._sized(image.shape[2], image.shape[3])
        depth = len(sized.rows) - 1
        wanted: dict[int, Tensor] = {}
        x = image
        for i in range(depth):
            x = self._folded_step(i, x, sized)
            if i in sized.borders:
                wanted[i] = self._paste(i, x, sized)
        if depth:
            x = wanted.pop(depth - 1) if depth - 1 not in self.taps else wanted[depth - 1]
        for i in range(depth, len(self._steps)):
            x = self._plain_step(i, x)
            if i in self.taps:
                wanted[i] = x
        return tuple(wanted[i] for i in self.taps)

    def _refresh(self) -> None:
        """Drop what was derived from weights that have changed."""
        version = version_of([blob for step in self._steps for blob in blobs_of(step.layer)])
        if version == self._seen:
            return
        self._sizes.clear()
        self._constants = []
        self._seen = version

    def _need_constants(self, depth: int) -> None:
        """Make the constants of the first `depth` steps."""
        first = self._steps[0].layer
        assert isinstance(first, Convolution)
        while len(self._constants) < depth:
            c = self._constants[-1][1] if self._constants else first.blob(0).new_zeros(1, first.channels, 1, 1)
            self._constants.append(_constants(self._steps[len(self._constants)], c))

    def _sized(self, height: int, width: int) -> _Sized:
        key = (height, width)
        found = self._sizes.get(key)
        if found is None:
            found = self._sizes[key] = self._prepare(height, width)
            while len(self._sizes) > _SIZES_KEPT:
                self._sizes.popitem(last=False)
        self._sizes.move_to_end(key)
        return found

    def _prepare(self, height: int, width: int) -> _Sized:
        sweeps = [[step.sweeps[axis] for step in self._steps] for axis in range(2)]
        depth = min(len(spans(sweeps[0], height)), len(spans(sweeps[1], width))) - 1
        while depth and not isinstance(self._steps[depth - 1].layer, Pooling):
            depth -= 1  # end where the blob is small
        self._need_constants(depth)
        rows, columns = spans(sweeps[0][:depth], height), spans(sweeps[1][:depth], width)
        wanted = [i for i in self.taps if i < depth] + ([depth - 1] if depth else [])
        if not depth:
            return _Sized(rows, columns, {})
        small = (canvas(sweeps[0], height, depth), canvas(sweeps[1], width, depth))
        first = self._steps[0].layer
        assert isinstance(first, Convolution)
        x = first.blob(0).new_zeros(1, first.channels, *small)
        borders: dict[int, Tensor] = {}
        for i in range(depth):
            x = self._plain_step(i, x)
            if i in wanted:
                index = [
                    torch.tensor(expansion(sweeps[axis], small[axis], full, i + 1), device=x.device)
                    for axis, full in enumerate((height, width))
                ]
                full_map = x.index_select(2, index[0]).index_select(3, index[1])
                borders[i] = full_map.contiguous(memory_format=torch.channels_last)
        return _Sized(rows, columns, borders)

    def _plain_step(self, i: int, x: Tensor) -> Tensor:
        fast = self._fast[i]
        return self._steps[i].layer(x) if fast is None else fast(x)

    def _folded_step(self, i: int, x: Tensor, sized: _Sized) -> Tensor:
        """From x - c on the interval before step i to the same after it."""
        step, (before, after) = self._steps[i], self._constants[i]
        sweeps = step.sweeps
        if sweeps[0] is None or sweeps[1] is None:
            return step.layer(x + before).sub_(after)
        margins = []
        for sweep, axis in ((sweeps[0], sized.rows), (sweeps[1], sized.columns)):
            start, stop = reads(sweep, axis[i + 1])
            margins.append((axis[i].lo - start, stop - axis[i].hi))
        if isinstance(step.layer, Pooling):
            return _max_pool(_pad(x, margins), step.layer)
        fast = self._fast[i]
        assert fast is not None
        return _convolve(fast, x, margins, before, after, (sized.rows[i + 1].size, sized.columns[i + 1].size))

    def _paste(self, i: int, x: Tensor, sized: _Sized) -> Tensor:
        border = sized.borders[i]
        full = border.repeat(x.shape[0], 1, 1, 1) if x.shape[0] > 1 else border.clone()
        rows, columns = sized.rows[i + 1], sized.columns[i + 1]
        full[:, :, rows.lo : rows.hi, columns.lo : columns.hi] = x + self._constants[i][1]
        return full


def _constants(step: Step, c: Tensor) -> tuple[Tensor, Tensor]:
    """What a step makes of a blob that is constant: for a convolution the value before its ReLU and after it, for
    other layers the constant before the layer and after it. Shapes (1, C, 1, 1)."""
    layer = step.layer
    if isinstance(layer, Pooling):
        return c, c
    if not isinstance(layer, Convolution):
        return c, layer(c)
    total = layer.blob(0).detach().sum((2, 3), keepdim=True, dtype=torch.float64)
    bias = layer.optional_blob(1)
    bias = None if bias is None else bias.detach().double()
    value = F.conv2d(c.double(), total, bias, groups=layer.groups).to(c.dtype)
    return value, value.relu() if step.relu else value


def _convolve(
    fast: FastConvolution,
    x: Tensor,
    margins: Sequence[tuple[int, int]],
    before: Tensor,
    after: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """relu(conv(x) + before) - after, with `margins` of zeros around x (negative ones cut it)."""
    pad = [max(0, *pair) for pair in margins]
    same = all(lo == hi for lo, hi in margins) or fast.layer.window.stride == (1, 1)
    if not same or any(value < 0 for pair in margins for value in pair):
        x, pad, margins = _pad(x, margins), [0, 0], [(0, 0), (0, 0)]
    y = fast.convolve(x, (before - after).flatten(), pad)
    skip = [p - lo for p, (lo, _) in zip(pad, margins, strict=True)]
    y = y[:, :, skip[0] : skip[0] + size[0], skip[1] : skip[1] + size[1]]
    return torch.maximum(y, -after, out=y) if fast.relu else y


def _pad(x: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
    if not any(value for pair in margins for value in pair):
        return x
    return F.pad(x, [value for pair in reversed(margins) for value in pair])


def _max_pool(x: Tensor, layer: Pooling) -> Tensor:
    return F.max_pool2d(x, layer.windows.kernel, layer.windows.stride)
