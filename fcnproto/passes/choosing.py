"""The rewritten plan of a net or the plain one, whichever is faster for the size of a call.

What a rewritten plan saves grows with the work, what it costs besides is the same at every call: in a net that computes
for a fraction of a millisecond it may be the larger of the two.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fcnproto.layers.base import Layer
from fcnproto.layers.convolution import Convolution, Deconvolution
from fcnproto.layers.inner_product import InnerProduct
from fcnproto.layers.pooling import Pooling
from fcnproto.net.plan import Plan
from fcnproto.passes import tuning
from fcnproto.passes.keeping import Latest

FAST, PLAIN = "optimised", "plain"
_SIZES_KEPT = 64
_LEAST_WORK = 1 << 23
"""Multiply-adds from which on the rule takes the rewritten plan."""
# The plain plan is tried from the third call of a size on; where a call takes longer than so many seconds, after so
# many calls, so that it is little beside them.
_BEFORE, _SECONDS, _BEFORE_SLOW = 2, 0.25, 16


class _Size:
    """What is known of one size: how many calls it had, and the ways that are tried from then on."""

    def __init__(self, trial: tuning.Trial) -> None:
        self.trial = trial
        self.calls, self.wanted = 0, _BEFORE


class ChosenPlan(nn.Module):
    """Two plans of one net that give the same; where no gradient is asked for, the faster one for each size.

    Args:
        fast: the rewritten plan.
        plain: the plan that it was made from.
        look: what has to be done before each run of the rewritten one.
        tuned: whether the two are timed; else the rule decides by the work.
    """

    def __init__(self, fast: Plan, plain: Plan, look: Callable[[], None], *, tuned: bool) -> None:
        super().__init__()
        self.fast, self.plain = fast.module, plain.module
        self._look, self._tuned = look, tuned
        self._digest = ""
        self._work = work(plain.module)
        self._sizes: Latest[Any, _Size] = Latest(_SIZES_KEPT)

    def forward(self, *values: Tensor) -> Any:
        if not _is_fit(values):
            return self._fast(values)
        key = (torch.get_num_threads(), *((value.shape, value.dtype) for value in values))
        size = self._sizes.get(key)
        if size is None:
            size = self._begun(key)
        if size.trial.chosen is not None:
            return self.plain(*values) if size.trial.chosen == PLAIN else self._fast(values)
        return self._timed(size, values)

    def rule(self, *shapes: tuple[int, ...]) -> str:
        """Which plan inputs of these shapes take where nothing is timed."""
        by_pixel, by_image = self._work
        largest = max(shapes, key=math.prod)
        whole = largest[0] * (by_image + by_pixel * math.prod(largest[2:])) if largest else 0
        return FAST if whole >= _LEAST_WORK else PLAIN

    def _begun(self, key: tuple[Any, ...]) -> _Size:
        first = self.rule(*(tuple(shape) for shape, _ in key[1:]))
        second = PLAIN if first == FAST else FAST
        size = _Size(tuning.Trial(self._name(key), (first, second) if self._tuned else (first,)))
        self._sizes.put(key, size)
        return size

    def _timed(self, size: _Size, values: tuple[Tensor, ...]) -> Any:
        begins = size.calls < size.wanted
        way, noted = size.trial.turn(), tuning.Trial.noted
        start = tuning.clock()
        results = self._fast(values) if way == FAST else self.plain(*values)
        seconds = tuning.clock() - start
        if tuning.Trial.noted != noted:  # layers in it are still being tried
            return results
        if begins:
            size.calls += 1
            size.wanted = _BEFORE_SLOW if seconds > _SECONDS else _BEFORE
        else:
            size.trial.note(way, seconds)
        return results

    def _fast(self, values: tuple[Tensor, ...]) -> Any:
        self._look()
        return self.fast(*values)

    def _name(self, key: tuple[Any, ...]) -> str:
        """What tells this work from other work: the layers' definitions, what is asked for, sizes and threads."""
        if not self._digest:
            digest = hashlib.sha256(self.plain.code.encode())
            for layer in self.plain.modules():
                if isinstance(layer, Layer):
                    shapes = [tuple(layer.blob(k).shape) for k in range(len(layer.blob_names))]
                    digest.update(layer.param.SerializeToString(deterministic=True) + repr(shapes).encode())
            self._digest = digest.hexdigest()[:16]
        threads, *values = key
        sizes = " ".join(f"{'x'.join(map(str, shape))}:{str(dtype).partition('.')[2]}" for shape, dtype in values)
        return f"net {self._digest} {sizes} threads {threads}"


def work(plan: fx.GraphModule) -> tuple[float, float]:
    """About how many multiply-adds a plan makes for each pixel of its input, and how many for each image besides.

    By the weights, and how many of the positions of the input their layers' strides leave.
    """
    by_pixel, by_image = 0.0, 0.0
    left: dict[fx.Node, float] = {}  # positions of a blob for each pixel, 0 where an image has but one
    for node in plan.graph.nodes:
        share = max((left[source] for source in node.all_input_nodes), default=1.0)
        layer = plan.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, Pooling):
            share = 0.0 if layer.kernel is None else share / math.prod(layer.windows.stride)
        elif isinstance(layer, InnerProduct):
            by_image, share = by_image + layer.blob(0).numel(), 0.0
        elif isinstance(layer, Convolution | Deconvolution):
            strides = math.prod(layer.window.stride)
            tops = share / strides if isinstance(layer, Convolution) else share * strides
            positions = tops if isinstance(layer, Convolution) else share
            by_pixel += layer.blob(0).numel() * positions
            by_image += layer.blob(0).numel() if not positions else 0
            share = tops
        left[node] = share
    return by_pixel, by_image


def _is_fit(values: tuple[Tensor, ...]) -> bool:
    """Whether a call may be timed: on a CPU, without gradients, as it is."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    return bool(values) and all(type(value) is Tensor and value.device.type == "cpu" for value in values)
