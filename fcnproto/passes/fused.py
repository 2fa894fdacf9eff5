"""Convolutions and inner products by oneDNN's fused operators (`onednn`), where a call needs no gradient.

Each module here takes, after its bottoms, whether the call is `Ready` for it; where not, it runs the layers that it
stands for as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fcnproto.layers.base import Activation, Layer, Shape
from fcnproto.layers.inner_product import InnerProduct
from fcnproto.layers.pooling import looks_finite
from fcnproto.passes import onednn, products, tuning
from fcnproto.passes.keeping import Derived, Watch
from fcnproto.passes.kernels import FastConvolution, channels_last
from fcnproto.passes.normalising import FastNorm
from fcnproto.passes.tuning import Trial

_SHAPES_KEPT = 64
# Convolutions of one position with more weights than that are products with the weights where they lie: no second copy.
_MOST_WEIGHTS = 1 << 22
# A convolution of one position with fewer multiply-adds takes longer by oneDNN, which plans each call anew (40 us),
# than by a product of its bottom's positions with the weights.
_SMALL_WORK = 1 << 23
# Ways are close where so much more or less work would make the rule choose another one.
_CLOSE = 2


# What the weights are called that ways keep in an order of their own.
_WEIGHTS = {"winograd": "winograd", "direct": "arranged"}


class Ready(nn.Module):
    """Whether a call may go by the fused operators: on a CPU in float32, without gradients, by finite numbers.

    An activation of oneDNN makes 0 of NaN, which would hide that an image or a weight is no number.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self._layers: list[FastConvolution | FastNorm] = []
        self._verdict: tuple[int, bool] | None = None

    def add(self, layer: FastConvolution | FastNorm) -> None:
        """Ask for the weights of this one as well."""
        self._layers.append(layer)

    def _has_fit_weights(self) -> bool:
        blobs = (blob for layer in self._layers for blob in layer.sources())
        if not all(blob.dtype == torch.float32 and blob.device.type == "cpu" for blob in blobs):
            return False
        made = (blob for layer in self._layers for blob in layer.weight_and_bias() if blob is not None)
        return all(math.isfinite(blob.sum(dtype=torch.float64).item()) for blob in made)

    def forward(self, *inputs: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return False
        if torch.is_autocast_enabled("cpu") or not onednn.works() or not all(map(_is_finite, inputs)):
            return False
        verdict, changes = self._verdict, self._watch.changes
        if verdict is None or verdict[0] != changes:
            for layer in self._layers:
                layer.watch()  # before they are read
            verdict = self._verdict = changes, self._has_fit_weights()
        return verdict[1]


def _is_finite(x: Tensor) -> bool:
    """Whether an input is a plain CPU tensor of finite float32 values."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32 or x.layout != torch.strided:
        return False
    try:
        return math.isfinite(x.sum(dtype=torch.float32).item()) or math.isfinite(x.sum(dtype=torch.float64).item())
    except RuntimeError:  # inside a transformation that has no values
        return False


def _look_finite(x: Tensor, other: Tensor | None) -> bool:
    return looks_finite(x) and (other is None or looks_finite(other))


class FusedConvolution(nn.Module):
    """A convolution with what is fused to it and, after that, a sum with another blob and an activation.

    `following` are the layers behind it: an Eltwise, an activation, or both in this order. Bottoms: of the convolution;
    of the Eltwise the other one, if there is one. With `doubtful`, the bottoms may hold what is no number though the
    net's inputs and the convolutions' weights don't, and are looked at.
    """

    def __init__(
        self,
        fast: FastConvolution,
        following: Sequence[Layer],
        *,
        first: bool,
        doubtful: bool,
        tuning: bool = False,
    ) -> None:
        super().__init__()
        self._tuning = tuning
        self._doubtful = doubtful
        self._fast, self._first = [fast], first
        self.following = tuple(following)
        behind = next((layer.activation() for layer in following if layer.activation()), None)
        self._activation: Activation | None = ("relu", ()) if fast.relu else behind
        self._ways: dict[tuple[int, Shape], str | Trial] = {}
        window = fast.layer.window
        self._settings = (tuple(window.pad), tuple(window.stride), tuple(window.dilation), fast.layer.groups)
        is_one_position = max(window.kernel) == max(window.stride) == 1 and max(window.pad) == 0
        self._suits_rows = is_one_position and fast.layer.groups == 1
        self._arranged: Derived[tuple[Tensor, Tensor | None]] | None = None

    @property
    def fast(self) -> FastConvolution:
        """The convolution."""
        return self._fast[0]

    def forward(self, x: Tensor, *more: Tensor | bool) -> Tensor:
        other = more[0] if len(more) == 2 else None
        if more[-1] is True:
            assert other is None or isinstance(other, Tensor)
            way = self._kept_way(x, other)
            if way != "plain" and (not self._doubtful or _look_finite(x, other)):
                return self._quickly(x, other, way) if isinstance(way, str) else self._timed(x, other, way)
        y: Tensor = self.fast(x)
        for layer in self.following:
            if len(layer.param.bottom) == 2:
                y = layer(y, other) if self._first else layer(other, y)
            else:
                y = layer(y)
        return y

    def _kept_way(self, x: Tensor, other: Tensor | None) -> str | Trial:
        """The way for these bottoms on as many threads, or those that are being tried."""
        if x.dtype != torch.float32 or (other is not None and other.dtype != torch.float32):
            return "plain"
        key = torch.get_num_threads(), tuple(x.shape) if other is None else (*x.shape, *other.shape)
        way = self._ways.get(key)
        if way is None:
            ways = self.ways(x.shape, None if other is None else other.shape)
            way = self._trial(key, ways) if self._tuning and len(ways) > 1 else ways[0]
            if len(self._ways) >= _SHAPES_KEPT:
                self._ways.clear()
            self._ways[key] = way
        return way if isinstance(way, str) else way.chosen or way

    def _trial(self, key: tuple[int, Shape], ways: Sequence[str]) -> Trial:
        pad, stride, dilation, groups = self._settings
        work = f"{key[1]} by {tuple(self.fast.layer.blob(0).shape)} {pad} {stride} {dilation} {groups}"
        return Trial(f"convolution {work} threads {key[0]}", ways)

    def way(self, shape: Sequence[int], other: Sequence[int] | None = None) -> str:
        """How bottoms of these shapes are computed where nothing is timed."""
        return self.ways(shape, other)[0]

    def ways(self, shape: Sequence[int], other: Sequence[int] | None = None) -> tuple[str, ...]:
        """How bottoms of these shapes may be computed: "direct", by "winograd", as a "product" with the weights to the
        left or in "rows" with the bottom there, or as the "plain" layers do it. The first is the rule's, others are as
        exact and may be faster."""
        layer, window = self.fast.layer, self.fast.layer.window
        layer.check_bottom(shape)
        size = window.narrowed(shape[2:])
        layer.check_size(size, shape)
        if 0 in size or 0 in shape or any(window.shortfall(shape[2:])):
            return ("plain",)
        if other is not None and tuple(other) != (shape[0], layer.outputs, *size):
            return ("plain",)
        weight, batch = layer.blob(0), shape[0]
        if max(window.kernel) > 1 or weight.numel() > _MOST_WEIGHTS:
            suits = products.suits(layer, weight, size, batch)
            if suits != products.suits(layer, weight, size, batch * _CLOSE if suits else max(1, batch // _CLOSE)):
                return ("product", "direct") if suits else ("direct", "product")
            if suits:
                return ("product",)
        if other is None and self._suits_rows:
            work = weight.numel() * batch * math.prod(size)
            ways = ("rows", "direct") if work < _SMALL_WORK else ("direct", "rows")
            return ways if _SMALL_WORK // _CLOSE <= work < _SMALL_WORK * _CLOSE else ways[:1]
        padded = [n + 2 * pad for n, pad in zip(shape[2:], window.pad, strict=True)]
        suits = self.fast.suits_winograd(batch, padded)
        if suits and self.fast.suits_winograd(batch, padded, 1 / _CLOSE):
            return ("winograd",)
        close = suits or self.fast.suits_winograd(batch, padded, _CLOSE)
        return ("winograd", "direct") if suits else ("direct", "winograd") if close else ("direct",)

    def _timed(self, x: Tensor, other: Tensor | None, trial: Trial) -> Tensor:
        way = trial.turn()
        start = tuning.clock()
        y = self._quickly(x, other, way)
        trial.note(way, tuning.clock() - start)
        if trial.chosen is not None:
            self._drop_unused()
        return y

    def _drop_unused(self) -> None:
        """Free the weights in the orders of ways that no size takes any more."""
        taken = {way if isinstance(way, str) else way.chosen for way in self._ways.values()}
        if None not in taken:
            for way, what in _WEIGHTS.items():
                if way not in taken:
                    self.fast.drop(what)

    def _quickly(self, x: Tensor, other: Tensor | None, way: str) -> Tensor:
        if way != "direct":
            by = {"winograd": self.fast.by_winograd, "product": self.fast.by_product, "rows": self.fast.by_rows}[way]
            y = by(x)
            return onednn.activated(y if other is None else y.add_(other), self._activation)
        if self._arranged is None:
            self._arranged = self.fast.derived("arranged", partial(self._arrange, tuple(x.shape)))
        weight, bias = self._arranged.value
        x = channels_last(x)
        other = None if other is None else channels_last(other)
        return onednn.convolve(x, weight, bias, *self._settings, self._activation, other)

    def _arrange(self, shape: Shape) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.fast.weight_and_bias()
        return onednn.arrange(weight, *self._settings, shape), None if bias is None else bias.clone()


class FusedProduct(nn.Module):
    """An InnerProduct with the activation behind it, if any: oneDNN reads the weights where they lie."""

    def __init__(self, layer: InnerProduct, behind: Layer | None) -> None:
        super().__init__()
        self._layers = (layer, behind)  # in a tuple: not submodules, the net owns them
        self.following = () if behind is None else (behind,)
        self._activation = None if behind is None else behind.activation()

    def forward(self, x: Tensor, ready: bool) -> Tensor:
        layer, behind = self._layers
        weight = layer.blob(0)
        suits = ready is True and x.dtype == weight.dtype == torch.float32 and 0 not in x.shape
        if suits and layer.first_axis and math.prod(x.shape[layer.first_axis :]) == layer.inputs:
            product = onednn.multiply(x.reshape(-1, layer.inputs), weight, layer.optional_blob(1))
            # The activation apart: these weights, which are not watched, may hold NaN.
            return onednn.activated(product, self._activation).view(*x.shape[: layer.first_axis], layer.outputs)
        y: Tensor = layer(x)
        return y if behind is None else behind(y)
