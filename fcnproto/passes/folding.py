"""Pad folding: a chain of layers run on the part of each blob that the image can reach, exactly.

Far from the image a blob holds, in every channel, one constant c, or an edge pattern that depends on the weights and
the size alone. The chain carries x - c on the reached rectangle, whose true surroundings are then zeros, and puts the
rest back from a border map where a blob is wanted in full. Preconditions are proven by `intervals` for each size; where
they end, the remaining layers run in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fcnproto.layers.base import Layer
from fcnproto.layers.convolution import Convolution
from fcnproto.layers.pooling import Pooling, looks_finite
from fcnproto.passes import team
from fcnproto.passes.intervals import Span, Sweep, canvas, expansion, reads, spans, strip_of
from fcnproto.passes.keeping import Latest, Watch
from fcnproto.passes.kernels import (
    FastConvolution,
    fast_pool,
    needs_gradient,
    pool_rows,
    product_dtype,
    stored_blobs,
    suits_rows,
)

_SIZES_KEPT, _BYTES_KEPT = 8, 96 * 2**20
# Blobs of more bytes than the first are computed in strips of the second, but of no fewer rows than the third.
_LARGE, _STRIP, _LEAST_ROWS = 16 * 2**20, 4 * 2**20, 32


@dataclass(frozen=True)
class Step:
    """One step of a chain: a convolution with what is fused to it, a max pooling, or a pointwise layer.

    `layers` are all that the step stands for.
    """

    layer: Layer
    fast: FastConvolution | None = None
    layers: tuple[Layer, ...] = ()

    def watch(self, watch: Watch) -> int:
        """Watch the blobs that the step reads, from the first time on; how often they have been found changed."""
        if self.fast is not None:
            return self.fast.watch()
        watch.add(self.layer, partial(stored_blobs, self.layer))
        return watch.generation(self.layer)

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
class _Layout:
    """What depends on the image's size alone: spans of every blob by axis, the steps whose blobs are wanted in full,
    and the size of the canvas for the border maps."""

    rows: list[Span]
    columns: list[Span]
    wanted: tuple[int, ...]
    canvas: tuple[int, int]

    @property
    def depth(self) -> int:
        """How many steps run on their interval alone."""
        return len(self.rows) - 1


@dataclass(frozen=True)
class _Surroundings:
    """What depends on the weights too: for each step the constants before and after it, for a convolution what it adds
    for them, the least that its ReLU leaves, and by how much the one is above the other; and the border maps."""

    constants: list[tuple[Tensor, Tensor]]
    added: list[tuple[Tensor, Tensor, Tensor]]
    borders: dict[int, Tensor]


class FoldedChain(nn.Module):
    """A chain of steps from one blob, giving the blobs after the steps in `taps` in full.

    With gradients enabled, constants and border maps are made anew at each call, within autograd, so that the
    gradients are those of the plain layers. Without, they are kept for the latest few sizes until weights change.
    """

    def __init__(self, watch: Watch, steps: Sequence[Step], taps: Sequence[int]) -> None:
        super().__init__()
        self._steps = list(steps)  # the layers belong to the net
        self.taps = tuple(taps)
        self._watch = watch
        self._sizes: Latest[tuple[int, int, torch.dtype], tuple[tuple[int, ...], _Layout, _Surroundings]]
        self._sizes = Latest(_SIZES_KEPT, _BYTES_KEPT)
        self._indices: Latest[tuple[Any, ...], tuple[Tensor, Tensor]] = Latest(_SIZES_KEPT * len(self.taps))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        blobs = [step.layer.blob(k) for step in self._steps for k in range(len(step.layer.blob_names))]
        if needs_gradient(image, *blobs):
            size = (image.shape[2], image.shape[3])
            layout = self._layout(*size)
            return self._run(image, layout, self._surroundings(layout, size))
        with torch.no_grad():
            return self._run(image, *self._kept(image.shape[2], image.shape[3]))

    @property
    def first(self) -> Layer:
        """The convolution that the chain begins with."""
        return self._steps[0].layer

    def reached(self, height: int, width: int) -> list[tuple[Step, tuple[int, int] | None]]:
        """For an image of this size every step, with the size of the part of its blob that is computed (None: all)."""
        layout = self._layout(height, width)
        parts = [(rows.size, columns.size) for rows, columns in zip(layout.rows[1:], layout.columns[1:], strict=True)]
        return list(zip_longest(self._steps, parts))

    def _run(self, image: Tensor, layout: _Layout, around: _Surroundings) -> tuple[Tensor, ...]:
        wanted: dict[int, Tensor] = {}
        x, i = image, 0
        while i < layout.depth:
            stop = self._block_end(i, layout)
            x = self._block(i, stop, x, layout, around)
            i = stop
            if isinstance(self._steps[i - 1].layer, Pooling) and not looks_finite(x):
                return self._run_plainly(image)
            if i - 1 in layout.wanted:
                wanted[i - 1] = self._paste(i - 1, x, layout, around)
        return self._run_plainly(wanted[layout.depth - 1] if layout.depth else image, layout.depth, wanted)

    def _block_end(self, first: int, layout: _Layout) -> int:
        """The end of the steps from `first` on up to the next pooling, or up to a blob that is wanted in full."""
        for i in range(first, layout.depth):
            if i in layout.wanted or isinstance(self._steps[i].layer, Pooling):
                return i + 1
        return layout.depth

    def _block(self, first: int, stop: int, x: Tensor, layout: _Layout, around: _Surroundings) -> Tensor:
        """The steps from `first` up to `stop`, a strip of rows at a time where their blobs are large: what lies between
        stays in the cache, and in memory that was used before."""
        rows, columns = layout.rows[first : stop + 1], layout.columns[first : stop + 1]
        sweeps = self._sweeps(0)[first:stop]
        lines = self._strip_rows(first, stop, x, layout, around)

        def compute(lo: int) -> Tensor:
            strip = strip_of(sweeps, rows, lo, min(lo + lines, rows[-1].hi))
            y = x[:, :, strip[0].lo - rows[0].lo : strip[0].hi - rows[0].lo]
            for k in range(stop - first):
                y = self._folded_step(first + k, y, strip[k : k + 2], columns[k : k + 2], around)
            return y

        parts = team.run([partial(compute, lo) for lo in range(rows[-1].lo, rows[-1].hi, lines)])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _strip_rows(self, first: int, stop: int, x: Tensor, layout: _Layout, around: _Surroundings) -> int:
        """How many rows of the blob after step `stop` - 1 are computed at once."""
        rows = [span.size for span in layout.rows[first : stop + 1]]
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return rows[-1]  # autograd keeps all the blobs anyway
        columns = [span.size for span in layout.columns[first + 1 : stop + 1]]
        channels = [after.shape[1] for _, after in around.constants[first:stop]]
        largest = len(x) * x.element_size() * max(map(math.prod, zip(rows[1:], columns, channels, strict=True)))
        if largest <= _LARGE:
            return rows[-1]
        # Neighbouring strips compute a few rows of each blob twice, which must stay little beside the others.
        return max(1, _STRIP * rows[-1] // largest, _LEAST_ROWS * rows[-1] // rows[0])

    def _run_plainly(self, x: Tensor, first: int = 0, before: dict[int, Tensor] | None = None) -> tuple[Tensor, ...]:
        """The steps from `first` on over whole blobs: all of them where shifting meets values that are not finite."""
        wanted = before or {}
        for i in range(first, len(self._steps)):
            x = self._plain_step(i, x)
            if i in self.taps:
                wanted[i] = x
        return tuple(wanted[i] for i in self.taps)

    def _kept(self, height: int, width: int) -> tuple[_Layout, _Surroundings]:
        """Layout and surroundings for a size, made anew if weights have changed since they were made."""
        blob = self._steps[0].layer.blob(0)
        key = height, width, product_dtype(blob.device, blob.dtype)  # what is added to products has their precision
        found = self._sizes.get(key)
        layout = self._layout(height, width) if found is None else found[1]
        generations = self._generations(layout.depth)
        if found is not None and found[0] == generations:
            return found[1:]
        with torch.inference_mode(False), torch.no_grad():  # what inference mode makes, training could not use
            around = self._surroundings(layout, (height, width))
        size = sum(x.numel() * x.element_size() for x in around.borders.values())
        self._sizes.put(key, (generations, layout, around), size)
        return layout, around

    def _generations(self, depth: int) -> tuple[int, ...]:
        """The generations of the weights that shape the border maps of the first `depth` steps."""
        return tuple(step.watch(self._watch) for step in self._steps[:depth])

    def _sweeps(self, axis: int) -> list[Sweep | None]:
        return [step.sweeps[axis] for step in self._steps]

    def _layout(self, height: int, width: int) -> _Layout:
        sweeps = self._sweeps(0), self._sweeps(1)
        depth = min(len(spans(sweeps[0], height)), len(spans(sweeps[1], width))) - 1
        while depth and not isinstance(self._steps[depth - 1].layer, Pooling):
            depth -= 1  # end where the blob is small
        rows, columns = spans(sweeps[0][:depth], height), spans(sweeps[1][:depth], width)
        wanted = {i for i in self.taps if i < depth} | ({depth - 1} if depth else set())
        small = (canvas(sweeps[0], height, depth), canvas(sweeps[1], width, depth))
        return _Layout(rows, columns, tuple(sorted(wanted)), small)

    def _surroundings(self, layout: _Layout, size: tuple[int, int]) -> _Surroundings:
        """Constants and border maps, in the blobs' own precision whatever the image is computed in."""
        blob = self._steps[0].layer.blob(0)
        dtype = blob.dtype if torch.is_grad_enabled() else product_dtype(blob.device, blob.dtype)
        with torch.autocast(blob.device.type, enabled=False):
            return self._constants_and_borders(layout, size, dtype)

    def _constants_and_borders(self, layout: _Layout, size: tuple[int, int], dtype: torch.dtype) -> _Surroundings:
        first = self._steps[0].layer
        assert isinstance(first, Convolution)
        constants: list[tuple[Tensor, Tensor]] = []
        c = first.blob(0).new_zeros(1, first.channels, 1, 1)
        for step in self._steps[: layout.depth]:
            before, c = _constants(step, c)
            constants.append((before, c))
        borders: dict[int, Tensor] = {}
        x = constants[0][1].expand(-1, -1, *layout.canvas) if layout.depth else c
        for i in range(layout.depth):
            x = self._plain_step(i, x) if i else x
            if i in layout.wanted:
                borders[i] = self._expand(x, layout, size, i)
        added = [
            ((before - after).flatten().to(dtype), (-after).to(dtype), before.flatten().to(dtype))
            for before, after in constants
        ]
        if not torch.is_grad_enabled():
            borders = {i: border.to(dtype) for i, border in borders.items()}
        return _Surroundings(constants, added, borders)

    def _expand(self, x: Tensor, layout: _Layout, size: tuple[int, int], i: int) -> Tensor:
        """The border map of the blob after step `i` for an image of `size`, from what the canvas became."""
        key = (*size, i, x.device)
        found = self._indices.get(key)
        if found is None:
            lines = [expansion(self._sweeps(axis), layout.canvas[axis], size[axis], i + 1) for axis in range(2)]
            with torch.inference_mode(False):
                found = torch.tensor(lines[0], device=x.device), torch.tensor(lines[1], device=x.device)
            self._indices.put(key, found)
        x = x.index_select(2, found[0]).index_select(3, found[1])
        return x.contiguous(memory_format=torch.channels_last)

    def _plain_step(self, i: int, x: Tensor) -> Tensor:
        step = self._steps[i]
        if isinstance(step.layer, Pooling):
            return fast_pool(step.layer, x)
        result: Tensor = step.layer(x) if step.fast is None else step.fast(x)
        return result

    def _folded_step(
        self, i: int, x: Tensor, rows: Sequence[Span], columns: Sequence[Span], around: _Surroundings
    ) -> Tensor:
        """From x - c on the interval before step i to the same after it."""
        step, (before, after) = self._steps[i], around.constants[i]
        sweeps = step.sweeps
        if sweeps[0] is None or sweeps[1] is None:
            changed: Tensor = step.layer(x + before) - after
            return changed
        margins = []
        for sweep, (read, written) in ((sweeps[0], rows), (sweeps[1], columns)):
            start, stop = reads(sweep, written)
            margins.append((read.lo - start, stop - read.hi))
        size = (rows[1].size, columns[1].size)
        if isinstance(step.layer, Pooling):
            x, windows = _pad(x, margins), step.layer.windows
            if suits_rows(x, windows):
                return pool_rows(x, windows.kernel, windows.stride, size)
            return F.max_pool2d(x, windows.kernel, windows.stride)
        assert step.fast is not None
        return _convolve(step.fast, x, margins, *around.added[i], size)

    def _paste(self, i: int, x: Tensor, layout: _Layout, around: _Surroundings) -> Tensor:
        border = around.borders[i].to(x.dtype)
        full = border.repeat(x.shape[0], 1, 1, 1) if x.shape[0] > 1 else border.clone()
        rows, columns = layout.rows[i + 1], layout.columns[i + 1]
        reached = full[:, :, rows.lo : rows.hi, columns.lo : columns.hi]
        if torch.is_grad_enabled():
            reached.copy_(x + around.constants[i][1])
        else:
            torch.add(x, around.constants[i][1], out=reached)
        return full


