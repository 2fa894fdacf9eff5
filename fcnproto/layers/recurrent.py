"""Recurrent layers: RNN, LSTM and LSTMUnit, the single step that Caffe's LSTM unrolls.

Sequences are (T, N, ...): T steps of N independent streams. `cont` (T, N) is 0 where a stream begins anew and 1 where
it goes on. With other values in `cont` the gradient is the true derivative; Caffe's own, for the forget gate, is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fcnproto.layers.backward import Found, Reads
from fcnproto.layers.base import Layer, Shape
from fcnproto.layers.examples import Draw, integers
from fcnproto.layers.fillers import fill
from fcnproto.layers.plain import MODULE, Parameters, Piece, Request, parameters_of
from fcnproto.layers.registry import register

States = tuple[Tensor, ...]


def project(
    x: Tensor, weight: Tensor, bias: Tensor, static: Tensor | None = None, static_weight: Tensor | None = None
) -> Tensor:
    """What x (T, N, ...) and the static input (N, ...) contribute to each step: one product for all steps."""
    projected = F.linear(x.flatten(2), weight, bias)
    if static is None or static_weight is None:
        return projected
    return projected + F.linear(static.flatten(1), static_weight)


def first_states(kept: Sequence[Tensor | None], x: Tensor, hidden: int) -> tuple[Tensor, ...]:
    """The states that a call begins with: those kept of the last one if they suit x (T, N, ...), else zeros (N, H)."""
    suited = [k for k in kept if k is not None and k.shape[0] == x.shape[1] and k.dtype == x.dtype]
    if len(suited) < len(kept) or any(k.device != x.device for k in suited):
        return tuple(x.new_zeros(x.shape[1], hidden) for _ in kept)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return tuple(suited)
    # Made under inference_mode, states can't take part in what records gradients; copies can.
    return tuple(k.clone() if k.is_inference() else k for k in suited)


def lstm_steps(
    projected: Tensor, cont: Tensor, first: Sequence[Tensor], weight: Tensor, later: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """An LSTM's outputs (T, N, H) and last states, from each step's sums (T, N, 4H), cont (T, N, 1) and the first
    states (hidden, cell). `later` is the weight of the steps after the first, where it is another."""
    hidden, cell = first
    outputs: list[Tensor] = []
    for gates, goes_on in zip(projected.unbind(), cont.unbind(), strict=True):
        weight = weight if later is None or not outputs else later
        cell, hidden = lstm_step(cell, torch.addmm(gates, hidden * goes_on, weight.t()), goes_on)
        outputs.append(hidden)
    return torch.stack(outputs), (hidden, cell)


def rnn_steps(
    projected: Tensor,
    cont: Tensor,
    first: Sequence[Tensor],
    weights: Sequence[Tensor],
    later: Sequence[Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same for an RNN, whose state is (hidden,), whose outputs are one product for all steps, and whose weights are
    that of the state, that of the outputs and the outputs' bias."""
    (hidden,) = first
    sequence: list[Tensor] = []
    for step, goes_on in zip(projected.unbind(), cont.unbind(), strict=True):
        weight = weights[0] if later is None or not sequence else later[0]
        hidden = torch.addmm(step, hidden * goes_on, weight.t()).tanh()
        sequence.append(hidden)
    steps = torch.stack(sequence)
    outputs = F.linear(steps if later is None else steps[:1], *weights[1:])
    if later is not None:
        outputs = torch.cat([outputs, F.linear(steps[1:], *later[1:])])
    return outputs.tanh(), (hidden,)


