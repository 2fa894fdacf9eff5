"""Caffe's fillers: the first values of parameter blobs and of DummyData.

Random numbers come from torch's generators, so a fill is repeatable after `torch.manual_seed`, but the numbers are
not those that Caffe's own generator draws; only their distribution is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from fcnproto.errors import GraphError
from fcnproto.schema import caffe_pb2

Generator = torch.Generator | None


@torch.no_grad()
def fill(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator = None) -> None:
    """Fill `tensor` in place as Caffe's filler of type `filler.type` does.

    Args:
        tensor: any floating point tensor; the layout (d0, d1, ...) decides the fans: fan_in = count/d0,
            fan_out = count/d1 (count for one axis).
        filler: the settings; an empty message is the constant 0.
        generator: source of random numbers; torch's global one if None.

    Raises:
        GraphError: an unknown type, settings out of range, or a tensor that the filler can't fill.
    """
    check(filler)
    if tensor.numel() == 0:
        _fail(filler, f"can't fill an empty blob, of shape {tuple(tensor.shape)}")
    _FILLERS[filler.type](tensor, filler, generator)


def check(filler: caffe_pb2.FillerParameter) -> None:
    """GraphError where no blob could be filled by these settings: an unknown type, or `sparse` with the wrong one."""
    type_name = filler.type
    if type_name not in _FILLERS:
        near = difflib.get_close_matches(type_name, _FILLERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(_FILLERS))}"
        raise GraphError(f"unknown filler type {type_name!r}; {hint}")
    if filler.sparse != -1 and type_name != "gaussian":
        _fail(filler, f"sparse ({filler.sparse}) works with filler type 'gaussian' only; remove it")


def unread_fields(filler: caffe_pb2.FillerParameter) -> list[str]:
    """The settings that are given but not read by the filler's type, as Caffe doesn't read them."""
    read = ("type", *_READ.get(filler.type, ()))
    return [field.name for field, _ in filler.ListFields() if field.name not in read]


def fans(tensor: Tensor) -> tuple[float, float]:
    """(fan_in, fan_out) of a parameter blob by Caffe's rule: count/d0 and count/d1, or count where there is no d1."""
    count = tensor.numel()
    return count / tensor.shape[0], count / tensor.shape[1] if tensor.dim() > 1 else count


def _fail(filler: caffe_pb2.FillerParameter, message: str) -> NoReturn:
    raise GraphError(f"filler {filler.type!r}: {message}")


def _variance_count(tensor: Tensor, filler: caffe_pb2.FillerParameter) -> float:
    """The n of the fillers that scale by it: fan_in, fan_out or their average."""
    if tensor.dim() == 0:
        _fail(filler, "needs a blob with at least one axis, this one is a scalar; use 'constant' or 'uniform'")
    fan_in, fan_out = fans(tensor)
    if filler.variance_norm == caffe_pb2.FillerParameter.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_out if filler.variance_norm == caffe_pb2.FillerParameter.FAN_OUT else fan_in


def _constant(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    tensor.fill_(filler.value)


def _uniform(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    if not filler.min <= filler.max:
        _fail(filler, f"min ({filler.min:g}) must not exceed max ({filler.max:g}; the default is 1)")
    if filler.max - filler.min > torch.finfo(torch.float32).max:
        _fail(filler, f"min ({filler.min:g}) and max ({filler.max:g}) are too far apart for float32")
    tensor.uniform_(filler.min, filler.max, generator=generator)


def _gaussian(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    if not filler.std >= 0:
        _fail(filler, f"std ({filler.std:g}) must not be negative")
    if filler.sparse < -1:
        _fail(filler, f"sparse ({filler.sparse}) must be -1 (off) or the number of non-zero entries per output")
    tensor.normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse < 0:
        return
    outputs = tensor.shape[0] if tensor.dim() else 1
    if filler.sparse > outputs:
        _fail(filler, f"sparse ({filler.sparse}) must not exceed the blob's first extent ({outputs})")
    tensor.mul_(torch.empty_like(tensor).bernoulli_(filler.sparse / outputs, generator=generator))


def _positive_unitball(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    if tensor.dim() == 0:
        _fail(filler, "needs a blob with at least one axis, this one is a scalar")
    tensor.uniform_(0, 1, generator=generator)
    rows = tensor.flatten(1) if tensor.dim() > 1 else tensor.unsqueeze(1)
    sums = rows.sum(1).clamp_min(torch.finfo(tensor.dtype).tiny)  # a row of one value may be 0
    tensor.div_(sums.view(-1, *[1] * (tensor.dim() - 1)))


def _xavier(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    limit = math.sqrt(3 / _variance_count(tensor, filler))
    tensor.uniform_(-limit, limit, generator=generator)


def _msra(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    tensor.normal_(0, math.sqrt(2 / _variance_count(tensor, filler)), generator=generator)


def _diagonal(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    """FlowNet's: output n takes channel n, `diag_val` (1 where fewer are given) in all, spread over the kernel."""
    if tensor.dim() < 2:
        _fail(filler, f"needs a blob with at least two axes, this one has shape {tuple(tensor.shape)}")
    tensor.zero_()
    area = math.prod(tensor.shape[2:])
    for index in range(min(tensor.shape[:2])):
        value = filler.diag_val[index] if index < len(filler.diag_val) else 1
        tensor[index, index] = value / area


def _bilinear(tensor: Tensor, filler: caffe_pb2.FillerParameter, generator: Generator) -> None:
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3]:
        _fail(filler, f"needs a 4-D blob with a square kernel, this one has shape {tuple(tensor.shape)}")
    size = tensor.shape[3]
    factor = math.ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    row = torch.tensor([1 - abs(x / factor - centre) for x in range(size)], dtype=torch.float64, device="cpu")
    tensor.copy_(torch.outer(row, row).to(tensor))


_FILLERS: dict[str, Callable[[Tensor, caffe_pb2.FillerParameter, Generator], None]] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
    "diagonal": _diagonal,
}

_READ: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("min", "max"),
    "gaussian": ("mean", "std", "sparse"),
    "xavier": ("variance_norm",),
    "msra": ("variance_norm",),
    "diagonal": ("diag_val",),
}
"""Per type the settings that it reads."""