class _RaiseTo(torch.autograd.Function):
    """max(x, c) per channel, with the gradient of the ReLU that it stands for: none where x is at c or below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor) -> Tensor:
        y = torch.maximum(x, c)
        ctx.save_for_backward(y, c)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        y, c = ctx.saved_tensors
        active = y > c
        passed = gradient * active
        return passed, (gradient - passed).sum((0, 2, 3), keepdim=True)


def _constants(step: Step, c: Tensor) -> tuple[Tensor, Tensor]:
    """What a step makes of a blob that is constant: for a convolution the value before its ReLU and after it, for
    other layers the constant before the layer and after it. Shapes (1, C, 1, 1)."""
    if isinstance(step.layer, Pooling):
        return c, c
    if step.fast is None:
        return c, step.layer(c)
    weight, bias = step.fast.weight_and_bias()
    total = weight.sum((2, 3), keepdim=True, dtype=torch.float64)
    groups = step.fast.layer.groups
    value = F.conv2d(c.double(), total, None if bias is None else bias.double(), groups=groups).to(c.dtype)
    return value, value.relu() if step.fast.relu else value


def _convolve(
    fast: FastConvolution,
    x: Tensor,
    margins: Sequence[tuple[int, int]],
    added: Tensor,
    least: Tensor,
    height: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """max(conv(x) + added, least), without ReLU the first alone; with `margins` of zeros around x (negative: cut).

    `height` is added - least: where convolution and ReLU are one, max(conv(x) + height, 0) + least.
    """
    pad = [max(0, *pair) for pair in margins]
    same = all(lo == hi for lo, hi in margins) or fast.layer.window.stride == (1, 1)
    # Gradients of channels-last convolutions take three times as long with a padding of 2 or more inside.
    if torch.is_grad_enabled() or not same or any(value < 0 for pair in margins for value in pair):
        x, pad, margins = _pad(x, margins), [0, 0], [(0, 0), (0, 0)]
    fused = fast.relu and fast.fuses(x)
    y = fast.convolve(x, height, pad, relu=True) if fused else fast.convolve(x, added, pad)
    least = least.to(y.dtype)
    skip = [p - lo for p, (lo, _) in zip(pad, margins, strict=True)]
    y = y[:, :, skip[0] : skip[0] + size[0], skip[1] : skip[1] + size[1]]
    if not fast.relu:
        return y
    if torch.is_grad_enabled():
        raised: Tensor = _RaiseTo.apply(y, least)
        return raised
    return y.add_(least) if fused else torch.maximum(y, least, out=y)


def _pad(x: Tensor, margins: Sequence[tuple[int, int]]) -> Tensor:
    """`x` with margins of zeros; negative ones cut it."""
    cut = [slice(max(0, -lo), n - max(0, -hi)) for (lo, hi), n in zip(margins, x.shape[2:], strict=True)]
    x = x[:, :, cut[0], cut[1]]
    if not any(value > 0 for pair in margins for value in pair):
        return x
    return F.pad(x, [max(0, value) for pair in reversed(margins) for value in pair])
