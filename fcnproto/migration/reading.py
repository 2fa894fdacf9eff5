"""Reading converted files back, each as its user would: what a file gives for some inputs, by blob."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fcnproto
from fcnproto.errors import UsageError
from fcnproto.export.source import endpoints
from fcnproto.inspect.running import run_with
from fcnproto.net import Net

Array = npt.NDArray[Any]


def outputs(
    path: Path, net: Net, definition: Path, inputs: Mapping[str, Array], loading: Mapping[str, Any]
) -> dict[str, Array]:
    """What the converted file `path` of `net` (loaded from the prototxt `definition` so) gives for `inputs`, by blob.

    Raises `UsageError` for an .onnx where onnxruntime is missing.
    """
    taken, given = endpoints(net)
    values = [torch.from_numpy(np.ascontiguousarray(inputs[name], np.float32)) for name in taken]
    with torch.no_grad():
        if path.suffix.lower() == ".safetensors":
            found = _run(fcnproto.load(definition, path, **loading), dict(zip(taken, values, strict=True)), given)
        else:
            found = _READERS[path.suffix.lower()](path, dict(zip(taken, values, strict=True)))
    several = found if isinstance(found, (tuple, list)) else [found]
    return {name: np.asarray(value) for name, value in zip(given, several, strict=True)}


def _run(net: Net, inputs: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
    found = run_with(net, {name: value.to(net.device) for name, value in inputs.items()}, wanted)
    return [found[name].detach().cpu() for name in wanted]


def _module(path: Path, inputs: Mapping[str, Tensor]) -> Any:
    spec = importlib.util.spec_from_file_location("fcnproto_migrated", path)
    assert spec is not None and spec.loader is not None
    content = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(content)
    finally:
        sys.dont_write_bytecode = before
    return content.load()(*inputs.values())


def _program(path: Path, inputs: Mapping[str, Tensor]) -> Any:
    return torch.export.load(path).module()(*inputs.values())


def _onnx(path: Path, inputs: Mapping[str, Tensor]) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{path}: onnxruntime is not installed, so the file can't be compared") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {one.name: inputs[one.name].numpy() for one in session.get_inputs()})


_READERS = {".py": _module, ".pt2": _program, ".onnx": _onnx}


def own_outputs(net: Net, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the net itself gives for `inputs`: the blobs that a converted file has."""
    taken, given = endpoints(net)
    values = {name: torch.from_numpy(np.ascontiguousarray(inputs[name], np.float32)) for name in taken}
    with torch.no_grad():
        found = _run(net, values, given)
    return {name: value.numpy() for name, value in zip(given, found, strict=True)}
