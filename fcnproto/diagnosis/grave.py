"""The faults that commands say by themselves before they begin: those that are seen quickly, and are certain."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from fcnproto.checking import geometry, losses, rules
from fcnproto.checking.findings import Finding
from fcnproto.data.folder_layer import ImageMaskLayer
from fcnproto.diagnosis.pictures import labelling_rules
from fcnproto.diagnosis.places import located
from fcnproto.diagnosis.samples import own_labellings
from fcnproto.diagnosis.solvers import solver_rules
from fcnproto.diagnosis.sources import source_rules
from fcnproto.diagnosis.subject import Subject, read_subject
from fcnproto.errors import Error
from fcnproto.net import Net
from fcnproto.solver import Solver

_SAID_BY_SOLVERS = ("never-learns", "unfilled", "ungrouped-bilinear", "no-loss", "unaligned-random")
_MOST_MASKS = 40


def grave_findings(given: Net | Solver) -> list[Finding]:
    """The faults of a solver or of a net that is to be tested, but for those that a solver warns of when it begins.

    Random numbers and the places of data layers stay as they are. What can't be examined is left to the work itself.
    """
    found: list[Finding] = []
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        subject = read_subject(given)
        for rule in _rules(subject):
            try:
                found += rule
            except Error:
                continue
    said = _SAID_BY_SOLVERS if isinstance(given, Solver) else ()
    grave = [one for one in found if one.level == "fault" and one.code not in said]
    return located(dict.fromkeys(grave), subject.places, subject.file)


def _rules(subject: Subject) -> Iterator[Iterator[Finding]]:
    net = subject.net
    yield geometry.upsampling_gain(net)
    yield geometry.crop_offset(net, subject.sources)
    yield losses.infogain_size(net, subject.shapes)
    yield source_rules(subject)
    if subject.solver is None:
        yield rules.unfilled(net)
        yield rules.ungrouped_bilinear(net)
    else:
        yield solver_rules(subject)
    if any(isinstance(layer, ImageMaskLayer) for layer in net.data_layers()):
        for labelling in own_labellings(subject, _MOST_MASKS):
            yield labelling_rules(subject, labelling)
