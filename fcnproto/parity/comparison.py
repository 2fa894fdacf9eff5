"""Runs a net on what a reference was given and compares everything the reference recorded, in the order of layers.

Where the first departure lies, the layers that
make that blob are run once more on the reference's own values, which tells a layer at fault from one that hands on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.errors import DataError, Error, FcnprotoWarning, GraphError
from fcnproto.graph import Node
from fcnproto.inspect.running import run_with
from fcnproto.net import Net, Outputs
from fcnproto.net.plan import runnable
from fcnproto.parity.diagnosis import VAGUE, describe
from fcnproto.parity.fitting import data_readings, fitted, missing, strangers
from fcnproto.parity.measures import measure
from fcnproto.parity.own_layer import own_deviation, to_tensor
from fcnproto.parity.recording import Recording
from fcnproto.parity.report import Departure, Entry, Kind, Report
from fcnproto.parity.rounding import judge
from fcnproto.parity.ties import near_ties

Array = npt.NDArray[Any]


def compare(net: Net, reference: Recording, *, tolerance: float = 1e-5, gradient_tolerance: float = 1e-4) -> Report:
    """Run `net` on the reference's inputs and compare all that the reference holds; the net's weights stay as they are.

    Where the reference has gradients a backward pass is run too, from the net's loss and the recorded gradients at its
    outputs. The parameters' `grad` is then overwritten.

    Raises:
        DataError: an input that the net lacks or can't be run on, or nothing in common to compare.
    """
    _warn_of_chance(net)
    reference = fitted(net, reference)
    names = _comparable(net, reference)
    comparer = _Comparer(net, reference, tolerance, gradient_tolerance)
    params = list(comparer.params())  # before a forward pass changes statistics
    entries = [entry for entry in params if not entry.agrees]
    inputs = {name: to_tensor(net, value) for name, value in reference.inputs.items()}
    if reference.has_gradients:
        inputs = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in inputs.items()}
    outputs: Mapping[str, Tensor] = {}
    with torch.set_grad_enabled(reference.has_gradients), comparer.thawed():
        if names or reference.has_gradients:
            outputs = _run(net, reference, inputs, names)
            entries += comparer.blobs(outputs, names)
        else:
            entries += comparer.data(data_readings(net, reference))
        if reference.has_gradients:
            _run_backward(net, reference, outputs)
            entries += comparer.gradients(inputs)
    if not any(entry.kind != "parameter" for entry in entries):
        raise DataError(f"{reference.source}: has no blob in common with {net.graph.title}; is it another net's?")
    unknown = [name for name in reference.blobs if name not in {*names, *reference.inputs, *_copies(net)}]
    report = Report(
        net=net.graph.name,
        reference=reference.source,
        entries=entries,
        not_compared=[name for name in ordered_blobs(net) if name not in reference.blobs],
        unknown=[*unknown, *strangers(net, reference)],
        equal_parameters=sum(entry.agrees for entry in params),
        maps=_label_maps(comparer.score_names, outputs, reference),
    )
    first = next((entry for entry in entries if not entry.agrees), None)
    if first is not None:
        report.departure = _departure(net, reference, first, outputs, inputs, entries)
    return report


def _run(net: Net, reference: Recording, inputs: dict[str, Tensor], names: list[str]) -> Mapping[str, Tensor]:
    try:
        return run_with(net, inputs, names)
    except Error as error:
        lacking = missing(net, reference)
        hint = f" (it has no {lacking})" if lacking else ""
        raise DataError(f"{reference.source}: the net can't be run on its inputs{hint}: {error}") from error


def _run_backward(net: Net, reference: Recording, outputs: Mapping[str, Tensor]) -> None:
    seeds = {name: to_tensor(net, seed) for name, seed in reference.output_gradients.items()}
    for name, seed in seeds.items():
        if name in outputs and outputs[name].shape != seed.shape:
            raise DataError(
                f"{reference.source}: gout.{name} has shape {tuple(seed.shape)}, the net's blob "
                f"{tuple(outputs[name].shape)}"
            )
    started = backward(net, outputs, seeds)
    some = any(
        value.any() for table in (reference.param_gradients, reference.input_gradients) for value in table.values()
    )
    if some and not started:
        lacking = missing(net, reference)
        raise DataError(
            f"{reference.source}: has gradients but nothing that they start from: "
            + (f"give {lacking} for the loss, or " if lacking else "give ")
            + "gout.<blob>, the gradient put in at an output"
        )


def backward(net: Net, outputs: Mapping[str, Tensor], seeds: Mapping[str, Tensor]) -> bool:
    """One backward pass: from the net's loss, and from the gradients given at outputs. `grad` is cleared first.

    False where there is neither, so that nothing gets a gradient.
    """
    net.zero_grad()
    has_loss = any(blob.name in outputs for blob, _ in net.graph.weighted())
    if isinstance(outputs, Outputs):
        has_loss = has_loss or bool(outputs.weighted)
    total = net.loss(outputs) if has_loss else torch.zeros((), device=net.device)
    for name, seed in seeds.items():
        if name in outputs and outputs[name].requires_grad:
            total = total + (outputs[name] * seed.reshape(outputs[name].shape)).sum()
    if total.requires_grad:
        total.backward()
    return total.requires_grad


def _warn_of_chance(net: Net) -> None:
    drawn = [layer.name for layer in net.layers if layer.draws_numbers()]
    if drawn:
        warnings.warn(
            f"{', '.join(drawn)} draw(s) random numbers in the TRAIN phase: what follows can't agree with a reference; "
            "compare in the TEST phase",
            FcnprotoWarning,
            stacklevel=3,
        )


def _comparable(net: Net, reference: Recording) -> list[str]:
    """The reference's blobs that the net can compute, in the order of layers."""
    idle = [node for node in net.graph.nodes if node.is_data and not _given(node, reference)]
    made = [blob.name for node in idle if node.type in ("DummyData", "Parameter") for blob in node.tops]
    known_blobs = runnable(net.graph, [*reference.inputs, *made])
    return [name for name in ordered_blobs(net) if name in reference.blobs and known_blobs[net.graph.blobs[name]]]


