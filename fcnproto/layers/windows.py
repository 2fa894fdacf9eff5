"""How the windows of convolutions and poolings lie: kernel, stride, padding, dilation, and the sizes that follow.

Padding may differ from side to side, or be SAME (TensorFlow's, so that the top has ceil(n / stride) positions), as
Caffe's forks have it; `settled` works the latter out for a size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fcnproto.graph import windows as spellings
from fcnproto.graph.windows import WindowError
from fcnproto.layers.base import Layer, Shape

Pair = tuple[int, int]


class Window(NamedTuple):
    """How a kernel moves: one entry per spatial axis in each field."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_after: tuple[int, ...] | None = None
    """The padding behind the last position where it isn't `pad`."""
    same: bool = False

    @property
    def extent(self) -> Shape:
        """The positions that the dilated kernel spans along each axis."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def is_even(self) -> bool:
        """Whether both ends of each axis have the same padding at any size."""
        return self.pad_after is None and not self.same

    def simplified(self) -> Window:
        """The same window without `pad_after` and `same` where `pad` alone says it."""
        if self.pad_after == self.pad:
            return self._replace(pad_after=None)
        if self.same and self.dilation == (1,) * len(self.kernel) and is_centred(self.kernel, self.stride):
            return self._replace(pad=tuple(k // 2 for k in self.kernel), same=False)
        return self

    def said_pad(self, i: int) -> str:
        """The padding along axis `i`, in words."""
        if self.same:
            return "SAME"
        return str(self.pad[i]) if self.pad_after is None else f"{self.pad[i]} and {self.pad_after[i]}"

    def settled(self, size: Sequence[int]) -> Window:
        """The window with the padding that SAME gives an input of `size`; behind, it is what the windows read there."""
        if not self.same:
            return self
        before = same_pads(size, self.kernel, self.stride)
        reach = zip(size, self.stride, self.extent, before, strict=True)
        after = tuple((n - 1) // s * s + e - n - b for n, s, e, b in reach)
        return self._replace(pad=before, pad_after=after, same=False)

    def both_pads(self) -> Shape:
        """The padding of each axis' two ends together."""
        behind = self.pad if self.pad_after is None else self.pad_after
        return tuple(before + after for before, after in zip(self.pad, behind, strict=True))

    def margins(self, more: Sequence[int]) -> list[int]:
        """The padding for `F.pad`, and `more` of it behind."""
        behind = self.pad if self.pad_after is None else self.pad_after
        ends = [(before, after + m) for before, after, m in zip(self.pad, behind, more, strict=True)]
        return [amount for end in reversed(ends) for amount in end]

    def narrowed(self, size: Sequence[int]) -> Shape:
        """Output size along each axis for an input of `size` (Caffe's Convolution).

        The division truncates toward zero as in C, so a kernel somewhat larger than the padded input still gives 1
        where the stride is large enough.
        """
        if self.same:
            return tuple((n - 1) // s + 1 for n, s in zip(size, self.stride, strict=True))
        numerators = (n + p - e for n, p, e in zip(size, self.both_pads(), self.extent, strict=True))
        return tuple(n // s + 1 if n >= 0 else 1 - (-n // s) for n, s in zip(numerators, self.stride, strict=True))

    def widened(self, size: Sequence[int]) -> Shape:
        """Output size along each axis of the transposed convolution (Caffe's Deconvolution)."""
        lengths = zip(size, self.stride, self.extent, self.both_pads(), strict=True)
        return tuple(s * (n - 1) + e - p for n, s, e, p in lengths)

    def shortfall(self, size: Sequence[int]) -> Shape:
        """By how much the kernel exceeds the padded input along each axis; the missing part reads as zero."""
        return tuple(max(0, e - n - p) for n, p, e in zip(size, self.both_pads(), self.extent, strict=True))


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


def is_centred(kernel: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether SAME puts the windows' middles on every position: the padding is half a kernel then, for every size."""
    return all(k % 2 == 1 for k in kernel) and all(s == 1 for s in stride)


def same_pads(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """SAME's padding before the first position along each axis: the smaller half of what the windows need in all.

    A dilation isn't counted, in the fork neither.
    """
    needed = (torch.sym_max(0, (n - 1) // s * s + k - n) for n, k, s in zip(size, kernel, stride, strict=True))
    return tuple(both // 2 for both in needed)


def read_window(layer: Layer, axes: int) -> Window:
    """The window of a layer with `convolution_param` over `axes` spatial axes, with Caffe's checks of the spellings.

    kernel_size, stride, pad and dilation stand once for all axes or once for each; kernel, stride and pad may be given
    by _h and _w for two axes, where one left out is 0.
    """
    kernel = _extents(layer, axes, "kernel_size", "kernel", None)
    stride = _extents(layer, axes, "stride", "stride", 1)
    pad = _extents(layer, axes, "pad", "pad", 0)
    try:
        dilation = _checked(layer, axes, "dilation", tuple(spellings.dilations(layer.config)), 1)
        sides, same = spellings.pads_by_side(layer.config), spellings.is_same(layer.config)
    except WindowError as error:
        layer.fail(str(error))
    for name, values in (("kernel size", kernel), ("stride", stride), ("dilation", dilation)):
        if 0 in values:
            layer.fail(f"{name} {values} must be positive along every axis")
    if sides is not None and axes != 2:
        layer.fail(f"pad_l, pad_r, pad_t and pad_b are for 2 spatial axes, the bottom has {axes}; use pad")
    before, after = (pad, None) if sides is None else sides
    return Window(kernel, stride, before, dilation, after, same).simplified()


def _extents(layer: Layer, axes: int, field: str, pair: str, default: int | None) -> Shape:
    config = layer.config
    values = tuple(getattr(config, field))
    if config.HasField(f"{pair}_h") or config.HasField(f"{pair}_w"):
        if axes != 2:
            layer.fail(f"{pair}_h and {pair}_w are for 2 spatial axes, the bottom has {axes}; use {field}")
        if values:
            layer.fail(f"{field} is given together with {pair}_h or {pair}_w; give one of the two")
        return (getattr(config, f"{pair}_h"), getattr(config, f"{pair}_w"))
    return _checked(layer, axes, field, values, default)


def _checked(layer: Layer, axes: int, field: str, values: Shape, default: int | None) -> Shape:
    if not values:
        if default is None and axes:
            layer.fail(f"{field} is missing; give it once, or once for each of the {axes} spatial axes")
        return (default or 0,) * axes
    if len(values) not in (1, axes):
        layer.fail(f"{len(values)} values of {field} for {axes} spatial axes; give one for all or one for each")
    return values if len(values) == axes else values * axes
