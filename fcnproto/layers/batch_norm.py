"""BatchNorm, Caffe's and its forks'."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fcnproto.graph import maps
from fcnproto.layers.averages import LEAST_EPS, add_blobs, is_nvidia, normalise_by_averages
from fcnproto.layers.base import SameShape, Shape
from fcnproto.layers.dtypes import computing_type
from fcnproto.layers.memory_order import channels_outermost
from fcnproto.layers.plain import MODULE, Piece, Request, blob_or_none, number
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("BatchNorm")
class BatchNorm(SameShape):
    """Caffe's BatchNorm: (x - mean) / sqrt(variance + eps) per channel (axis 1); a Scale layer usually follows.

    Blobs, all buffers: "mean" (C,) and "variance" (C,), which are sums, and "scale_factor" (1,), by which both are
    divided when they are used (0 gives mean and variance 0). In batch mode (`use_global_stats` false, the default in
    TRAIN) mean and variance are the batch's, and every forward, with or without a backward, takes the sums times
    `moving_average_fraction` plus its own (the variance with divisor m - 1), and the factor likewise plus 1, unless
    `update_global_stats: false` (a fork's) leaves them as they are. `relu: true` (Intel's) cuts the result off at 0.

    NVIDIA's layer, known by `scale_bias`, `scale_filler`, `bias_filler` or the dialect "nvidia": mean and variance are
    averages (fraction * old + (1 - fraction) * batch, the variance biased), the factor stays 1, `eps` is 1e-5 at least,
    the phase alone decides, and with one of those fields two learned blobs follow, "weight" and "bias" (C,), by which
    the result is multiplied and to which it is added.
    """

    config_field = "batch_norm_param"
    fork_fields = tuple(
        f"batch_norm_param.{name}"
        for name in ("scale_bias", "scale_filler", "bias_filler", "update_global_stats", "relu")
    )
    differences = (
        "Intel's `use_weight_bias` and fillers have no effect, as in its plain CPU engine (its MKL engine has a scale "
        "and a shift). NVIDIA's first batch is what its averages begin with (in its CPU code the second as well)."
    )
    kind = "normalisation"
    coordinates = staticmethod(maps.same)

    def of_zeros(self) -> str:
        return "" if self.is_pointwise(self.param, self.training) else "kept"  # stored means make no zeros

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        config = param.batch_norm_param
        return bool(config.use_global_stats) if config.HasField("use_global_stats") else not training

    def setup(self, shapes: Sequence[Shape]) -> None:
        (shape,) = shapes
        if len(shape) < 2:
            self.fail(f"needs a bottom with 2 axes or more, got shape {tuple(shape)}")
        self.averages = is_nvidia(self.config, self.dialect)
        self.use_global_stats = self.config.use_global_stats if self.config.HasField("use_global_stats") else None
        if self.averages:
            add_blobs(self.add_blob, shape[1], self.config, self.param.param)
            self.warn_unread(("use_global_stats",), "the phase decides, in NVIDIA's Caffe too")
            return
        if self.config.HasField("bias_filler"):
            self.warn("batch_norm_param.bias_filler has no effect; nor has use_weight_bias but in Intel's MKL engine")
        # The upgrade of old nets sets all of exactly three entries to 0; other counts are the user's own.
        if len(self.param.param) != 3 and any(spec.lr_mult != 0 for spec in self.param.param):
            self.fail("its blobs are statistics, not learned: give each param entry lr_mult: 0, or none at all")
        while len(self.param.param) < 3:
            self.param.param.add(lr_mult=0)  # as Caffe does; solvers and saved definitions see it
        self.add_blob("mean", (shape[1],), learnable=False)
        self.add_blob("variance", (shape[1],), learnable=False)
        self.add_blob("scale_factor", (1,), learnable=False)

    def forward(self, x: Tensor) -> Tensor:
        use_global = not self.training if self.use_global_stats is None else self.use_global_stats
        if self.averages:
            use_global = not self.training
        if x.dim() < 2 or x.shape[1] != self.blob_shapes[0][0]:
            self.fail(f"has statistics of {self.blob_shapes[0][0]} channels, got a bottom of shape {tuple(x.shape)}")
        y = self._by_averages(x) if self.averages else self._by_sums(x, use_global)
        return y.clamp(min=0) if self.config.relu else y

    def is_plain(self) -> bool:
        """Whether the layer is Caffe's own, which may be folded into the convolution before it."""
        return not self.averages and not self.config.relu

    def _by_sums(self, x: Tensor, use_global: bool) -> Tensor:
        mean, variance, factor = (self.blob(index) for index in range(3))
        if use_global:
            return normalise_by_stored(x, mean, variance, factor, self.config.eps)
        fraction, update = self.config.moving_average_fraction, self.config.update_global_stats
        return normalise_by_batch(x, mean, variance, factor, self.config.eps, fraction, update)

    def _by_averages(self, x: Tensor) -> Tensor:
        return normalise_by_averages(
            x,
            self.blob(0),
            self.blob(1),
            self.optional_blob(3),
            self.optional_blob(4),
            eps=max(self.config.eps, LEAST_EPS),
            fraction=self.config.moving_average_fraction,
            batch=self.training,
            update=self.config.update_global_stats,
        )

    def plain(self, request: Request) -> Piece:
        if not self.is_plain() or not self.config.update_global_stats:
            return self._plain_of_forks(request)
        name, shapes = "Statistics", zip(self.blob_names, self.blob_shapes, strict=True)
        module = (name, [f"{blob}={list(shape)}" for blob, shape in shapes])
        blobs = [f"{MODULE}.{blob}" for blob in self.blob_names]
        batch = request.training if self.use_global_stats is None else str(not self.use_global_stats)
        eps, fraction = number(self.config.eps), number(self.config.moving_average_fraction)
        if batch == "False":
            return Piece(("normalise_by_stored", [request.x, *blobs, f"eps={eps}"]), module, (normalise_by_stored,))
        arguments = [request.x, *blobs, f"eps={eps}", f"fraction={fraction}"]
        if batch == "True":
            return Piece(("normalise_by_batch", arguments), module, (normalise_by_batch,))
        return Piece(("normalise_batch", [*arguments, f"batch={batch}"]), module, (normalise_batch,))

    def _plain_of_forks(self, request: Request) -> Piece:
        """NVIDIA's and Intel's layers."""
        sizes = [f"{name}={list(shape)}" for name, shape in zip(self.blob_names, self.blob_shapes, strict=True)]
        blobs = [blob_or_none(self.blob_names, index) for index in range(5)]
        function: Callable[..., Tensor] = normalise_batch
        given, batch, eps = blobs[:3], request.training, self.config.eps
        if self.averages:
            function, given, eps = normalise_by_averages, [*blobs[:2], *blobs[3:]], max(eps, LEAST_EPS)
        elif self.use_global_stats is not None:
            batch = str(not self.use_global_stats)
        fraction, update = number(self.config.moving_average_fraction), self.config.update_global_stats
        settings = [f"eps={number(eps)}", f"fraction={fraction}", f"batch={batch}", f"update={update}"]
        call = f"{function.__name__}({', '.join([request.x, *given, *settings])})"
        module = ("Blobs", ['counted=("mean", "variance", "scale_factor")', *sizes])
        return Piece((f"F.relu({call})" if self.config.relu else call, None), module, (function,))


