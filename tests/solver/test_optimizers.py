"""The six optimizers on bare tensors, against NumPy written from the formulas; buckets, groups and state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fcnproto.errors import SolverError
from fcnproto.solver import buckets, optimizers

Array = np.ndarray
SETTINGS: dict[str, dict[str, float]] = {
    "SGD": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.8},
    "AdaGrad": {"delta": 1e-3},
    "RMSProp": {"rms_decay": 0.9, "delta": 1e-3},
    "AdaDelta": {"momentum": 0.9, "delta": 1e-4},
    "Adam": {"momentum": 0.9, "momentum2": 0.99, "delta": 1e-3},
}


def reference(kind: str, grad: Array, rate: float, time: int, history: list[Array], s: dict[str, float]) -> Array:
    """One parameter's update in float64; changes `history`."""
    if kind == "SGD":
        history[0][:] = s["momentum"] * history[0] + rate * grad
        return history[0].copy()
    if kind == "Nesterov":
        old = history[0].copy()
        history[0][:] = s["momentum"] * old + rate * grad
        return (1 + s["momentum"]) * history[0] - s["momentum"] * old
    if kind == "AdaGrad":
        history[0] += grad**2
        return rate * grad / (np.sqrt(history[0]) + s["delta"])
    if kind == "RMSProp":
        history[0][:] = s["rms_decay"] * history[0] + (1 - s["rms_decay"]) * grad**2
        return rate * grad / (np.sqrt(history[0]) + s["delta"])
    if kind == "AdaDelta":
        rho = s["momentum"]
        history[0][:] = rho * history[0] + (1 - rho) * grad**2
        value = grad * np.sqrt((history[1] + s["delta"]) / (history[0] + s["delta"]))
        history[1][:] = rho * history[1] + (1 - rho) * value**2
        return rate * value
    history[0][:] = s["momentum"] * history[0] + (1 - s["momentum"]) * grad
    history[1][:] = s["momentum2"] * history[1] + (1 - s["momentum2"]) * grad**2
    correction = np.sqrt(1 - s["momentum2"] ** time) / (1 - s["momentum"] ** time)
    return rate * correction * history[0] / (np.sqrt(history[1]) + s["delta"])


@dataclass
class Entry:
    tensor: torch.Tensor
    lr_mult: float
    decay_mult: float


def entries(dtype: torch.dtype = torch.float64) -> list[Entry]:
    generator = torch.Generator().manual_seed(3)
    mults = [(1.0, 1.0), (2.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 2.0)]
    shapes = [(4, 3), (4,), (2, 3, 2, 2), (5,), (7, 2)]
    made = []
    for (rate, decay), shape in zip(mults, shapes, strict=True):
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        made.append(Entry(torch.nn.Parameter(values), rate, decay))
    return made


