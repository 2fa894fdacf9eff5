"""Normalisations of Caffe's forks: Normalize (two layers of one name), BN (four of one name), CuDNNBatchNorm.

Which layer a text means, its fields say: `normalize_param` is NormFace's Normalize, `norm_param` SSD's; `slope_filler`,
`frozen` or `momentum` are PSPNet's BN, `bn_mode` SegNet's, `var_eps`, `decay` or `moving_average` ChenglongChen's. A
BN with fillers alone is SegNet's, unless the dialect is "imcl" or "ctpn".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.graph import maps
from fcnproto.layers.base import SameShape, Shape
from fcnproto.layers.plain import Piece, Request, blob_or_none, number
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2

_SEGNET_EPS = 1e-9


class _ScaleAfter(torch.autograd.Function):
    """normalised * scale, whose gradient leaves the scale to `_ScaleGradient`."""

    @staticmethod
    def forward(ctx: Any, normalised: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(normalised)
        ctx.shape = scale.shape
        return normalised * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (normalised,) = ctx.saved_tensors
        return gradient, (gradient * normalised).sum_to_size(ctx.shape)


class _ScaleGradient(torch.autograd.Function):
    """The bottom itself, whose gradient is multiplied by the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None


@register("Normalize")
class Normalize(SameShape):
    """SSD's Normalize (`norm_param`): vectors of length 1 times a learned scale, over the channels of each position or,
    `across_spatial` (the default), over the whole item; or NormFace's (`normalize_param`): over the channels, without
    parameters, by the "L2" or "L1" norm, a second top holding that norm.

    With a scale for each channel SSD's gradient of the bottom is scale * (dy - n * sum(n * dy)) / norm, n = x / norm,
    where the true one has the scale inside the sum. SSD was trained with it, so it is the one here.
    """

    fork = "SSD; happynear (NormFace)"
    kind = "normalisation"
    config_field = "norm_param"
    also_reads = ("normalize_param",)
    tops = (1, 2)
    coordinates = staticmethod(maps.same)
    differences = (
        "add_eps_before_sqrt: false adds eps to the norm itself. With scales that differ by channel, SSD's gradient."
    )

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return cls.is_normface(param) or not param.norm_param.across_spatial

    def keeps_images_apart(self) -> bool:
        return True

    @staticmethod
    def is_normface(param: caffe_pb2.LayerParameter) -> bool:
        """Whether the text means NormFace's layer."""
        return param.HasField("normalize_param")

    def setup(self, shapes: Sequence[Shape]) -> None:
        unsaid = not self.param.HasField("norm_param") and (self.num_tops > 1 or self.dialect == "happynear")
        self.normface = self.is_normface(self.param) or unsaid
        self.kind_of_norm = ""
        if self.normface:
            if self.param.HasField("norm_param"):
                self.fail("norm_param (SSD's layer) and normalize_param (NormFace's) are both given")
            self.kind_of_norm = self.param.normalize_param.normalize_type
            if self.kind_of_norm not in ("L1", "L2"):
                self.fail(f'normalize_type {self.kind_of_norm!r}: expected "L1" or "L2"')
            return
        if self.num_tops > 1:
            self.fail("a second top (the norm) belongs to NormFace's layer; give normalize_param for it")
        if len(shapes[0]) < 2:
            self.fail(f"needs an axis of channels, got a bottom of shape {tuple(shapes[0])}")
        config = self.config
        filler = config.scale_filler
        if not config.HasField("scale_filler"):
            filler = caffe_pb2.FillerParameter(type="constant", value=1)
        self.add_blob("weight", () if config.channel_shared else (shapes[0][1],), filler)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(shapes[0])
        if not self.normface:
            return [shape]
        full = (*shape, *[1] * (4 - len(shape)))
        return [full, (full[0], 1, *full[2:])][: self.num_tops]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self.normface:
            return self._scaled(x)
        x = x.reshape(*x.shape, *[1] * (4 - x.dim()))
        if self.kind_of_norm == "L2":
            norm = (x.square().sum(1, keepdim=True) + 1e-6).sqrt()
        else:
            norm = x.abs().sum(1, keepdim=True) + 1e-6
        return (x / norm, norm) if self.num_tops == 2 else x / norm

    def _scaled(self, x: Tensor) -> Tensor:
        config, weight = self.config, self.blob(0)
        axes = list(range(1, x.dim())) if config.across_spatial else [1]
        if config.channel_shared:
            return x / self._norm(x, axes) * weight
        scale = weight.view(-1, *[1] * (x.dim() - 2))
        x = _ScaleGradient.apply(x, scale.detach())
        return _ScaleAfter.apply(x / self._norm(x, axes), scale)  # type: ignore[no-any-return]

    def _norm(self, x: Tensor, axes: list[int]) -> Tensor:
        total, eps = x.square().sum(axes, keepdim=True), self.config.eps
        return (total + eps).sqrt() if self.config.add_eps_before_sqrt else total.sqrt() + eps


