"""Caffe's six solver types as `torch.optim.Optimizer`s, with Caffe's order of operations.

They serve the `Solver` and stand alone with any torch parameters. What differs from `torch.optim`: the local rate goes
into the momentum, gradients are clipped before they are divided by `iter_size` and before weight decay, Adam adds
`delta` before the bias correction, and a parameter without a gradient counts as one whose gradient is zero.
Not here: rates over time (`policies`), files (`snapshots`).

The work goes through buckets of tensors (big ones in pieces that fit a processor's cache), each updated by
`torch._foreach_*` operations; so temporaries stay small and `.grad` is never written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, overload

import torch
from torch import Tensor

from fcnproto.errors import SolverError
from fcnproto.net.arriving import Arriving
from fcnproto.schema.blobs import StoredBlob
from fcnproto.solver import buckets

Tensors = list[Tensor]


class Learnable(Protocol):
    """A learnable parameter as nets list them: the tensor with its own multipliers of rate and decay."""

    @property
    def tensor(self) -> Tensor: ...
    @property
    def lr_mult(self) -> float: ...
    @property
    def decay_mult(self) -> float: ...


def param_groups(learnable: Iterable[Learnable]) -> list[dict[str, Any]]:
    """Param groups by (lr_mult, decay_mult), with the parameters' places in Caffe's order under `order`.

    A net without parameters gives one empty group, which torch's optimizers take.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for place, entry in enumerate(learnable):
        group = groups.setdefault(
            (entry.lr_mult, entry.decay_mult),
            {"params": [], "order": [], "lr_mult": entry.lr_mult, "decay_mult": entry.decay_mult},
        )
        group["params"].append(entry.tensor)
        group["order"].append(place)
    return list(groups.values()) or [{"params": [], "order": []}]


