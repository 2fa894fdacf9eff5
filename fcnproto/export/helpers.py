"""What a generated module needs beyond PyTorch's own layers: small classes and functions, in nothing but PyTorch.

A generated file gets the source of those that it uses, so they must stand alone: no import but those at the top here,
no name from outside, and Caffe's rules in full. Parameters are named as in `state_dict`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.Module):
    """Caffe's BatchNorm: the buffers hold sums, which scale_factor divides; no learned scale.

    `stored` fixes whether they are used; None: in eval() only.
    """

    mean: Tensor
    variance: Tensor
    scale_factor: Tensor

    def __init__(self, channels: int, eps: float, fraction: float, stored: bool | None = None) -> None:
        super().__init__()
        self.eps, self.fraction, self.stored = eps, fraction, stored
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))
        self.register_buffer("scale_factor", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        if not self.stored and (self.training or self.stored is not None):
            axes = [axis for axis in range(x.dim()) if axis != 1]
            variance, mean = torch.var_mean(x.detach(), axes, correction=1)
            for total, new in (
                (self.mean, mean),
                (self.variance, variance),
                (self.scale_factor, torch.ones_like(self.scale_factor)),
            ):
                total.mul_(self.fraction).add_(new)
            return F.batch_norm(x, None, None, training=True, eps=self.eps)
        factor = self.scale_factor
        factor = torch.where(factor == 0, torch.zeros_like(factor), 1 / factor)
        mean = (self.mean * factor).view(shape)
        variance = (self.variance * factor).view(shape)
        return (x - mean) * (variance + self.eps).rsqrt()


class Scale(nn.Module):
    """Caffe's Scale and Bias: x * weight + bias over the axes from `axis` on; either may be missing."""

    def __init__(self, shape: list, axis: int, weight: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.ones(shape)) if weight else None
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            x = x * self.aligned(self.weight, x)
        return x if self.bias is None else x + self.aligned(self.bias, x)

    def aligned(self, values: Tensor, x: Tensor) -> Tensor:
        missing = x.dim() - self.axis - values.dim()
        return values.reshape(*values.shape, *[1] * max(missing, 0))


class SharedPReLU(nn.Module):
    """PReLU with one slope for all channels, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.reshape(1))


class TransposedLinear(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class BiasedEmbedding(nn.Module):
    """Rows of a table plus a bias."""

    def __init__(self, rows: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index.long(), self.weight) + self.bias


class LearnedBlob(nn.Module):
    """A parameter that is a blob by itself."""

    def __init__(self, shape: list) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        return self.weight


def at_least(x: Tensor, sizes: tuple) -> Tensor:
    """Zeros added at the end of the last axes until they have these sizes."""
    margins = []
    for size, wanted in zip(reversed(x.shape), reversed(sizes), strict=False):
        margins += [0, max(0, wanted - size)]
    return F.pad(x, margins)


def im2col(x: Tensor, kernel: tuple, stride: tuple, pad: tuple, dilation: tuple) -> Tensor:
    """Caffe's Im2col of (N, C, ...): the windows as channels, in the order (channel, kernel)."""
    axes = len(kernel)
    x = F.pad(x, [p for p in reversed(pad) for _ in range(2)])
    for i in range(axes):  # each step slides over one axis and appends its taps as the last one
        x = x.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])[..., :: dilation[i]]
    taps = list(range(2 + axes, 2 + 2 * axes))
    return x.permute(0, 1, *taps, *range(2, 2 + axes)).flatten(1, 1 + axes)


