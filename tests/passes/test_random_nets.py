"""`optimize` on random nets, sizes, batches and wanted blobs, in float64: outputs, errors and gradients as plain."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from golden_cases import deviation
from random_nets import random_net
from torch import Tensor

import fcnproto

SEEDS = range(48)


def inputs(r: random.Random) -> dict[str, Tensor]:
    batch = r.choice([1, 1, 2, 3])
    height, width = r.choice([(1, 1), (1, 30), (40, 2), (r.randrange(1, 70), r.randrange(20, 70))])
    return {
        "data": torch.randn(batch, 3, height, width, dtype=torch.float64) * 3,
        "small": torch.zeros(batch, 1, r.randrange(1, 4), r.randrange(1, 4)),
    }


def attempt(net: fcnproto.Net, values: dict[str, Tensor], blobs: list[str]) -> dict[str, Tensor] | str:
    try:
        return net(values, blobs=blobs)
    except fcnproto.Error as error:
        return str(error)


@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_and_errors(seed: int) -> None:
    net = random_net(seed)
    if net is None:  # its layers don't fit together
        return
    fast, r = fcnproto.optimize(net), random.Random(seed)
    for _ in range(3):
        values = inputs(r)
        blobs = [name for name in net.graph.blobs if r.random() < 0.2 and "split" not in name]
        with torch.set_grad_enabled(r.random() < 0.3):
            plain, ours = attempt(net, values, blobs), attempt(fast, values, blobs)
        if isinstance(plain, str):
            assert ours == plain
            continue
        assert not isinstance(ours, str), ours
        assert list(ours) == list(plain)
        for name, value in plain.items():
            assert deviation(ours[name].detach(), value.detach()) <= 1e-10, name
            assert ours[name].is_contiguous(), name


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients(seed: int) -> None:
    net = random_net(seed)
    if net is None:
        return
    fast, values = fcnproto.optimize(net), inputs(random.Random(seed))
    gradients = []
    for each in (net, fast):
        image = values["data"].clone().requires_grad_()
        out = attempt(each, {**values, "data": image}, [])
        if isinstance(out, str):
            return
        factors = torch.Generator().manual_seed(seed)
        total = sum((y * torch.randn(y.shape, generator=factors, dtype=y.dtype)).sum() for y in out.values())
        sources = [image, *(entry.tensor for entry in net.learnable if entry.tensor.requires_grad)]
        gradients.append(torch.autograd.grad(total, sources, allow_unused=True))
    scale = max(float(g.abs().max()) for g in gradients[0] if g is not None)
    for plain, ours in zip(*gradients, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            assert float((plain - ours).abs().max()) <= 1e-9 * scale


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS[::4])
def test_the_train_phase(seed: int) -> None:
    """Statistics of BatchNorm move as in the plain net (Dropout is left out: its draws depend on the memory order)."""
    net = random_net(seed, "train")
    if net is None or any(layer.type == "Dropout" for layer in net.layers):
        return
    twin = copy.deepcopy(net)
    fast, values = fcnproto.optimize(net), inputs(random.Random(seed))
    plain, ours = attempt(twin, values, []), attempt(fast, values, [])
    if isinstance(plain, str):
        assert ours == plain
        return
    for name, value in plain.items():
        assert deviation(ours[name], value) <= 1e-10, name
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        assert deviation(a, b) <= 1e-10
