"""Labels brought from a device to the host, all of them at once: the one time that the host waits for a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.net.arriving import Arriving

Array = npt.NDArray[Any]


class Labelled:
    """What one score blob says of one image.

    `labels` (height, width) uint8, `finite` (whether all scores are numbers) and `probabilities` are on the host once
    `fetch` has brought them.
    """

    labels: Array
    finite: bool

    def __init__(self, blob: str, classes: int, there: Tensor, finite: Tensor, probabilities: Arriving | None) -> None:
        self.blob, self.classes = blob, classes
        self._there, self._finite, self._probabilities = there, finite, probabilities

    @property
    def size(self) -> int:
        """The bytes of `tensors`."""
        return 1 + self._there.numel()

    def tensors(self) -> list[Tensor]:
        """What is to be fetched, as vectors of bytes."""
        return [self._finite.to(torch.uint8).view(1), self._there.flatten()]

    def take(self, values: Array) -> None:
        """Take in the bytes of `tensors`."""
        self.finite, self.labels = bool(values[0]), values[1:].reshape(tuple(self._there.shape))

    @property
    def probabilities(self) -> Array | None:
        """(classes, height, width) float32, None where they aren't asked for."""
        return None if self._probabilities is None else self._probabilities.value.numpy()


def fetch(labelled: Iterable[Labelled]) -> None:
    """Bring the labels of all to the host, in one copy."""
    each = list(labelled)
    values = torch.cat([part for one in each for part in one.tensors()]).cpu().numpy()
    for one, found in zip(each, np.split(values, np.cumsum([one.size for one in each])[:-1]), strict=True):
        one.take(found)
