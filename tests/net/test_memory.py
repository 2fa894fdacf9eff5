"""Memory for parameters: of any shape, and its own."""

from __future__ import annotations

import pytest
import torch

from fcnproto.net.memory import uninitialised


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 1 << 20), (1 << 19,), ((1 << 20) + 1,)])
def test_memory_is_a_plain_tensors(shape: tuple[int, ...]) -> None:
    tensor, other = uninitialised(shape), uninitialised(shape)
    assert tensor.shape == shape and tensor.dtype == torch.float32 and tensor.is_contiguous()
    tensor.fill_(3)
    other.fill_(4)
    assert bool((tensor == 3).all()) and bool((other == 4).all())


def test_too_little_memory_is_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="memory"):
        uninitialised((1 << 31, 1 << 22))
