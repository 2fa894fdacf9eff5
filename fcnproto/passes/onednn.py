"""oneDNN's fused operators: a convolution with its bias, a sum and an activation in one, on weights arranged once.

These are the operators that torch's own compiler calls. They are private to torch, so nothing else in the package
names them, `works` tries them before they are used, and whoever calls has another way where it says no. They
know no NaN: an activation makes 0 of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.base import Activation

_OPERATORS = ("_reorder_convolution_weight", "_convolution_pointwise", "_linear_pointwise", "_reorder_linear_weight")
_PAIR = (1, 1)


def works() -> bool:
    """Whether this build of torch has the operators, they are switched on, and they gave the right numbers."""
    return bool(torch.backends.mkldnn.enabled) and _gave_right_numbers()


@cache
def _gave_right_numbers() -> bool:
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return False
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            return _try_convolution() and _try_product()
    except (RuntimeError, TypeError, AttributeError):  # another version's signature, or another processor
        return False


def _try_convolution() -> bool:
    x = torch.linspace(-1, 1, 8 * 49, device="cpu").view(1, 8, 7, 7).contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-2, 1, 576, device="cpu").view(8, 8, 3, 3)
    bias = torch.linspace(-1, 1, 8, device="cpu")
    other = x.flip(3).contiguous(memory_format=torch.channels_last)
    packed = arrange(weight, _PAIR, _PAIR, _PAIR, 1, x.shape)
    plain = F.conv2d(x, weight, bias, 1, 1)
    for addend, expected in ((None, plain), (other, plain + other)):
        for activation in (None, ("relu", ()), ("leaky_relu", (0.25,)), ("hardtanh", (0.0, 2.0))):
            found = convolve(x, packed, bias, _PAIR, _PAIR, _PAIR, 1, activation, addend)
            if not torch.allclose(found, activated(expected.clone(), activation), atol=1e-4):
                return False
    return True


def _try_product() -> bool:
    x, weight = torch.linspace(-1, 1, 24, device="cpu").view(2, 12), torch.linspace(-2, 1, 60, device="cpu").view(5, 12)
    bias = torch.linspace(-1, 1, 5, device="cpu")
    fused = torch.allclose(multiply(x, weight, bias, ("relu", ())), F.linear(x, weight, bias).relu(), atol=1e-4)
    return fused and torch.allclose(multiply_by_rows(x, weight), F.linear(x, weight), atol=1e-4)


def arrange(
    weight: Tensor,
    pad: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shape: Sequence[int],
) -> Tensor:
    """A weight (outputs, C / groups, h, w) in the order that oneDNN wants for bottoms of `shape`: opaque, for
    `convolve` alone. Bottoms of other shapes are computed right as well, if need be after another reordering."""
    result: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(), list(pad), list(stride), list(dilation), groups, list(shape)
    )
    return result


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: Activation | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """activation(convolution + other), channels innermost; `x` and `other` have channels innermost, `weight` may be
    plain or come from `arrange`."""
    name, numbers = ("none", ()) if activation is None else activation
    if other is None:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, pad, stride, dilation, groups, name, numbers, ""
        )
        return result
    together = activation is None or name == "relu"  # the operator knows no other after a sum
    then: Any = name if activation is not None and together else None
    result = torch.ops.mkldnn._convolution_pointwise.binary(
        x, other, weight, bias, pad, stride, dilation, groups, "add", 1.0, then, (), ""
    )
    return result if together else activated(result, activation)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation | None = None) -> Tensor:
    """activation(x @ weight.T + bias), the weight (outputs, inputs) read where it lies."""
    name, numbers = ("none", ()) if activation is None else activation
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, numbers, "")
    return result


def multiply_by_rows(left: Tensor, rows: Tensor) -> Tensor:
    """left @ rows.T, `left` read where it lies and `rows` arranged anew; on some processors a fifth faster than the
    library behind torch.mm."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        left, torch.ops.mkldnn._reorder_linear_weight(rows, len(left)), None, "none", (), ""
    )
    return result


def activated(x: Tensor, activation: Activation | None) -> Tensor:
    """An activation by torch's public functions, written over `x`."""
    if activation is None:
        return x
    name, numbers = activation
    if name == "relu":
        return x.relu_()
    if name == "leaky_relu":
        return F.leaky_relu_(x, numbers[0])
    return x.clamp_(*numbers)
