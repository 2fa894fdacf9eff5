"""How far a layer departs by itself: run on the reference's values, so that what came before has no part in it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.errors import GraphError
from fcnproto.graph import Blob
from fcnproto.layers.base import Layer
from fcnproto.net import Net
from fcnproto.parity.measures import measure
from fcnproto.parity.recording import Recording

Array = npt.NDArray[Any]


def to_tensor(net: Net, value: Array) -> Tensor:
    """A recorded array as a tensor of the net's type and device."""
    kept = value if value.dtype.kind == "f" else value.astype(np.float32)
    return torch.from_numpy(np.array(kept, dtype=np.float64 if net.dtype == torch.float64 else np.float32)).to(
        net.device
    )


@dataclass(frozen=True)
class Rerun:
    """One layer run by itself on what the reference recorded of its bottoms."""

    layer: Layer
    """The layer, in double precision where that was asked for."""
    bottoms: tuple[Tensor, ...]
    value: Tensor
    """The top that was asked for."""


def own_deviation(net: Net, reference: Recording, name: str) -> float | None:
    """The deviation of one blob when the layers that make it are run on the reference's values of what they read."""
    made = rerun(net, reference, name)
    return None if made is None else measure(made.value.cpu().numpy(), reference.blobs[name]).max_rel


def rerun(net: Net, reference: Recording, name: str, dtype: torch.dtype | None = None) -> Rerun | None:
    """The layer that makes a blob, run on the reference's values of what it reads, in `dtype` (the net's own).

    None where the reference hasn't got these, or values of another shape come out.
    """
    layers = dict(zip(net.graph.nodes, net.layers, strict=True))
    known = {**reference.blobs, **reference.inputs}

    def recorded(blob: Blob) -> Tensor:
        return to_tensor(net, known[blob.name]).to(dtype or net.dtype)

    def value(blob: Blob) -> Tensor | None:
        """A blob version from the reference, or made from such: in-place layers leave no trace of what they read."""
        while blob.producer.type == "Split":
            blob = blob.producer.bottoms[0]
        if net.graph.blobs.get(blob.name) is blob and blob.name in known and blob.name != name:
            return recorded(blob)
        if blob.producer.is_data:
            return recorded(blob) if blob.name in known else None
        if blob.name != name and net.graph.blobs.get(blob.name) is blob:
            return None
        made = run(blob)
        return None if made is None else made.value

    def run(blob: Blob) -> Rerun | None:
        bottoms = [value(bottom) for bottom in blob.producer.bottoms]
        if any(bottom is None for bottom in bottoms):
            return None
        layer = layers[blob.producer]
        if dtype is not None:
            layer = copy.deepcopy(layer).to(dtype)
        given = tuple(bottom for bottom in bottoms if bottom is not None)
        result = layer(*given)
        return Rerun(layer, given, (result[blob.top] if isinstance(result, (tuple, list)) else result).detach())

    blob = net.graph.blobs[name]
    while blob.producer.type == "Split":
        blob = blob.producer.bottoms[0]
    with torch.no_grad():
        try:
            made = None if blob.producer.is_data else run(blob)
        except (GraphError, RuntimeError):  # the reference's shapes don't suit our layer
            return None
    return made if made is not None and tuple(made.value.shape) == reference.blobs[name].shape else None
