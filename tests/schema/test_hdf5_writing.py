"""HDF5 files where the disk fills: an OSError, nothing under the file's name, nothing left behind, and a live process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fcnproto.schema import hdf5_writing
from fcnproto.schema.hdf5_writing import grown_hdf5, new_hdf5

LIMITED = """
import glob, os, resource, sys, warnings
import numpy as np, torch
import fcnproto
from fcnproto.schema.state import write_state

os.chdir(sys.argv[1])
open("net.prototxt", "w").write('''
layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 30 } } }
layer { name: "ip" type: "InnerProduct" bottom: "d" top: "ip" inner_product_param { num_output: 300 } }
''')
net = fcnproto.load("net.prototxt")
history = [np.ones((300, 30), np.float32), np.ones(300, np.float32)]
writers = {
    "save": lambda: net.save("x.caffemodel.h5"),
    "state": lambda: write_state("x.solverstate.h5", 3, "x.caffemodel", 0, history),
}
tried = 0
for name, write in writers.items():
    write()
    (path,) = glob.glob("x.*")
    whole = open(path, "rb").read()
    for limit in range(512, len(whole) + 2048, 5003):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write()
            assert limit >= len(whole), (name, limit)
        except (fcnproto.Error, OSError) as error:
            assert limit < len(whole) and "large" in str(error), (name, limit, error)
            tried += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert open(path, "rb").read() == whole, (name, limit)  # what was there stays
        assert sorted(os.listdir()) == ["net.prototxt", path], os.listdir()
    os.unlink(path)
print(tried)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes as POSIX has them")
def test_weights_and_states_on_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


class Disk:
    """`os.pwrite` of a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.write = room, os.pwrite

    def __call__(self, descriptor: int, content: memoryview, place: int) -> int:
        if place + len(content) > self.room:
            raise OSError(28, "No space left on device")
        return self.write(descriptor, content, place)


def test_what_follows_a_refusal_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []

    def write() -> None:
        with new_hdf5(tmp_path / "x.h5") as (file, check):
            for index in range(100):
                parts.append(file.create_dataset(str(index), data=np.ones(10_000, np.float32)))
                check()

    monkeypatch.setattr(hdf5_writing.os, "pwrite", Disk(100_000))
    with pytest.raises(OSError, match="No space left"):
        write()
    assert len(parts) == 3 and list(tmp_path.iterdir()) == []


def test_growing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    with new_hdf5(path) as (file, _):
        file.create_dataset("data", data=np.arange(1000, dtype=np.float32), maxshape=(None,))
    before = path.read_bytes()

    def grow() -> None:
        with grown_hdf5(path) as file:
            file["data"].resize(9000, axis=0)
            file["data"][1000:] = np.arange(1000, 9000)

    with monkeypatch.context() as patch:
        patch.setattr(hdf5_writing.os, "pwrite", Disk(len(before) + 8000))
        with pytest.raises(OSError, match="No space left"):
            grow()
    assert path.read_bytes() == before
    grow()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data"][:], np.arange(9000))
