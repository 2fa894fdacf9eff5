"""Caffe's Pooling and SPP (spatial pyramid pooling).

Where PyTorch's pooling follows the same rules it does the work; everything else goes through explicit padding, which
is exact for every kernel, stride and pad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.graph.windows import WINDOW_FIELDS, WindowError, is_same, pads_by_side
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.convolution import said_pads
from fcnproto.layers.dtypes import at_least_float32, computing_type
from fcnproto.layers.plain import Piece, Request, Unsayable
from fcnproto.layers.registry import register
from fcnproto.layers.windows import Pair, Windows
from fcnproto.schema import caffe_pb2

_MAX, _AVE = caffe_pb2.PoolingParameter.MAX, caffe_pb2.PoolingParameter.AVE
_STOCHASTIC = caffe_pb2.PoolingParameter.STOCHASTIC
_AVERAGES_INSIDE = (caffe_pb2.PoolingParameter.AVE_EXC_PAD, caffe_pb2.PoolingParameter.AVE_TF)
_METHODS = {_MAX: "MAX", _STOCHASTIC: "STOCHASTIC"} | dict.fromkeys((_AVE, *_AVERAGES_INSIDE), "AVE")
_LOWEST = -3.4028234663852886e38
"""Caffe's start value of a maximum, the lowest float32, also for other dtypes."""


def max_pool(x: Tensor, windows: Windows) -> Tensor:
    """The maximum of each window."""
    return find_maxima(x, windows, False)[0]


