"""Reads and writes a solver's state (`.solverstate`, `.solverstate.h5`): iteration, weight file, history of its rule.

Checked against the file's size like weights, before anything is allocated. What the history means is for the solver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from fcnproto.atomic import PathLike, atomic_write
from fcnproto.errors import WeightsError
from fcnproto.schema.blobs import StoredBlob, encode_blob, expect, read_binary_blob, storable
from fcnproto.schema.hdf5 import HDF5Blob, find_member, hdf5_errors, member, numbered, open_hdf5, write_dataset
from fcnproto.schema.hdf5_writing import new_hdf5
from fcnproto.schema.kinds import HEAD_BYTES, STATE, WEIGHTS, is_hdf5, open_binary, wrong_kind
from fcnproto.schema.wire import LENGTH, VARINT, MessageReader, Window, encode_tag, encode_varint, signed

_MOST_BLOBS = 100_000
_LONGEST_PATH = 1 << 16


@dataclass
class StateFile:
    """An open state file. `learned_net` is the weight file's path as the solver wrote it; `history` has the blobs of
    the solver's rule in the order of its parameters, their values still in the file. Close it, or use it in `with`."""

    path: str
    iter: int
    learned_net: str
    current_step: int
    history: list[StoredBlob]
    close: Callable[[], None]

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_state(path: PathLike) -> StateFile:
    """Opens a state file of either kind, told by its content; no history is read yet.

    WeightsError if it is missing, no state file, cut off or damaged."""
    name = os.fspath(path)
    file = open_binary(name, STATE)
    try:
        if not is_hdf5(file.read(HEAD_BYTES)):
            return _binary_state(Window(file, name), file.close)
    except BaseException:
        file.close()
        raise
    file.close()
    hdf5 = open_hdf5(name)
    try:
        with hdf5_errors(name):
            is_model = isinstance(find_member(hdf5, "data"), h5py.Group) and find_member(hdf5, "history") is None
        if is_model:
            raise wrong_kind(name, STATE, WEIGHTS)
        return _hdf5_state(hdf5, name)
    except BaseException:
        hdf5.close()
        raise


def _binary_state(window: Window, close: Callable[[], None]) -> StateFile:
    state = StateFile(window.name, 0, "", 0, [], close)
    seen: set[int] = set()
    reader = MessageReader(window, 0, window.size)
    while found := reader.next():
        seen.add(found.number)
        if found.number in (1, 4):
            expect(window, found, VARINT)
            setattr(state, "iter" if found.number == 1 else "current_step", signed(found.value, 32))
        elif found.number == 2:
            expect(window, found, LENGTH)
            if found.end - found.start > _LONGEST_PATH:
                raise window.damaged(found.start, f"a path is {found.end - found.start} bytes long")
            state.learned_net = os.fsdecode(window.read(found.start, found.end))
        elif found.number == 3:
            expect(window, found, LENGTH)
            label = f"history blob {len(state.history)}"
            state.history.append(read_binary_blob(window, found.start, found.end, label))
            if len(state.history) > _MOST_BLOBS:
                raise window.error(f"more than {_MOST_BLOBS} history blobs; this is not a solverstate")
    if 1 not in seen:
        raise window.error("it says no iteration; this is not a solverstate")
    return _checked(state)


def _hdf5_state(file: h5py.File, name: str) -> StateFile:
    iteration, current_step = (_hdf5_integer(file, key, name) for key in ("iter", "current_step"))
    learned = member(file, "learned_net", h5py.Dataset, name)
    with hdf5_errors(name):
        if learned.shape != () or learned.dtype.kind not in "SO" or learned.dtype.itemsize > _LONGEST_PATH:
            raise WeightsError(f"{name}: learned_net is not a text; this is not Caffe's layout")
        text = learned[()]
    learned_net = os.fsdecode(text) if isinstance(text, bytes) else str(text)
    group = member(file, "history", h5py.Group, name)
    history: list[StoredBlob] = []
    for index, key in enumerate(numbered(group, name)):
        if key is None:
            raise WeightsError(f"{name}: history blob {index} is missing")
        history.append(HDF5Blob(member(group, key, h5py.Dataset, name), name, f"history blob {index}"))
    return _checked(StateFile(name, iteration, learned_net, current_step, history, file.close))


def _hdf5_integer(file: h5py.File, key: str, name: str) -> int:
    dataset = member(file, key, h5py.Dataset, name)
    with hdf5_errors(name):
        if dataset.shape not in ((), (1,)) or dataset.dtype.kind not in "iu":
            raise WeightsError(f"{name}: {key} is not one whole number; this is not Caffe's layout")
        return int(np.asarray(dataset[()]).reshape(-1)[0])


def _checked(state: StateFile) -> StateFile:
    if state.iter < 0 or state.current_step < 0:
        raise WeightsError(f"{state.path}: iteration {state.iter} or step {state.current_step} can't be negative")
    return state


def write_state(
    path: PathLike,
    iteration: int,
    learned_net: str,
    current_step: int,
    history: Sequence[Any],
    hdf5: bool | None = None,
) -> None:
    """Writes a state file, whole or not at all: HDF5 where its name ends in `.h5` (so Caffe reads it), else binary.

    `history` are arrays in the order of Caffe's solvers. `hdf5` says the kind where the name doesn't (yet)."""
    net = os.fsencode(learned_net)
    if os.fspath(path).endswith(".h5") if hdf5 is None else hdf5:
        with new_hdf5(path) as (target, check):
            target.create_dataset("iter", data=np.array([iteration], np.int32))
            # Fixed length, with room for the closing zero that C wants.
            target.create_dataset("learned_net", data=np.array(net, f"S{len(net) + 1}"))
            target.create_dataset("current_step", data=np.array([current_step], np.int32))
            group = target.create_group("history")
            for index, value in enumerate(history):
                write_dataset(group, str(index), value)
                check()
        return
    with atomic_write(path) as file:
        file.write(encode_tag(1, VARINT) + encode_varint(iteration))
        file.write(encode_tag(2, LENGTH) + encode_varint(len(net)) + net)
        for value in history:
            parts = list(encode_blob(storable(value)))
            file.write(encode_tag(3, LENGTH) + encode_varint(sum(map(len, parts))))
            for part in parts:
                file.write(part)
        file.write(encode_tag(4, VARINT) + encode_varint(current_step))
