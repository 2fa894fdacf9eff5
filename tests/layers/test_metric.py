"""Accuracy against Caffe's counting loop written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_maker import make_layer

from fcnproto.errors import LayerError


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    data=st.data(),
    ignore=st.sampled_from([None, 0, 255]),
)
@settings(max_examples=80, deadline=None)
def test_accuracy(shape: list[int], data: st.DataObject, ignore: int | None) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    classes = shape[axis]
    top_k = data.draw(st.integers(1, classes))
    items, places = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    allowed = list(range(classes)) + ([] if ignore is None else [ignore])
    labels = data.draw(st.lists(st.sampled_from(allowed), min_size=items * places, max_size=items * places))
    # Few different scores, so that there are many ties.
    scores = data.draw(st.lists(st.integers(0, 3), min_size=math.prod(shape), max_size=math.prod(shape)))
    text = "" if ignore is None else f"ignore_label: {ignore}"
    layer = make_layer(
        f'type: "Accuracy" accuracy_param {{ axis: {axis} top_k: {top_k} {text} }}', shape, (len(labels),), tops=2
    )
    accuracy, per_class = layer(torch.tensor(scores, dtype=torch.float32).reshape(shape), torch.tensor(labels))

    table = np.array(scores).reshape(items, classes, places)
    right, seen = np.zeros(classes), np.zeros(classes)
    for i in range(items):
        for j in range(places):
            label = labels[i * places + j]
            if label == ignore:
                continue
            others = [table[i, k, j] >= table[i, label, j] for k in range(classes) if k != label]
            right[label] += sum(others) < top_k
            seen[label] += 1
    assert accuracy.shape == () and per_class.shape == (classes,)
    assert accuracy.item() == pytest.approx(right.sum() / seen.sum() if seen.sum() else 0, rel=1e-6)
    np.testing.assert_allclose(per_class.numpy(), right / np.maximum(seen, 1), rtol=1e-6)


def test_a_constant_prediction_scores_nothing() -> None:
    layer = make_layer('type: "Accuracy"', (2, 3), (2,))
    accuracy = layer(torch.ones(2, 3, requires_grad=True), torch.tensor([0.0, 2.0]))
    assert accuracy.item() == 0 and not accuracy.requires_grad


def test_bad_settings_and_labels_are_named() -> None:
    with pytest.raises(LayerError, match="top_k 4 exceeds the 3 classes"):
        make_layer('type: "Accuracy" accuracy_param { top_k: 4 }', (2, 3), (2,))
    layer = make_layer('type: "Accuracy"', (2, 3), (2,))
    with pytest.raises(LayerError, match=r"label 3 in 'bottom1' is outside of 0\.\.2"):
        layer(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(LayerError, match="need 2 labels"):
        layer(torch.zeros(2, 3), torch.zeros(3))


def test_where_labels_cannot_be_looked_at_a_wrong_one_gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer('type: "Accuracy" accuracy_param { ignore_label: 255 }', (2, 3), (2,), tops=2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert layer(torch.eye(3)[:2], torch.tensor([0, 255]))[0].item() == 1
    assert math.isnan(layer(torch.eye(3)[:2], torch.tensor([0, 3]))[0].item())
