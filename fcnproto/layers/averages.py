"""BatchNorm as NVIDIA's fork has it: running averages instead of sums, and a scale and a shift of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fcnproto.layers.dtypes import at_least_float32
from fcnproto.schema import caffe_pb2

LEAST_EPS = 1e-5
"""A smaller `eps` is this one."""
INTELS = ("use_weight_bias", "bias_term", "filler")
"""The fields that say that a `bias_filler` is Intel's."""


def is_nvidia(config: caffe_pb2.BatchNormParameter, dialect: str | None) -> bool:
    """Whether a BatchNorm is NVIDIA's by its settings or the dialect."""
    intels = any(config.HasField(name) for name in INTELS)
    scaled = config.scale_bias or config.HasField("scale_filler") or (config.HasField("bias_filler") and not intels)
    return bool(scaled or dialect == "nvidia")


def has_scale(config: caffe_pb2.BatchNormParameter) -> bool:
    """Whether NVIDIA's BatchNorm has a scale and a shift: a filler for one of them says so too."""
    return bool(config.scale_bias or config.HasField("scale_filler") or config.HasField("bias_filler"))


def add_blobs(add: Callable[..., None], channels: int, config: caffe_pb2.BatchNormParameter, specs: Any) -> None:
    """Add the blobs mean, variance, a factor that stays 1, and the scale and shift, and set their rates: 0 for the
    first three, 1 for the others, whatever the settings say."""
    one = caffe_pb2.FillerParameter(type="constant", value=1)
    add("mean", (channels,), learnable=False)
    add("variance", (channels,), learnable=False)
    add("scale_factor", (1,), one, learnable=False)
    if has_scale(config):
        add("weight", (channels,), config.scale_filler if config.HasField("scale_filler") else one)
        add("bias", (channels,), config.bias_filler)
    for index in range(5 if has_scale(config) else 3):
        spec = specs[index] if index < len(specs) else specs.add()
        spec.lr_mult = spec.decay_mult = float(index > 2)


def normalise_by_averages(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    eps: float,
    fraction: float,
    batch: bool,
    update: bool = True,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * scale + shift for each channel, by the stored averages; or with `batch` by
    the batch's own mean and biased variance, which the averages take in: fraction * old + (1 - fraction) * new, or the
    new ones alone while no variance is stored. Without `update` they stay as they are.
    """
    if batch:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        new_variance, new_mean = torch.var_mean(at_least_float32(x), axes, correction=0)
        if update:
            with torch.no_grad():
                kept = fraction * variance.any().to(variance.dtype)
                for stored, new in ((mean, new_mean), (variance, new_variance)):
                    stored.mul_(kept).add_(new.to(stored.dtype) * (1 - kept))
        mean, variance = new_mean, new_variance
    per_channel = (-1, *[1] * (x.dim() - 2))
    y = (x - mean.to(x.dtype).view(per_channel)) * (variance + eps).rsqrt().to(x.dtype).view(per_channel)
    if scale is not None:
        y = y * scale.view(per_channel)
    return y if shift is None else y + shift.view(per_channel)
