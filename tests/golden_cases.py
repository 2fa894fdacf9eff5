"""Cases recorded from the original Caffe: one zip per group under tests/golden, unpacked once per test run.

A case has `net.prototxt`, `data.npz` and `case.json`; the keys of the arrays are described in tests/golden/README.md.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fcnproto

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"

Array = npt.NDArray[Any]


@functools.cache
def group_folder(group: str) -> Path:
    """The unpacked folder of a group ("layers", "fcn", "solver", ...)."""
    folder = Path(tempfile.mkdtemp(prefix=f"golden-{group}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(GOLDEN / f"{group}.zip") as archive:
        archive.extractall(folder)
    return folder


@functools.cache
def names(group: str) -> list[str]:
    """The names of a group's cases, read from the zip's directory."""
    with zipfile.ZipFile(GOLDEN / f"{group}.zip") as archive:
        return sorted({name.split("/")[0] for name in archive.namelist() if "/" in name})


class Case:
    """One recorded case: `folder`, `facts` (case.json) and `arrays` (data.npz)."""

    def __init__(self, group: str, name: str) -> None:
        self.group, self.name = group, name
        self.folder = group_folder(group) / name
        self.facts: dict[str, Any] = json.loads((self.folder / "case.json").read_text())
        self.arrays: dict[str, Array] = {}
        data = self.folder / "data.npz"
        if data.exists():
            with np.load(data) as arrays:
                self.arrays = {key: arrays[key] for key in arrays.files}

    def keys(self, kind: str) -> dict[str, Array]:
        """The arrays whose key starts with `kind.`, by the rest of the key."""
        return {key[len(kind) + 1 :]: value for key, value in self.arrays.items() if key.startswith(kind + ".")}

    def net(self, **options: Any) -> fcnproto.Net:
        """The case's net in the recorded phase, level and stages, with the recorded parameters."""
        options = {
            "phase": self.facts["phase"].lower(),
            "level": self.facts.get("level", 0),
            "stages": self.facts.get("stages", ()),
            "allow_python": True,
            **options,
        }
        net = fcnproto.load(self.folder / "net.prototxt", **options)
        set_params(net, self.keys("param"))
        return net


def load(group: str, name: str) -> Case:
    """The case `name` of a group."""
    return Case(group, name)


def set_params(net: fcnproto.Net, values: dict[str, Array]) -> None:
    """Copy arrays keyed `<layer>.<index>` into the net's parameters."""
    params = net.params
    with torch.no_grad():
        for key, value in values.items():
            layer, index = key.rsplit(".", 1)
            target = params[layer][int(index)]
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)).reshape(target.shape))


def deviation(ours: Any, reference: Any) -> float:
    """max|a - b| / max|b| (absolute where b is all zero); infinite where shapes differ or a value is not finite."""
    ours = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    reference = np.asarray(reference)
    if ours.shape != reference.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    same = ours == reference
    if same.all():
        return 0.0
    difference = np.abs(np.where(same, 0, ours.astype(np.float64) - np.where(same, ours, reference)))
    scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
    worst = float(difference.max())
    return float("inf") if not np.isfinite(worst) else worst / scale if scale else worst


def assert_close(ours: Any, reference: Any, tolerance: float, what: str) -> None:
    """Fail with the shapes and the deviation if it exceeds the tolerance."""
    found = deviation(ours, reference)
    assert found <= tolerance, (
        f"{what}: deviation {found:.3g} exceeds {tolerance:g} "
        f"(shape {tuple(np.shape(ours.detach() if isinstance(ours, torch.Tensor) else ours))}, expected {np.shape(reference)})"
    )
