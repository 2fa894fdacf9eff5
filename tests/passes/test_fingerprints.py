"""Fingerprints of tensors: any change of bits or of their order shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fcnproto.passes.fingerprints import Fingerprints

SHAPES = [(3,), (7, 5), (64, 32, 3, 3), (32, 27, 5, 5), (96, 64, 5, 5), (512, 512), (256, 192, 3, 3), (2, 70000)]
"""The bits themselves, added up once, and twice; with and without a rest."""


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def roll(tensor: Tensor) -> Tensor:
    """Half of the rows in the other half's place: whole rows apart, if the fingerprint's rows were so long."""
    return tensor.roll(max(1, len(tensor) // 2), 0)


CHANGES: list[Callable[[Tensor], Tensor]] = [
    lambda t: -t,
    lambda t: t.flip(-1),
    lambda t: t.flip(0),
    roll,
    lambda t: t.roll(1, 0),
    lambda t: t.flatten().roll(1).view(t.shape),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_changes_show_and_only_where_they_are(dtype: torch.dtype) -> None:
    given = tensors(dtype)
    prints = Fingerprints(given)
    assert prints.is_lasting
    before = prints.take().clone()
    assert torch.equal(prints.take(), before)
    for index, tensor in enumerate(given):
        original = tensor.clone()
        for change in CHANGES:
            tensor.copy_(change(original))
            after = prints.take()
            for other in range(len(given)):
                same = all(map(torch.equal, prints.of(other, after), prints.of(other, before)))
                assert same == (other != index)
            tensor.copy_(original)
        assert torch.equal(prints.take(), before)


def test_the_last_bit_of_any_value_shows() -> None:
    given = tensors()
    prints = Fingerprints(given)
    before = prints.take().clone()
    for tensor in given:
        bits = tensor.view(-1).view(torch.int32)
        for position in {0, 1, len(bits) // 3, len(bits) // 2, len(bits) - 2, len(bits) - 1}:
            bits[position] ^= 1
            assert not torch.equal(prints.take(), before)
            bits[position] ^= 1
    assert torch.equal(prints.take(), before)


def test_parts_of_other_tensors_and_other_orders() -> None:
    whole = torch.randn(100_003)
    for view in (whole[1:], whole[1:100_001].view(100, 1000), whole[3:].view(torch.int16)):
        prints = Fingerprints([view])
        before = prints.take().clone()
        whole[50_000] += 1
        assert prints.is_lasting
        assert not torch.equal(prints.take(), before)
    innermost = torch.randn(64, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    assert Fingerprints([innermost]).is_lasting
    assert not Fingerprints([whole[::2]]).is_lasting
