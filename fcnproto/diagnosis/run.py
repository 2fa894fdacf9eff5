"""`check`: all rules over a net or a solver, and `examine`, which also keeps what a page shows."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fcnproto.checking import caffe, geometry, losses, rules
from fcnproto.checking.findings import LEVELS, Finding
from fcnproto.checking.kinds import found as of_kind
from fcnproto.diagnosis.batches import image_blob, make_batches
from fcnproto.diagnosis.pictures import labelling_rules, shared_images
from fcnproto.diagnosis.places import located
from fcnproto.diagnosis.samples import Labelling, labels_of, of_folders, own_labellings, value_counts
from fcnproto.diagnosis.solvers import solver_rules
from fcnproto.diagnosis.sources import source_rules
from fcnproto.diagnosis.steps import OVERFIT_STEPS, Course, memorise, run_steps
from fcnproto.diagnosis.subject import Subject, read_subject
from fcnproto.diagnosis.weights import class_count, weights_rules
from fcnproto.errors import DataError, FcnprotoWarning, GraphError, UsageError
from fcnproto.net import Net
from fcnproto.net.assigning import assign
from fcnproto.preprocessing import read_class_names
from fcnproto.solver import Solver

PathLike = str | os.PathLike[str]


@dataclass
class Report:
    """What was found, the gravest first, and what was examined."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    labellings: list[Labelling] = field(default_factory=list)
    course: Course | None = None

    @property
    def failed(self) -> bool:
        """Whether there is a fault among the findings."""
        return any(finding.level == "fault" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The same in dicts, lists and texts, for JSON."""
        counts = {level: sum(finding.level == level for finding in self.findings) for level in LEVELS}
        return {
            "file": self.title,
            "counts": counts,
            "findings": [asdict(finding) for finding in self.findings],
            "losses": self.course.losses if self.course else [],
            "overfit": self.course.overfit if self.course else None,
            "pixels": {one.blob: value_counts(one.samples) for one in self.labellings},
        }


def check(net: PathLike | Net | Solver, weights: PathLike | Sequence[PathLike] = (), **options: Any) -> list[Finding]:
    """What keeps a net from learning: a list of findings, the gravest first. Arguments as for `examine`."""
    return examine(net, weights, **options).findings


def examine(
    net: PathLike | Net | Solver,
    weights: PathLike | Sequence[PathLike] = (),
    *,
    images: PathLike | None = None,
    masks: PathLike | Mapping[str, PathLike] | None = None,
    classes: PathLike | Sequence[str] | Mapping[str, PathLike | Sequence[str]] | None = None,
    steps: int = 0,
    overfit: bool = False,
    binary_masks: bool = False,
    allow_empty_classes: bool = False,
    for_caffe: bool = False,
    allow_writes: bool = False,
    device: str | torch.device | None = None,
    **reading: Any,
) -> Report:
    """Examine a net's prototxt (as TRAIN), a solver's, a `Net` or a `Solver`. Nothing is written but what
    `allow_writes` lets layers write.

    Args:
        net: a name of the zoo stands for its deploy.prototxt. Without a solver, a net that has no loss counts as one
            for use, whose Input layers the caller fills.
        weights: files, copied in this order; without, the solver's own.
        images, masks: folders of images and of masks of the same names, looked at in place of the net's own data. Of
            nets with several labels a folder for each, by the blob of the label or of its scores; one alone is the
            first one's.
        classes: the names of the classes, or a file with one a line; or several, likewise.
        steps: so many steps are done with the solver (without one with Adam) on a copy of the net, on these images,
            else on the net's own data, else on random numbers.
        overfit: try to learn one batch by heart, in `steps` steps (100 by default).
        binary_masks: masks' values 0 and 255 are the labels 0 and 1.
        allow_empty_classes: classes that no mask holds are meant.
        for_caffe: also what the original Caffe refuses, and where its gradients are others.
        allow_writes: the steps let layers that write files do so.
        device: where the steps are done; None for the net's own device.
        reading: `level`, `stages` (of a net without a solver), `shapes`, `allow_python`, `crop`, `dialect`,
            `strict` and `caffe_proto`, as for `load`.

    Raises what reading the files raises (`PrototxtError`, `GraphError`, `WeightsError`, `DataError`), and `UsageError`
    for images without masks.
    """
    if (images is None) != (masks is None):
        raise UsageError("images and masks go together: give both folders, or neither for the net's own data")
    files = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
    subject = read_subject(net, files, **reading)
    labels = labels_of(subject.net)
    names = {blob: _names(one) for blob, one in assign(classes, "classes", labels, needed=False).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcnprotoWarning)
        found = [*subject.findings, *_of_files(subject, names)]
        if images is not None:
            folders = assign(masks, "masks", labels, needed=False)
            labellings, more = _given(subject, os.fspath(images), folders, names, binary_masks)
        else:
            labellings, more = list(own_labellings(subject)), list(shared_images(subject))
        found += more
        for labelling in labellings:
            found += labelling_rules(subject, labelling, allow_empty_classes)
        if for_caffe:
            found += [*caffe.loads_in_caffe(subject.net), *caffe.other_gradients(subject.net)]
        course = None
        if (steps or overfit) and subject.whole:
            copied = functools.partial(_copied, subject.net, allow_writes, device)
            course, more = _few_steps(subject, copied, labellings, images is not None, steps, overfit)
            found += more
    return Report(subject.title, ordered(located(found, subject.places, subject.file)), labellings, course)


def _few_steps(
    subject: Subject,
    copied: Callable[[], Net],
    labellings: Sequence[Labelling],
    given: bool,
    steps: int,
    overfit: bool,
) -> tuple[Course, list[Finding]]:
    """What a few steps on copies of the net show."""
    try:
        net = copied()
        batches = make_batches(subject, net, labellings, given)
        course, found = run_steps(subject, net, batches, steps)
        if overfit:
            del net
            course.overfit, more = memorise(copied(), batches, steps or OVERFIT_STEPS)
            found = [*found, *more]
    except (GraphError, DataError) as error:
        return Course(), [of_kind("unreadable", subject.title, str(error))]
    return course, found


def _given(
    subject: Subject, images: str, folders: Mapping[str, Any], names: Mapping[str, Sequence[str]], binary: bool
) -> tuple[list[Labelling], list[Finding]]:
    """The labellings of the images of a folder by the masks for each label, and what is wrong with the folders."""
    labellings: list[Labelling] = []
    findings: list[Finding] = []
    for blob, folder in folders.items():
        labelling, more = of_folders(subject, blob, images, os.fspath(folder), names.get(blob, ()), binary)
        labelling.again = bool(labellings)
        labellings.append(labelling)
        findings += more
    return labellings, [*findings, *geometry.padding(subject.net, _sizes(subject, labellings))]


def _names(classes: PathLike | Sequence[str]) -> Sequence[str]:
    return read_class_names(classes) if isinstance(classes, (str, os.PathLike)) else list(classes)


def _sizes(subject: Subject, labellings: Sequence[Labelling]) -> dict[str, tuple[int, int]]:
    """(height, width) of the smallest of the images that were given, for the net's image blob."""
    shapes = [one.pixels.shape[:2] for each in labellings for one in each.samples if one.pixels is not None]
    return {image_blob(subject.net): min(shapes, key=min)} if shapes else {}


def _copied(net: Net, allow_writes: bool, device: str | torch.device | None) -> Net:
    """A copy on that device, whose layers write files only where they are allowed to."""
    twin = copy.deepcopy(net).to(device)
    for layer in twin.layers:
        layer.allow_writes = allow_writes and layer.allow_writes
    return twin


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Without repetitions, the gravest first."""
    return sorted(dict.fromkeys(findings), key=lambda finding: LEVELS.index(finding.level))


def _of_files(subject: Subject, classes: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """What the files alone show."""
    net = subject.net
    if not subject.is_deploy and subject.whole:
        yield from rules.before_training(net)
    else:
        yield from rules.ungrouped_bilinear(net)
    yield from geometry.upsampling_gain(net)
    yield from geometry.crop_offset(net, subject.sources)
    yield from geometry.padding(net, subject.image_sizes())
    yield from geometry.score_stride(net, subject.shapes)
    yield from losses.loss_weight_forgotten(net)
    yield from losses.loss_scales(net, subject.shapes)
    yield from losses.infogain_size(net, subject.shapes)
    yield from weights_rules(subject)
    yield from class_count(subject, classes)
    yield from source_rules(subject)
    yield from solver_rules(subject)