def normalise_batch(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    factor: Tensor,
    eps: float,
    fraction: float,
    batch: bool,
    update: bool = True,
) -> Tensor:
    """Caffe's BatchNorm by the batch's own statistics (which are added to the stored sums) or by the stored ones."""
    if batch:
        return normalise_by_batch(x, mean, variance, factor, eps, fraction, update)
    return normalise_by_stored(x, mean, variance, factor, eps)


def normalise_by_stored(x: Tensor, mean: Tensor, variance: Tensor, factor: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) per channel; mean and variance are sums, which the factor divides."""
    inverse_factor = torch.where(factor == 0, torch.zeros_like(factor), 1 / factor)
    per_channel = [x.shape[1]] + [1] * (x.dim() - 2)
    mean = (mean * inverse_factor).to(x.dtype).view(per_channel)
    variance = (variance * inverse_factor).view(per_channel)
    # Subtracted first, as in Caffe: x * a - mean * a would lose digits where the mean is large.
    return (x - mean).mul_((variance + eps).rsqrt().to(x.dtype))


def normalise_by_batch(
    x: Tensor, mean: Tensor, variance: Tensor, factor: Tensor, eps: float, fraction: float, update: bool = True
) -> Tensor:
    """The same by the batch's own mean and variance; the stored sums, times `fraction`, take these in (`update`)."""
    channels = x.shape[1]
    count = x.numel() // max(channels, 1)
    statistics_type = computing_type(x)
    new_mean = torch.zeros(channels, dtype=statistics_type, device=x.device)
    new_variance = torch.zeros_like(new_mean)
    if count == 1:
        # The value is its own mean; torch would divide by m - 1 = 0.
        new_mean = x.detach().reshape(channels).to(statistics_type)
        y = x * 0
    else:
        # On the CPU torch sums in double precision, but in single where channels are innermost.
        given = channels_outermost(x) if x.device.type == "cpu" else x
        # With momentum 1 torch's running statistics become the batch's own: mean and variance by m - 1.
        y = torch.batch_norm(given, None, None, new_mean, new_variance, True, 1.0, eps, torch.backends.cudnn.enabled)
    if update:
        with torch.no_grad():
            for stored, new in ((mean, new_mean), (variance, new_variance), (factor, torch.ones_like(new_mean[:1]))):
                stored.mul_(fraction).add_(new.to(stored.dtype))
    return y
