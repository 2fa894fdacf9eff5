"""Folded chains a strip of rows at a time: the same blobs."""

from __future__ import annotations

import golden_cases
import pytest
import torch
from golden_cases import deviation
from random_nets import random_net

import fcnproto
from fcnproto.passes import folding
from fcnproto.passes.folding import FoldedChain
from fcnproto.passes.intervals import Sweep, reads, spans, strip_of

FORWARD = [name for name in golden_cases.names("fcn") if name.endswith("_forward")]


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Strips as thin as can be; collects how many rows of the image each one read."""
    for name, value in (("_LARGE", 0), ("_STRIP", 1), ("_LEAST_ROWS", 0)):
        monkeypatch.setattr(folding, name, value)
    read: list[int] = []
    inner = FoldedChain._folded_step

    def step(self: FoldedChain, i: int, x: torch.Tensor, *rest: object) -> torch.Tensor:
        if i == 0:
            read.append(x.shape[2])
        return inner(self, i, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(FoldedChain, "_folded_step", step)
    return read


@pytest.mark.parametrize("seed", range(24))
def test_random_nets(thin: list[int], seed: int) -> None:
    net = random_net(seed)
    if net is None:
        return
    fast = fcnproto.optimize(net)
    for height, width in ((1, 1), (37, 45), (64, 20)):
        x = {
            "data": torch.randn(2, 3, height, width, dtype=torch.float64) * 3,
            "small": torch.zeros(2, 1, 2, 3, dtype=torch.float64),
        }
        x = {name: x[name] for name in net.inputs}
        try:
            plain = net(x)
        except fcnproto.Error:
            continue
        with torch.no_grad():
            for name, value in fast(x).items():
                assert deviation(value, plain[name].detach()) <= 1e-10, name


@pytest.mark.parametrize("name", FORWARD)
def test_published_nets(thin: list[int], name: str) -> None:
    case = golden_cases.load("fcn", name)
    inputs = {key: torch.from_numpy(value) for key, value in case.keys("in").items()}
    with torch.no_grad():
        out = fcnproto.optimize(case.net())(inputs, blobs=list(case.keys("out")))
        slim = fcnproto.optimize(case.net())(inputs)
    height = next(iter(inputs.values())).shape[2]
    assert len(thin) > 4 and max(thin) < height
    for blob, value in case.keys("out").items():
        golden_cases.assert_close(out[blob], value, 1e-5, blob)
    for blob, tensor in slim.items():
        golden_cases.assert_close(tensor, out[blob], 1e-5, blob)


def test_with_gradients_there_is_one_strip(thin: list[int]) -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    x = torch.randn(1, 3, 40, 56)
    fcnproto.optimize(net)(data=x)
    assert thin == [40]


def test_large_blobs_alone_are_cut(thin: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    net = golden_cases.load("fcn", "voc_fcn8s_forward").net()
    monkeypatch.setattr(folding, "_LARGE", 16 << 20)
    with torch.no_grad():
        fcnproto.optimize(net)(data=torch.randn(1, 3, 40, 56))
    assert thin == [40]


@pytest.mark.parametrize("n", [1, 9, 30, 31])
def test_strips_read_what_they_need_and_no_more(n: int) -> None:
    sweeps = [Sweep(3, 1, 20), Sweep(3, 1, 1), None, Sweep(2, 2, 0, ceil=True, clips=True)]
    whole = spans(sweeps, n)
    for lo in range(whole[-1].lo, whole[-1].hi):
        strip = strip_of(sweeps, whole, lo, lo + 1)
        assert (strip[-1].lo, strip[-1].hi) == (lo, lo + 1)
        for sweep, before, after, all_of_it in zip(sweeps, strip, strip[1:], whole, strict=False):
            start, stop = (after.lo, after.hi) if sweep is None else reads(sweep, after)
            wanted = set(range(start, stop)) & set(range(all_of_it.lo, all_of_it.hi))
            assert set(range(before.lo, before.hi)) == wanted
