"""Convolution, bias and ReLU in one launch, where cuDNN has it: on a GPU, without gradients."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.convolution import Convolution

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_refused: weakref.WeakKeyDictionary[Convolution, set[torch.dtype]] = weakref.WeakKeyDictionary()
"""Layers that cuDNN has no such kernel for, with the dtypes."""


def is_offered(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether cuDNN may compute in `dtype` on a device, in whatever way is fastest.

    It follows torch's switches for TF32, as convolutions do.
    """
    cudnn = torch.backends.cudnn
    return (
        device.type == "cuda"
        and dtype in _DTYPES
        and cudnn.is_available()
        and bool(cudnn.enabled)
        and not cudnn.deterministic
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.is_grad_enabled()
    )


def convolve(layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None, pad: Sequence[int]) -> Tensor:
    """max(conv(x) + bias, 0) with the layer's stride, dilation and groups; in one launch where that is offered."""
    window = layer.window
    if is_offered(x.device, x.dtype) and x.dtype not in _refused.get(layer, ()):
        try:
            result: Tensor = torch.cudnn_convolution_relu(
                x, weight, bias, list(window.stride), list(pad), list(window.dilation), layer.groups
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # there is no such kernel for this shape or processor
            _refused.setdefault(layer, set()).add(x.dtype)
        else:
            return result
    return F.conv2d(x, weight, bias, window.stride, tuple(pad), window.dilation, layer.groups).relu_()
