"""Golden files with bytes changed, cut or doubled at random: read, or refused with one line; nothing else is raised."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import fcnproto
from fcnproto.parity import read_recording

_IN_A_CHILD = """
import sys
from pathlib import Path
import fcnproto
from fcnproto.parity import read_recording
for path in sorted(Path(sys.argv[1]).glob("*.h5")):
    try:
        read_recording(path)
        print("read")
    except fcnproto.DataError as error:
        assert str(error).isprintable() and path.name in str(error)
        print("refused")
"""


def damaged(content: bytes, count: int, seed: int) -> list[bytes]:
    draw, found = random.Random(seed), []
    for _ in range(count):
        changed, place = bytearray(content), draw.randrange(len(content))
        kind = draw.randrange(4)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place:place] = changed[place : place + draw.randrange(1, 64)]
        else:
            for _ in range(draw.choice([1, 1, 3, 20])):
                changed[draw.randrange(len(changed))] = draw.choice([0, 255, draw.randrange(256)])
        found.append(bytes(changed))
    return found


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "golden.npz"
    write(file, **{"in.x": np.arange(12.0), "out.y": np.ones((2, 3), np.float32), "out.a/b": np.ones(5)})
    refused = []
    for content in damaged(file.read_bytes(), 150, seed=1):
        file.write_bytes(content)
        try:
            read_recording(file)
        except fcnproto.DataError as error:
            refused.append(str(error))
    assert all(message.isprintable() and str(file) in message for message in refused)
    assert 50 < len(refused) < 150


def test_hdf5(tmp_path: Path) -> None:
    file = tmp_path / "golden.hdf5"
    with h5py.File(file, "w") as made:
        made["in.x"], made["out.y"] = np.arange(12.0), np.ones((2, 3), np.float32)
        made.create_dataset("out/a", data=np.ones((4, 4)), compression="gzip")
    for number, content in enumerate(damaged(file.read_bytes(), 150, seed=2)):
        (tmp_path / f"{number}.h5").write_bytes(content)
    # HDF5's library itself may crash; that would end the child alone, and this test.
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_CHILD, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("refused") > 20 and len(done.stdout.split()) == 150