def windows_of(size: int, kernel: int, stride: int, pad: int, any_pad: bool, ceil: bool) -> int:
    """How many pooling windows Caffe puts along an axis."""
    room = size + 2 * pad - kernel
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    return torch.sym_min(count, (size + pad - 1) // stride + 1) if any_pad else count


def pool_margins(x: Tensor, kernel: tuple, stride: tuple, pad: tuple, ceil: bool) -> list:
    """Padding (negative: cutting) after which Caffe's pooling windows tile the plane exactly."""
    margins = []
    for i in (1, 0):
        size = x.shape[2 + i]
        count = windows_of(size, kernel[i], stride[i], pad[i], any(pad), ceil)
        margins += [pad[i], (count - 1) * stride[i] + kernel[i] - size - pad[i]]
    return margins


def max_pool(x: Tensor, kernel: tuple, stride: tuple, pad: tuple, ceil: bool) -> Tensor:
    """Max pooling by Caffe's rules for windows that PyTorch's own pooling doesn't allow."""
    lowest = torch.finfo(x.dtype).min
    padded = F.pad(x, pool_margins(x, kernel, stride, pad, ceil), value=lowest)
    return F.max_pool2d(padded, kernel, stride)


def average_pool(x: Tensor, kernel: tuple, stride: tuple, pad: tuple, ceil: bool) -> Tensor:
    """Average pooling by Caffe's rules for windows that PyTorch's own pooling doesn't allow."""
    padded = F.pad(x, pool_margins(x, kernel, stride, pad, ceil))
    sums = F.avg_pool2d(padded, kernel, stride) * (kernel[0] * kernel[1])
    extents = []
    for i in (0, 1):
        start = torch.arange(sums.shape[2 + i], device=x.device) * stride[i] - pad[i]
        end = (start + kernel[i]).clamp(max=x.shape[2 + i] + pad[i])
        extents.append((end - start).clamp(min=1))
    return sums / (extents[0].unsqueeze(1) * extents[1])


def arg_max(x: Tensor, count: int, axis: int | None, values: bool) -> Tensor:
    """Caffe's ArgMax: of equal values the larger index comes first."""
    rows = x.movedim(axis, -1) if axis is not None else x.flatten(1)
    left, places = rows.flip(-1), []
    for _ in range(count):
        places.append(left.argmax(-1, keepdim=True))
        left = left.scatter(-1, places[-1], -torch.inf)
    index = rows.shape[-1] - 1 - torch.cat(places, -1)
    best = rows.gather(-1, index)
    if axis is not None:
        return (best if values else index.to(x.dtype)).movedim(-1, axis)
    index = index.to(x.dtype)
    both = torch.stack([index, best], 1) if values else index.unsqueeze(1)
    return both.reshape(*both.shape, *[1] * (x.dim() - 3))


def mean_variance_normalise(x: Tensor, axes: tuple, eps: float, variance: bool) -> Tensor:
    """Caffe's MVN: (x - mean) / (deviation + eps), or x - mean alone."""
    x = x - x.mean(axes, keepdim=True)
    if not variance:
        return x
    return x / (x.square().mean(axes, keepdim=True).sqrt() + eps)


def max_pool_with_mask(x: Tensor, kernel: tuple, stride: tuple, pad: tuple, ceil: bool) -> tuple:
    """Max pooling by Caffe's rules, and the index of each maximum within its plane, as floats."""
    margins = pool_margins(x, kernel, stride, pad, ceil)
    padded = F.pad(x, margins, value=torch.finfo(x.dtype).min)
    values, index = F.max_pool2d(padded, kernel, stride, return_indices=True)
    row, column = index // padded.shape[3] - pad[0], index % padded.shape[3] - pad[1]
    inside = (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < x.shape[3])
    return values, torch.where(inside, row * x.shape[3] + column, -1).to(x.dtype)


def stochastic_pool(x: Tensor, kernel: tuple, stride: tuple, pad: tuple, ceil: bool, sample: bool) -> Tensor:
    """Caffe's stochastic pooling of values that are not negative: one of each window drawn in proportion to itself,
    or without `sample` their mean weighted in that proportion."""
    padded = F.pad(x, pool_margins(x, kernel, stride, pad, ceil))
    values = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
    if not sample:
        return values.square().sum(-1) / (values.sum(-1) + torch.finfo(x.dtype).tiny)
    total = values.detach().cumsum(-1)
    index = (total < torch.rand_like(total[..., :1]) * total[..., -1:]).sum(-1, keepdim=True)
    return values.gather(-1, index.clamp(max=values.shape[-1] - 1)).squeeze(-1)


def lstm_unit(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple:
    """Caffe's LSTMUnit: the new cell and hidden state of one step."""
    enter, forget, leave, candidate = gates.chunk(4, -1)
    cell = cont.detach()[..., None] * forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    return cell, leave.sigmoid() * cell.tanh()


def spatial_pyramid(x: Tensor, levels: int, average: bool) -> Tensor:
    """Caffe's SPP: poolings into 1, 4, 16, ... bins per channel, flattened and joined."""
    parts = []
    for level in range(levels):
        count = 2**level
        kernel = tuple(-(-size // count) for size in x.shape[2:])
        pad = tuple((k * count - size + 1) // 2 for k, size in zip(kernel, x.shape[2:], strict=True))
        parts.append((average_pool if average else max_pool)(x, kernel, kernel, pad, True))
    return parts[0] if levels == 1 else torch.cat([part.flatten(1) for part in parts], 1)


class LSTM(nn.Module):
    """Caffe's LSTM: x (T, N, ...), cont (T, N) with 0 where a stream begins anew.

    Gates: input, forget, output, candidate. The last states of a call are the first ones of the
    next, unless `first` gives them: then they are returned too.
    """

    def __init__(self, inputs: int, hidden: int, static: int = 0) -> None:
        super().__init__()
        self.weight_xc = nn.Parameter(torch.zeros(4 * hidden, inputs))
        self.bias_c = nn.Parameter(torch.zeros(4 * hidden))
        if static:
            self.weight_xc_static = nn.Parameter(torch.zeros(4 * hidden, static))
        self.weight_hc = nn.Parameter(torch.zeros(4 * hidden, hidden))
        self.states: tuple | None = None

    def forward(self, x: Tensor, cont: Tensor, static: Tensor | None = None, first: tuple | None = None) -> Any:
        gates = F.linear(x.flatten(2), self.weight_xc, self.bias_c)
        if static is not None:
            gates = gates + F.linear(static.flatten(1), self.weight_xc_static)
        size = self.weight_hc.shape[1]
        states = self.states if first is None else tuple(state.reshape(-1, size) for state in first)
        if states is None or states[0].shape[0] != x.shape[1]:
            states = (x.new_zeros(x.shape[1], size), x.new_zeros(x.shape[1], size))
        (hidden, cell), outputs = states, []
        for step, goes_on in zip(gates.unbind(), cont.reshape(*cont.shape, 1).unbind(), strict=True):
            step = step + F.linear(hidden * goes_on, self.weight_hc)
            enter, forget, leave, candidate = step.chunk(4, 1)
            cell = goes_on * forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            outputs.append(hidden)
        if first is not None:
            return torch.stack(outputs), hidden.detach()[None], cell.detach()[None]
        self.states = (hidden.detach(), cell.detach())
        return torch.stack(outputs)


class RNN(nn.Module):
    """Caffe's RNN: h = tanh(W_hh (cont h) + W_xh x + b_h), output tanh(W_ho h + b_o), for x (T, N, ...), cont (T, N).

    The last state of a call is the first one of the next, unless `first` gives it: then it is returned too.
    """

    def __init__(self, inputs: int, hidden: int, static: int = 0) -> None:
        super().__init__()
        self.weight_xh = nn.Parameter(torch.zeros(hidden, inputs))
        self.bias_h = nn.Parameter(torch.zeros(hidden))
        if static:
            self.weight_xh_static = nn.Parameter(torch.zeros(hidden, static))
        self.weight_hh = nn.Parameter(torch.zeros(hidden, hidden))
        self.weight_ho = nn.Parameter(torch.zeros(hidden, hidden))
        self.bias_o = nn.Parameter(torch.zeros(hidden))
        self.state: Tensor | None = None

    def forward(self, x: Tensor, cont: Tensor, static: Tensor | None = None, first: tuple | None = None) -> Any:
        steps = F.linear(x.flatten(2), self.weight_xh, self.bias_h)
        if static is not None:
            steps = steps + F.linear(static.flatten(1), self.weight_xh_static)
        size = self.weight_hh.shape[1]
        hidden = self.state if first is None else first[0].reshape(-1, size)
        if hidden is None or hidden.shape[0] != x.shape[1]:
            hidden = x.new_zeros(x.shape[1], size)
        sequence = []
        for step, goes_on in zip(steps.unbind(), cont.reshape(*cont.shape, 1).unbind(), strict=True):
            hidden = torch.tanh(step + F.linear(hidden * goes_on, self.weight_hh))
            sequence.append(hidden)
        outputs = torch.tanh(F.linear(torch.stack(sequence), self.weight_ho, self.bias_o))
        if first is not None:
            return outputs, hidden.detach()[None]
        self.state = hidden.detach()
        return outputs
