"""Layers that act on every element by itself: ReLU and its relatives, BNLL, Clip, Threshold, Dropout and the others.

Where Caffe computes in place and then needs the overwritten input for the gradient (BNLL, Clip), its gradient is
wrong; here it is the true one, since nothing is ever overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.base import Activation, Pointwise, Shape
from fcnproto.layers.plain import MODULE, Piece, Request, number, parameters_of
from fcnproto.layers.registry import register
from fcnproto.schema import caffe_pb2


@register("AbsVal")
class AbsVal(Pointwise):
    """Caffe's AbsVal: |x|, with gradient 0 at 0. Caffe refuses it in place."""

    in_place = False

    def of_zeros(self) -> str:
        return "kept"

    def is_flat_at_zero(self) -> bool:
        return True

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0,))

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def plain(self, request: Request) -> Piece:
        return Piece(("torch.abs", [request.x]))


@register("BNLL")
class BNLL(Pointwise):
    """Caffe's BNLL (binomial normal log likelihood): log(1 + e^x), computed without overflow."""

    differences = "in place, the gradient is the true one (Caffe reads the overwritten input)."

    # Above this the result is x itself in every float type; Caffe's gradient stops e^x at the same value.
    LINEAR_FROM = 50.0

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0,))

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, threshold=self.LINEAR_FROM)

    def plain(self, request: Request) -> Piece:
        return Piece(("F.softplus", [request.x, f"threshold={number(self.LINEAR_FROM)}"]))


@register("Clip")
class Clip(Pointwise):
    """Caffe's Clip: min(max(x, `min`), `max`). The gradient passes where `min` <= x <= `max`, both included."""

    differences = "in place, the gradient is the true one (Caffe reads the overwritten input)."

    config_field = "clip_param"

    def setup(self, shapes: Sequence[Shape]) -> None:
        missing = [f"clip_param.{field}" for field in ("min", "max") if not self.config.HasField(field)]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            self.fail(f"{' and '.join(missing)} {verb} missing; min and max must both be given")

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0,))

    def in_place_keeps(self) -> str:
        return "signs" if self.config.min <= 0 < self.config.max else ""

    def activation(self) -> Activation | None:
        return ("hardtanh", (self.config.min, self.config.max)) if self.config.min <= self.config.max else None

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.config.min, self.config.max)

    def plain(self, request: Request) -> Piece:
        return Piece(("torch.clamp", [request.x, number(self.config.min), number(self.config.max)]))


@register("ELU")
class ELU(Pointwise):
    """Caffe's ELU: x above 0, else alpha * (e^x - 1)."""

    config_field = "elu_param"

    def of_zeros(self) -> str:
        return "kept"

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(signs=(0,), tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (x,), (y,) = found.bottoms, found.tops
        return [found.slope * torch.where(x > 0, torch.ones_like(y), y + self.config.alpha)]

    def in_place_keeps(self) -> str:
        return "signs" if self.config.alpha >= 0 else ""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.config.alpha)

    def plain(self, request: Request) -> Piece:
        return Piece(("F.elu", [request.x, f"alpha={number(self.config.alpha)}"]))


@register("PReLU")
class PReLU(Pointwise):
    """Caffe's PReLU: x above 0, else a * x, with one learned slope a per channel (axis 1).

    Blob "weight": (C,), or without axes where `channel_shared`; 0.25 unless a filler is given. At x = 0 the gradient
    is the slope.
    """

    config_field = "prelu_param"

    def of_zeros(self) -> str:
        return "kept"

    def setup(self, shapes: Sequence[Shape]) -> None:
        (shape,) = shapes
        if len(shape) < 2:
            self.fail(f"needs a bottom with 2 axes or more, got shape {tuple(shape)}")
        filler = caffe_pb2.FillerParameter(type="constant", value=0.25)
        if self.config.HasField("filler"):
            filler = self.config.filler
        self.add_blob("weight", () if self.config.channel_shared else (shape[1],), filler)

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads() if in_place else Reads(bottoms=(0,))

    def forward(self, x: Tensor) -> Tensor:
        if not self.config.channel_shared and (x.dim() < 2 or x.shape[1] != self.blob_shapes[0][0]):
            self.fail(f"has slopes for {self.blob_shapes[0][0]} channels, got a bottom of shape {tuple(x.shape)}")
        return F.prelu(x, self.blob(0).reshape(-1).to(x.dtype))

    def plain(self, request: Request) -> Piece:
        if not self.config.channel_shared:
            return Piece((MODULE, [request.x]), ("nn.PReLU", [str(self.blob_shapes[0][0])]))
        module = parameters_of(self.blob_names, self.blob_shapes)
        return Piece(("F.prelu", [request.x, f"{MODULE}.weight.reshape(1)"]), module)


