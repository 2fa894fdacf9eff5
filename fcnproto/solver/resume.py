"""What a solver state of Caffe's lacks to go on exactly as if nothing had happened, as a small JSON file beside it.

Random states, data positions, states of recurrent layers and the window of the displayed loss, for every worker. Caffe
ignores the file; without it (or where it doesn't fit) a restored run starts these afresh, as Caffe does. The checksums
of model and state are in it, too: a file that has changed since is not trained on without a word.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.atomic import atomic_write
from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.layers.source import python_random_state, set_python_random_state
from fcnproto.net import Net

VERSION = 1
SUFFIX = ".resume.json"


def _pack(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(packed: dict[str, Any]) -> Tensor:
    values = np.frombuffer(base64.b64decode(packed["data"]), np.dtype(packed["dtype"]))
    return torch.from_numpy(values.reshape(packed["shape"]).copy())


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's global generators."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    states: dict[str, Any] = {
        "torch": _pack(torch.get_rng_state()),
        "numpy": [name, _pack(torch.from_numpy(np.asarray(keys, np.int64))), int(place), int(has_gauss), float(gauss)],
        "python": python_random_state(random),  # type: ignore[arg-type]
    }
    if device.type == "cuda":
        states["cuda"] = _pack(torch.cuda.get_rng_state(device))
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set what `random_states` gave."""
    torch.set_rng_state(_unpack(states["torch"]))
    name, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, _unpack(keys).numpy().astype(np.uint32), place, has_gauss, gauss))
    set_python_random_state(random, states["python"])  # type: ignore[arg-type]
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_unpack(states["cuda"]), device)


def net_state(net: Net) -> dict[str, Any]:
    """Where a net stands beyond its weights: the data layers' positions, and buffers that no file of weights keeps."""
    buffers = {}
    for layer in net.layers:
        for name in sorted(layer._non_persistent_buffers_set):
            value = getattr(layer, name)
            if value is not None:
                buffers[f"{layer.name}:{name}"] = _pack(value)
    positions = [[layer.name, layer.get_position()] for layer in _positioned(net)]
    return {"positions": positions, "buffers": buffers}


def _positioned(net: Net) -> list[Any]:
    """The layers that read or write files as they go."""
    return [layer for layer in net.layers if hasattr(layer, "get_position") and layer.type != "Input"]


def set_net_state(net: Net, state: dict[str, Any]) -> None:
    """Set what `net_state` gave for a net of the same layers. Raises ValueError where they are others."""
    layers = _positioned(net)
    if [name for name, _ in state["positions"]] != [layer.name for layer in layers]:
        raise ValueError("the data layers are others")
    for layer, (_, position) in zip(layers, state["positions"], strict=True):
        layer.set_position(position)
    for layer in net.layers:
        for name in layer._non_persistent_buffers_set:
            packed = state["buffers"].get(f"{layer.name}:{name}")
            setattr(layer, name, None if packed is None else _unpack(packed).to(net.device))


def path_beside(state: Path) -> Path:
    """The file that belongs to a solver state: `x_iter_5.resume.json` for `x_iter_5.solverstate` (and `.h5`)."""
    return state.with_name(state.name.removesuffix(".h5").removesuffix(".solverstate") + SUFFIX)


def checksum(path: Path, named: Path) -> dict[str, Any]:
    """What a file holds, in short; `named` is the name that it will have."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
            size += len(part)
    return {"name": named.name, "bytes": size, "sha256": digest.hexdigest()}


def write(path: Path, iteration: int, workers: Sequence[dict[str, Any]], files: dict[str, dict[str, Any]]) -> None:
    """Write the states of all workers, by rank, and the checksums of the snapshot's "model" and "state"."""
    content = {"version": VERSION, "iteration": iteration, "files": files, "workers": list(workers)}
    with atomic_write(path, "w") as file:
        json.dump(content, file)


def verify(state: Path, model: Path) -> None:
    """Raise `WeightsError` where a file of a snapshot is not what was written, as far as its checksums are known."""
    path = path_beside(state)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        sums = {file: files[kind] for kind, file in (("state", state), ("model", model))}
        written_as = str(sums[state]["name"])
        expected = {file: (str(found["sha256"]), int(found["bytes"])) for file, found in sums.items()}
    except _UNREADABLE:  # none, Caffe's own snapshot, or damaged, of which `read` warns
        return
    if written_as.endswith(".h5") != state.name.endswith(".h5"):  # of the same iteration's snapshot in the other format
        return
    for file, (digest, size) in expected.items():
        found = checksum(file, file)
        if (found["sha256"], found["bytes"]) != (digest, size):
            has = f"has {found['bytes']} bytes of {size}" if found["bytes"] != size else "has other content"
            raise WeightsError(
                f"{file}: damaged or changed since the snapshot was written ({has}, by the checksums in {path}; "
                "delete that file to take this one as it is)"
            )


# What reading and taking apart a JSON file raises where it is missing, damaged or something else.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


def read(path: Path, iteration: int, rank: int, workers: int) -> dict[str, Any] | None:
    """This worker's state; None where there is no file, or (with a warning) where it is of no use here."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        content, reason = {}, str(error)
    else:
        reason = _misfit(content, iteration, workers)
    if reason:
        warn_useless(path, reason)
        return None
    state = content["workers"][rank]
    if not isinstance(state, dict):
        warn_useless(path, "it is damaged")
        return None
    return state


def warn_useless(path: Path, reason: str) -> None:
    """Warn that a resume file is there but of no use."""
    warnings.warn(
        f"{path} can't be used ({reason}); random numbers and data positions start afresh, as in Caffe",
        FcnprotoWarning,
        stacklevel=4,
    )


def _misfit(content: Any, iteration: int, workers: int) -> str:
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return f"it is not of version {VERSION}"
    if content.get("iteration") != iteration:
        return f"it is not of iteration {iteration}"
    if not isinstance(content.get("workers"), list) or len(content["workers"]) != workers:
        return f"it was written by another number of workers than {workers}"
    return ""