@register("BN")
class BN(SameShape):
    """Batch normalisation with its scale and shift, of four forks; each channel by itself.

    PSPNet's: blobs slope, bias, mean, variance (1, C, 1, 1); batch statistics in TRAIN unless `frozen`, running ones
    (momentum * old + (1 - momentum) * batch) else; frozen blobs get no gradient. SegNet's: blobs scale, shift; batch
    statistics in both phases, or, with bn_mode INFERENCE, scale * x + shift; tops 2 and 3 hold mean and variance.
    ChenglongChen's (imcl, ctpn): blobs scale, shift, mean, variance; running = decay * batch + (1 - decay) * old;
    `var_eps` counts in TRAIN alone.
    Variances are biased.
    """

    fork = "PSPNet, yjxiong; SegNet, DeconvNet, ENet; imcl; CTPN"
    kind = "normalisation"
    config_field = "bn_param"
    tops = (1, 3)
    coordinates = staticmethod(maps.same)
    differences = "the gradient in the TEST phase is the true one (PSPNet's CPU code takes the formula of TRAIN)."

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        config = param.bn_param
        if _is_pspnet(config):
            return not training or config.frozen
        return config.bn_mode == caffe_pb2.BNParameter.INFERENCE

    def keeps_images_apart(self) -> bool:
        return not self._takes_batch()

    def setup(self, shapes: Sequence[Shape]) -> None:
        config, shape = self.config, shapes[0]
        if len(shape) < 2:
            self.fail(f"needs an axis of channels, got a bottom of shape {tuple(shape)}")
        self.pspnet = _is_pspnet(config)
        running = any(config.HasField(name) for name in ("var_eps", "decay", "moving_average", "axis"))
        self.running = not self.pspnet and (running or self.dialect in ("imcl", "ctpn"))
        if sum([self.pspnet, running, config.HasField("bn_mode")]) > 1:
            given = ", ".join(field.name for field, _ in config.ListFields())
            self.fail(f"bn_param mixes the fields of several forks' layers ({given}); keep those of one")
        if self.num_tops > 1 and (self.pspnet or self.running):
            self.fail("tops 2 and 3 (batch mean and variance) belong to SegNet's layer")
        blob = (1, shape[1], 1, 1)
        one = caffe_pb2.FillerParameter(type="constant", value=1)
        scale, shift = ("slope_filler", "bias_filler") if self.pspnet else ("scale_filler", "shift_filler")
        self.add_blob("weight", blob, getattr(config, scale) if config.HasField(scale) else one)
        self.add_blob("bias", blob, getattr(config, shift) if config.HasField(shift) else None)
        if self.pspnet or self.running:
            self.add_blob("running_mean", blob, None, learnable=False)
            self.add_blob("running_var", blob, one if self.pspnet else None, learnable=False)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(shapes[0])
        return [shape, *[(1, shape[1], 1, 1)] * (self.num_tops - 1)]

    def _takes_batch(self) -> bool:
        """Whether statistics are those of the batch."""
        config = self.config
        if self.pspnet:
            return self.training and not config.frozen
        if self.running:
            return self.training or not self._moves()
        return bool(config.bn_mode == caffe_pb2.BNParameter.LEARN)

    def _moves(self) -> bool:
        """Whether ChenglongChen's layer keeps running statistics: its default is another in CTPN."""
        return self.config.moving_average if self.config.HasField("moving_average") else self.dialect != "ctpn"

    def _decay(self) -> float:
        if self.config.HasField("decay"):
            return float(self.config.decay)
        return 0.05 if self.dialect == "ctpn" else 0.95

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        y = normalise_channels(
            x,
            self.blob(0),
            self.blob(1),
            self.optional_blob(2),
            self.optional_blob(3),
            eps=self._eps(),
            batch=self._takes_batch(),
            kept=self._kept(),
            frozen=self._is_frozen(),
        )
        return y if self.num_tops == 1 else (y, *channel_statistics(x)[: self.num_tops - 1])

    def plain(self, request: Request) -> Piece:
        training, config = request.training, self.config
        batch, eps = str(config.bn_mode == caffe_pb2.BNParameter.LEARN), number(_SEGNET_EPS)
        if self.pspnet:
            batch, eps = "False" if config.frozen else training, number(config.eps)
        elif self.running:
            batch = training if self._moves() else "True"
            eps = f"{number(config.var_eps)} if {training} else 0.0"
        blobs = [blob_or_none(self.blob_names, index) for index in range(4)]
        kept = None if self._kept() is None else number(self._kept() or 0.0)
        settings = [f"eps={eps}", f"batch={batch}", f"kept={kept}", f"frozen={self._is_frozen()}"]
        call = f"normalise_channels({', '.join([request.x, *blobs, *settings])})"
        sizes = [f"{name}={list(shape)}" for name, shape in zip(self.blob_names, self.blob_shapes, strict=True)]
        module = ("Blobs", ['counted=("running_mean", "running_var")', *sizes])
        if self.num_tops == 1:
            return Piece((call, None), module, (normalise_channels,))
        others = [f"channel_statistics({request.x})[{index}]" for index in range(self.num_tops - 1)]
        return Piece(("", [call, *others]), module, (normalise_channels, channel_statistics))

    def _is_frozen(self) -> bool:
        return bool(self.pspnet and self.config.frozen)

    def _kept(self) -> float | None:
        """How much of the running statistics stays when those of a batch are taken in; None where they never are."""
        if self.pspnet:
            return float(self.config.momentum)
        return 1 - self._decay() if self.running and self._moves() else None

    def _eps(self) -> float:
        if self.pspnet:
            return float(self.config.eps)
        if self.running:
            return float(self.config.var_eps) if self.training else 0.0
        return _SEGNET_EPS