def capped_relu(x: Tensor, slope: float, ceiling: float) -> Tensor:
    """max(x, 0) + slope * min(x, 0) up to a ceiling; at the ceiling and beyond the gradient is 0."""
    y = F.leaky_relu(x, slope) if slope else F.relu(x)
    return y.masked_fill(y >= ceiling, ceiling)


@register("ReLU")
class ReLU(Pointwise):
    """Caffe's ReLU: max(x, 0) + negative_slope * min(x, 0). At x = 0 the gradient is the negative slope.

    Forks' ceilings cut the result off: `relu6: true` at 6, `maximum` at that where it is above 0; at a ceiling and
    beyond the gradient is 0.
    """

    differences = (
        "in place with a negative slope below 0, the gradient is the true one (Caffe takes the output's sign "
        "for the input's)."
    )

    config_field = "relu_param"
    fork_fields = ("relu_param.relu6", "relu_param.maximum")
    may_overwrite = True

    def of_zeros(self) -> str:
        return "kept"

    def is_flat_at_zero(self) -> bool:
        return bool(self.config.negative_slope == 0)

    @property
    def ceiling(self) -> float | None:
        """What the result is cut off at; None where nothing is."""
        ceilings = [6.0] if self.config.relu6 else []
        if self.config.maximum > 0:
            ceilings.append(self.config.maximum)
        return min(ceilings, default=None)

    def activation(self) -> Activation | None:
        slope, ceiling = self.config.negative_slope, self.ceiling
        if ceiling is not None:
            return None if slope else ("hardtanh", (0.0, ceiling))
        return ("leaky_relu", (slope,)) if slope else ("relu", ())

    def near_ties(self, bottoms: Sequence[Tensor], reach: float) -> tuple[int, int, str] | None:
        near = (bottoms[0].abs() <= reach) & (bottoms[0] != 0)  # at 0 itself the rule decides, not a digit
        return int(near.sum()), bottoms[0].numel(), "values"

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(signs=(0,))

    def in_place_keeps(self) -> str:
        return "signs" if self.config.negative_slope >= 0 else ""

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """The top; `overwrite` permits to write it over `x`, which nobody reads again."""
        slope, ceiling = self.config.negative_slope, self.ceiling
        if ceiling is not None:
            return capped_relu(x, slope, ceiling)
        return F.leaky_relu(x, slope) if slope else F.relu(x, inplace=overwrite)

    def plain(self, request: Request) -> Piece:
        slope, ceiling = self.config.negative_slope, self.ceiling
        if ceiling is not None:
            return Piece(("capped_relu", [request.x, number(slope), number(ceiling)]), None, (capped_relu,))
        return Piece(("F.leaky_relu", [request.x, number(slope)]) if slope else ("F.relu", [request.x]))


@register("Sigmoid")
class Sigmoid(Pointwise):
    """Caffe's Sigmoid: 1 / (1 + e^-x)."""

    config_field = "sigmoid_param"

    def keeps_finite(self) -> bool:
        return True

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (y,) = found.tops
        return [found.slope * y * (1 - y)]

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def plain(self, request: Request) -> Piece:
        return Piece(("torch.sigmoid", [request.x]))


