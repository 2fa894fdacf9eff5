"""Snapshots on disk: Caffe's pair of model and solver state, and a small file with what Caffe forgets.

All files of a snapshot are written under temporary names and flushed to disk before the first is renamed, the state
last: a state that can be seen has its complete model. Where an older snapshot of the same name is replaced,
the renames are written down first and made up for by `restore`: a kill between two of them leaves no mixed pair either.

Before the first rename everything is read back and compared with what is in memory; the files' checksums stand in the
small file and are verified by whoever opens the snapshot.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcnproto.atomic import TEMPORARY, atomic_write, sync_folder
from fcnproto.errors import SolverError, WeightsError
from fcnproto.net import Net
from fcnproto.net.weights import DiffOf, save_weights
from fcnproto.net.weights import arrays as net_arrays
from fcnproto.schema.blobs import StoredBlob
from fcnproto.schema.state import StateFile, open_state, write_state
from fcnproto.schema.weights import open_weights
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

    @classmethod
    def of(cls, state: Path) -> Names:
        """The files of a snapshot by the path of its state."""
        stem, dot, end = state.name.rpartition(".solverstate")
        return cls(state.with_name(f"{stem}.caffemodel{end}" if dot else f"{state.name}.caffemodel"), state)

    def in_order(self) -> tuple[Path, Path, Path]:
        """All files, in the order in which they get their names: the state last."""
        return self.model, self.resume, self.state


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
    diff_of: DiffOf | None = None,
) -> None:
    """Write a snapshot; `workers` are the resume states by rank, `diff_of` gives parameters' diffs (snapshot_diff)."""
    files.state.parent.mkdir(parents=True, exist_ok=True)
    clean(files)
    finals = files.in_order()
    temporary = [_partial(path) for path in finals]
    arrays = [_array(blob) for blob in history]
    try:
        save_weights(net, temporary[0], diff_of=diff_of, format_of=files.model)
        write_state(temporary[2], iteration, str(files.model), current_step, arrays, hdf5=files.state.suffix == ".h5")
        _read_back(net, temporary[0], temporary[2], arrays)
        sums = {
            "model": resume.checksum(temporary[0], files.model),
            "state": resume.checksum(temporary[2], files.state),
        }
        resume.write(temporary[1], iteration, workers, sums)
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


def _read_back(net: Net, model: Path, state: Path, history: Sequence[np.ndarray[Any, Any]]) -> None:
    """Compare what the files hold with what is in memory. WeightsError where they differ: the disk is failing."""
    with open_weights(model) as weights:
        # An HDF5 file has its layers by name, and shared parameters once.
        ordered = weights.layers if weights.kind == "binary" else None
        by_name = {layer.name: layer for layer in weights.layers}
        for index, layer in enumerate(net.layers):
            stored = (by_name[layer.name] if ordered is None else ordered[index]).blobs
            for blob, value in zip(stored, net_arrays(layer), strict=ordered is not None):
                _compare(blob, value, model)
    with open_state(state) as found:
        for blob, value in zip(found.history, history, strict=True):
            _compare(blob, value, state)


def _compare(blob: StoredBlob | None, value: np.ndarray[Any, Any], path: Path) -> None:
    if blob is not None and not np.array_equal(blob.array().reshape(value.shape), value, equal_nan=True):
        raise WeightsError(f"{path}: {blob.label} read back is not what was written; is the disk full or failing?")


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
            sync_folder(folder)


def complete(state: Path) -> None:
    """Carry out the renames that a killed process had written down for this state file."""
    pending = _pending(state)
    try:
        moves = json.loads(pending.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{pending}: is damaged ({error}); delete it and take another snapshot") from None
    if moves != [[_partial(final).name, final.name] for final in Names.of(state).in_order()]:
        raise WeightsError(f"{pending}: does not name the files of this snapshot; delete it and take another snapshot")
    _move(state.parent, moves)
    pending.unlink()


def clean(files: Names) -> None:
    """Remove what a killed process left half written of this snapshot."""
    complete(files.state)
    for path in files.in_order():
        partial = glob.escape(_partial(path).name)
        for left in (*path.parent.glob(partial), *path.parent.glob(f".{partial}.*{TEMPORARY}")):
            left.unlink(missing_ok=True)


def open_snapshot(path: Path) -> tuple[StateFile, Path]:
    """A solver state, Caffe's or ours, opened, and the path of its model.

    The model's name is looked up from the working directory, as Caffe does, then beside the state file.
    Raises `WeightsError` where the state is damaged, the model is missing, or either is not what its checksum says.
    """
    complete(path)
    state = open_state(path)
    name = state.learned_net
    for candidate in (Path(name), path.parent / name, path.parent / Path(name).name):
        if name and "\0" not in name and candidate.is_file():
            try:
                resume.verify(path, candidate)
            except BaseException:
                state.close()
                raise
            return state, candidate
    state.close()
    missing = f"its model {name} is neither in {os.getcwd()} nor beside it" if name else "it names no model"
    raise WeightsError(f"{path}: {missing}")


def latest(prefix: str) -> tuple[Path, list[str]]:
    """The state with the highest iteration among the snapshots of a prefix whose files are all right.

    Gives its path, and why each that is newer was passed over. Files are looked through from end to end. Raises
    `SolverError` where there is none."""
    folder, stem = Path(prefix).parent, Path(prefix).name
    pattern = re.compile(re.escape(stem) + r"_iter_(\d{1,18})\.solverstate(\.h5)?$")
    states = [(int(match[1]), path) for path in _listed(folder) if (match := pattern.match(path.name))]
    passed_over: list[str] = []
    for _, path in sorted(states, key=lambda entry: (entry[0], _written(entry[1])), reverse=True):
        try:
            _check(path)
        except (OSError, WeightsError) as error:
            passed_over.append(str(error))
        else:
            return path, passed_over
    reason = f": {'; '.join(passed_over)}" if passed_over else ""
    raise SolverError(f"no snapshot {prefix}_iter_*.solverstate to go on from{reason}")


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _written(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _check(path: Path) -> None:
    """Look through a snapshot as far as that goes without a net. WeightsError where something is wrong with it."""
    state, model = open_snapshot(path)
    with state, open_weights(model) as weights:
        for blob in (*state.history, *(blob for layer in weights.layers for blob in layer.blobs)):
            if blob is not None:
                blob.check()


def read_blob(blob: StoredBlob, target: Tensor) -> None:
    """Read a stored blob into a tensor, straight into its memory where that is float32 on the CPU."""
    if target.device.type == "cpu" and target.dtype == torch.float32 and target.is_contiguous():
        blob.read_into(target.numpy())
    else:
        target.copy_(torch.from_numpy(blob.array()).reshape(target.shape))
