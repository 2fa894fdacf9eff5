"""Files of PyTorch's tensors by name (a `state_dict`), for nets with the same names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcnproto.errors import WeightsError, first_line
from fcnproto.export.carried import read_meta
from fcnproto.net import Net
from fcnproto.net.described import take_meta
from fcnproto.net.tensor_files import read_safetensors

STATE_FILES = (".safetensors", ".pt", ".pth")


def load_state(net: Net, path: Path) -> None:
    """Give a net the values of a PyTorch `state_dict` with the net's names (.pt, .pth or .safetensors).

    Other float types are converted; a `state_dict` key of a checkpoint is looked into; a prefix "module." goes. What
    the file says of the net (`meta`) becomes the net's.

    Raises:
        WeightsError: the file is damaged, or names or shapes differ from the net's.
    """
    state = _strip(read_state(path))
    own = net.state_dict()
    shared = {name for name in own if name not in state}
    for name in sorted(shared):  # a parameter that two layers share may be stored once
        twin = next((other for other in state if other in own and own[other].data_ptr() == own[name].data_ptr()), None)
        if twin is None or not own[name].numel():
            raise WeightsError(f"{path}: has no {name!r}; the net's names are {_some(own)}, the file's {_some(state)}")
        state[name] = state[twin].reshape(own[name].shape)
    for name, value in state.items():
        if name not in own:
            raise WeightsError(f"{path}: {name!r} is no parameter of the net, whose names are {_some(own)}")
        if value.shape != own[name].shape:
            raise WeightsError(f"{path}: {name!r} has shape {tuple(value.shape)}, the net's {tuple(own[name].shape)}")
    net.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()})
    net._unfilled.clear()
    take_meta(net, path, read_meta)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors, .pt or .pth file, by name; no code in it is run. Raises `WeightsError`."""
    if path.name.lower().endswith(".safetensors"):
        return read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise WeightsError(f"{path}: not a PyTorch file of tensors ({first_line(error)})") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no state_dict (names with tensors)")
    return dict(content)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "module."
    return {name[len(prefix) :]: v for name, v in state.items()} if all(n.startswith(prefix) for n in state) else state


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "") if listed else "none"