@register("Swish")
class Swish(Pointwise):
    """Caffe's Swish: x * sigmoid(beta * x)."""

    config_field = "swish_param"

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (y,), beta = found.tops, self.config.beta
        kept = (found.before[0] * beta).sigmoid()
        return [found.slope * (beta * y + kept * (1 - beta * y))]

    def forward(self, x: Tensor) -> Tensor:
        beta = self.config.beta
        return F.silu(x) if beta == 1 else x * (x * beta).sigmoid()

    def plain(self, request: Request) -> Piece:
        x, beta = request.x, self.config.beta
        return Piece(("F.silu", [x]) if beta == 1 else (f"{x} * torch.sigmoid({x} * {number(beta)})", None))


@register("TanH")
class TanH(Pointwise):
    """Caffe's TanH: tanh(x)."""

    config_field = "tanh_param"

    def keeps_finite(self) -> bool:
        return True

    def of_zeros(self) -> str:
        return "kept"

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (y,) = found.tops
        return [found.slope * (1 - y * y)]

    def in_place_keeps(self) -> str:
        return "signs"

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()

    def plain(self, request: Request) -> Piece:
        return Piece(("torch.tanh", [request.x]))


@register("Threshold")
class Threshold(Pointwise):
    """Caffe's Threshold: 1 where x > threshold, else 0. It has no gradient."""

    config_field = "threshold_param"
    stops_gradient = True

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.config.threshold).to(x.dtype)

    def plain(self, request: Request) -> Piece:
        return Piece((f"({request.x} > {number(self.config.threshold)}).to({request.x}.dtype)", None))


def drop_out(x: Tensor, ratio: float, drop: bool, scaled: bool) -> Tensor:
    """`x` with each value 0 with probability `ratio` where `drop`; what is kept is divided by 1 - ratio where `scaled`,
    else what nothing is dropped of is multiplied by it."""
    if drop:
        kept = F.dropout(x, ratio)
        return kept if scaled else kept * (1 - ratio)
    return x if scaled else x * (1 - ratio)


@register("Dropout")
class Dropout(Pointwise):
    """Caffe's Dropout: in TRAIN each element is 0 with probability `dropout_ratio`, else x / (1 - dropout_ratio).

    In TEST it hands its input on. The random numbers are torch's. Forks' `scale_train: false` divides in neither phase
    and multiplies by 1 - dropout_ratio in TEST instead; `sample_weights_test: true` (SegNet) drops out in TEST too.
    """

    differences = "`dropout_ratio` outside of [0, 1) is an error (Caffe checks it in debug builds only)."

    config_field = "dropout_param"
    fork_fields = ("dropout_param.scale_train", "dropout_param.sample_weights_test")
    passes_on = True

    def draws_numbers(self) -> bool:
        return self.training or bool(self.config.sample_weights_test)

    def hands_on(self) -> bool:
        return not self.draws_numbers() and bool(self.config.scale_train)

    @classmethod
    def is_pointwise(cls, param: caffe_pb2.LayerParameter, training: bool = False) -> bool:
        return not training and not param.dropout_param.sample_weights_test

    def setup(self, shapes: Sequence[Shape]) -> None:
        ratio = self.config.dropout_ratio
        if not 0 <= ratio < 1:
            self.fail(f"dropout_ratio {ratio:g} must be at least 0 and below 1")

    def in_place_keeps(self) -> str:
        # In TRAIN what becomes 0 lets no gradient through.
        return "values" if self.hands_on() or not self.config.dropout_ratio else "signs"

    def forward(self, x: Tensor) -> Tensor:
        return drop_out(x, self.config.dropout_ratio, self.draws_numbers(), self.config.scale_train)

    def plain(self, request: Request) -> Piece:
        ratio = number(self.config.dropout_ratio)
        if not self.config.scale_train or self.config.sample_weights_test:
            always = self.config.sample_weights_test
            arguments = [request.x, ratio, f"drop={always or request.training}", f"scaled={self.config.scale_train}"]
            return Piece(("drop_out", arguments), None, (drop_out,))
        if request.training == "self.training":
            return Piece((MODULE, [request.x]), ("nn.Dropout", [ratio]))
        return Piece(("F.dropout", [request.x, ratio])) if request.training == "True" else Piece(None)
