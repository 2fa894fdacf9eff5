"""Rules about where a net's values come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fcnproto.checking.findings import Finding, some
from fcnproto.checking.kinds import found
from fcnproto.diagnosis.samples import labels_of
from fcnproto.diagnosis.subject import Subject
from fcnproto.graph import Node
from fcnproto.net import Net
from fcnproto.preprocessing import similar_records

_RANDOM = ("gaussian", "msra", "positive_unitball", "uniform", "xavier")
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
    records = similar_records(subject.net) if subject.net.params else []
    if records:
        name, begins = records[0].name, ", ".join(records[0].initial_weights) or records[0].name
        seen = f"its layers are those of {name}, which was trained from the weights of {begins}; none are given"
        yield found("no-weights", subject.title, seen)
    elif frozen := list(_drawn_and_frozen(subject.net)):
        seen = "lr_mult is 0, and the weights are the filler's random numbers; none are given"
        yield found("no-weights", frozen, seen)


def _drawn_and_frozen(net: Net) -> Iterator[str]:
    """Layers before all that is learned that keep the random numbers that they begin with."""
    weights = [ref for ref in net.parameter_places() if ref.index == 0]
    learned = [ref.layer for ref in weights if ref.lr_mult != 0]
    for ref in weights:
        layer = net.layers[ref.layer]
        drawn = bool(layer.blob_fillers) and layer.blob_fillers[0].type in _RANDOM
        if drawn and ref.lr_mult == 0 and ref.layer < min(learned, default=0):
            yield layer.name


def class_count(subject: Subject, classes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Score layers with another number of classes than there are names for their label (see `labels_of`)."""
    shapes = {blob.name: shape for blob, shape in subject.shapes.items()}
    for label, scores in labels_of(subject.net).items():
        names = classes.get(label, ())
        for score in scores or (label,):
            shape = shapes.get(score, ())
            if names and len(shape) > 1 and shape[1] != len(names):
                layers = () if (node := _maker(subject.net, score)) is None else (node.name,)
                seen = f"{shape[1]} scores for {len(names)} classes ({some(names)})"
                yield found("old-classes", f"blob {score!r}", seen, layers=layers)


def _maker(net: Net, score: str) -> Node | None:
    """The last layer that says how many channels a blob has: what `num_output` is to be changed of."""
    node = net.graph.blob(score).producer
    while node.bottoms and not node.is_data:
        if node.type in ("Convolution", "InnerProduct") or (
            node.type == "Deconvolution" and node.param.convolution_param.group == 1
        ):
            return node
        node = node.bottoms[0].producer
    return None
