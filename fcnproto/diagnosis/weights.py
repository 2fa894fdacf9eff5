"""Rules about where a net's values come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fcnproto.checking.findings import Finding, some
from fcnproto.checking.kinds import found
from fcnproto.diagnosis.subject import Subject
from fcnproto.errors import GraphError
from fcnproto.net.roles import judged_blobs, score_blobs
from fcnproto.preprocessing import similar_record

_FEW = 0.5
"""Share of a net's parameters: weights that fill less were made for another net."""


def weights_rules(subject: Subject) -> Iterator[Finding]:
    """What is wrong with the weights, or with having none."""
    if subject.reports:
        yield from _few(subject)
    elif not subject.has_weights:
        yield from _none(subject)


def _few(subject: Subject) -> Iterator[Finding]:
    copied = {name for _, report in subject.reports for name in report.copied}
    sizes = {name: sum(blob.numel() for blob in blobs) for name, blobs in subject.net.params.items()}
    total, filled = sum(sizes.values()), sum(size for name, size in sizes.items() if name in copied)
    if total and filled < _FEW * total:
        missing = [name for name in sizes if name not in copied]
        files = ", ".join(file for file, _ in subject.reports)
        yield found(
            "few-weights",
            files,
            f"{len(copied)} of {len(sizes)} layers and {filled / total:.2g} of the parameters get values; "
            f"{some(missing)} get none",
        )


def _none(subject: Subject) -> Iterator[Finding]:
    record = similar_record(subject.net)
    if record is None or not subject.net.params:
        return
    begins = ", ".join(record.initial_weights) or record.name
    yield found(
        "no-weights",
        subject.title,
        f"its layers are those of {record.name}, which was trained from the weights of {begins}; none are given",
    )


def class_count(subject: Subject, classes: Sequence[str] | None) -> Iterator[Finding]:
    """Score layers with another number of classes than there are names."""
    if not classes:
        return
    try:
        blobs = list(judged_blobs(subject.net)) or score_blobs(subject.net)[:1]
    except GraphError:
        return
    shapes = {blob.name: shape for blob, shape in subject.shapes.items()}
    for name in blobs:
        shape = shapes.get(name)
        if len(blobs) == 1 and shape is not None and len(shape) > 1 and shape[1] != len(classes):
            yield found(
                "old-classes", f"blob {name!r}", f"{shape[1]} scores for {len(classes)} classes ({some(classes)})"
            )
