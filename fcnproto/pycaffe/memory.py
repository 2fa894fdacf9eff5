"""The memory of blobs: values that several blobs may share, that layers compute on, and that NumPy arrays look into.

Caffe's SyncedMemory in torch. On the CPU an array is the memory itself. On a GPU it is a copy on the host, and the two
are brought in step when the other side is asked for: `on` before a layer reads, `array` before Python does. As in
Caffe, asking for an array counts as writing to it.

What a layer computed becomes the memory as it is, without a copy, unless somebody holds an array of what is there:
then it is copied, so that the array goes on showing the blob.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_CPU = torch.device("cpu")


class Memory:
    """Float32 values, zero until something is written, with room for `capacity` of them.

    `version` changes with every write, and with every array handed out, through which Python may write at any time.
    """

    def __init__(self, capacity: int = 0, value: float = 0.0) -> None:
        self.capacity = capacity
        self.version = 0
        self._value = value
        self._tensor: Tensor | None = None  # flat, where layers compute
        self._host: Tensor | None = None  # flat, on the CPU, where the other is not
        self._host_is_newer = False
        self._arrays: list[weakref.ref[np.ndarray]] = []

    @property
    def held(self) -> bool:
        """Whether an array of this memory is alive somewhere, so that its values may change unseen."""
        self._arrays = [reference for reference in self._arrays if reference() is not None]
        return bool(self._arrays)

    def _at_hand(self) -> Tensor:
        if self._tensor is None:
            self._tensor = torch.full((self.capacity,), self._value, dtype=torch.float32, device=_CPU)
        return self._tensor

    def on(self, device: torch.device) -> Tensor:
        """The values as a flat tensor on a device, for a layer to read."""
        tensor = self._at_hand()
        if self._host_is_newer:
            assert self._host is not None
            tensor.copy_(self._host)
            self._host_is_newer = False
        if tensor.device != device:
            self._tensor = tensor = tensor.to(device)
            self._host = None
        return tensor

    def write(self, values: Tensor, owned: bool) -> None:
        """Take `values`; with `owned` nobody else uses their memory, so that it may become this one."""
        count = values.numel()
        fits = count <= self.capacity
        if fits and self._tensor is not None and (self.held or not owned):
            target = self.on(values.device)[:count]
            with torch.no_grad():
                target.copy_(values.detach().reshape(-1))
        else:
            flat = values.detach().reshape(-1).float()
            self._tensor, self._host = (flat if owned else flat.clone()), None
            self._arrays, self.capacity = [], count
        self._host_is_newer = False
        self.version += 1

    def array(self, shape: tuple[int, ...], count: int) -> np.ndarray:
        """The first `count` values as an array of `shape` that can be read and written."""
        tensor = self._at_hand()
        if tensor.device == _CPU:
            host = tensor
        else:
            if self._host is None:
                self._host = tensor.to(_CPU)
            elif not self._host_is_newer:
                self._host.copy_(tensor)
            self._host_is_newer = True
            host = self._host
        array: np.ndarray = host.detach()[:count].view(shape).numpy()
        self._arrays = [reference for reference in self._arrays if reference() is not None]
        self._arrays.append(weakref.ref(array))
        self.version += 1
        return array

    def touched(self) -> None:
        """Say that a layer has written to the tensor that `on` gave."""
        self.version += 1


class ParameterMemory(Memory):
    """The memory of a parameter, which the net's module owns: `find` gives the tensor wherever it is now.

    It is never exchanged: what is written is copied into it.
    """

    def __init__(self, find: Callable[[], Tensor]) -> None:
        super().__init__(find().numel())
        self._find = find

    def _at_hand(self) -> Tensor:
        self._tensor = self._find().detach().view(-1)
        return self._tensor

    def on(self, device: torch.device) -> Tensor:
        """The module's own tensor, which the net has moved to the device."""
        tensor = self._at_hand()
        if self._host_is_newer:
            assert self._host is not None
            tensor.copy_(self._host)
            self._host_is_newer = False
        return tensor

    def write(self, values: Tensor, owned: bool) -> None:
        """Copy `values` into the parameter."""
        with torch.no_grad():
            self.on(values.device).copy_(values.detach().reshape(-1))
        self.version += 1