@pytest.mark.parametrize("regularization", ["L1", "L2"])
@pytest.mark.parametrize("clip", [-1.0, 1.5, 1e6])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_update_follows_the_formulas(kind: str, kept: bool, clip: float, regularization: str) -> None:
    made, iter_size, decay, rng = entries(), 3, 0.05, np.random.default_rng(5)
    optimizer = optimizers.TYPES[kind](
        optimizers.param_groups(made),
        0.1,
        weight_decay=decay,
        regularization_type=regularization,
        clip_gradients=clip,
        iter_size=iter_size,
        **SETTINGS[kind],
    )
    if kept:
        optimizer.keep_updates()
    weights = [entry.tensor.detach().numpy().copy() for entry in made]
    history = [[np.zeros_like(w) for _ in optimizer.histories] for w in weights]
    for time in range(1, 5):
        rate = 0.1 / time
        for group in optimizer.param_groups:
            group["lr"] = rate
        grads = [rng.standard_normal(w.shape) * (index != 2) for index, w in enumerate(weights)]
        for index, entry in enumerate(made):
            entry.tensor.grad = None if index == 2 else torch.from_numpy(grads[index].copy())
        optimizer.step()
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        factor = clip / norm if 0 <= clip < norm else 1.0
        for index, entry in enumerate(made):
            grad = grads[index] * factor / iter_size
            direction = weights[index] if regularization == "L2" else np.sign(weights[index])
            grad = grad + decay * entry.decay_mult * direction
            update = reference(kind, grad, rate * entry.lr_mult, time, history[index], SETTINGS[kind])
            weights[index] -= update
            ours = optimizer.last_update(entry.tensor)
            if ours is None:
                assert not kept or not update.any()
            else:
                np.testing.assert_allclose(ours.numpy(), update, rtol=1e-9, atol=1e-13)
            np.testing.assert_allclose(entry.tensor.detach().numpy(), weights[index], rtol=1e-9, atol=1e-11)
            if entry.tensor.grad is not None:
                np.testing.assert_array_equal(entry.tensor.grad.numpy(), grads[index])
    expected = [blobs[k] for k in range(len(optimizer.histories)) for blobs in history]
    assert len(optimizer.history) == len(expected)
    for ours, theirs in zip(optimizer.history, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", list(SETTINGS))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pieces_change_nothing(kind: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for limit in (7, 1 << 20):
        monkeypatch.setattr(buckets, "SIZE_CPU", limit)
        torch.manual_seed(1)
        big = torch.randn(5, 3, 4, 4).to(memory_format=layout).requires_grad_()
        missing, small = torch.randn(40, requires_grad=True), torch.randn(3, requires_grad=True)
        optimizer = optimizers.TYPES[kind]([big, missing, small], 0.1, weight_decay=0.1, **SETTINGS[kind])
        for _ in range(3):
            big.grad, small.grad = torch.randn_like(big), torch.randn(3)
            optimizer.step()
        results.append([tensor.detach() for tensor in (big, missing, small, *optimizer.history)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_history_is_in_the_order_of_the_parameters_and_loads_back() -> None:
    made = entries(torch.float32)
    optimizer = optimizers.Adam(optimizers.param_groups(made), 0.1, momentum=0.9)
    for place, entry in enumerate(made):
        entry.tensor.grad = torch.full_like(entry.tensor, float(place + 1))
    optimizer.step()
    shapes = [tuple(entry.tensor.shape) for entry in made]
    assert [tuple(blob.shape) for blob in optimizer.history] == shapes + shapes
    assert [round(blob.flatten()[0].item(), 6) for blob in optimizer.history[:5]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    other = optimizers.Adam(optimizers.param_groups(made), 0.1, momentum=0.9)
    other.load_history(optimizer.history)
    assert all(torch.equal(a, b) for a, b in zip(other.history, optimizer.history, strict=True))


def test_history_of_another_solver_is_refused() -> None:
    made = entries(torch.float32)
    sgd = optimizers.SGD(optimizers.param_groups(made), 0.1)
    adam = optimizers.Adam(optimizers.param_groups(made), 0.1)
    with pytest.raises(SolverError, match="5 history blobs, Adam on this net needs 10"):
        adam.load_history(sgd.history)
    with pytest.raises(SolverError, match="history blob 0 of the state has shape"):
        sgd.load_history(sgd.history[::-1])


def test_frozen_parameters_cost_no_history_until_asked() -> None:
    frozen = torch.nn.Parameter(torch.ones(3))
    optimizer = optimizers.SGD([{"params": [frozen], "lr_mult": 0.0}], 0.1, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert frozen not in optimizer.state
    assert torch.equal(optimizer.history[0], torch.zeros(3))
    optimizer.load_history([torch.ones(3)])  # momentum from before the freeze moves it on, as in Caffe
    optimizer.step()
    assert torch.allclose(frozen, torch.full((3,), 0.1))


def test_state_dict_round_trip_continues_alike() -> None:
    def run(steps: Callable[[Any, Any], Any]) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        optimizer = optimizers.Adam([weight], 0.1, momentum=0.9)
        for step in range(4):
            if step == 2:
                optimizer = steps(weight, optimizer)
            weight.grad = weight.detach() * (step + 1)
            optimizer.step()
        return weight.detach()

    def reload(weight: Any, optimizer: Any) -> Any:
        fresh = optimizers.Adam([weight], 0.5)
        fresh.load_state_dict(optimizer.state_dict())
        assert fresh.iteration == 2
        return fresh

    assert torch.equal(run(lambda weight, optimizer: optimizer), run(reload))


def test_torch_schedulers_drive_the_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = optimizers.SGD([weight], 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for expected in (-1.0, -1.5, -1.75):
        weight.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
        assert weight.item() == expected


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("AdaGrad", {"momentum": 0.9}, "no momentum"),
        ("RMSProp", {"momentum": 0.9}, "no momentum"),
        ("RMSProp", {"rms_decay": 1.0}, "rms_decay"),
        ("SGD", {"regularization_type": "L3"}, "L1 or L2"),
        ("SGD", {"iter_size": 0}, "iter_size"),
    ],
)
def test_refusals(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SolverError, match=message):
        optimizers.TYPES[kind]([torch.zeros(1, requires_grad=True)], 0.1, **settings)


def test_a_limit_of_zero_without_gradients_is_no_nan() -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = optimizers.SGD([weight], 0.1, clip_gradients=0.0)
    for gradient in (0.0, 2.0):  # nothing to clip; all clipped away
        weight.grad = torch.full((3,), gradient)
        optimizer.step()
        assert weight.tolist() == [1, 1, 1]


def test_loading_history_forgets_what_a_frozen_parameter_had() -> None:
    frozen = torch.ones(2, requires_grad=True)
    optimizer = optimizers.AdaGrad([{"params": [frozen], "lr_mult": 0.0}], 0.1, weight_decay=1.0)
    optimizer.step()
    assert optimizer.history[0].tolist() == [1, 1]
    optimizer.load_history([torch.zeros(2)])
    assert optimizer.history[0].tolist() == [0, 0]


@pytest.mark.parametrize("unscaled", [False, True])
def test_torchs_scaler_is_followed(unscaled: bool) -> None:
    """Scaled gradients come to their size, and a step whose gradients overflowed is left out."""
    weight, plain = (torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])) for _ in range(2))
    optimizer, other = (optimizers.SGD([w], lr=0.1, momentum=0.9) for w in (weight, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 3.0):
        for w, loss in ((weight, scaler.scale((weight * factor).sum())), (plain, (plain * factor).sum())):
            w.grad = None
            loss.backward()
        if unscaled:
            scaler.unscale_(optimizer)
        before = weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        if np.isfinite(factor):
            other.step()
            assert torch.equal(weight, plain)
        else:
            assert torch.equal(weight, before)
    assert scaler.get_scale() == 512
