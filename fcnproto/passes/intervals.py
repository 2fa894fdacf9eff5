"""Integer arithmetic of pad folding, one axis at a time: where a blob can depend on the image, and where on padding.

Along an axis a blob of length `n` has an influence interval [`lo`, `hi`): the positions that some image pixel reaches;
and edges: the first `left` and last `right` positions, which the zero padding of inner layers reaches. Everywhere else
each channel holds one constant. No tensors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Sweep:
    """How one layer moves over an axis: window extent, stride, padding, and its output length as a function of n.

    `clips` is true for max pooling, whose windows past the end of the blob see less, not zeros.
    """

    extent: int
    stride: int
    pad: int
    ceil: bool = False
    clips: bool = False

    def length(self, n: int) -> int:
        """The output length for an input of length n (Caffe's Convolution, or Pooling without padding)."""
        steps = n + 2 * self.pad - self.extent
        return (-(-steps // self.stride) if self.ceil else steps // self.stride) + 1


@dataclass(frozen=True)
class Span:
    """What is known of a blob along one axis."""

    n: int
    lo: int
    hi: int
    left: int = 0
    right: int = 0

    @property
    def size(self) -> int:
        """The length of the influence interval."""
        return self.hi - self.lo


def reads(sweep: Sweep, span: Span) -> tuple[int, int]:
    """The input positions [start, stop) that the outputs in the span's interval read."""
    return span.lo * sweep.stride - sweep.pad, (span.hi - 1) * sweep.stride - sweep.pad + sweep.extent


def step(sweep: Sweep, before: Span, *, first: bool) -> Span:
    """The output's span. Of the first layer the padding is no edge: it continues the zeros around the image."""
    n = sweep.length(before.n)
    lo = max(0, -(-(before.lo + sweep.pad - (sweep.extent - 1)) // sweep.stride))
    hi = min(n, (before.hi - 1 + sweep.pad) // sweep.stride + 1)
    if first or (sweep.clips and before.left == 0 and before.right == 0 and sweep.pad == 0):
        return Span(n, lo, hi)
    left = max(0, -(-(before.left + sweep.pad) // sweep.stride))
    clean = (before.n - before.right - sweep.extent + sweep.pad) // sweep.stride + 1
    return Span(n, lo, hi, left, max(0, n - clean))


def holds(sweep: Sweep, before: Span, after: Span, *, first: bool) -> bool:
    """Whether all that the interval's outputs read is the interval before, or constant."""
    start, stop = reads(sweep, after)
    if after.size <= 0 or sweep.stride > sweep.extent:
        return False
    if first:
        return True
    return start >= before.left and stop <= before.n - before.right


def spans(sweeps: Sequence[Sweep | None], n: int) -> list[Span]:
    """The spans of the image and of every layer's output that can be computed on its interval alone.

    None stands for a layer that acts on every position by itself. Shorter than `sweeps` + 1 where the precondition
    fails: the rest has to be computed in full. Intervals before a pooling are widened to whole windows.
    """
    result = [Span(n, 0, n)]
    for i, sweep in enumerate(sweeps):
        before = result[-1]
        if sweep is None:
            result.append(before)
            continue
        after = step(sweep, before, first=i == 0)
        if not holds(sweep, before, after, first=i == 0):
            break
        result.append(after)
    return _widen(sweeps, result)


def _widen(sweeps: Sequence[Sweep | None], result: list[Span]) -> list[Span]:
    for i in range(len(result) - 1, 1, -1):
        sweep, before = sweeps[i - 1], sweeps[i - 2]
        if sweep is None or before is None or not sweep.clips:
            continue
        start, stop = reads(sweep, result[i])
        wider = replace(result[i - 1], lo=min(result[i - 1].lo, start), hi=max(result[i - 1].hi, stop))
        if holds(before, result[i - 2], wider, first=i == 2):
            result[i - 1] = wider
    return result


def strip_of(sweeps: Sequence[Sweep | None], whole: Sequence[Span], lo: int, hi: int) -> list[Span]:
    """What outputs [lo, hi) of the last layer need of every blob before: the spans `whole`, one more than there are
    sweeps, with their intervals cut to that."""
    result = [replace(whole[-1], lo=lo, hi=hi)]
    for sweep, span in zip(reversed(sweeps), reversed(whole[:-1]), strict=True):
        start, stop = (result[0].lo, result[0].hi) if sweep is None else reads(sweep, result[0])
        result.insert(0, replace(span, lo=max(span.lo, start), hi=min(span.hi, stop)))
    return result


def canvas(sweeps: Sequence[Sweep | None], n: int, depth: int) -> int:
    """The length of a small blob that shows every edge pattern of the first `depth` layers of an image of length n.

    It stands for the first layer's output on an all-zero image, which is constant, since that layer's padding
    continues the zeros. It is congruent to the real length modulo the total stride of the layers after it, so that
    rounding at the far edge is the same, and long enough to leave a constant position between all edges.
    """
    start, rest = _first_length(sweeps, n), sweeps[1:depth]
    period = 1
    for sweep in rest:
        period *= 1 if sweep is None else sweep.stride
    size = (start - 1) % period + 1
    while size < start and not _leaves_room(rest, size):
        size += period
    return size


def expansion(sweeps: Sequence[Sweep | None], small: int, n: int, depth: int) -> list[int]:
    """For every position of the blob after `depth` layers of an image of length n, the one to copy from the canvas."""
    rest = sweeps[1:depth]
    little = _edges(rest, small)[-1]
    full = _edges(rest, _first_length(sweeps, n))[-1].n
    constant = little.left
    return [
        i if i <= constant else constant if i < full - (little.n - 1 - constant) else i - (full - little.n)
        for i in range(full)
    ]


def _first_length(sweeps: Sequence[Sweep | None], n: int) -> int:
    return n if sweeps[0] is None else sweeps[0].length(n)


def _leaves_room(sweeps: Sequence[Sweep | None], n: int) -> bool:
    if any(n < 1 for n in _lengths(sweeps, n)):
        return False
    return all(span.left + span.right < span.n for span in _edges(sweeps, n))


def _lengths(sweeps: Sequence[Sweep | None], n: int) -> list[int]:
    result = [n]
    for sweep in sweeps:
        result.append(result[-1] if sweep is None else sweep.length(result[-1]))
    return result


def _edges(sweeps: Sequence[Sweep | None], n: int) -> list[Span]:
    result = [Span(n, 0, n)]
    for sweep in sweeps:
        result.append(result[-1] if sweep is None else step(sweep, result[-1], first=False))
    return result
