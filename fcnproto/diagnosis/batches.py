"""What a few steps are done on: images and masks that are given, else what the net's data layers give, else drawn."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcnproto.diagnosis.samples import Labelling, Sample
from fcnproto.diagnosis.subject import Subject
from fcnproto.errors import DataError, FcnprotoWarning, GraphError
from fcnproto.images import to_blob
from fcnproto.net import Net
from fcnproto.net.examples import draw_inputs
from fcnproto.net.roles import image_inputs, judged_blobs, score_blobs
from fcnproto.net.shapes import assumed_shapes
from fcnproto.preprocessing import preprocessing_of

_MOST = 16


@dataclass
class Batch:
    """Inputs of a net by blob, what they are called, and the sample that they come from."""

    name: str
    values: dict[str, Tensor]
    sample: Sample | None = None
    drawn: bool = False


@dataclass
class Batches:
    """Some batches, taken over and over."""

    items: list[Batch] = field(default_factory=list)

    def turn(self, index: int) -> Batch:
        """The batch of a step."""
        return self.items[index % len(self.items)]


def make_batches(subject: Subject, net: Net, labellings: Sequence[Labelling], given: bool) -> Batches:
    """The batches for `net`, a copy of the subject's, on its device; `given`: the labellings' images were given as
    folders."""
    made = _batches(subject, net, labellings, given)
    for batch in made.items:
        batch.values = {name: value.to(net.device) for name, value in batch.values.items()}
    return made


def _batches(subject: Subject, net: Net, labellings: Sequence[Labelling], given: bool) -> Batches:
    if given and labellings:
        found = list(itertools.islice(_of_samples(net, labellings), _MOST))
        if found:
            return Batches(found)
    return Batches(_own(net) or [_drawn(subject, net)])


def _of_samples(net: Net, labellings: Sequence[Labelling]) -> Iterator[Batch]:
    """The images that can be used, with the labels of all labellings."""
    blob = image_blob(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcnprotoWarning)
        how = preprocessing_of(net, blob)
    by_name = [{sample.name: sample for sample in labelling.samples} for labelling in labellings]
    for sample in labellings[0].samples:
        alike = [samples.get(sample.name) for samples in by_name]
        if sample.pixels is None or any(one is None or one.labels is None or one.faults for one in alike):
            continue
        values = {blob: torch.from_numpy(to_blob(Image.fromarray(sample.pixels), how))[None]}
        for labelling, one in zip(labellings, alike, strict=True):
            if labelling.judged and one is not None and one.labels is not None:
                values[labelling.blob] = torch.from_numpy(one.labels.astype(np.float32))[None, None]
        yield Batch(sample.name, values, sample)


def image_blob(net: Net) -> str:
    """The blob of the net's images, also where they are only made up (DummyData)."""
    judged = judged_blobs(net)
    try:
        return image_inputs(net, list(judged) or score_blobs(net)[:1])[0]
    except GraphError:
        labels = set(judged.values())
        names = (name for name, shape in net.source_shapes.items() if name not in labels and len(shape or ()) == 4)
        name = next(names, None)
        if name is None:
            raise
        return name


def _own(net: Net) -> list[Batch]:
    """What the net's data layers give, as often as there is something; nothing where one can't be read."""
    layers = net.data_layers()
    makers = {node.name for node in net.graph.nodes if node.facts.makes_data}
    if not layers or net.inputs:
        return []
    found: list[Batch] = []
    try:
        for _ in range(1 if all(layer.name in makers for layer in layers) else _MOST):
            values = {name: value for layer in layers for name, value in zip(layer.param.top, layer(), strict=True)}
            origins = [origin for layer in layers if (origin := getattr(layer, "origin", str)())]
            found.append(Batch(", ".join(origins) or f"batch {len(found)}", values))
    except DataError:
        return found
    return found


def _drawn(subject: Subject, net: Net) -> Batch:
    """Random images and labels of the shapes that are known, else of a usual size."""
    shapes = {blob.name: shape for blob, shape in assumed_shapes(subject.sources, net.graph).items()}
    values = draw_inputs(net, shapes)
    return Batch("drawn at random", {name: torch.from_numpy(value) for name, value in values.items()}, drawn=True)
