"""The driver is killed at random moments, and run again with --resume: every result once, and whole."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import corpora
import pytest

import fcnproto

pytestmark = pytest.mark.cluster

COUNT, PATIENCE, PAUSE = 320, 300, 0.5
SLOW = """
import time
from pathlib import Path
import fcnproto
from fcnproto import atomic

finish = atomic._finish

def finishing(temporary, target):
    if Path(target).name == HELD:
        time.sleep(3600)
    finish(temporary, target)

atomic._finish = finishing

@fcnproto.register_layer("Trap")
class Trap(fcnproto.Pointwise):
    def forward(self, x):
        time.sleep(PAUSE if x.device.type != "meta" else 0)
        return x
"""
"""A module for the drivers and their workers: the net takes its time, and one file is never given its name."""


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

    def __init__(self, server: Server, folder: Path, address: str, out: Path, pause: float, held: str) -> None:
        (folder / "trap_layers.py").write_text(SLOW.replace("PAUSE", str(pause)).replace("HELD", repr(held)))
        model, weights, module = (
            folder / name for name in ("colours.prototxt", "colours.caffemodel", "trap_layers.py")
        )
        arguments = ["segment", str(model), str(weights), str(folder / "images"), "-o", str(out), "--cluster", address]
        arguments += ["--workers", "1", "--part", "16", "--resume", "--json", "--layers", str(module), "--mean", "none"]
        self.folder = folder
        self.parts = out if out.suffix == "" else out.with_name(f".{out.name}.parts")
        self.server, self.log, self.ended = server, folder / "log", False
        self.began = time.monotonic()
        self.process = server.start(arguments, self.log)

    def files(self) -> dict[str, int]:
        """The complete results and when they were written."""
        found = {}
        for name in os.listdir(self.parts) if self.parts.is_dir() else []:
            if not name.startswith(".") and name != "manifest.json":
                with suppress(FileNotFoundError):
                    found[name] = (self.parts / name).stat().st_mtime_ns
        return found

    def wait_for(self, event: Callable[[], object]) -> float:
        """Seconds from the driver's start until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not event():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return time.monotonic() - self.began

    def writes(self, name: str) -> bool:
        """Whether the file that will have this name is being written."""
        return any(path.name.startswith(f".{name}.") and path.is_file() for path in self.parts.parent.rglob(".*tmp"))

    def kill(self) -> None:
        """Kill it, wherever it is."""
        os.kill(self.process, signal.SIGKILL)
        assert self.server.wait() == -signal.SIGKILL, self.log.read_text()

    def summary(self) -> dict[str, Any]:
        """What it prints at its end."""
        assert self.server.wait() == 0, self.log.read_text()
        text = self.log.read_text()
        found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
        return found


@pytest.mark.parametrize(
    ("name", "kills", "last"),
    [("out", 13, ["manifest.json"]), ("out.parquet", 7, ["out.parquet", "out.parquet.manifest.json"])],
)
def test_what_is_missing_is_done(
    one_node: Any, server: Server, tmp_path: Path, name: str, kills: int, last: list[str]
) -> None:
    """Killed while it starts and while it works, at moments spread at random over both, and at its last steps."""
    source = corpora.images(tmp_path / "images", COUNT)
    _, weights, _ = corpora.trapped(tmp_path)
    plain = fcnproto.load(corpora.colour_net(tmp_path / ".")[0], weights)  # without the trap, which only waits
    expected = corpora.reference(corpora.segmenter(plain), source, tmp_path / "one")
    corpora.trapped(tmp_path)
    out, chance, steps = tmp_path / name, random.Random(7), kills - len(last)
    moments = [1.5 * (step + chance.random()) / steps for step in range(steps)]
    chance.shuffle(moments)
    start = functools.partial(Driver, server, tmp_path, one_node.address, out)
    seen: dict[str, int] = {}
    usual = 0.0  # seconds until the first results
    for number in range(kills):
        ending = last[number - kills] if number >= kills - len(last) else ""
        driver = start(0.0 if ending else PAUSE, ending)
        if ending:
            driver.wait_for(lambda driver=driver, ending=ending: driver.writes(ending))  # type: ignore[misc]
        elif number < 2:  # the first one starts what others find, too
            usual = driver.wait_for(lambda driver=driver, before=set(seen): set(driver.files()) - before)  # type: ignore[misc]
        else:
            time.sleep(moments.pop() * usual)
        driver.kill()
        now = driver.files()
        again = [file for file in seen if now.get(file) != seen[file]]
        assert not again, f"written twice, or gone: {again}"
        seen = now
    summary = start(0.0, "").summary()
    assert (summary["items"], summary["failed"]) == (COUNT, [])
    assert (summary["done"], summary["kept"]) == (0, COUNT)  # all was there when the manifest was written
    if name == "out":
        assert corpora.labels(out) == expected
        assert all((out / file).stat().st_mtime_ns == stamp for file, stamp in seen.items())
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