def max_pool_with_mask(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """The maximum of each window, and its index h * W + w within the plane as a float (-1 for an empty window)."""
    values, index = find_maxima(x, windows, True)
    assert index is not None
    return values, index.to(computing_type(x))  # half precision can't hold the indices of a larger plane


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


def looks_finite(values: Tensor) -> bool:
    """False where some value, or only their sum, is not finite; True where values can't be looked at or should not."""
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    try:
        return math.isfinite(values.detach().sum(dtype=computing_type(values)).item())
    except RuntimeError:  # inside a transformation that has no values, such as vmap
        return True


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


def average_pool(x: Tensor, windows: Windows) -> Tensor:
    """The sum of each window over its area; padding counts in the area as far as size + pad, nothing beyond it does.
    With `windows.inside` only the positions inside count.

    An empty window gives 0.
    """
    size = x.shape[2:]
    if windows.covers(size):
        return F.adaptive_avg_pool2d(x, 1)
    windows = windows.settled(size)
    # ONNX counts the padding in another way where sizes are rounded up.
    if windows.suits_torch(size) and not (any(windows.pad) and torch.compiler.is_compiling()):
        ceil, area = not windows.floor, not windows.inside
        return F.avg_pool2d(x, windows.kernel, windows.stride, windows.pad, ceil_mode=ceil, count_include_pad=area)
    padded = F.pad(at_least_float32(x), windows.margins(size))
    # Not by another divisor, which ONNX has no word for.
    sums = F.avg_pool2d(padded, windows.kernel, windows.stride) * (windows.kernel[0] * windows.kernel[1])
    extents = []
    for i in (0, 1):
        start = torch.arange(sums.shape[2 + i], device=x.device) * windows.stride[i] - windows.pad[i]
        end = (start + windows.kernel[i]).clamp(max=size[i] + (0 if windows.inside else windows.end(i)))
        extents.append((end - (start.clamp(min=0) if windows.inside else start)).clamp(min=1))
    return (sums / (extents[0].unsqueeze(1) * extents[1])).to(x.dtype)


def stochastic_pool(x: Tensor, windows: Windows, sample: bool) -> Tensor:
    """Pooling of values that must not be negative, each weighted by itself.

    With `sample` one value of each window, drawn with probability in proportion to it (torch's global generator);
    else the mean weighted in that proportion. A window of zeros gives 0.
    """
    (height, width), (step_down, step_right) = windows.kernel, windows.stride
    padded = F.pad(at_least_float32(x), windows.settled(x.shape[2:]).margins(x.shape[2:]))
    values = padded.unfold(2, height, step_down).unfold(3, width, step_right).flatten(4)
    if not sample:
        return ((values * values).sum(-1) / (values.sum(-1) + torch.finfo(torch.float32).tiny)).to(x.dtype)
    cumulated = values.detach().cumsum(-1)
    threshold = torch.rand_like(cumulated[..., :1]) * cumulated[..., -1:]
    index = (cumulated < threshold).sum(-1, keepdim=True).clamp(max=height * width - 1)
    return values.gather(-1, index).squeeze(-1).to(x.dtype)


def pool_by(x: Tensor, method: str, windows: Windows, sample: bool) -> Tensor:
    """Pooling by the method MAX, AVE or STOCHASTIC."""
    if method == "MAX":
        return max_pool(x, windows)
    return average_pool(x, windows) if method == "AVE" else stochastic_pool(x, windows, sample)


def method_name(method: int) -> str:
    """The name of a pooling method, which the settings of Pooling and SPP number alike."""
    return _METHODS[method]


def divide_into_bins(size: Sequence[int], count: int) -> Windows:
    """The windows that divide a plane of (height, width) into `count` bins along each axis."""
    kernel = [(extent + count - 1) // count for extent in size]
    pad = [(k * count - extent + 1) // 2 for k, extent in zip(kernel, size, strict=True)]
    return Windows((kernel[0], kernel[1]), (kernel[0], kernel[1]), (pad[0], pad[1]))


def pool_pyramid(x: Tensor, height: int, method: str, sample: bool) -> Tensor:
    """Poolings into 1, 4, 16, ... bins per channel, flattened and joined along axis 1; of height 1 (N, C, 1, 1)."""
    levels = [pool_by(x, method, divide_into_bins(x.shape[2:], 2**level), sample) for level in range(height)]
    return levels[0] if height == 1 else torch.cat([level.flatten(1) for level in levels], 1)


class _Pool(Layer):
    """What Pooling and SPP share: 4-D bottoms, and pooling by method."""

    kind = "pooling"

    def of_zeros(self) -> str:
        return "kept"

    def keeps_finite(self) -> bool:
        return True

    def keeps_images_apart(self) -> bool:
        return not self.draws_numbers()

    def draws_numbers(self) -> bool:
        return bool(self.training and self.config.pool == _STOCHASTIC)

    def check_bottom(self, shape: Sequence[int]) -> None:
        """Refuse a bottom that isn't (N, C, H, W)."""
        if len(shape) != 4:
            self.fail(f"pools (N, C, H, W) bottoms only, got shape {tuple(shape)}")

    def size(self, shape: Sequence[int], windows: Windows) -> Pair:
        """The output (height, width) for a bottom of `shape`, checked."""
        self.check_bottom(shape)
        size = windows.output(shape[2:])
        if min(size) < 0:
            self.fail(
                f"output size {size} for a bottom of shape {tuple(shape)} with kernel {windows.kernel}, stride "
                f"{windows.stride}, pad {windows.pad}; give a larger input or a smaller kernel"
            )
        return size

    def pool(self, x: Tensor, method: int, windows: Windows, with_mask: bool = False) -> tuple[Tensor, Tensor | None]:
        """The pooled values and, for a maximum `with_mask`, the indices. An output size of 0 gives an empty tensor."""
        size = self.size(x.shape, windows)
        if 0 in size:
            empty = x.new_zeros(*x.shape[:2], *size)
            return empty, empty
        if with_mask:
            return max_pool_with_mask(x, windows)
        return pool_by(x, method_name(method), windows, self.training), None


def _behind_the_end(values: Tensor, x: Tensor, windows: Windows) -> Tensor:
    """Which windows (height, width) begin right behind the last row or column: they have no cells to divide by."""
    rows, columns = (
        torch.arange(values.shape[2 + i], device=x.device) * windows.stride[i] == x.shape[2 + i] for i in (0, 1)
    )
    return rows.unsqueeze(1) | columns


@register("Pooling")
class Pooling(_Pool):
    """Caffe's Pooling over (N, C, H, W): MAX, AVE or STOCHASTIC, output sizes rounded up unless `round_mode` is FLOOR.

    Forks' fields: `ceil_mode: false` and `torch_pooling: true` round down too; `pad_l`, `pad_r`, `pad_t`, `pad_b` pad
    each side by itself; `pad_type: 1` is SAME (ceil(n / stride) positions); AVE_EXC_PAD, AVE_TF and AVE with
    `avg_include_pad: false` average over the positions inside the image alone.

    A second top (MAX) holds the index of each maximum within its plane, as floats. STOCHASTIC samples in the TRAIN
    phase and weights in the TEST phase; it works on the CPU too, and its TEST gradient is that of the weighted
    mean (Caffe sends it to the index sampled last).
    """

    differences = (
        "on CUDA, and in compiled or optimized nets, NaN in a window makes the maximum NaN (Caffe passes it over, and "
        "so does this package on the CPU). The average of a window that begins right behind the last row or column is "
        "0 (Caffe divides 0 by 0, and so does `caffe_exact`). STOCHASTIC works on the CPU too (Caffe aborts)."
    )

    config_field = "pooling_param"
    fork_fields = tuple(
        f"pooling_param.{name}" for name in (*WINDOW_FIELDS, "ceil_mode", "torch_pooling", "avg_include_pad")
    )
    tops = (1, 2)
    coordinates = staticmethod(maps.pooling)

    @classmethod
    def fixes_image_size(cls, param: caffe_pb2.LayerParameter) -> bool:
        return bool(param.pooling_param.global_pooling)

    @classmethod
    def settings_text(cls, param: caffe_pb2.LayerParameter) -> str:
        config = param.pooling_param
        method = str(caffe_pb2.PoolingParameter.PoolMethod.Name(config.pool)).lower()
        if config.global_pooling:
            return f"{method}, global"
        height = config.kernel_size or config.kernel_h
        width = config.kernel_size or config.kernel_w
        words = [f"{method} {height}×{width}"]
        if config.stride_h or config.stride != 1:
            words.append(f"stride {f'{config.stride_h}×{config.stride_w}' if config.stride_h else config.stride}")
        if config.pad or config.pad_h or config.pad_w:
            words.append(f"pad {config.pad or f'{config.pad_h}×{config.pad_w}'}")
        words += said_pads(config)
        return ", ".join(words)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.check_bottom(shapes[0])
        config = self.config
        self.method = config.pool
        self.kernel = self._read_kernel()
        stride, pad = self._pair("stride", 1), self._pair("pad", 0)
        try:
            sides, same = pads_by_side(config), is_same(config)
        except WindowError as error:
            self.fail(str(error))
        if self.method == caffe_pb2.PoolingParameter.AVE_TF:
            self.warn("AVE_TF is taken for TensorFlow's average, over the positions inside the image")
        before, after = (pad, None) if sides is None else sides
        floor = config.round_mode == caffe_pb2.PoolingParameter.FLOOR or not config.ceil_mode or config.torch_pooling
        inside = self.method in _AVERAGES_INSIDE or (self.method == _AVE and not config.avg_include_pad)
        self.windows = Windows(self.kernel or (1, 1), stride, before, floor, after, same, inside).simplified()
        if 0 in stride:
            self.fail(f"stride {stride} must be positive")
        if config.global_pooling and (stride != (1, 1) or pad != (0, 0) or sides is not None or same):
            self.fail("global_pooling goes with stride 1 and pad 0 only; remove stride and pad")
        if (any(self.windows.pad) or not self.windows.is_even) and self.method == _STOCHASTIC:
            self.fail("pad works with MAX and AVE pooling only; remove pad")
        if self.kernel is not None and (pad[0] >= self.kernel[0] or pad[1] >= self.kernel[1]):
            self.fail(f"pad {pad} must be smaller than the kernel {self.kernel}")
        if self.num_tops == 2 and self.method != _MAX:
            self.fail("only MAX pooling has a second top (the mask)")

    def _read_kernel(self) -> Pair | None:
        """The kernel, or None for global pooling, which takes the bottom's size at each call."""
        config = self.config
        parts = config.HasField("kernel_h"), config.HasField("kernel_w")
        if config.global_pooling:
            if config.HasField("kernel_size") or any(parts):
                self.fail("global_pooling takes the kernel from the bottom; remove kernel_size, kernel_h and kernel_w")
            return None
        if config.HasField("kernel_size") == all(parts):
            self.fail("give either kernel_size or both kernel_h and kernel_w")
        kernel = (config.kernel_h, config.kernel_w) if all(parts) else (config.kernel_size, config.kernel_size)
        if 0 in kernel:
            self.fail(f"kernel {kernel} must be positive")
        return kernel

    def _pair(self, name: str, default: int) -> Pair:
        config = self.config
        parts = config.HasField(f"{name}_h"), config.HasField(f"{name}_w")
        if parts[0] != parts[1] or (any(parts) and config.HasField(name)):
            self.fail(f"give either {name} or both {name}_h and {name}_w")
        if all(parts):
            return getattr(config, f"{name}_h"), getattr(config, f"{name}_w")
        value = getattr(config, name) if config.HasField(name) else default
        return value, value

    def near_ties(self, bottoms: Sequence[Tensor], reach: float) -> tuple[int, int, str] | None:
        x = bottoms[0]
        if self.method != _MAX:
            return None
        windows = self.windows_of(x.shape)
        (height, width), (down, right) = windows.kernel, windows.stride
        padded = F.pad(x, windows.settled(x.shape[2:]).margins(x.shape[2:]), value=-torch.inf)
        near = total = 0
        for item in padded:  # one at a time: the windows take several times the blob's memory
            values = item.unfold(1, height, down).unfold(2, width, right).flatten(3)
            if values.shape[-1] < 2:
                return None
            best = values.topk(2, dim=-1).values
            gap = best[..., 0] - best[..., 1]
            near += int(((gap <= reach) & (gap > 0)).sum())
            total += gap.numel()
        return near, total, "windows"

    def windows_of(self, shape: Sequence[int]) -> Windows:
        """The windows for a bottom of `shape`: global pooling takes the whole plane."""
        self.check_bottom(shape)
        return Windows((shape[2], shape[3])) if self.kernel is None else self.windows

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        # The size that `pool` checks; a run on the meta device would make torch import its whole compiler.
        shape = shapes[0]
        return [(*shape[:2], *self.size(shape, self.windows_of(shape)))] * self.num_tops

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        windows = self.windows_of(x.shape)
        values, mask = self.pool(x, self.method, windows, with_mask=self.num_tops == 2)
        if self.caffe_exact and self.method == _AVE and not any(windows.pad):
            values = values.masked_fill(_behind_the_end(values, x, windows), torch.nan)
        return values if mask is None or self.num_tops == 1 else (values, mask)

    def plain(self, request: Request) -> Piece:
        shape, x = request.shapes[0], request.x
        windows = self.windows_of(shape)
        if 0 in self.size(shape, windows):
            raise Unsayable(f"its top is empty for a bottom of shape {tuple(shape)}")
        kernel = f"({x}.shape[2], {x}.shape[3])" if self.kernel is None else str(windows.kernel)
        settings = [kernel, *map(str, windows[1:])]
        defaults = ["", *map(str, Windows((1, 1))[1:])]
        while settings[-1] == defaults[len(settings) - 1]:
            del settings[-1]
        arguments = [x, f"Windows({', '.join(settings)})"]
        if self.num_tops == 2:
            return Piece(("max_pool_with_mask", arguments), None, (max_pool_with_mask, Windows))
        if self.method == _STOCHASTIC:
            arguments.append(f"sample={request.training}")
            return Piece(("stochastic_pool", arguments), None, (stochastic_pool, Windows))
        function = max_pool if self.method == _MAX else average_pool
        return Piece((function.__name__, arguments), None, (function, Windows))


@register("SPP")
class SPP(_Pool):
    """Caffe's SPP: poolings into 1, 4, 16, ... bins per channel, flattened and joined along axis 1.

    The top is (N, C * (1 + 4 + ...)), so its width doesn't depend on the bottom's size; a pyramid of height 1 gives
    (N, C, 1, 1). Some small sizes need a pad as large as the kernel and are refused, as by Caffe.
    """

    config_field = "spp_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.check_bottom(shapes[0])
        if self.config.pyramid_height == 0:
            self.fail("pyramid_height must be given and positive")

    def forward(self, x: Tensor) -> Tensor:
        self.check_bottom(x.shape)
        for level in range(self.config.pyramid_height):
            self.size(x.shape, self.bins(x.shape, 2**level))
        return pool_pyramid(x, self.config.pyramid_height, method_name(self.config.pool), self.training)

    def plain(self, request: Request) -> Piece:
        method = method_name(self.config.pool)
        sample = request.training if self.config.pool == caffe_pb2.SPPParameter.STOCHASTIC else "False"
        arguments = [request.x, str(self.config.pyramid_height), f'"{method}"', f"sample={sample}"]
        return Piece(("pool_pyramid", arguments), None, (pool_pyramid,))

    def bins(self, shape: Sequence[int], count: int) -> Windows:
        """The windows that divide a bottom of `shape` into `count` bins along each axis."""
        windows = divide_into_bins(shape[2:], count)
        if any(p >= k for p, k in zip(windows.pad, windows.kernel, strict=True)):
            self.fail(
                f"a bottom of shape {tuple(shape)} is too small for {count} bins along each axis (pyramid_height "
                f"{self.config.pyramid_height}); give a larger input or a lower pyramid"
            )
        if any(windows.pad) and self.config.pool == caffe_pb2.SPPParameter.STOCHASTIC:
            self.fail(f"STOCHASTIC pooling can't be padded, which {count} bins of shape {tuple(shape)} need")
        return windows
