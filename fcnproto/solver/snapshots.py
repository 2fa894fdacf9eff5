"""Snapshots on disk: Caffe's pair of model and solver state, and a small file with what Caffe forgets.

All files of a snapshot are written under temporary names and flushed to disk before the first is renamed, the state
last: a state that can be seen has its complete model. Where an older snapshot of the same name is replaced,
the renames are written down first and made up for by `restore`: a kill between two of them leaves no mixed pair either.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.atomic import atomic_write
from fcnproto.errors import WeightsError
from fcnproto.net import Net
from fcnproto.net.weights import save_weights
from fcnproto.schema.blobs import StoredBlob
from fcnproto.schema.state import StateFile, open_state, write_state
from fcnproto.solver import resume

_PENDING = ".pending"


@dataclass(frozen=True)
class Names:
    """The files of one snapshot, named as Caffe names them."""

    model: Path
    state: Path

    @property
    def resume(self) -> Path:
        """The file with what Caffe forgets."""
        return resume.path_beside(self.state)


def names(prefix: str, iteration: int, hdf5: bool) -> Names:
    """Caffe's names: `<prefix>_iter_<n>.caffemodel` and `.solverstate`, with `.h5` after them in HDF5."""
    end = ".h5" if hdf5 else ""
    stem = f"{prefix}_iter_{iteration}"
    return Names(Path(f"{stem}.caffemodel{end}"), Path(f"{stem}.solverstate{end}"))


def write(
    files: Names,
    net: Net,
    iteration: int,
    current_step: int,
    history: Sequence[Tensor],
    workers: Sequence[dict[str, Any]],
    diffs: bool = False,
) -> None:
    """Write a snapshot; `workers` are the resume states by rank, `diffs` adds gradients (Caffe: snapshot_diff)."""
    files.state.parent.mkdir(parents=True, exist_ok=True)
    clean(files)
    finals = (files.model, files.resume, files.state)
    temporary = [_partial(path) for path in finals]
    arrays = [_array(blob) for blob in history]
    try:
        save_weights(net, temporary[0], diffs=diffs, format_of=files.model)
        resume.write(temporary[1], iteration, workers)
        write_state(temporary[2], iteration, str(files.model), current_step, arrays, hdf5=files.state.suffix == ".h5")
    except BaseException:  # a full disk, say: give back the room
        for path in temporary:
            path.unlink(missing_ok=True)
        raise
    moves = [(path.name, final.name) for path, final in zip(temporary, finals, strict=True)]
    pending = _pending(files.state)
    replaces = files.state.exists()
    if replaces:
        with atomic_write(pending, "w") as file:
            json.dump(moves, file)
    _move(files.state.parent, moves)
    if replaces:
        pending.unlink()


def _partial(path: Path) -> Path:
    """A file's name until it is complete: hidden, and found by nobody who looks for the suffix of a state or model."""
    return path.with_name(f".{path.name}.partial")


def _array(blob: Tensor) -> np.ndarray[Any, Any]:
    return blob.detach().to("cpu", torch.float32).numpy()


def _pending(state: Path) -> Path:
    return state.with_name(f".{state.name}{_PENDING}")


def _move(folder: Path, moves: Sequence[tuple[str, str]]) -> None:
    """Rename the files that still have their temporary names, in order, each rename on disk before the next."""
    for source, target in moves:
        if (folder / source).exists():
            os.replace(folder / source, folder / target)
            _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # systems where a folder can't be opened
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complete(state: Path) -> None:
    """Carry out the renames that a killed process had written down for this state file."""
    pending = _pending(state)
    try:
        moves = json.loads(pending.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    for source, target in moves:
        if os.path.basename(source) != source or os.path.basename(target) != target:
            raise WeightsError(f"{pending}: names files outside of its folder; delete it")
    _move(state.parent, moves)
    pending.unlink()


def clean(files: Names) -> None:
    """Remove what a killed process left half written of this snapshot."""
    complete(files.state)
    for path in (files.model, files.resume, files.state):
        partial = glob.escape(_partial(path).name)
        for left in (*path.parent.glob(partial), *path.parent.glob(f".{partial}.*.tmp")):
            left.unlink(missing_ok=True)


def open_snapshot(path: Path) -> tuple[StateFile, Path]:
    """A solver state, Caffe's or ours, opened, and the path of its model.

    The model's name is looked up from the working directory, as Caffe does, then beside the state file.
    Raises `WeightsError` where the state is damaged or the model is missing.
    """
    complete(path)
    state = open_state(path)
    name = state.learned_net
    for candidate in (Path(name), path.parent / name, path.parent / Path(name).name):
        if name and candidate.is_file():
            return state, candidate
    state.close()
    missing = f"its model {name} is neither in {os.getcwd()} nor beside it" if name else "it names no model"
    raise WeightsError(f"{path}: {missing}")


def read_blob(blob: StoredBlob, target: Tensor) -> None:
    """Read a stored blob into a tensor, straight into its memory where that is float32 on the CPU."""
    if target.device.type == "cpu" and target.dtype == torch.float32 and target.is_contiguous():
        blob.read_into(target.numpy())
    else:
        target.copy_(torch.from_numpy(blob.array()).reshape(target.shape))