@register("CuDNNBatchNorm")
class CuDNNBatchNorm(SameShape):
    """GENet's batch normalisation by cuDNN: blobs scale, bias, mean, variance (1, C, 1, 1); the batch's statistics in
    TRAIN unless `frozen`, the running ones else: momentum * old + (1 - momentum) * batch, the variance unbiased there.
    eps is 1e-5 at least; fillers that aren't given are 0, of the scale too. Frozen blobs get no gradient.
    """

    fork = "GENet"
    kind = "normalisation"
    config_field = "cudnn_batch_norm_param"
    coordinates = staticmethod(maps.same)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return not training or param.cudnn_batch_norm_param.frozen

    def keeps_images_apart(self) -> bool:
        return self.is_pointwise(self.param, self.training)

    def setup(self, shapes: Sequence[Shape]) -> None:
        config, shape = self.config, shapes[0]
        if len(shape) < 2:
            self.fail(f"needs an axis of channels, got a bottom of shape {tuple(shape)}")
        blob, one = (1, shape[1], 1, 1), caffe_pb2.FillerParameter(type="constant", value=1)
        self.add_blob("weight", blob, config.scale_filler)
        self.add_blob("bias", blob, config.bias_filler)
        self.add_blob("running_mean", blob, None, learnable=False)
        self.add_blob("running_var", blob, one if config.frozen else None, learnable=False)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        scale, bias, mean, variance = (self.blob(index).flatten() for index in range(4))
        if config.frozen:
            scale, bias = scale.detach(), bias.detach()
        batch = self.training and not config.frozen
        return F.batch_norm(x, mean, variance, scale, bias, batch, 1 - config.momentum, max(config.eps, 1e-5))


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, (1, C, 1, 1)."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return mean.reshape(1, -1, 1, 1), variance.reshape(1, -1, 1, 1)


def normalise_channels(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    *,
    eps: float,
    batch: bool,
    kept: float | None,
    frozen: bool = False,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * scale + shift for each channel, by the batch's statistics or the given ones;
    without either x * scale + shift. The given ones take the batch's in: `kept` of them stays. What is `frozen` gets no
    gradient."""
    one_a_channel = (1, -1, *[1] * (x.dim() - 2))
    if frozen:
        scale, shift = scale.detach(), shift.detach()
    if batch:
        new_mean, new_variance = channel_statistics(x)
        if kept is not None and mean is not None and variance is not None:
            with torch.no_grad():
                for stored, new in ((mean, new_mean), (variance, new_variance)):
                    stored.mul_(kept).add_(new.to(stored.dtype), alpha=1 - kept)
        mean, variance = new_mean, new_variance
    if mean is not None and variance is not None:
        x = (x - mean.view(one_a_channel)) / (variance.view(one_a_channel) + eps).sqrt()
    return x * scale.view(one_a_channel) + shift.view(one_a_channel)


def _is_pspnet(config: caffe_pb2.BNParameter) -> bool:
    return any(config.HasField(name) for name in ("slope_filler", "bias_filler", "frozen", "momentum", "eps", "icnet"))
