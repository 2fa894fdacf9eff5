"""Solver states, against those that the original Caffe wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from golden_cases import Case, load
from wire_bytes import field, floats, shape

from fcnproto.errors import WeightsError
from fcnproto.schema.state import open_state, write_state

CASES = ["sgd_binary", "sgd_hdf5", "adam_binary", "adam_hdf5"]


def _state_file(case: Case) -> Path:
    return next(path for path in case.folder.iterdir() if ".solverstate" in path.name)


@pytest.mark.parametrize("name", CASES)
def test_caffes_states(name: str) -> None:
    case = load("snapshots", name)
    expected = case.keys("history")
    with open_state(_state_file(case)) as state:
        assert state.iter == 3 and state.current_step == 1
        assert state.learned_net.startswith("snap_iter_3.caffemodel") and "\0" not in state.learned_net
        assert len(state.history) == len(expected)
        for index, blob in enumerate(state.history):
            value = expected[str(index)]
            assert blob.matches(value.shape)
            target = np.empty(value.shape, np.float32)
            blob.read_into(target)
            np.testing.assert_array_equal(target, value)


def _copy(path: Path, target: Path) -> None:
    with open_state(path) as state:
        history = [blob.array() for blob in state.history]
        write_state(target, state.iter, state.learned_net, state.current_step, history)


@pytest.mark.parametrize("name", ["sgd_binary", "adam_binary"])
def test_binary_byte_for_byte(tmp_path: Path, name: str) -> None:
    path = _state_file(load("snapshots", name))
    _copy(path, tmp_path / "out.solverstate")
    assert (tmp_path / "out.solverstate").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["sgd_hdf5", "adam_hdf5"])
def test_hdf5_datasets(tmp_path: Path, name: str) -> None:
    path = _state_file(load("snapshots", name))
    _copy(path, tmp_path / "out.solverstate.h5")

    def content(file_path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(file_path, "r") as file:
            file.visititems(lambda key, item: found.update({key: _facts(item)}))
        return found

    def _facts(item: Any) -> Any:
        return (item.shape, item.dtype.str, item[()].tobytes()) if isinstance(item, h5py.Dataset) else None

    assert content(tmp_path / "out.solverstate.h5") == content(path)


@pytest.mark.parametrize("suffix", [".solverstate", ".solverstate.h5"])
@pytest.mark.parametrize("net", ["", "a b/é_iter_7.caffemodel"])
def test_round_trip(tmp_path: Path, suffix: str, net: str) -> None:
    path = tmp_path / f"s{suffix}"
    values = [np.random.default_rng(0).random((2, 3), dtype=np.float32), np.float32(3), np.arange(4.0)]
    write_state(path, 7_000_000, net, 0, values)
    with open_state(path) as state:
        assert (state.iter, state.learned_net, state.current_step) == (7_000_000, net, 0)
        for blob, value in zip(state.history, values, strict=True):
            np.testing.assert_array_equal(blob.array(), value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (field(2, "net.caffemodel"), "it says no iteration"),
        (field(1, -1), "can't be negative"),
        (field(1, "3"), "damaged, or no file of Caffe's"),
        (field(1, 3) + field(3, 4), "damaged, or no file of Caffe's"),
        (field(1, 3) + field(3, shape(2) + field(5, floats([1, 2])))[:-1], "cut off"),
        (field(1, 3) + field(2, "x" * 70_000), "a path is 70000 bytes long"),
        (b"PK\x03\x04" + bytes(50), "this is not a solverstate but a zip archive"),
        (b"iter: 3\n", "this is not a solverstate but a text file"),
    ],
)
def test_errors(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "s.solverstate"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        open_state(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_history_that_contradicts_itself(tmp_path: Path) -> None:
    path = tmp_path / "s.solverstate"
    path.write_bytes(field(1, 3) + field(3, shape(2) + field(5, floats([1, 2, 3]))))
    with open_state(path) as state, pytest.raises(WeightsError, match="history blob 0 has the shape 2, so 2 values"):
        state.history[0].array()


def test_hdf5_errors(tmp_path: Path) -> None:
    path = tmp_path / "s.solverstate.h5"

    def error(**datasets: Any) -> str:
        with h5py.File(path, "w") as file:
            for name, value in datasets.items():
                file[name.replace("__", "/")] = value
        with pytest.raises(WeightsError) as caught:
            open_state(path)
        return str(caught.value)

    one = np.ones(1, np.int32)
    assert "/iter is missing" in error(data=one)
    assert "iter is not one whole number" in error(iter=np.ones(2), current_step=one)
    assert "learned_net is not a text" in error(iter=one, current_step=one, learned_net=3)
    good = {"iter": one, "current_step": one, "learned_net": np.bytes_("net")}
    assert "/history is missing" in error(**good)
    assert "history blob 0 is missing" in error(**good, history__1=np.ones(3, np.float32))
