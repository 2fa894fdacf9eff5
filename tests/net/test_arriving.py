"""Values that come from a device while others work."""

from __future__ import annotations

import threading

import pytest
import torch

from fcnproto.net.arriving import Arriving, send


def test_what_is_here_is_not_copied() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    found = Arriving(value)
    assert found.is_here and found.value.data_ptr() == value.data_ptr() and not found.value.requires_grad
    assert send(value, torch.device("cpu")) is value


def test_who_asks_waits_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found, there = Arriving(torch.ones(2)), threading.Event()

    class Slow:
        def query(self) -> bool:
            return there.is_set()

    monkeypatch.setattr(found, "_event", Slow())
    threading.Timer(0.05, there.set).start()
    assert not found.is_here
    assert found.value.tolist() == [1, 1] and there.is_set()