def _given(node: Node, reference: Recording) -> bool:
    return any(blob.name in reference.inputs for blob in node.tops)


def ordered_blobs(net: Net) -> list[str]:
    """The blobs' names in the order of the layers that write them last, inputs and automatic Split tops left out."""
    found = []
    for node in net.graph.nodes:
        for blob in node.tops:
            if not node.is_data and not node.automatic and net.graph.blobs.get(blob.name) is blob:
                found.append(blob.name)
    return found


def _copies(net: Net) -> set[str]:
    """The tops of automatic Splits: a Caffe that is asked for its blobs gives them, too."""
    return {blob.name for node in net.graph.nodes if node.automatic for blob in node.tops}


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


class _Comparer:
    """Makes the entries of a report."""

    def __init__(self, net: Net, reference: Recording, tolerance: float, gradient_tolerance: float) -> None:
        self.net, self.reference = net, reference
        self.tolerance, self.gradient_tolerance = tolerance, gradient_tolerance
        self.places = {layer.name: index for index, layer in reversed(list(enumerate(net.layers)))}
        self.score_names = _scores(net)

    def params(self) -> Iterator[Entry]:
        """The parameters that the reference recorded."""
        for key, value in self._by_layer(self.reference.params):
            yield self._param_entry("parameter", key, self._param(key), value, 0.0)

    def blobs(self, outputs: Mapping[str, Tensor], names: list[str]) -> Iterator[Entry]:
        """The blobs, in the order of `names`; up to the first departure those beyond the tolerance are judged."""
        departed = False
        for name in names:
            node = self.net.graph.blobs[name].producer
            ours, theirs = _array(outputs[name]), self.reference.blobs[name]
            entry = self._entry("blob", node.name, name, ours, theirs, self.tolerance, name in self.score_names)
            if not entry.agrees and entry.measures is not None and not departed:
                entry = replace(entry, judgement=judge(self.net, self.reference, name, ours, self.tolerance))
            departed = departed or not entry.agrees
            yield entry

    def data(self, readings: Mapping[str, Array]) -> Iterator[Entry]:
        """What data layers gave, where nothing else is recorded."""
        for name, ours in readings.items():
            layer = self.net.graph.blobs[name].producer.name
            yield self._entry("blob", layer, name, ours, self.reference.blobs[name], self.tolerance)

    def gradients(self, inputs: Mapping[str, Tensor]) -> Iterator[Entry]:
        """The parameters' gradients from the last layer to the first, then those of the inputs."""
        for key, value in reversed(self._by_layer(self.reference.param_gradients)):
            param = self._param(key)
            ours = torch.zeros_like(param) if param.grad is None else param.grad
            yield self._param_entry("parameter gradient", key, ours, value, self.gradient_tolerance)
        for name, value in self.reference.input_gradients.items():
            if name in inputs:
                gradient = inputs[name].grad
                ours_array = np.zeros(inputs[name].shape) if gradient is None else _array(gradient)
                layer = self.net.graph.blob(name).producer.name
                yield self._entry("input gradient", layer, name, ours_array, value, self.gradient_tolerance)

    @contextmanager
    def thawed(self) -> Iterator[None]:
        """Have gradients computed of frozen parameters (lr_mult 0), too, where the reference has computed them."""
        table = self._by_layer(self.reference.param_gradients)
        frozen = [self._param(key) for key, value in table if value.any()]
        frozen = [param for param in frozen if isinstance(param, torch.nn.Parameter) and not param.requires_grad]
        try:
            for param in frozen:
                param.requires_grad_(True)
            yield
        finally:
            for param in frozen:
                param.requires_grad_(False)

    def _by_layer(self, table: Mapping[str, Array]) -> list[tuple[str, Array]]:
        known = [item for item in table.items() if item[0].rpartition(".")[0] in self.places]
        return sorted(known, key=lambda item: (self.places[item[0].rpartition(".")[0]], item[0]))

    def _param(self, key: str) -> Tensor:
        layer, _, index = key.rpartition(".")
        blobs = self.net.params.get(layer, [])
        if not index.isdecimal() or int(index) >= len(blobs):
            raise DataError(f"{self.reference.source}: {key!r}: layer {layer!r} has {len(blobs)} parameter blobs")
        return blobs[int(index)]

    def _param_entry(self, kind: Kind, key: str, ours: Tensor, theirs: Array, tolerance: float) -> Entry:
        array = _array(ours)
        if array.size == theirs.size:  # legacy shapes have ones on the left
            array = array.reshape(theirs.shape)
        layer = key.rpartition(".")[0]
        entry = self._entry(kind, layer, key, array, theirs, tolerance)
        if kind != "parameter gradient":
            return entry
        gradients = [v for k, v in self.reference.param_gradients.items() if k.rpartition(".")[0] == layer]
        largest = max(float(np.abs(value).max(initial=0.0)) for value in gradients)
        return replace(entry, rounding=0.1 * tolerance * largest)

    def _entry(
        self, kind: Kind, layer: str, name: str, ours: Array, theirs: Array, tolerance: float, scores: bool = False
    ) -> Entry:
        same_shape = ours.shape == theirs.shape
        return Entry(
            kind=kind,
            layer=layer,
            type=self.net.layers[self.places[layer]].type,
            name=name,
            shape=ours.shape,
            reference_shape=theirs.shape,
            tolerance=tolerance,
            measures=measure(ours, theirs, scores=scores) if same_shape else None,
        )