class CaffeOptimizer(torch.optim.Optimizer):
    """What the six share: clip, divide by `iter_size`, regularise, then the type's own update; w -= update.

    `params` are tensors or param groups (`param_groups` makes them from a net's learnable parameters). A group may
    give `lr_mult`, `decay_mult` and every other setting its own value. `lr` is the rate; whoever owns the optimizer
    changes `group["lr"]` between steps, as torch's schedulers do. `clip_gradients` below 0 is off.

    Raises `SolverError` for settings that Caffe refuses.
    """

    histories: ClassVar[tuple[str, ...]] = ("history",)
    """Names of the per-parameter state blobs, in the order of Caffe's solver state."""
    refuses_momentum: ClassVar[bool] = False
    """AdaGrad and RMSProp have no momentum; Caffe aborts where one is given."""
    _step_supports_amp_scaling = True  # torch's GradScaler sets `grad_scale` and `found_inf`, and waits for nothing

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        regularization_type: str = "L2",
        clip_gradients: float = -1.0,
        iter_size: int = 1,
        **settings: float,
    ) -> None:
        if regularization_type not in ("L1", "L2"):
            raise SolverError(f"regularization_type must be L1 or L2, not {regularization_type!r}")
        if iter_size < 1:
            raise SolverError(f"iter_size must be at least 1, not {iter_size}")
        if self.refuses_momentum and momentum != 0:
            raise SolverError(f"{type(self).__name__} has no momentum; take momentum {momentum:g} out of the solver")
        self.clip_gradients = clip_gradients
        self.iter_size = iter_size
        self.regularization_type = regularization_type
        self._updates: dict[Tensor, Tensor] | None = None
        shared = {"lr": lr, "lr_mult": 1.0, "decay_mult": 1.0, "momentum": momentum, "weight_decay": weight_decay}
        # The number of updates done is a setting of every group, so that state_dict keeps it.
        super().__init__(params, {**shared, **settings, "iteration": 0})

    @property
    def iteration(self) -> int:
        """The number of updates done so far; Adam's bias correction follows it."""
        return int(self.param_groups[0]["iteration"])

    @iteration.setter
    def iteration(self, value: int) -> None:
        for group in self.param_groups:
            group["iteration"] = value

    def keep_updates(self) -> None:
        """Keep each parameter's last update from now on, in memory of the parameters' size; see `last_update`."""
        if self._updates is None:
            self._updates = {}

    def last_update(self, tensor: Tensor) -> Tensor | None:
        """What the last step has taken off a parameter, which is what Caffe leaves in its `diff`; None for nothing.

        Known of the steps after `keep_updates`."""
        negative = None if self._updates is None else self._updates.get(tensor)
        return None if negative is None else -negative

    def _ordered(self) -> list[Tensor]:
        """All parameters in Caffe's order: by `order` where the groups have it, else as given."""
        placed: list[tuple[int, Tensor]] = []
        for group in self.param_groups:
            start = len(placed)
            order = group.get("order") or range(start, start + len(group["params"]))
            placed += zip(order, group["params"], strict=True)
        return [tensor for _, tensor in sorted(placed, key=lambda entry: entry[0])]

    @property
    def history(self) -> list[Tensor]:
        """The state blobs in the order of Caffe's solver state: the first of every parameter, then the second.

        Those that no step has touched yet are zeros without memory of their own: read them, don't write to them.
        """
        ordered = self._ordered()
        nothing: dict[str, Tensor] = {}
        states = [self.state.get(tensor, nothing) for tensor in ordered]
        return [
            state[name] if name in state else tensor.detach().new_zeros(()).expand(tensor.shape)
            for name in self.histories
            for state, tensor in zip(states, ordered, strict=True)
        ]

    def check_history(self, blobs: Sequence[Any]) -> None:
        """Raise `SolverError` where the number or a shape of state blobs is not this optimizer's.

        They come from another solver type or another net then. Old files' shapes of four axes count as in weights.
        """
        targets = self._ordered() * len(self.histories)
        if len(blobs) != len(targets):
            raise SolverError(
                f"the state has {len(blobs)} history blobs, {type(self).__name__} on this net needs {len(targets)}: "
                "it was saved by another solver type or for another net"
            )
        for place, (tensor, blob) in enumerate(zip(targets, blobs, strict=True)):
            shape = tuple(tensor.shape)
            if not (blob.matches(shape) if isinstance(blob, StoredBlob) else shape == tuple(blob.shape)):
                raise SolverError(
                    f"history blob {place} of the state has shape {tuple(blob.shape)}, its parameter has {shape}"
                )

    def load_history(self, blobs: Sequence[Any], read: Callable[[Any, Tensor], object] | None = None) -> None:
        """Copy state blobs, ordered as `history`, into the optimizer.

        `blobs` are tensors, or blobs of a file that `read(blob, target)` brings into a tensor.
        Raises `SolverError` as `check_history` does.
        """
        self.check_history(blobs)
        targets = [(name, tensor) for name in self.histories for tensor in self._ordered()]
        frozen = {id(tensor) for group in self.param_groups if group["lr_mult"] == 0 for tensor in group["params"]}
        for (name, tensor), blob in zip(targets, blobs, strict=True):
            target = torch.zeros_like(tensor, requires_grad=False)
            if read is None:
                target.copy_(blob)
            else:
                read(blob, target)
            if id(tensor) not in frozen or name in self.state.get(tensor, ()) or bool(target.any()):
                self.state[tensor][name] = target

    def _state(self, tensor: Tensor) -> dict[str, Tensor]:
        state = self.state[tensor]
        for name in self.histories:
            if name not in state:
                state[name] = torch.zeros_like(tensor, requires_grad=False)
        return state

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters from their summed `.grad`s."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        overflow: Tensor | None = getattr(self, "found_inf", None)
        if overflow is not None and float(Arriving(overflow).value):
            return loss  # float16 can't hold the scaled gradients: the step is left out
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is not None:
            self._unscale(scale)
        scales = self._clip_scales()
        for group in self.param_groups:
            rate = group["lr"] * group["lr_mult"]
            decay = group["weight_decay"] * group["decay_mult"]
            for weights, grads, states in self._buckets(group, rate):
                grads = self._normalise(weights, grads, decay, scales.get(weights[0].device))
                if self._updates is None:
                    self._update(group, rate, weights, grads, states)
                    continue
                *states, updates = states
                torch._foreach_zero_(updates)
                self._update(group, rate, updates, grads, states)  # zeros become the update's negative
                torch._foreach_add_(weights, updates)
            group["iteration"] += 1
        return loss

    def _unscale(self, scale: Tensor) -> None:
        """Bring gradients of a scaled loss to their true size, as `GradScaler.unscale_` does."""
        factor = scale.double().reciprocal().float()
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    tensor.grad.mul_(factor.to(tensor.device))

    def _clip_scales(self) -> dict[torch.device, Tensor]:
        """Per device the factor that brings the norm over all parameters down to `clip_gradients`; empty when off."""
        if self.clip_gradients < 0:
            return {}
        by_device: dict[torch.device, Tensors] = {}
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    by_device.setdefault(tensor.device, []).append(tensor.grad)
        if not by_device:
            return {}
        first = next(iter(by_device))
        norms = [norm.to(first) for grads in by_device.values() for norm in torch._foreach_norm(grads)]
        # Without a branch on the value, so that a GPU need not be waited for: a factor of 1 changes nothing.
        # (nan_to_num: a limit of 0 and no gradient; gradients that are no number remain so.)
        scale = (self.clip_gradients / torch.linalg.vector_norm(torch.stack(norms))).nan_to_num(nan=1.0).clamp(max=1.0)
        return {device: scale.to(device) for device in by_device}

    def _normalise(self, weights: Tensors, grads: Tensors, decay: float, scale: Tensor | None) -> Tensors:
        """Clip, divide by `iter_size`, add the regularisation: Caffe's order. The given gradients stay as they are."""
        fresh = False
        if scale is not None:
            grads, fresh = list(torch._foreach_mul(grads, scale.to(grads[0].dtype))), True
        if self.iter_size != 1:
            if fresh:
                torch._foreach_mul_(grads, 1.0 / self.iter_size)
            else:
                grads, fresh = list(torch._foreach_mul(grads, 1.0 / self.iter_size)), True
        if decay:
            direction = weights if self.regularization_type == "L2" else list(torch._foreach_sign(weights))
            if fresh:
                torch._foreach_add_(grads, direction, alpha=decay)
            else:
                grads = list(torch._foreach_add(grads, direction, alpha=decay))
        return grads

    def _buckets(self, group: dict[str, Any], rate: float) -> Iterator[tuple[Tensors, Tensors, list[Tensors]]]:
        """Lists of (weights, gradients, states by name and updates if kept) that one foreach operation takes."""
        kinds: dict[tuple[Any, ...], list[list[Tensor]]] = {}
        for tensor in group["params"]:
            if self._idle(group, rate, tensor):
                continue
            state = self._state(tensor)
            kind = (tensor.device, tensor.dtype, tensor.grad is None)
            # Caffe's diffs are zero where no gradient arrives: the parameter still decays and keeps its momentum.
            grad = tensor.new_zeros(()).expand(tensor.shape) if tensor.grad is None else tensor.grad
            row = [tensor, grad, *(state[name] for name in self.histories)]
            if self._updates is not None:
                if tensor not in self._updates:
                    self._updates[tensor] = torch.zeros_like(tensor, requires_grad=False)
                row.append(self._updates[tensor])
            kinds.setdefault(kind, []).append(row)
        for (device, *_), rows in kinds.items():
            for bucket in buckets.pack(rows, device):
                weights, grads, *states = (list(column) for column in zip(*bucket, strict=True))
                yield weights, grads, states

    def _idle(self, group: dict[str, Any], rate: float, tensor: Tensor) -> bool:
        """Whether the update would change neither the parameter nor its history."""
        return False

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        """Change `states`, and take the update off `weights`, whose values play no part; `grads` stay as they are."""
        raise NotImplementedError