def lstm_unit(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """One step of (1, N, ...): the new cell and hidden state."""
    return lstm_step(cell, gates, cont.detach().to(cell.dtype).unsqueeze(2))


class Remembering(Parameters):
    """A recurrent layer's parameters, and the last states of one call, which are the first ones of the next."""

    def __init__(self, count: int, **shapes: Sequence[int]) -> None:
        super().__init__(**shapes)
        self.states: Sequence[Tensor | None] = (None,) * count

    def begin(self, x: Tensor, hidden: int, first: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """The first states of a call: those given, else those remembered."""
        if first is None:
            return first_states(self.states, x, hidden)
        return tuple(state.detach().reshape(-1, hidden) for state in first)

    def end(self, outputs: Tensor, last: Sequence[Tensor], given: bool) -> Any:
        """The outputs, and with states given the last ones too; else they are remembered."""
        if given:
            return outputs, *(state.detach().unsqueeze(0) for state in last)
        self.states = tuple(state.detach() for state in last)
        return outputs


def run_lstm(
    memory: Any, x: Tensor, cont: Tensor, static: Tensor | None = None, first: Sequence[Tensor] | None = None
) -> Any:
    """Caffe's LSTM with the parameters of a `Remembering`: x (T, N, ...), cont (T, N)."""
    projected = project(x, memory.weight_xc, memory.bias_c, static, getattr(memory, "weight_xc_static", None))
    states = memory.begin(x, memory.weight_hc.shape[1], first)
    outputs, last = lstm_steps(projected, cont.detach().to(x.dtype).unsqueeze(2), states, memory.weight_hc)
    return memory.end(outputs, last, first is not None)


def run_rnn(
    memory: Any, x: Tensor, cont: Tensor, static: Tensor | None = None, first: Sequence[Tensor] | None = None
) -> Any:
    """Caffe's RNN with the parameters of a `Remembering`: x (T, N, ...), cont (T, N)."""
    projected = project(x, memory.weight_xh, memory.bias_h, static, getattr(memory, "weight_xh_static", None))
    states = memory.begin(x, memory.weight_hh.shape[1], first)
    weights = (memory.weight_hh, memory.weight_ho, memory.bias_o)
    outputs, last = rnn_steps(projected, cont.detach().to(x.dtype).unsqueeze(2), states, weights)
    return memory.end(outputs, last, first is not None)


class RecurrentLayer(Layer):
    """What RNN and LSTM have in common: bottoms x (T, N, ...), cont (T, N), optionally a static input (N, ...).

    With `expose_hidden` the first states are further bottoms and the last ones further tops, each (1, N, H), without
    gradients, as in Caffe. Otherwise the last states of one call are the first of the next, without a gradient across
    calls; they start at 0, and so again when N changes or after `reset`. T may change from call to call.
    """

    config_field = "recurrent_param"
    kind = "linear"
    gradient_memory = "inner"
    force_backward_refuses = (1,)
    states: ClassVar[tuple[str, ...]]
    """Names of the states: the hidden one first."""

    def multiply_adds(self, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
        return math.prod(bottoms[0][:2]) * sum(math.prod(shape) for shape in self.blob_shapes if len(shape) == 2)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(2) if bottom == 1 else None

    def setup(self, shapes: Sequence[Shape]) -> None:
        exposed = len(self.states) if self.config.expose_hidden else 0
        if len(shapes) not in (2 + exposed, 3 + exposed):
            self.fail(f"takes {2 + exposed} bottoms, or {3 + exposed} with a static input, got {len(shapes)}")
        if self.num_tops != 1 + exposed:
            self.fail(f"has {1 + exposed} tops, got {self.num_tops}")
        if self.config.num_output == 0:
            self.fail("recurrent_param.num_output must be given and positive")
        self.has_static = len(shapes) == 3 + exposed
        for name in self.states:
            self.register_buffer(name, None, persistent=False)
        self.warn_unread(("debug_info",), "see the solver's debug_info")
        self._check_axes(shapes)
        features = [torch.Size(shapes[0][2:]).numel()]
        if self.has_static:
            features.append(torch.Size(shapes[2][1:]).numel())
        self.add_weights(features)

    def _check_axes(self, shapes: Sequence[Sequence[int]]) -> None:
        if len(shapes[0]) < 3 or (self.has_static and len(shapes[2]) < 2):
            self.fail(f"needs x of (T, N, ...) and a static input of (N, ...), got shapes {self._text(shapes)}")

    def add_weights(self, features: Sequence[int]) -> None:
        """Add the blobs, given the features per step of x and, where there is one, of the static input."""
        raise NotImplementedError

    def keep_steps(self, indices: Sequence[int]) -> None:
        """Keep blobs of the layer's own, with their fillers' values, for the time steps from the second one on.

        In Caffe the blobs of the unrolled net are shared with another layer for the first step alone.
        """
        for index in indices:
            values = torch.empty(self.blob_shapes[index], device="cpu")
            fill(values, self.blob_fillers[index])
            self.register_buffer(f"later_{self.blob_names[index]}", values, persistent=False)

    def later_blob(self, index: int) -> Tensor:
        """A blob as the time steps from the second one on have it."""
        kept: Tensor | None = getattr(self, f"later_{self.blob_names[index]}", None)
        return kept if kept is not None and self.training else self.blob(index)

    def has_own_steps(self) -> bool:
        """Whether some blobs are other ones from the second time step on."""
        return self.training and any(hasattr(self, f"later_{name}") for name in self.blob_names)

    def step_blobs(self) -> tuple[int, ...]:
        """The blobs that Caffe's unrolled net has once for every time step, shared by name among them."""
        raise NotImplementedError

    def run(self, projected: Tensor, cont: Tensor, first: States) -> tuple[Tensor, States]:
        """The outputs (T, N, H) and the last states, from what x contributes to each step and the first states."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the states: the next call starts from 0."""
        for name in self.states:
            setattr(self, name, None)

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, cont = bottoms[0], bottoms[1].detach()
        self._check([bottom.shape for bottom in bottoms])
        static = (bottoms[2], self.blob(2)) if self.has_static else (None, None)
        projected = project(x, self.blob(0), self.blob(1), *static)
        first = self._first_states(bottoms)
        outputs, last = self.run(projected, cont.to(x.dtype).unsqueeze(2), first)
        if self.config.expose_hidden:
            return outputs, *(state.detach().unsqueeze(0) for state in last)
        if not x.is_meta:
            for name, state in zip(self.states, last, strict=True):
                setattr(self, name, state.detach())
        return outputs

    def _first_states(self, bottoms: Sequence[Tensor]) -> States:
        x, hidden = bottoms[0], self.config.num_output
        if self.config.expose_hidden:
            return tuple(state.detach().reshape(-1, hidden) for state in bottoms[2 + self.has_static :])
        return first_states([getattr(self, name) for name in self.states], x, hidden)

    def said(self, request: Request, run: Callable[..., Any]) -> Piece:
        """The piece of a function that runs the whole layer with the parameters and states of a `Remembering`."""
        arguments = [MODULE, *request.args[: 2 + self.has_static]]
        if self.config.expose_hidden:
            first = request.args[2 + self.has_static :]
            arguments.append(f"first=({', '.join(first)}{',' if len(first) == 1 else ''})")
        _, shapes = parameters_of(self.blob_names, self.blob_shapes)
        module = ("Remembering", [str(len(self.states)), *shapes])
        return Piece((run.__name__, arguments), module, (run, Remembering))

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Said without a run, which would take as many steps as there are."""
        self._check(shapes)
        steps, streams = shapes[0][:2]
        hidden = self.config.num_output
        states = [(1, streams, hidden)] * len(self.states) if self.config.expose_hidden else []
        return [(steps, streams, hidden), *states]

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        self._check_axes(shapes)
        steps, streams = shapes[0][:2]
        expected = [(steps, streams)] + [(streams, *shape[1:]) for shape in shapes[2 : 2 + self.has_static]]
        expected += [(1, streams, self.config.num_output)] * (len(shapes) - 1 - len(expected))
        if [tuple(shape) for shape in shapes[1:]] != expected:
            got = self._text(shapes[1:])
            self.fail(f"beside x of shape {tuple(shapes[0])} expected {self._text(expected)}, got {got}")
        features = [math.prod(shapes[0][2:])] + [math.prod(shape[1:]) for shape in shapes[2 : 2 + self.has_static]]
        weights = [self.blob_shapes[2 * i][1] for i in range(1 + self.has_static)]
        if features != weights:
            self.fail(f"its weights are for {weights} features per step, got {features}")

    @staticmethod
    def _text(shapes: Sequence[Sequence[int]]) -> str:
        return ", ".join(str(tuple(shape)) for shape in shapes)


@register("LSTM")
class LSTM(RecurrentLayer):
    """Caffe's LSTM: gates in the order input, forget, output, candidate, with one bias.

    Blobs for `num_output` H: weight_xc (4H, I), bias_c (4H), with a static input weight_xc_static (4H, S), and
    weight_hc (4H, H). The product with x is one for all steps.
    """

    differences = (
        "any number of time steps from call to call (Caffe aborts when it changes); with `cont` other than 0 "
        "and 1 the gradient is the true one."
    )

    bottoms = (2, 5)
    tops = (1, 3)
    states = ("hidden", "cell")

    def add_weights(self, features: Sequence[int]) -> None:
        gates = 4 * self.config.num_output
        self.add_blob("weight_xc", (gates, features[0]), self.config.weight_filler)
        self.add_blob("bias_c", (gates,), self.config.bias_filler)
        if len(features) > 1:
            self.add_blob("weight_xc_static", (gates, features[1]), self.config.weight_filler)
        self.add_blob("weight_hc", (gates, self.config.num_output), self.config.weight_filler)

    def step_blobs(self) -> tuple[int, ...]:
        return (len(self.blob_names) - 1,)

    def run(self, projected: Tensor, cont: Tensor, first: States) -> tuple[Tensor, States]:
        last_blob = len(self.blob_names) - 1
        later = self.later_blob(last_blob) if self.has_own_steps() else None
        return lstm_steps(projected, cont, first, self.blob(last_blob), later)

    def plain(self, request: Request) -> Piece:
        return self.said(request, run_lstm)


@register("RNN")
class RNN(RecurrentLayer):
    """Caffe's RNN: h = tanh(W_hh (cont h) + W_xh x + b_h), output tanh(W_ho h + b_o).

    Blobs for `num_output` H: weight_xh (H, I), bias_h (H), with a static input weight_xh_static (H, S), weight_hh
    (H, H), weight_ho (H, H) and bias_o (H). The products with x and for the outputs are one for all steps.
    """

    differences = "any number of time steps from call to call (Caffe aborts when it changes)."

    bottoms = (2, 4)
    tops = (1, 2)
    states = ("hidden",)

    def add_weights(self, features: Sequence[int]) -> None:
        hidden, filler = self.config.num_output, self.config.weight_filler
        self.add_blob("weight_xh", (hidden, features[0]), filler)
        self.add_blob("bias_h", (hidden,), self.config.bias_filler)
        if len(features) > 1:
            self.add_blob("weight_xh_static", (hidden, features[1]), filler)
        self.add_blob("weight_hh", (hidden, hidden), filler)
        self.add_blob("weight_ho", (hidden, hidden), filler)
        self.add_blob("bias_o", (hidden,), self.config.bias_filler)

    def step_blobs(self) -> tuple[int, ...]:
        return tuple(range(len(self.blob_names) - 3, len(self.blob_names)))

    def run(self, projected: Tensor, cont: Tensor, first: States) -> tuple[Tensor, States]:
        last_blob = len(self.blob_names) - 1
        blobs = range(last_blob - 2, last_blob + 1)
        later = tuple(map(self.later_blob, blobs)) if self.has_own_steps() else None
        return rnn_steps(projected, cont, first, tuple(map(self.blob, blobs)), later)

    def plain(self, request: Request) -> Piece:
        return self.said(request, run_rnn)


@register("LSTMUnit")
class LSTMUnit(Layer):
    """Caffe's LSTMUnit: one LSTM step from the cell (1, N, H), the gates' sums (1, N, 4H) and cont (1, N).

    Tops: the new cell and the hidden state, each (1, N, H).
    """

    bottoms = (3, 3)
    tops = (2, 2)
    kind = "linear"
    force_backward_refuses = (2,)

    def suitable_values(self, bottom: int, first: Shape) -> Draw | None:
        return integers(2) if bottom == 2 else None

    def backward_reads(self, in_place: bool) -> Reads:
        return Reads(bottoms=(0, 1, 2), tops=(0,))

    def caffe_gradients(self, found: Found) -> list[Tensor]:
        (cell, gates, cont), squashed = found.bottoms, found.tops[0].tanh()
        of_cell, of_hidden = (torch.zeros_like(cell) if slope is None else slope for slope in found.slopes)
        enter, keep, leave = gates[..., : 3 * cell.shape[-1]].sigmoid().split(cell.shape[-1], -1)
        offered, keep = gates[..., 3 * cell.shape[-1] :].tanh(), keep * cont.unsqueeze(2)
        through = of_cell + of_hidden * leave * (1 - squashed * squashed)
        parts = (
            through * offered * enter * (1 - enter),
            through * cell * keep * (1 - keep),
            of_hidden * squashed * leave * (1 - leave),
            through * enter * (1 - offered * offered),
        )
        return [through * keep, torch.cat(parts, -1), torch.zeros_like(cont)]

    def forward(self, cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        good = cell.dim() == 3 and cell.shape[0] == 1 and tuple(cont.shape) == tuple(cell.shape[:2])
        if not good or tuple(gates.shape) != (*cell.shape[:2], 4 * cell.shape[2]):
            shapes = ", ".join(str(tuple(bottom.shape)) for bottom in (cell, gates, cont))
            self.fail(f"expected bottoms of shapes (1, N, H), (1, N, 4 H) and (1, N), got {shapes}")
        return lstm_unit(cell, gates, cont)

    def plain(self, request: Request) -> Piece:
        return Piece(("lstm_unit", list(request.args)), None, (lstm_unit,))


def lstm_step(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """The new cell and hidden state from the old cell (..., H), the gates' sums (..., 4H) and cont (..., 1)."""
    size = cell.shape[-1]
    enter, keep, leave = gates[..., : 3 * size].sigmoid().split(size, -1)
    cell = cont * keep * cell + enter * gates[..., 3 * size :].tanh()
    return cell, leave * cell.tanh()
