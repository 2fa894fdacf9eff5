"""Sequences in Caffe's forks: CTPN's Lstm, ContinuationIndicator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.registry import register


class _ClipGradient(torch.autograd.Function):
    """The value itself, whose gradient is cut off at plus and minus a limit."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(-ctx.limit, ctx.limit), None


@register("Lstm")
class Lstm(Layer):
    """CTPN's LSTM of (T, N, ...): gates input, forget, output, candidate in this order; blobs (4H, I), (4H, H), (4H).

    Without a second bottom every call begins anew. With one, (T, N), a 0 begins the sequence anew, anything else goes
    on, from the last call's states too. `clipping_threshold` cuts the gradient of the gates' sums off, at each step,
    before it flows on.
    """

    fork = "CTPN"
    kind = "other"
    config_field = "lstm_param"
    bottoms = (1, 2)
    in_place = False
    force_backward_refuses = (1,)
    differences = "several samples have each its own state (the fork's CPU code gives all the first one's)."

    def keeps_images_apart(self) -> bool:
        return False

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(2) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        config, shape = self.config, shapes[0]
        if len(shape) < 3:
            self.fail(f"needs a bottom (T, N, ...), got shape {tuple(shape)}")
        if not config.num_output:
            self.fail("num_output must be given and positive")
        if len(shapes) == 2 and math.prod(shapes[1]) != shape[0] * shape[1]:
            self.fail(f"the second bottom says for T x N steps whether they go on, got shape {tuple(shapes[1])}")
        hidden = config.num_output
        self.add_blob("weight_input", (4 * hidden, math.prod(shape[2:])), config.weight_filler)
        self.add_blob("weight_hidden", (4 * hidden, hidden), config.weight_filler)
        self.add_blob("bias", (4 * hidden,), config.bias_filler)
        self.states: tuple[Tensor, Tensor] | None = None

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(shapes[0][0], shapes[0][1], self.config.num_output)]

    def forward(self, x: Tensor, going_on: Tensor | None = None) -> Tensor:
        sums = F.linear(x.flatten(2), self.blob(0), self.blob(2))
        hidden, cell = self._first(x, going_on is not None)
        marks = None if going_on is None else (going_on.reshape(x.shape[:2]) != 0).to(x.dtype).unsqueeze(2)
        steps = []
        for t, gates in enumerate(sums.unbind()):
            if marks is not None:
                hidden, cell = hidden * marks[t], cell * marks[t]
            gates = gates + F.linear(hidden, self.blob(1))
            if self.config.clipping_threshold > 0:
                gates = _ClipGradient.apply(gates, self.config.clipping_threshold)
            enters, keeps, gives, candidate = gates.chunk(4, 1)
            cell = keeps.sigmoid() * cell + enters.sigmoid() * candidate.tanh()
            hidden = gives.sigmoid() * cell.tanh()
            steps.append(hidden)
        if going_on is not None:
            self.states = hidden.detach(), cell.detach()
        return torch.stack(steps)

    def _first(self, x: Tensor, goes_on: bool) -> tuple[Tensor, Tensor]:
        """The states before the first step: zeros, or those that the last call ended with."""
        zeros = x.new_zeros(x.shape[1], self.config.num_output)
        kept = self.states if goes_on else None
        if kept is None or kept[0].shape != zeros.shape or kept[0].dtype != x.dtype or kept[0].device != x.device:
            return zeros, zeros
        return kept


@register("ContinuationIndicator")
class ContinuationIndicator(Layer):
    """The marks (time_step, batch_size) that an LSTM takes: 0 at the first step, where the sequence begins, then 1."""

    fork = "CaffeLSTM-OCR"
    kind = "data"
    config_field = "continuation_indicator_param"
    bottoms = (0, 0)
    marks: Tensor

    def setup(self, shapes: Sequence[Shape]) -> None:
        if min(self.config.time_step, self.config.batch_size) < 1:
            self.fail("time_step and batch_size must be given and positive")
        marks = torch.ones(self.config.time_step, self.config.batch_size, device="cpu")
        marks[0] = 0
        self.register_buffer("marks", marks, persistent=False)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.config.time_step, self.config.batch_size)]

    def forward(self) -> Tensor:
        return self.marks.clone()