class SGD(CaffeOptimizer):
    """h = momentum*h + rate*g; w -= h."""

    def _idle(self, group: dict[str, Any], rate: float, tensor: Tensor) -> bool:
        # A frozen parameter without momentum from before: no pass over it, no memory for its history.
        return rate == 0 and tensor not in self.state

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        (history,) = states
        torch._foreach_mul_(history, group["momentum"])
        torch._foreach_add_(history, grads, alpha=rate)
        torch._foreach_sub_(weights, history)


class Nesterov(SGD):
    """h' = momentum*h + rate*g; w -= (1 + momentum)*h' - momentum*h."""

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        (history,) = states
        momentum = group["momentum"]
        torch._foreach_mul_(history, momentum)
        update = list(torch._foreach_neg(history))
        torch._foreach_add_(history, grads, alpha=rate)
        torch._foreach_add_(update, history, alpha=1.0 + momentum)
        torch._foreach_sub_(weights, update)


class AdaGrad(CaffeOptimizer):
    """h += g^2; w -= rate * g / (sqrt(h) + delta)."""

    refuses_momentum = True

    def __init__(self, params: Iterable[Any], lr: float, *, delta: float = 1e-8, **settings: Any) -> None:
        super().__init__(params, lr, delta=delta, **settings)

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        (history,) = states
        torch._foreach_addcmul_(history, grads, grads)
        _descend(weights, grads, history, rate, group["delta"])


