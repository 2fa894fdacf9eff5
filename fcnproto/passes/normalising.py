"""BatchNorm by stored statistics where no convolution takes it in, with the Scale and the activation behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fcnproto.layers.arithmetic import Scale
from fcnproto.layers.base import Layer
from fcnproto.layers.batch_norm import BatchNorm
from fcnproto.passes import onednn
from fcnproto.passes.keeping import Watch
from fcnproto.passes.kernels import needs_gradient, product_dtype, stored_blobs

if TYPE_CHECKING:
    from fcnproto.passes.rewriting import Rewriter

_MOST_DIGITS = 32
"""A mean, after the scaling, may be so many times the largest deviation: that loses 2e-6 of a float32 blob."""


class FastNorm(nn.Module):
    """x * gain + shift per channel, and an activation: for a BatchNorm, the Scale behind it, and what follows.

    The plain layers, which take the mean away first, run where gradients are asked for, where the mean is so large that
    the sum would lose digits, and where statistics or scale are no numbers.
    """

    def __init__(self, watch: Watch, norm: BatchNorm, scale: Scale | None, behind: Layer | None) -> None:
        super().__init__()
        self.layers = (norm, scale)  # in a tuple: not submodules, the net owns them
        self.following = () if behind is None else (behind,)
        self._watch = watch
        self._activation = None if behind is None else behind.activation()
        self._kept = watch.derived((self.layers, "norm"), self._make, self.sources, self.layers)

    def sources(self) -> list[Tensor]:
        """All blobs that gain and shift are made from."""
        return [blob for layer in self.layers if layer is not None for blob in stored_blobs(layer)]

    def watch(self) -> int:
        """Watch the blobs; how often they have been found changed."""
        return self._watch.generation(self.layers)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Gain and shift of each channel, in float64."""
        norm, scale = self.layers
        mean, _, gain = _statistics(norm)
        shift = -mean * gain
        if scale is not None:
            gain, shift = gain * scale.blob(0).double(), shift * scale.blob(0).double()
            offset = scale.optional_blob(1)
            shift = shift if offset is None else shift + offset.double()
        return gain, shift

    def _make(self) -> tuple[Tensor, Tensor] | None:
        """Gain and shift in the blobs' own precision, None where the plain layers are more exact."""
        norm, scale = self.layers
        mean, variance, inverse = _statistics(norm)
        factor = torch.ones_like(mean) if scale is None else scale.blob(0).double()
        deviation = (variance.sqrt() * inverse * factor).abs().max()
        gain, shift = self.weight_and_bias()
        is_finite = bool(torch.isfinite(gain + shift).all())
        if not is_finite or bool((mean * gain).abs().max() > _MOST_DIGITS * deviation):
            return None
        dtype = norm.blob(0).dtype
        return gain.to(dtype), shift.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        norm, scale = self.layers
        blobs = [norm.blob(0)] if scale is None else [norm.blob(0), scale.blob(0), scale.optional_blob(1)]
        if self._suits(x) and not needs_gradient(x, *blobs):
            kept = self._kept.value
            if kept is not None:
                per_channel = (1, -1) + (1,) * (x.dim() - 2)
                gain, shift = (each.view(per_channel) for each in kept)
                return onednn.activated(torch.addcmul(shift, x, gain), self._activation)
        y: Tensor = norm(x)
        for layer in (scale, *self.following):
            y = y if layer is None else layer(y)
        return y

    def _suits(self, x: Tensor) -> bool:
        norm = self.layers[0]
        is_plain = x.device.type == "cpu" and x.dtype == norm.blob(0).dtype == product_dtype(x.device, x.dtype)
        return is_plain and x.dim() > 1 and x.shape[1] == norm.blob_shapes[0][0] and x.numel() > 0


def _statistics(norm: BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, the variance, and what it divides by, of each channel in float64."""
    factor = norm.blob(2).double()
    factor = torch.where(factor == 0, factor, 1 / factor)
    mean, variance = norm.blob(0).double() * factor, norm.blob(1).double() * factor
    return mean, variance, (variance + norm.config.eps).rsqrt()


def _is_per_channel(scale: Scale) -> bool:
    """Whether a Scale has one factor of its own for each channel of blobs of any rank."""
    return scale.is_pointwise(scale.param) and scale.config.axis == 1 and scale.num_tops == 1


def join(rewriter: Rewriter) -> None:
    """Have every BatchNorm by stored statistics run as a `FastNorm`; see `Rewriter.normalisation`."""
    for node in list(rewriter.trace.graph.nodes):
        norm = rewriter.layer(node)
        if not isinstance(norm, BatchNorm) or not norm.is_plain() or not norm.is_pointwise(norm.param, norm.training):
            continue
        last = node
        scale: Scale | None = None
        behind: Layer | None = None
        found = rewriter.only_reader(last)
        if found and isinstance(found[1], Scale) and _is_per_channel(found[1]):
            last, scale = found[0], found[1]
            found = rewriter.only_reader(last)
        if found and found[1].num_tops == 1 and len(found[1].param.bottom) == 1 and found[1].activation() is not None:
            last, behind = found
        fast = FastNorm(rewriter.watch, norm, scale, behind)
        rewriter.note("normalisation", [each for each in (norm, scale, behind) if each is not None], fast)
        rewriter.replace(last, rewriter.put(node, fast, list(node.all_input_nodes)))
    rewriter.drop_unread()
