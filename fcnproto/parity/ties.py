"""Near ties: places where the last digits decide which way a gradient goes, in max poolings, ReLUs and maxima.

Two implementations whose blobs agree to the last digits may send a gradient to different places there, both rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.inspect.running import run_with
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2

_LEAST = 2e-7
"""Float32 keeps values to about this share."""
_MOST_NAMED = 3


def near_ties(net: Net, inputs: Mapping[str, Tensor], blobs: Sequence[str], deviation: float) -> str:
    """The layers with near ties in words, "" where there are none; `deviation` is how far blobs lie apart (a share)."""
    reach = 2 * max(deviation, _LEAST)
    found: dict[str, tuple[int, int, str]] = {}
    handles = []
    for layer in net.layers:
        if layer.type in ("ReLU", "Pooling", "Eltwise"):
            handles.append(layer.register_forward_pre_hook(_counter(found, reach)))
    try:
        with torch.no_grad():
            run_with(net, dict(inputs), list(blobs))
    finally:
        for handle in handles:
            handle.remove()
    parts = [f"{count} of {total} {what} of {name}" for name, (count, total, what) in found.items()]
    if not parts:
        return ""
    more = f" and more in {len(parts) - _MOST_NAMED} other layers" if len(parts) > _MOST_NAMED else ""
    return f"{', '.join(parts[:_MOST_NAMED])}{more} are near ties"


def _counter(found: dict[str, tuple[int, int, str]], reach: float) -> Any:
    def count(layer: Any, bottoms: tuple[Tensor, ...]) -> None:
        result = _count(layer, bottoms, reach)
        if result is not None and result[0]:
            found[layer.name] = result

    return count


def _count(layer: Any, bottoms: Sequence[Tensor], reach: float) -> tuple[int, int, str] | None:
    """How many decisions of a layer are near ties, of how many, and what they are called."""
    x = bottoms[0]
    if x.numel() == 0:
        return None
    limit = reach * float(x.abs().max())
    if layer.type == "ReLU":
        near = (x.abs() <= limit) & (x != 0)  # at 0 itself the rule decides, not a digit
        return int(near.sum()), x.numel(), "values"
    if layer.type == "Eltwise":
        if layer.config.operation != caffe_pb2.EltwiseParameter.MAX:
            return None
        gap = (bottoms[1] - x).abs()
        return int(((gap <= limit) & (gap > 0)).sum()), x.numel(), "places"
    return _count_windows(layer, x, limit)


def _count_windows(layer: Any, x: Tensor, limit: float) -> tuple[int, int, str] | None:
    if layer.method != caffe_pb2.PoolingParameter.MAX:
        return None
    windows = layer.windows_of(x.shape)
    (height, width), (down, right) = windows.kernel, windows.stride
    padded = F.pad(x, windows.margins(x.shape[2:]), value=-torch.inf)
    near = total = 0
    for item in padded:  # one at a time: the windows take several times the blob's memory
        values = item.unfold(1, height, down).unfold(2, width, right).flatten(3)
        if values.shape[-1] < 2:
            return None
        best = values.topk(2, dim=-1).values
        gap = best[..., 0] - best[..., 1]
        near += int(((gap <= limit) & (gap > 0)).sum())
        total += gap.numel()
    return near, total, "windows"