def _scores(net: Net) -> set[str]:
    from fcnproto.net.roles import score_blobs

    try:
        return set(score_blobs(net))
    except GraphError:
        return set()


def _label_maps(names: set[str], outputs: Mapping[str, Tensor], reference: Recording) -> dict[str, tuple[Array, Array]]:
    """The argmax over the channels of the first item of each score blob with height and width, ours and theirs."""
    maps = {}
    for name in sorted(names):
        if name in outputs and name in reference.blobs:
            ours, theirs = _array(outputs[name]), reference.blobs[name]
            if ours.shape == theirs.shape and ours.ndim == 4 and 2 <= ours.shape[1] <= 256 and min(ours.shape[2:]) > 1:
                maps[name] = (ours[0].argmax(0), theirs[0].argmax(0))
    return maps


def _departure(
    net: Net,
    reference: Recording,
    entry: Entry,
    outputs: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    entries: Sequence[Entry],
) -> Departure:
    if entry.kind == "blob":
        theirs = reference.blobs[entry.name]
        if entry.name not in outputs:  # what a data layer gave by itself
            return Departure(entry, describe(data_readings(net, reference)[entry.name], theirs, entry.type))
        ours = _array(outputs[entry.name])
        return Departure(entry, describe(ours, theirs, entry.type), own_deviation(net, reference, entry.name))
    if entry.kind == "parameter":
        return Departure(entry, "the weights differ from those of the reference: compare with the same weight file")
    if entry.measures is None:
        shapes = " instead of ".join("x".join(map(str, shape)) for shape in (entry.shape, entry.reference_shape))
        return Departure(entry, f"shape {shapes}: the layer has other settings there, or it is another net's recording")
    if entry.kind == "input gradient":
        gradient, theirs = inputs[entry.name].grad, reference.input_gradients[entry.name]
    else:
        layer, _, index = entry.name.rpartition(".")
        gradient, theirs = net.params[layer][int(index)].grad, reference.param_gradients[entry.name]
    ours = np.zeros(theirs.shape) if gradient is None else _array(gradient).reshape(theirs.shape)
    found = describe(ours, theirs)
    blobs = [other.deviation for other in entries if other.kind == "blob"]
    if blobs and found.startswith(VAGUE) and all(other.agrees for other in entries if other.kind == "blob"):
        ties = near_ties(net, {name: value.detach() for name, value in inputs.items()}, list(outputs), max(blobs))
        found = _of_the_backward_pass(ties, found)
    return Departure(entry, found)


def _of_the_backward_pass(ties: str, found: str) -> str:
    """What is said of gradients that depart in no known way where every blob agrees."""
    if ties:
        return (
            f"the blobs agree, but {ties}: there the last digits decide which value the gradient goes to, so gradients "
            "may differ without a fault (--reference float64 shows which side is nearer)"
        )
    return f"the blobs agree, the gradients alone depart: {found.partition(': lower precision')[0]}"
