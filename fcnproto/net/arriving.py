"""Values on their way from a GPU to the host, and from the host to a GPU, while both go on working."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

_PAUSE = 5e-5
"""Seconds between two looks: a twentieth of what a small net's pass takes."""


class Arriving:
    """The values of a tensor as they are now, brought to the host once the device has computed them.

    Nothing waits before they are asked for. What is on the host is there at once, and is no copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._here, self._event = tensor.detach(), None
        if tensor.is_cuda:
            event: Any = torch.cuda.Event()
            with torch.cuda.device(tensor.device):
                self._here = self._here.to("cpu", non_blocking=True)  # into pinned memory
                event.record(torch.cuda.current_stream(tensor.device))
            self._event = event

    @property
    def is_here(self) -> bool:
        """Whether the values have arrived."""
        return self._event is None or bool(self._event.query())

    @property
    def value(self) -> Tensor:
        """The values, on the host.

        Waits until they are there, asleep, and for them alone: not for what was launched after them.
        """
        while not self.is_here:
            time.sleep(_PAUSE)
        return self._here


def send(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; to a GPU without waiting for it, through pinned memory."""
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    with torch.cuda.device(device):
        return value.pin_memory().to(device, non_blocking=True)
