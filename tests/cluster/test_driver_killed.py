"""The driver is killed at random moments, and run again with --resume: every result once, and whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpora
import pytest

import fcnproto

pytestmark = pytest.mark.cluster

SLOW = corpora.TRAP.replace("        first = x", "        time.sleep(0.05)\n        first = x")
COUNT, PATIENCE = 500, 300


class Server:
    """Starts runs of the command in processes of their own; see `driver_server.py`."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("driver_server.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, arguments: list[str], log: Path) -> int:
        """The number of the process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """The status of the process, when it has ended."""
        assert self.process.stdout
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(one_node: Any) -> Iterator[Server]:
    found = Server()
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


class Driver:
    """One run of the command; `files` are the results in the sink."""

    def __init__(self, server: Server, folder: Path, address: str, out: Path) -> None:
        model, weights, module = (
            folder / name for name in ("colours.prototxt", "colours.caffemodel", "trap_layers.py")
        )
        arguments = ["segment", str(model), str(weights), str(folder / "images"), "-o", str(out), "--cluster", address]
        arguments += ["--workers", "1", "--part", "16", "--resume", "--json", "--layers", str(module), "--mean", "none"]
        self.parts = out if out.suffix == "" else out.with_name(f".{out.name}.parts")
        self.most = 12 if out.suffix == "" else 2  # files, or parts
        self.server, self.log = server, folder / "log"
        self.process = server.start([*arguments, "--item-timeout", "60"], self.log)

    def files(self) -> dict[str, int]:
        """The complete results and when they were written."""
        names = os.listdir(self.parts) if self.parts.is_dir() else []
        shown = [name for name in names if not name.startswith(".") and name != "manifest.json"]
        return {name: (self.parts / name).stat().st_mtime_ns for name in shown}

    def kill(self, moment: random.Random, while_starting: bool) -> None:
        """Kill it while it starts, or after some more results have come."""
        if while_starting:
            time.sleep(moment.uniform(0, 5))
        else:
            wanted, deadline = len(self.files()) + moment.randint(1, self.most), time.time() + PATIENCE
            while len(self.files()) < wanted and time.time() < deadline:
                time.sleep(0.02)
            time.sleep(moment.uniform(0, 0.1))
        os.kill(self.process, signal.SIGKILL)
        assert self.server.wait() == -signal.SIGKILL, self.log.read_text()


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("out", 5),
        ("out.parquet", 2),
        pytest.param("out", 14, marks=pytest.mark.slow),
        pytest.param("out.parquet", 6, marks=pytest.mark.slow),
    ],
)
def test_what_is_missing_is_done(one_node: Any, server: Server, tmp_path: Path, name: str, kills: int) -> None:
    source = corpora.images(tmp_path / "images", 40 * kills if name == "out" else COUNT // 2)
    count = len(list(source.iterdir()))
    _, weights, module = corpora.trapped(tmp_path)
    plain = fcnproto.load(corpora.colour_net(tmp_path / ".")[0], weights)  # without the trap, which only waits
    expected = corpora.reference(corpora.segmenter(plain), source, tmp_path / "one")
    corpora.trapped(tmp_path)
    module.write_text(SLOW)
    out, moment = tmp_path / name, random.Random(7)
    seen: dict[str, int] = {}
    for number in range(kills):
        driver = Driver(server, tmp_path, one_node.address, out)
        driver.kill(moment, while_starting=number % 2 == 1)
        now = driver.files()
        again = [file for file in seen if now.get(file) != seen[file]]
        assert not again, f"written twice, or gone: {again}"
        seen = now
    assert len(seen) > 0
    last = Driver(server, tmp_path, one_node.address, out)
    assert server.wait() == 0, last.log.read_text()
    text = last.log.read_text()
    summary = json.loads(text[text.index("{") : text.rindex("}") + 1])
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
