"""A laid-out diagram as an SVG document, or as a picture of pixels. Colours stand for kinds of layers, or for what the
caller wants to show of each layer."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from fcnproto.drawing.diagram import Box, Diagram
from fcnproto.drawing.layout import FONT_SIZE, LINE_HEIGHT, MARGIN, Layout, Point
from fcnproto.escaping import attribute_json, markup

COLOURS = {
    "convolution": "#cfe2f7",
    "deconvolution": "#d9cff5",
    "linear": "#c6e6ea",
    "pooling": "#f7ddc4",
    "activation": "#f8f3c4",
    "normalisation": "#dcefd0",
    "arithmetic": "#f5d3e3",
    "shaping": "#e6e6e6",
    "data": "#ffffff",
    "loss": "#f6c9c3",
    "other": "#eeeeee",
}
_LONGEST_TITLE = 200
_INK, _LINE, _LABEL = "#22303c", "#667788", "#556677"


_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0L8 4L0 8z" fill="{_LINE}"/></marker></defs>'
)


def fill_of(box: Box, colours: Mapping[str, str] | None) -> str:
    """A box's colour: its kind's, or that of the first of its layers that has one in `colours`."""
    if colours is not None:
        return next((colours[layer] for layer in box.layers if layer in colours), "#f4f4f4")
    return COLOURS[box.kind]


def to_svg(diagram: Diagram, layout: Layout, colours: Mapping[str, str] | None = None) -> str:
    """The SVG text. Each box is a group of class "box" with its layers' names (JSON) in `data-layers`."""
    parts = [
        _start(layout),
        f"<title>{markup(diagram.name, _LONGEST_TITLE)}</title>",
        _TIP,
    ]
    for arrow, path, (x, y) in zip(diagram.arrows, layout.paths, layout.labels, strict=True):
        curve = " ".join(f"{px:.1f},{py:.1f}" for px, py in path[1:])
        parts.append(
            f'<g class="arrow"><title>{markup(arrow.blob, _LONGEST_TITLE)}</title>'
            f'<path d="M{path[0][0]:.1f},{path[0][1]:.1f} C{curve}" '
            f'fill="none" stroke="{_LINE}" marker-end="url(#tip)"/>'
            f'<text x="{x + 4:.1f}" y="{y + 3:.1f}" font-size="10" fill="{_LABEL}" stroke="#ffffff" stroke-width="3" '
            f'paint-order="stroke">{markup(arrow.label)}</text></g>'
        )
    for box, (x, y, width, height) in zip(diagram.boxes, layout.boxes, strict=True):
        parts.append(f'<g class="box" data-layers="{attribute_json(box.layers)}">')
        if box.count > 1:
            parts.append(_rectangle(x + 4, y + 4, width, height, fill_of(box, colours)))
        parts.append(_rectangle(x, y, width, height, fill_of(box, colours)))
        for number, line in enumerate(box.lines):
            weight = ' font-weight="bold"' if number == 0 else ""
            parts.append(
                f'<text x="{x + width / 2:.1f}" y="{y + MARGIN / 2 + (number + 0.75) * LINE_HEIGHT:.1f}" '
                f'text-anchor="middle" fill="{_INK}"{weight}>{markup(line)}</text>'
            )
        if box.count > 1:
            parts.append(
                f'<text x="{x + width - 4:.1f}" y="{y + 12:.1f}" text-anchor="end" font-size="10" fill="#b03020">'
                f"×{box.count}</text>"
            )
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _start(layout: Layout) -> str:
    width, height = f"{layout.width:.0f}", f"{layout.height:.0f}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="{FONT_SIZE - 1}">'
    )


def _rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5" fill="{fill}" '
        f'stroke="{_LINE}"/>'
    )


def to_image(
    diagram: Diagram, layout: Layout, colours: Mapping[str, str] | None = None, scale: float = 1.5
) -> Image.Image:
    """The same as a picture, `scale` pixels to a unit of the layout."""
    size = max(1, round(layout.width * scale)), max(1, round(layout.height * scale))
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)

    def plain(text: str) -> str:
        """Pillow's own font lacks some signs."""
        return text.replace("×", "x").replace("…", "...").replace("·", "-")

    font, small = ImageFont.load_default((FONT_SIZE - 1) * scale), ImageFont.load_default(10 * scale)
    for arrow, path, (x, y) in zip(diagram.arrows, layout.paths, layout.labels, strict=True):
        points = [(px * scale, py * scale) for px, py in curve_points(path)]
        draw.line(points, fill=_LINE, width=max(1, round(scale)), joint="curve")
        _draw_tip(draw, points, 6 * scale)
        # The white edge keeps the text clear of arrows.
        draw.text(
            ((x + 4) * scale, y * scale),
            plain(arrow.label),
            fill=_LABEL,
            font=small,
            anchor="lm",
            stroke_width=max(1, round(1.5 * scale)),
            stroke_fill="white",
        )
    for box, (x, y, width, height) in zip(diagram.boxes, layout.boxes, strict=True):
        for shift in (4, 0) if box.count > 1 else (0,):
            corners = [
                (x + shift) * scale,
                (y + shift) * scale,
                (x + width + shift) * scale,
                (y + height + shift) * scale,
            ]
            draw.rounded_rectangle(corners, 5 * scale, fill=fill_of(box, colours), outline=_LINE)
        for number, line in enumerate(box.lines):
            place = (x + width / 2) * scale, (y + MARGIN / 2 + (number + 0.5) * LINE_HEIGHT) * scale
            for shift in (0, 1) if number == 0 else (0,):  # bold: Pillow's own font has no such face
                draw.text((place[0] + shift, place[1]), plain(line), fill=_INK, font=font, anchor="mm")
        if box.count > 1:
            draw.text(
                ((x + width - 4) * scale, (y + 8) * scale), f"x{box.count}", fill="#b03020", font=small, anchor="rm"
            )
    return image


def _draw_tip(draw: ImageDraw.ImageDraw, points: list[Point], size: float) -> None:
    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
    dx, dy = (x1 - x0) / length * size, (y1 - y0) / length * size
    draw.polygon([(x1, y1), (x1 - dx - dy / 2, y1 - dy + dx / 2), (x1 - dx + dy / 2, y1 - dy - dx / 2)], fill=_LINE)


def curve_points(path: list[Point], steps: int = 12) -> list[Point]:
    """Points along a path of cubic Bézier curves."""
    points = [path[0]]
    for k in range(0, len(path) - 3, 3):
        p = path[k : k + 4]
        for step in range(1, steps + 1):
            t = step / steps
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            points.append(
                (
                    a * p[0][0] + b * p[1][0] + c * p[2][0] + d * p[3][0],
                    a * p[0][1] + b * p[1][1] + c * p[2][1] + d * p[3][1],
                )
            )
    return points
