"""Changes that torch doesn't count are noticed by sums, some calls later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fcnproto.passes import sums
from fcnproto.passes.sums import LateSums


def tensors() -> dict[object, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found: dict[object, Tensor] = {k: torch.randn(3 + k, 5, generator=generator) for k in range(6)}
    found["half"] = torch.randn(7, generator=generator).half()
    found["double"] = (
        torch.randn(2, 3, 4, 5, generator=generator).double().contiguous(memory_format=torch.channels_last)
    )
    found["turned"] = torch.randn(4, 6, generator=generator).t()[::2]
    return found


def look(late: LateSums, given: dict[object, Tensor]) -> set[object]:
    return late.look(given, {key: tensor._version for key, tensor in given.items()})


@pytest.mark.parametrize("at_once", [1, 150, 2**24])
@pytest.mark.parametrize("key", [0, 5, "half", "double", "turned"])
@pytest.mark.parametrize(
    "change", [Tensor.neg_, Tensor.zero_, lambda t: t.view(-1)[:1].add_(1) if t.is_contiguous() else t.add_(1)]
)
def test_every_change_is_noticed(key: object, change: object, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_BYTES_AT_ONCE", at_once)
    given, late = tensors(), LateSums()
    turns = 2 * len(sums._portions(given)) + 2
    for _ in range(turns):
        assert not look(late, given)
    change(given[key].data)  # type: ignore[operator]
    found = [look(late, given) for _ in range(turns)]
    assert sum(key in each for each in found) == 1
    assert at_once > 1 or set().union(*found) == {key}


def test_counted_writes_hide_no_others() -> None:
    """Of tensors that are summed up together one is written to in a way that torch counts, another in one that not."""
    given, late = tensors(), LateSums()
    for _ in range(3):
        assert not look(late, given)
    given[0].mul_(2)
    given[1].data.mul_(2)
    assert look(late, given) >= {0, 1}
    assert not any(look(late, given) for _ in range(5))


def test_others_are_looked_at_when_the_tensors_are() -> None:
    given, late = tensors(), LateSums()
    look(late, given)
    look(late, given)
    later = {k: given[k] for k in (1, 2)} | {"new": torch.ones(3)}
    assert not any(look(late, later) for _ in range(4))
    later["new"].data[1] = 2
    assert any("new" in look(late, later) for _ in range(4))
    assert not any(look(late, {}) for _ in range(2))


def test_nothing_is_judged_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [False]
    monkeypatch.setattr(sums.Arriving, "is_here", property(lambda self: there[0]))
    given, late = tensors(), LateSums()
    assert not look(late, given)
    given[0].data.add_(1)
    assert not look(late, given) and not late._known
    there[0] = True
    assert any(0 in look(late, given) for _ in range(4))  # its sum was on its way before the change
