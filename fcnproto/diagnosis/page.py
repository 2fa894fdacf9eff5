"""A check as one HTML file: findings, histograms of classes, the worst images, bars by layer. It needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fcnproto.checking.findings import LEVELS, Finding
from fcnproto.diagnosis.run import Report
from fcnproto.diagnosis.samples import Labelling, Sample, value_counts
from fcnproto.diagnosis.steps import Course
from fcnproto.drawing.page import fill_template
from fcnproto.escaping import markup
from fcnproto.pictures.labels import label_image

_TEMPLATE = Path(__file__).with_name("page.html")
_LONGEST, _MOST_IMAGES, _MOST_CLASSES, _SIDE = 400, 8, 64, 320


def to_html(report: Report) -> str:
    """The page's text. Whatever names and files are called, it stands there as plain text."""
    numbers = [(sum(one.level == level for one in report.findings), level) for level in LEVELS]
    counts = [f"{count} {level}{'' if count == 1 else 's'}" for count, level in numbers]
    return fill_template(
        _TEMPLATE,
        TITLE=markup(report.title, _LONGEST),
        COUNTS=", ".join(counts),
        FINDINGS="\n".join(map(_finding, report.findings)) or "<p>Nothing was found.</p>",
        CLASSES="\n".join(map(_histogram, report.labellings)),
        IMAGES=_images(report),
        COURSE="" if report.course is None else "\n".join(_course(report.course)),
    )


def _finding(finding: Finding) -> str:
    texts = {name: markup(getattr(finding, name), _LONGEST) for name in ("where", "seen", "why", "remedy")}
    return (
        f'<div class="finding {finding.level}"><span class="code">{finding.code}</span>'
        f"<p><b>{finding.level}</b> {texts['where']}</p><p>{texts['seen']}, so {texts['why']}.</p>"
        f'<p class="remedy">{texts["remedy"]}</p></div>'
    )


def _bar(share: float, none: bool = False) -> str:
    width = min(100.0, max(0.0, 100 * share))
    return f'<span class="bar"><i class="{"none" if none else ""}" style="width:{width:.1f}%"></i></span>'


def _histogram(labelling: Labelling) -> str:
    counts = value_counts(labelling.samples)
    labels = sorted({*counts, *range(min(labelling.classes or 0, _MOST_CLASSES))})[: _MOST_CLASSES + 1]
    total = max(sum(counts.values()), 1)
    rows = []
    for label in labels:
        share = counts.get(label, 0) / total
        name = markup(labelling.title(label), _LONGEST)
        rows.append(
            f'<tr><td>{name}</td><td class="number">{share:.3g}</td><td>{_bar(math.sqrt(share), share == 0)}</td></tr>'
        )
    title = f"Classes in {markup(labelling.where, _LONGEST)}: {len(labelling.samples)} images"
    return f'<h2>{title}</h2><table class="classes">{"".join(rows)}</table><p>Bars grow with the root of the share.</p>'


def _images(report: Report) -> str:
    """Images with faults, and those with the largest loss."""
    faulty = [
        (sample, "; ".join(sample.faults.values()))
        for labelling in report.labellings
        for sample in labelling.samples
        if sample.faults
    ]
    shown = [_figure(sample, text) for sample, text in faulty[:_MOST_IMAGES]]
    for batch, loss in report.course.images[:_MOST_IMAGES] if report.course is not None else []:
        shown.append(_figure(batch.sample or Sample(batch.name), f"loss of a label {loss:.3g}"))
    return f"<h2>Worst images</h2>{''.join(shown)}" if shown else ""


def _figure(sample: Sample, text: str) -> str:
    pictures = []
    if sample.pixels is not None:
        pictures.append(Image.fromarray(sample.pixels))
    if sample.labels is not None and sample.labels.min() >= 0 and sample.labels.max() <= 255:
        pictures.append(label_image(sample.labels.astype(np.uint8)))
    images = "".join(f'<img alt="" src="{_address(picture)}">' for picture in pictures)
    return (
        f"<figure>{images}<figcaption>{markup(sample.name, _LONGEST)}: {markup(text, _LONGEST)}</figcaption></figure>"
    )


def _address(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    small.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _course(course: Course) -> Iterator[str]:
    judged = [head for head in course.heads if head.losses]
    yield "<h2>The loss of a label</h2>" if judged else ""
    for head in judged:
        chance = "" if head.chance is None else f" (ln K is {head.chance:.4g})"
        yield f"<p>{markup(head.score, _LONGEST)}: from {head.losses[0]:.4g} to {head.losses[-1]:.4g} in "
        yield f"{len(head.losses)} steps{chance}.</p>"
    if course.overfit is not None:
        done, before, after = course.overfit
        yield f"<p>One batch by heart: from {before:.4g} to {after:.4g} in {done} steps.</p>"
    if not course.rows:
        return
    heads = "".join(
        f'<th class="number">{name}</th><th></th>' for name in ("activation", "gradient", "update / weights")
    )
    yield f'<h2>By layer, in the last step</h2><table class="layers"><tr><th>layer</th>{heads}</tr>'
    scales = [[getattr(row, name) for row in course.rows] for name in ("activation", "gradient", "update")]
    for number, row in enumerate(course.rows):
        cells = "".join(_cell(column[number], column) for column in scales)
        yield f"<tr><td>{markup(row.name, _LONGEST)}</td>{cells}</tr>"
    yield "</table><p>The gradient is that of the layer's top. Bars are logarithmic, within a column.</p>"


def _cell(value: float | None, column: Sequence[float | None]) -> str:
    """A number and its bar among the numbers of its column."""
    if value is None:
        return '<td class="number">none</td><td></td>'
    known = [math.log10(one) for one in column if one and math.isfinite(one)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    share = 1.0 if not math.isfinite(value) else (math.log10(value) - low + 1) / (high - low + 1) if value else 0.0
    return f'<td class="number">{value:.2e}</td><td>{_bar(share, value == 0)}</td>'
