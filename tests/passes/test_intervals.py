"""The interval arithmetic of pad folding against brute force: which positions really depend on image and padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcnproto.passes.intervals import Span, Sweep, canvas, expansion, spans

CONVOLUTION = st.builds(Sweep, st.integers(1, 5), st.integers(1, 2), st.integers(0, 2)).filter(
    lambda s: s.stride <= s.extent
)
POOLING = st.sampled_from([Sweep(2, 2, 0, True, True), Sweep(3, 2, 0, True, True), Sweep(2, 2, 0, False, True)])
CHAIN = st.lists(st.one_of(CONVOLUTION, CONVOLUTION, POOLING), min_size=0, max_size=7)


def depends(sweeps: list[Sweep], n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each blob: the positions that read some image pixel, and those that read inner padding, position by position."""
    image, edge = np.ones(n, bool), np.zeros(n, bool)
    result = [(image, edge)]
    for i, sweep in enumerate(sweeps):
        size = sweep.length(n)
        new_image, new_edge = np.zeros(size, bool), np.zeros(size, bool)
        for o in range(size):
            start = o * sweep.stride - sweep.pad
            inside = [p for p in range(start, start + sweep.extent) if 0 <= p < n]
            new_image[o] = image[inside].any()
            clipped = len(inside) < sweep.extent and not sweep.clips and i > 0
            new_edge[o] = edge[inside].any() or clipped
        image, edge, n = new_image, new_edge, size
        result.append((image, edge))
    return result


@settings(max_examples=300, deadline=None)
@given(
    first=st.builds(Sweep, st.integers(1, 7), st.integers(1, 4), st.integers(10, 40)), rest=CHAIN, n=st.integers(1, 60)
)
def test_spans_hold_all_that_depends_on_the_image(first: Sweep, rest: list[Sweep], n: int) -> None:
    sweeps = [first, *rest]
    found = spans(sweeps, n)
    truth = depends(sweeps[: len(found) - 1], n)
    for k, (span, (image, edge)) in enumerate(zip(found, truth, strict=True)):
        assert span.n == len(image)
        outside = np.ones(span.n, bool)
        outside[max(span.lo, 0) : span.hi] = False
        assert not (image & outside).any(), "a position outside of the interval depends on the image"
        inner = np.ones(span.n, bool)
        inner[: span.left] = False
        inner[span.n - span.right :] = False
        assert not (edge & inner).any(), "a position inside of the edges depends on padding"
        if k:
            assert not edge[max(span.lo, 0) : span.hi].any(), "the interval depends on padding"


@settings(max_examples=200, deadline=None)
@given(
    first=st.builds(Sweep, st.integers(1, 7), st.integers(1, 4), st.integers(10, 40)), rest=CHAIN, n=st.integers(1, 90)
)
def test_the_canvas_shows_every_border_position(first: Sweep, rest: list[Sweep], n: int) -> None:
    """Run a chain with arbitrary weights on zeros: the expanded canvas equals the real thing."""
    depth = len(spans([first, *rest], n)) - 1
    sweeps = [first, *rest][:depth]
    rng = np.random.default_rng(0)
    weights = [(rng.standard_normal(s.extent), rng.standard_normal()) for s in sweeps]

    def run(x: np.ndarray, start: int) -> list[np.ndarray]:
        blobs = []
        for sweep, (weight, bias) in list(zip(sweeps, weights, strict=True))[start:]:
            out = np.empty(sweep.length(len(x)))
            for o in range(len(out)):
                begin = o * sweep.stride - sweep.pad
                taps = [(x[p], weight[p - begin]) for p in range(begin, begin + sweep.extent) if 0 <= p < len(x)]
                out[o] = max(v for v, _ in taps) if sweep.clips else sum(v * w for v, w in taps) + bias
            x = out
            blobs.append(x)
        return blobs

    if not depth:
        return
    small = canvas(sweeps, n, depth)
    real = run(np.zeros(n), 0)
    assert small <= len(real[0])
    canvas_of_first = np.full(small, weights[0][1])
    little = [canvas_of_first, *run(canvas_of_first, 1)]
    for k in range(depth):
        index = expansion(sweeps, small, n, k + 1)
        assert np.allclose(little[k][index], real[k])


def test_the_published_chain_runs_on_its_intervals_up_to_pool4() -> None:
    conv, pool = Sweep(3, 1, 1), Sweep(2, 2, 0, True, True)
    chain = [Sweep(3, 1, 100), conv, pool, conv, conv, pool, *[conv] * 3, pool, *[conv] * 3, pool, *[conv] * 3, pool]
    for n in (500, 334, 256, 64):
        found = spans(chain, n)
        assert len(found) - 1 == 14  # conv1_1 ... pool4
        assert canvas(chain, n, 14) % 16 == (n + 198) % 16
        assert canvas(chain, n, 14) < 128


def test_no_chain_without_room() -> None:
    conv = Sweep(3, 1, 1)
    assert spans([conv, conv], 20) == [Span(20, 0, 20), Span(20, 0, 20)]
