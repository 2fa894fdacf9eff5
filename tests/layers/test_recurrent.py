"""RNN, LSTM and LSTMUnit against the recurrences written out step by step, and their state between calls."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from layer_maker import make_layer, seeded
from torch import Tensor

from fcnproto.errors import LayerError
from fcnproto.layers.base import Layer

Array = npt.NDArray[np.float64]
STEPS, STREAMS, FEATURES, STATIC, HIDDEN = 4, 3, 5, 2, 3
CONT = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.float64)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def naive_lstm(x: Array, cont: Array, blobs: list[Array], static: Array | None, h: Array, c: Array) -> Array:
    outputs = []
    for t in range(len(x)):
        z = x[t].reshape(len(h), -1) @ blobs[0].T + blobs[1] + (cont[t][:, None] * h) @ blobs[-1].T
        if static is not None:
            z = z + static @ blobs[2].T
        i, f, o, g = np.split(z, 4, 1)
        c = cont[t][:, None] * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack([*outputs, c])


def naive_rnn(x: Array, cont: Array, blobs: list[Array], static: Array | None, h: Array) -> Array:
    outputs = []
    for t in range(len(x)):
        z = x[t].reshape(len(h), -1) @ blobs[0].T + blobs[1] + (cont[t][:, None] * h) @ blobs[-3].T
        if static is not None:
            z = z + static @ blobs[2].T
        h = np.tanh(z)
        outputs.append(np.tanh(h @ blobs[-2].T + blobs[-1]))
    return np.stack([*outputs, h])


def make(type_name: str, static: bool = False, expose: bool = False) -> Layer:
    states = (1 if type_name == "RNN" else 2) * expose
    shapes = [(STEPS, STREAMS, FEATURES), (STEPS, STREAMS)] + [(STREAMS, STATIC)] * static
    shapes += [(1, STREAMS, HIDDEN)] * states
    text = f'type: "{type_name}" recurrent_param {{ num_output: {HIDDEN} expose_hidden: {str(expose).lower()} }}'
    return make_layer(text, *shapes, tops=1 + states, dtype=torch.float64)


def blobs_of(layer: Layer) -> list[Array]:
    return [layer.blob(i).detach().numpy() for i in range(len(layer.blob_names))]


@pytest.mark.parametrize("static", [False, True])
def test_lstm_carries_its_state_between_calls(static: bool) -> None:
    layer = make("LSTM", static)
    names = ["weight_xc", "bias_c", "weight_xc_static", "weight_hc"]
    assert layer.blob_names == [name for name in names if static or "static" not in name]
    fixed = seeded(STREAMS, STATIC, seed=9)
    h = c = np.zeros((STREAMS, HIDDEN))
    for call in range(3):
        x = seeded(STEPS, STREAMS, FEATURES, seed=call)
        top = layer(x, CONT, fixed) if static else layer(x, CONT)
        expected = naive_lstm(x.numpy(), CONT.numpy(), blobs_of(layer), fixed.numpy() if static else None, h, c)
        np.testing.assert_allclose(top.detach().numpy(), expected[:-1], rtol=1e-10, atol=1e-12)
        h, c = expected[-2], expected[-1]


@pytest.mark.parametrize("static", [False, True])
def test_rnn_carries_its_state_between_calls(static: bool) -> None:
    layer = make("RNN", static)
    names = ["weight_xh", "bias_h", "weight_xh_static", "weight_hh", "weight_ho", "bias_o"]
    assert layer.blob_names == [name for name in names if static or "static" not in name]
    fixed = seeded(STREAMS, STATIC, seed=9)
    h = np.zeros((STREAMS, HIDDEN))
    for call in range(3):
        x = seeded(STEPS, STREAMS, FEATURES, seed=call)
        top = layer(x, CONT, fixed) if static else layer(x, CONT)
        expected = naive_rnn(x.numpy(), CONT.numpy(), blobs_of(layer), fixed.numpy() if static else None, h)
        np.testing.assert_allclose(top.detach().numpy(), expected[:-1], rtol=1e-10, atol=1e-12)
        h = expected[-1]


@pytest.mark.parametrize("type_name", ["LSTM", "RNN"])
def test_exposed_states(type_name: str) -> None:
    layer = make(type_name, expose=True)
    x = seeded(STEPS, STREAMS, FEATURES)
    first = [seeded(1, STREAMS, HIDDEN, seed=i + 1).requires_grad_() for i in range(1 if type_name == "RNN" else 2)]
    for _ in range(2):  # nothing is carried over
        top, *last = layer(x, CONT, *first)
        naive = naive_rnn if type_name == "RNN" else naive_lstm
        states = [state[0].detach().numpy() for state in first]
        expected = naive(x.numpy(), CONT.numpy(), blobs_of(layer), None, *states)
        np.testing.assert_allclose(top.detach().numpy(), expected[:-1], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(last[-1][0].numpy(), expected[-1], rtol=1e-10, atol=1e-12)
    if type_name == "LSTM":
        torch.testing.assert_close(last[0][0], top[-1].detach())
    top.sum().backward()
    # Caffe sends no gradient through exposed states, neither in nor out.
    assert all(state.grad is None for state in first)
    assert not any(state.requires_grad for state in last)


@pytest.mark.parametrize("type_name", ["LSTM", "RNN"])
def test_state_starts_anew(type_name: str) -> None:
    layer = make(type_name)
    x, cont = seeded(STEPS, STREAMS, FEATURES), torch.ones(STEPS, STREAMS, dtype=torch.float64)
    first = layer(x, cont)
    assert not torch.equal(layer(x, cont), first)
    layer.reset()
    torch.testing.assert_close(layer(x, cont), first)
    torch.testing.assert_close(layer(x[:, :2], cont[:, :2]), first[:, :2])  # another number of streams
    torch.testing.assert_close(layer(x[:1, :2], cont[:1, :2] * 0), first[:1, :2])  # other lengths; cont cuts


@pytest.mark.parametrize("type_name", ["LSTM", "RNN"])
def test_state_is_no_weight_and_holds_no_graph(type_name: str) -> None:
    layer = make(type_name)
    x = seeded(STEPS, STREAMS, FEATURES).requires_grad_()
    for _ in range(2):
        layer(x, CONT).sum().backward()
    assert set(layer.state_dict()) == set(layer.blob_names)
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x, CONT), layer(x, CONT))
    assert layer.float()(x.float(), CONT.float()).dtype == torch.float32


def test_running_on_meta_tensors_keeps_the_state() -> None:
    layer = make("LSTM")
    x = seeded(STEPS, STREAMS, FEATURES)
    layer(x, CONT)
    twin = copy.deepcopy(layer)
    assert copy.deepcopy(layer).to("meta")(x.to("meta"), CONT.to("meta")).shape == (STEPS, STREAMS, HIDDEN)
    torch.testing.assert_close(layer(x, CONT), twin(x, CONT))


@pytest.mark.parametrize("type_name", ["LSTM", "RNN"])
@pytest.mark.parametrize("static", [False, True])
def test_gradient_is_the_derivative(type_name: str, static: bool) -> None:
    layer = make(type_name, static)
    fixed = [seeded(STREAMS, STATIC, seed=9).requires_grad_()] * static
    weights = [layer.blob(i).detach().clone().requires_grad_() for i in range(len(layer.blob_names))]

    def run(x: Tensor, *others: Tensor) -> Tensor:
        layer.reset()
        blobs = dict(zip(layer.blob_names, others, strict=False))
        return torch.func.functional_call(layer, blobs, (x, CONT, *others[len(blobs) :]))

    x = seeded(STEPS, STREAMS, FEATURES).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *weights, *fixed))


def test_lstm_unit() -> None:
    layer = make_layer('type: "LSTMUnit"', (1, 2, 3), (1, 2, 12), (1, 2), tops=2)
    cell, gates = seeded(1, 2, 3).requires_grad_(), seeded(1, 2, 12, seed=1).requires_grad_()
    cont = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    new_cell, hidden = layer(cell, gates, cont)
    i, f, o, g = np.split(gates.detach().numpy()[0], 4, 1)
    expected = np.array([[1], [0]]) * sigmoid(f) * cell.detach().numpy()[0] + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(new_cell[0].detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(hidden[0].detach().numpy(), sigmoid(o) * np.tanh(expected), rtol=1e-12)
    (new_cell.sum() + hidden.sum()).backward()
    assert cont.grad is None
    assert torch.autograd.gradcheck(lambda *bottoms: layer(*bottoms, cont), (cell, gates))


@pytest.mark.parametrize("cont", [0.5, 2.0])
def test_fractional_cont_has_the_true_gradient(cont: float) -> None:
    layer = make_layer('type: "LSTMUnit"', (1, 1, 2), (1, 1, 8), (1, 1), tops=2)
    bottoms = (seeded(1, 1, 2).requires_grad_(), seeded(1, 1, 8, seed=1).requires_grad_())
    flag = torch.full((1, 1), cont, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda cell, gates: layer(cell, gates, flag), bottoms)


@pytest.mark.parametrize(
    ("text", "shapes", "tops", "words"),
    [
        ("num_output: 3", [(4, 2, 5), (4, 2), (2, 2), (1, 2, 3)], 1, "takes 2 bottoms, or 3"),
        ("num_output: 3 expose_hidden: true", [(4, 2, 5), (4, 2)], 3, "takes 4 bottoms, or 5"),
        ("num_output: 3 expose_hidden: true", [(4, 2, 5), (4, 2), (1, 2, 3), (1, 2, 3)], 1, "has 3 tops, got 1"),
        ("", [(4, 2, 5), (4, 2)], 1, "num_output must be given"),
        ("num_output: 3", [(4, 2), (4, 2)], 1, "needs x of"),
        ("num_output: 3", [(4, 2, 5), (4, 3)], 1, r"expected \(4, 2\), got \(4, 3\)"),
        ("num_output: 3", [(4, 2, 5), (4, 2), (3, 7)], 1, r"expected \(4, 2\), \(2, 7\)"),
    ],
)
def test_bottoms_that_do_not_fit_are_named(text: str, shapes: list[tuple[int, ...]], tops: int, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make_layer(f'type: "LSTM" recurrent_param {{ {text} }}', *shapes, tops=tops)(*map(torch.zeros, shapes))


def test_other_features_than_at_setup_are_named() -> None:
    with pytest.raises(LayerError, match=r"weights are for \[5\] features per step, got \[6\]"):
        make("LSTM")(torch.zeros(4, 3, 6), torch.zeros(4, 3))


def test_states_left_by_inference_mode_serve_in_training() -> None:
    layer = make_layer(
        'type: "LSTM" recurrent_param { num_output: 2 weight_filler { type: "xavier" } }', (3, 1, 2), (3, 1)
    )
    x, cont = torch.randn(3, 1, 2), torch.ones(3, 1)
    with torch.inference_mode():
        first = layer(x, cont)
    second = layer(x, cont)
    second.sum().backward()
    assert not torch.equal(first, second)
    assert torch.isfinite(layer.blob(0).grad).all()
