"""The loss plot: losses and test results of a run as a PNG, by matplotlib where it is installed, else by Pillow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image, ImageDraw

from fcnproto.atomic import atomic_write
from fcnproto.escaping import plot_text, printable

_SIZE, _MARGIN = (960, 540), (90, 20, 20, 50)  # left, top, right, bottom
_LONGEST_TITLE, _LONGEST_NAME = 80, 60
_GREY, _LINE, _INK = (190, 200, 215), (31, 90, 160), (40, 40, 40)
_TEST_COLOURS = ((200, 60, 40), (40, 140, 70), (150, 80, 170), (210, 140, 30))


@dataclass
class Curves:
    """A run's data: per iteration the raw and smoothed loss, and points (iteration, value) of each test result."""

    iterations: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    tests: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def span(self) -> tuple[int, int]:
        """The first iteration and the last one, or the iteration of the last test."""
        tested = [points[-1][0] for points in self.tests.values()]
        return self.iterations[0], max(self.iterations[0] + 1, self.iterations[-1], *tested)

    def is_logarithmic(self) -> bool:
        """Whether the losses, all positive, range over more than two decades."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        return bool(finite) and min(finite) > 0 and max(finite) > 100 * min(finite)


def write_chart(path: Path, curves: Curves, title: str) -> None:
    """Write the plot as a PNG, whole or not at all; nothing where there is no iteration to show.

    The title and the tests' names may hold anything; they are shown as plain text.
    """
    if not curves.iterations:
        return
    with atomic_write(path) as file:
        try:
            import matplotlib
        except ImportError:
            draw_chart(curves, title).save(file, format="PNG")
            return
        matplotlib.use("Agg", force=False)
        with matplotlib.rc_context({"text.usetex": False}):  # TeX would run what stands in a name
            _plot_by_matplotlib(file, curves, title)


def _plot_by_matplotlib(file: IO[bytes], curves: Curves, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="iteration", ylabel="loss", title=plot_text(title, _LONGEST_TITLE))
    axes.plot(curves.iterations, curves.losses, color="#bec8d7", linewidth=0.8, label="loss")
    axes.plot(curves.iterations, curves.smoothed, color="#1f5aa0", linewidth=1.5, label="smoothed loss")
    if curves.is_logarithmic():
        axes.set_yscale("log")
    if curves.tests:
        right = axes.twinx()
        right.set_ylabel("test")
        for number, (name, points) in enumerate(curves.tests.items()):
            colour = "#{:02x}{:02x}{:02x}".format(*_TEST_COLOURS[number % len(_TEST_COLOURS)])
            right.plot(
                *zip(*points, strict=True), "o-", color=colour, markersize=3, label=plot_text(name, _LONGEST_NAME)
            )
        right.legend(loc="upper center")
    axes.legend(loc="upper right")
    figure.savefig(file, format="png", dpi=100)


def draw_chart(curves: Curves, title: str) -> Image.Image:
    """The plot drawn with Pillow alone."""
    left, top, right, bottom = _MARGIN
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    box = (left, top, _SIZE[0] - right, _SIZE[1] - bottom)
    logarithmic = curves.is_logarithmic()
    values = [_height(loss, logarithmic) for loss in curves.losses if math.isfinite(loss)] or [0.0]
    spread = max(values) - min(values) or 1.0
    low, high = min(values) - 0.05 * spread, max(values) + 0.05 * spread
    first, last = curves.span()

    def place(iteration: float, height: float) -> tuple[float, float]:
        x = box[0] + (iteration - first) / (last - first) * (box[2] - box[0])
        return x, box[3] - (height - low) / (high - low) * (box[3] - box[1])

    for tick in _ticks(low, high):
        y = place(first, tick)[1]
        draw.line([(box[0], y), (box[2], y)], fill=(232, 232, 232))
        draw.text((box[0] - 6, y), f"{10**tick if logarithmic else tick:g}", fill=_INK, anchor="rm")
    for tick in _ticks(first, last):
        x = place(tick, low)[0]
        draw.text((x, box[3] + 6), f"{tick:g}", fill=_INK, anchor="ma")
    for losses, colour, width in ((curves.losses, _GREY, 1), (curves.smoothed, _LINE, 2)):
        points = _thin(curves.iterations, losses, box[2] - box[0])
        draw.line([place(x, _height(y, logarithmic)) for x, y in points], fill=colour, width=width, joint="curve")
    draw.rectangle(box, outline=_INK)
    draw.text(
        ((box[0] + box[2]) / 2, _SIZE[1] - 8),
        f"{printable(title, _LONGEST_TITLE)}: loss over iterations",
        fill=_INK,
        anchor="md",
    )
    draw.text((box[2] - 8, box[1] + 8), "loss (grey), smoothed (blue)", fill=_INK, anchor="ra")
    _draw_tests(draw, curves, box, (first, last))
    return image


def _draw_tests(
    draw: ImageDraw.ImageDraw, curves: Curves, box: tuple[int, int, int, int], span: tuple[int, int]
) -> None:
    """Each test result on a scale of its own, from its least to its largest value, which its label tells."""
    for number, (name, points) in enumerate(curves.tests.items()):
        colour = _TEST_COLOURS[number % len(_TEST_COLOURS)]
        values = [value for _, value in points if math.isfinite(value)]
        if not values:
            continue
        low, spread = min(values), max(values) - min(values)
        label = f"{printable(name, _LONGEST_NAME)}: {low:g} to {max(values):g}, last {points[-1][1]:g}"
        draw.text((box[2] - 8, box[1] + 24 + 16 * number), label, fill=colour, anchor="ra")
        for iteration, value in points:
            if math.isfinite(value):
                x = box[0] + (iteration - span[0]) / (span[1] - span[0]) * (box[2] - box[0])
                share = (value - low) / spread if spread else 0.5
                y = box[3] - (0.05 + 0.9 * share) * (box[3] - box[1])
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def _height(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _thin(iterations: Sequence[int], losses: Sequence[float], columns: int) -> Iterator[tuple[float, float]]:
    """The finite points; where there are more than two to a column of pixels, the least and the largest of each."""
    points = [(x, y) for x, y in zip(iterations, losses, strict=True) if math.isfinite(y)]
    size = max(1, len(points) // columns)
    if size <= 2:
        yield from points
        return
    for start in range(0, len(points), size):
        chunk = points[start : start + size]
        yield from sorted({min(chunk, key=lambda point: point[1]), max(chunk, key=lambda point: point[1])})


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]
