"""A fully connected conditional random field over an image's pixels (Krähenbühl and Koltun 2011), as DeepLab sharpens
its label maps with: mean field inference in torch, messages by Gaussian filters on a permutohedral lattice.

Two filters carry messages between all pixels: one by their distance, one by their distance and the difference of
their colours (Adams, Baek and Davis 2010). Equal labels agree, others don't (Potts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fcnproto.errors import UsageError

_CHANNELS_AT_ONCE = 8
_LEAST = 1e-20


@dataclass(frozen=True)
class DenseCrf:
    """The field's parameters, by the names and with the values that DeepLab uses.

    Attributes:
        iterations: mean field steps.
        pos_w, pos_xy: weight and reach (standard deviation in pixels) of the messages by distance.
        bi_w, bi_xy, bi_rgb: weight and reaches (pixels, values 0..255 of each colour) of those by distance and colour.
    """

    iterations: int = 10
    pos_w: float = 3.0
    pos_xy: float = 1.0
    bi_w: float = 4.0
    bi_xy: float = 67.0
    bi_rgb: float = 3.0

    def __post_init__(self) -> None:
        if self.iterations < 0 or min(self.pos_xy, self.bi_xy, self.bi_rgb) <= 0 or min(self.pos_w, self.bi_w) < 0:
            raise UsageError("a dense CRF's iterations and weights are 0 or more, its reaches above 0")

    @torch.no_grad()
    def refine(self, probabilities: Tensor, pixels: Tensor) -> Tensor:
        """The marginals (classes, height, width) float32 after inference, from a net's probabilities of the same shape
        and the image (height, width, 3), 0..255, both on one device."""
        classes, height, width = probabilities.shape
        unary = probabilities.float().clamp_min(_LEAST).log().reshape(classes, -1).T
        across = torch.arange(width, device=unary.device, dtype=torch.float32).expand(height, width)
        down = torch.arange(height, device=unary.device, dtype=torch.float32)[:, None].expand(height, width)
        places = torch.stack([across, down], dim=-1)
        colours = pixels.to(unary.device, torch.float32)
        filters = [
            (weight, _Normalised(Lattice(features.reshape(height * width, -1))))
            for weight, features in (
                (self.pos_w, places / self.pos_xy),
                (self.bi_w, torch.cat([places / self.bi_xy, colours / self.bi_rgb], dim=-1)),
            )
            if weight
        ]
        beliefs = unary.softmax(1)
        for _ in range(self.iterations):
            beliefs = sum((weight * filter(beliefs) for weight, filter in filters), unary).softmax(1)
        return beliefs.T.reshape(classes, height, width)


def parse_crf(text: str) -> DenseCrf:
    """The parameters that a command line says: "iterations=5,bi_xy=49", others as they are. Raises `UsageError`."""
    known = {one.name: one.type for one in fields(DenseCrf)}
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().partition("=")
        try:
            given[name] = int(value) if known[name] == "int" else float(value)
        except (KeyError, ValueError):
            expected = ",".join(f"{one}=X" for one in known)
            raise UsageError(f"dense CRF: {part.strip()!r} is none of {expected}") from None
    return DenseCrf(**given)  # type: ignore[arg-type]


class _Normalised:
    """A filter whose weights are scaled, alike on both sides, so that a constant stays about constant."""

    def __init__(self, lattice: Lattice) -> None:
        self.lattice = lattice
        ones = torch.ones(lattice.count, 1, device=lattice.weights.device)
        self.scale = (lattice.filter(ones) + _LEAST).rsqrt()

    def __call__(self, values: Tensor) -> Tensor:
        return self.scale * self.lattice.filter(self.scale * values)


class Lattice:
    """Gaussian filtering of values at points of a space of few dimensions, with standard deviation 1.

    Each point's value is spread to the corners of the simplex of the permutohedral lattice that holds it, blurred along
    the lattice's directions, and gathered again: time is linear in the number of points.

    Args:
        features: the points (count, dimensions) float32, scaled so that the filter's reach is 1.
    """

    def __init__(self, features: Tensor) -> None:
        self.count, dimensions = features.shape
        keys, self.weights = _simplices(features)
        codes, span = _encoded(keys.reshape(-1, dimensions))
        unique, places = torch.unique(codes, return_inverse=True)
        self.places = places.reshape(self.count, dimensions + 1)
        self.size = len(unique)
        # A step along direction j adds 1 to every coordinate but j, which loses as much as keeps the sum 0.
        self.neighbours = [
            tuple(_looked_up(unique, unique + sign * step) for sign in (1, -1)) for step in _steps(span, dimensions)
        ]
        self.gain = 1.0 / (1.0 + 2.0**-dimensions)

    def filter(self, values: Tensor) -> Tensor:
        """The values (count, channels) filtered; not normalised."""
        parts = values.split(_CHANNELS_AT_ONCE, dim=1)
        return torch.cat([self._filter(part) for part in parts], dim=1)

    def _filter(self, values: Tensor) -> Tensor:
        # The row after the last stands for what lies outside of all points' simplices: nothing.
        table = values.new_zeros(self.size + 1, values.shape[1])
        for corner in range(self.places.shape[1]):
            table.index_add_(0, self.places[:, corner], values * self.weights[:, corner, None])
        for ahead, behind in self.neighbours:
            table = torch.cat([table[:-1] + 0.5 * (table[ahead] + table[behind]), table[-1:]])
        found = torch.zeros_like(values)
        for corner in range(self.places.shape[1]):
            found += table[self.places[:, corner]] * self.weights[:, corner, None]
        return found * self.gain


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """The corners of each point's simplex, (count, d + 1, d) whole numbers (the last coordinate follows from the sum
    0), and the point's share in each, (count, d + 1)."""
    count, d = features.shape
    device = features.device
    # Blurring by 1/4, 1/2, 1/4 along d + 1 directions has this standard deviation in the lattice's units.
    scale = (d + 1) * math.sqrt(2 / 3) / torch.tensor([math.sqrt((i + 1) * (i + 2)) for i in range(d)], device=device)
    scaled = features * scale
    # Onto the plane of d + 1 coordinates whose sum is 0.
    sums = torch.cat([scaled.flip(1).cumsum(1).flip(1), scaled.new_zeros(count, 1)], dim=1)
    factors = torch.arange(d + 1, device=device)
    elevated = sums - torch.cat([scaled.new_zeros(count, 1), factors[1:] * scaled], dim=1)
    # The nearest point whose coordinates are multiples of d + 1, and how far each coordinate is from it in order.
    rounded = torch.round(elevated / (d + 1))
    excess = rounded.sum(1).long()
    order = (elevated - rounded * (d + 1)).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, factors.expand(count, d + 1).contiguous())
    rank = rank + excess[:, None]
    low, high = rank < 0, rank > d
    rounded = rounded + low.float() - high.float()
    rank = rank + (d + 1) * low.long() - (d + 1) * high.long()
    # Barycentric coordinates by the differences of neighbours in the order.
    apart = (elevated - rounded * (d + 1)) / (d + 1)
    shares = scaled.new_zeros(count, d + 2)
    shares.scatter_add_(1, d - rank, apart)
    shares.scatter_add_(1, d + 1 - rank, -apart)
    shares[:, 0] += 1.0 + shares[:, d + 1]
    base = (rounded * (d + 1)).long()
    corners = []
    for k in range(d + 1):
        moved = base + k - (d + 1) * (rank > d - k).long()
        corners.append(moved[:, :d])
    return torch.stack(corners, dim=1), shares[:, : d + 1]


def _encoded(keys: Tensor) -> tuple[Tensor, list[int]]:
    """Each key as one number, and what a step of 1 in each coordinate adds to it."""
    low = keys.min(0).values - keys.shape[1] - 2
    extents = (keys.max(0).values - low + keys.shape[1] + 3).tolist()
    span, total = list[int](), 1
    for extent in reversed(extents):
        span.insert(0, total)
        total *= extent
    if total >= 1 << 62:
        raise UsageError("dense CRF: the reaches are too small for an image of this size")
    return ((keys - low) * torch.tensor(span, device=keys.device)).sum(1), span


def _steps(span: list[int], dimensions: int) -> list[int]:
    """What a step along each of the d + 1 directions adds to a code."""
    along = sum(span)
    return [*(along - (dimensions + 1) * one for one in span), along]


def _looked_up(unique: Tensor, codes: Tensor) -> Tensor:
    """The places of codes among the sorted ones; the number of those where a code is none of them."""
    places = torch.searchsorted(unique, codes).clamp_max(len(unique) - 1)
    return torch.where(unique[places] == codes, places, torch.full_like(places, len(unique)))