class RMSProp(CaffeOptimizer):
    """h = rms_decay*h + (1 - rms_decay)*g^2; w -= rate * g / (sqrt(h) + delta)."""

    refuses_momentum = True

    def __init__(
        self, params: Iterable[Any], lr: float, *, rms_decay: float = 0.99, delta: float = 1e-8, **settings: Any
    ) -> None:
        if not 0 <= rms_decay < 1:
            raise SolverError(f"rms_decay must be at least 0 and below 1, not {rms_decay:g}")
        super().__init__(params, lr, rms_decay=rms_decay, delta=delta, **settings)

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        (history,) = states
        _average_squares(history, grads, group["rms_decay"])
        _descend(weights, grads, history, rate, group["delta"])


class AdaDelta(CaffeOptimizer):
    """h = rho*h + (1-rho)*g^2; v = g*sqrt((s+delta)/(h+delta)); s = rho*s + (1-rho)*v^2; w -= rate*v.

    rho is `momentum`.
    """

    histories = ("history", "update_history")

    def __init__(self, params: Iterable[Any], lr: float, *, delta: float = 1e-8, **settings: Any) -> None:
        super().__init__(params, lr, delta=delta, **settings)

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        squares, updates = states
        _average_squares(squares, grads, group["momentum"])
        values = list(torch._foreach_add(updates, group["delta"]))
        torch._foreach_div_(values, torch._foreach_add(squares, group["delta"]))
        torch._foreach_sqrt_(values)
        torch._foreach_mul_(values, grads)
        _average_squares(updates, values, group["momentum"])
        torch._foreach_sub_(weights, values, alpha=rate)


class Adam(CaffeOptimizer):
    """m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g^2; w -= rate * sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + delta).

    b1 is `momentum` (0 unless given, as in Caffe), b2 is `momentum2`, t the number of this update from 1.
    """

    histories = ("first_moment", "second_moment")

    def __init__(
        self, params: Iterable[Any], lr: float, *, momentum2: float = 0.999, delta: float = 1e-8, **settings: Any
    ) -> None:
        super().__init__(params, lr, momentum2=momentum2, delta=delta, **settings)

    def _update(
        self, group: dict[str, Any], rate: float, weights: Tensors, grads: Tensors, states: list[Tensors]
    ) -> None:
        first, second = states
        momentum, momentum2, time = group["momentum"], group["momentum2"], group["iteration"] + 1
        torch._foreach_mul_(first, momentum)
        torch._foreach_add_(first, grads, alpha=1.0 - momentum)
        _average_squares(second, grads, momentum2)
        correction = math.sqrt(1.0 - momentum2**time) / (1.0 - momentum**time)
        _descend(weights, first, second, rate * correction, group["delta"])


def _average_squares(average: Tensors, values: Tensors, keep: float) -> None:
    torch._foreach_mul_(average, keep)
    torch._foreach_addcmul_(average, values, values, value=1.0 - keep)


def _descend(weights: Tensors, values: Tensors, squares: Tensors, rate: float, delta: float) -> None:
    """weights -= rate * values / (sqrt(squares) + delta)."""
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_add_(roots, delta)
    torch._foreach_addcdiv_(weights, values, roots, value=-rate)


#: By the names that a solver's `type` field has.
TYPES: dict[str, type[CaffeOptimizer]] = {
    "SGD": SGD,
    "Nesterov": Nesterov,
    "AdaGrad": AdaGrad,
    "RMSProp": RMSProp,
    "AdaDelta": AdaDelta,
    "Adam": Adam,
}
