"""How far a layer departs by itself: run on the reference's values, so that what came before has no part in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcnproto.errors import GraphError
from fcnproto.graph import Blob
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


def own_deviation(net: Net, reference: Recording, name: str) -> float | None:
    """The deviation of one blob when the layers that make it are run on the reference's values of what they read."""
    layers = dict(zip(net.graph.nodes, net.layers, strict=True))
    known = {**reference.blobs, **reference.inputs}

    def value(blob: Blob) -> Tensor | None:
        """A blob version from the reference, or made from such: in-place layers leave no trace of what they read."""
        while blob.producer.type == "Split":
            blob = blob.producer.bottoms[0]
        if net.graph.blobs.get(blob.name) is blob and blob.name in known and blob.name != name:
            return to_tensor(net, known[blob.name])
        node = blob.producer
        if node.is_data:
            return to_tensor(net, known[blob.name]) if blob.name in known else None
        if blob.name != name and net.graph.blobs.get(blob.name) is blob:
            return None
        bottoms = [value(bottom) for bottom in node.bottoms]
        if any(bottom is None for bottom in bottoms):
            return None
        result = layers[node](*bottoms)
        made: Tensor = result[blob.top] if isinstance(result, (tuple, list)) else result
        return made

    with torch.no_grad():
        try:
            made = value(net.graph.blobs[name])
        except (GraphError, RuntimeError):  # the reference's shapes don't suit our layer
            return None
    if made is None or tuple(made.shape) != reference.blobs[name].shape:
        return None
    return measure(made.detach().cpu().numpy(), reference.blobs[name]).max_rel
