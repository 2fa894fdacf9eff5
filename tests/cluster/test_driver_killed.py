"""The driver is killed at random moments, and run again with --resume: every result once, and whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import corpora
import pytest

import fcnproto

pytestmark = pytest.mark.cluster

SLOW = corpora.TRAP.replace("        first = x", "        time.sleep(0.05)\n        first = x")
COUNT, PATIENCE = 800, 300


class Driver:
    """A run of the command in a process of its own; `results` are how many there are in the sink."""

    def __init__(self, folder: Path, address: str, out: Path) -> None:
        model, weights, module = (
            folder / name for name in ("colours.prototxt", "colours.caffemodel", "trap_layers.py")
        )
        command = [sys.executable, "-m", "fcnproto", "segment", str(model), str(weights), str(folder / "images")]
        command += ["-o", str(out), "--cluster", address, "--workers", "1", "--part", "16", "--resume", "--json"]
        command += ["--layers", str(module), "--mean", "none", "--item-timeout", "60"]
        self.parts = out if out.suffix == "" else out.with_name(f".{out.name}.parts")
        self.log = open(folder / "log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def files(self) -> dict[str, int]:
        """The complete results and when they were written."""
        names = os.listdir(self.parts) if self.parts.is_dir() else []
        shown = [name for name in names if not name.startswith(".") and name != "manifest.json"]
        return {name: (self.parts / name).stat().st_mtime_ns for name in shown}

    def kill(self, moment: random.Random, while_starting: bool) -> None:
        """Kill it while it starts, or after some more results have come."""
        if while_starting:
            time.sleep(moment.uniform(0, 6))
        else:
            before, wanted, deadline = len(self.files()), moment.randint(1, 20), time.time() + PATIENCE
            while self.process.poll() is None and len(self.files()) < before + wanted and time.time() < deadline:
                time.sleep(0.02)
            time.sleep(moment.uniform(0, 0.1))
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.process.communicate()

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()


@pytest.mark.parametrize(("name", "kills"), [("out", 14), ("out.parquet", 6)])
def test_what_is_missing_is_done(nodes: Any, tmp_path: Path, name: str, kills: int) -> None:
    source = corpora.images(tmp_path / "images", COUNT if name == "out" else COUNT // 2)
    count = len(list(source.iterdir()))
    _, weights, module = corpora.trapped(tmp_path)
    plain = fcnproto.load(corpora.colour_net(tmp_path / ".")[0], weights)  # without the trap, which only waits
    expected = corpora.reference(corpora.segmenter(plain), source, tmp_path / "one")
    corpora.trapped(tmp_path)
    module.write_text(SLOW)
    out, moment = tmp_path / name, random.Random(7)
    seen: dict[str, int] = {}
    for number in range(kills):
        driver = Driver(tmp_path, nodes.address, out)
        driver.kill(moment, while_starting=number % 4 == 3)
        now = driver.files()
        again = [file for file in seen if now.get(file) != seen[file]]
        assert not again, f"written twice, or gone: {again}"
        seen = now
    assert len(seen) > 0
    last = Driver(tmp_path, nodes.address, out)
    stdout, _ = last.process.communicate(timeout=PATIENCE)
    assert last.process.returncode == 0, last.text()
    summary = json.loads(stdout)
    assert summary["items"] == count and summary["done"] + summary["kept"] == count and summary["failed"] == []
    if name == "out":
        assert summary["kept"] >= len(seen) - 16 and summary["done"] < count
        assert corpora.labels(out) == expected
        assert all((out / file).stat().st_mtime_ns == stamp for file, stamp in seen.items() if file.endswith(".png"))
        assert not [left for left in os.listdir(out) if left.endswith(".tmp")]
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(out).to_pylist()
        assert [row["name"] for row in rows] == [path.stem for path in sorted(source.iterdir())]
        assert {f"{row['name']}_labels.png": row["labels"] for row in rows} == expected
        assert sorted(path.name for path in tmp_path.glob("*out.parquet*")) == [
            "out.parquet",
            "out.parquet.manifest.json",
        ]
