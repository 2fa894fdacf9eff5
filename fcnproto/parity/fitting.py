"""A recording and a net brought together: what data layers gave becomes inputs, and contradictions are named.

The comparison itself is in `comparison.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from fcnproto.errors import DataError
from fcnproto.net import Net
from fcnproto.parity.recording import Recording

Array = npt.NDArray[Any]


def fitted(net: Net, reference: Recording) -> Recording:
    """The recording with the recorded tops of data layers among its inputs, as a Caffe with a data base writes them.

    DataError where it names inputs that the net lacks, or arrays whose shapes contradict each other.
    """
    sources = _data_tops(net)
    _refuse(reference, reference.inputs, sources, "is no input")
    adopted = {
        name: value for name, value in reference.blobs.items() if name in sources and name not in reference.inputs
    }
    result = replace(reference, inputs={**adopted, **reference.inputs})
    _refuse(reference, reference.output_gradients, net.graph.blobs, "is no blob", "gout.")
    for name, value in reference.input_gradients.items():
        given = result.inputs.get(name)
        if given is not None and given.shape != value.shape:
            raise DataError(
                f"{reference.source}: gin.{name} has shape {value.shape}, in.{name} {given.shape}: they must be alike"
            )
    for name, value in reference.output_gradients.items():
        blob = reference.blobs.get(name)
        if blob is not None and blob.shape != value.shape:
            raise DataError(
                f"{reference.source}: gout.{name} has shape {value.shape}, out.{name} {blob.shape}: they must be alike"
            )
    return result


def strangers(net: Net, reference: Recording) -> list[str]:
    """The keys of gradients and parameters that belong to no layer or input of the net."""
    layers = {layer.name for layer in net.layers}
    keys = [f"gin.{name}" for name in reference.input_gradients if name not in _data_tops(net)]
    for prefix, table in (("param", reference.params), ("gparam", reference.param_gradients)):
        keys += [f"{prefix}.{key}" for key in table if key.rpartition(".")[0] not in layers]
    return keys


def missing(net: Net, reference: Recording) -> str:
    """The inputs that the net's layers want and the recording lacks, as its keys would be."""
    names = [name for name in net.source_shapes if name not in reference.inputs]
    return ", ".join(f"in.{name}" for name in names)


def data_readings(net: Net, reference: Recording) -> dict[str, Array]:
    """What the net's data layers give by themselves at the first call, for recorded tops that were no inputs."""
    found: dict[str, Array] = {}
    for node, layer in zip(net.graph.nodes, net.layers, strict=True):
        names = [blob.name for blob in node.tops]
        if node.is_data and node.type != "Input" and any(name in reference.blobs for name in names):
            tops = copy.deepcopy(layer)()  # of a copy, so that the layer's own position stays
            found.update((name, top.numpy()) for name, top in zip(names, tops, strict=True) if name in reference.blobs)
    return found


def _data_tops(net: Net) -> set[str]:
    return {blob.name for node in net.graph.nodes if node.is_data for blob in node.tops}


def _refuse(reference: Recording, names: Iterable[str], known: Iterable[str], what: str, prefix: str = "") -> None:
    listed = set(known)
    for name in names:
        if name not in listed:
            some = ", ".join(map(repr, sorted(listed)[:8])) or "none"
            raise DataError(f"{reference.source}: {prefix + name!r} {what} of the net; they are {some}")
