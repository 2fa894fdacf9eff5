"""`time` on a GPU other than the current one measures that one."""

from __future__ import annotations

import pytest
import torch

import fcnproto
from fcnproto import zoo
from fcnproto.inspect.timing import time_layers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("index", [0, 1])
def test_events_are_those_of_the_nets_device(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if index >= torch.cuda.device_count():
        pytest.skip("one CUDA device only")
    devices = []

    class Event(torch.cuda.Event):  # type: ignore[misc]
        def record(self, stream: object = None) -> None:
            devices.append(getattr(stream, "device", torch.device("cuda", torch.cuda.current_device())))
            super().record(stream)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    net = fcnproto.load(zoo.path("fcn-mini", "deploy"), device=f"cuda:{index}")
    time_layers(net, 1, {"data": (1, 3, 32, 32)})
    assert set(devices) == {net.device}
