"""Is what the project claims of a GPU true on this one, and what does it take: a JSON of all figures and a table.

    python -m benchmarks.device_check [--device cuda] [--quick] [--only precision,graphs] [--deadline 540] [--out DIR]

Each section (`benchmarks/device/`; `--list` shows them) is tried by itself; what fails is told and the rest goes on.
Sections stand in the order of their worth; those that the deadline leaves no time for are named. `--device cpu --quick`
tries the sections that need no GPU, with small nets. Needs the checkout, and what the package needs. Exit status 1
where a section failed, or a figure is not good.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import bounds, numbers, times
from benchmarks.device.setting import Figures, Setting

_ALL = {**numbers.SECTIONS, **bounds.SECTIONS, **times.SECTIONS}
_ORDER = (
    *("environment", "strict", "precision", "recorded", "inference", "graphs", "training", "memory", "waiting"),
    *("kernels", "gradients", "folder", "trajectories", "out_of_memory", "full_width", "layers", "resuming", "watch"),
    *("default_device", "workers", "upsampling", "layer_times"),
)
SECTIONS: dict[str, tuple[int, Callable[[Setting], Iterator[Figures]]]] = {name: _ALL[name] for name in _ORDER}
"""The sections by name: the seconds that each takes on a GPU, and what it does."""


def shown(figures: Figures) -> str:
    """A line of the table."""
    parts = [f"{key} {value:.3g}" for key, value in figures.items() if isinstance(value, float)]
    parts += [f"{key} {value}" for key, value in figures.items() if isinstance(value, int) and key != "good"]
    wrong = figures.get("good", True) is False
    lists = [f"{key} {value}" for key, value in figures.items() if isinstance(value, list) and value and wrong]
    return f"{figures['what']:38} {', '.join(parts)}{'   NOT GOOD ' if wrong else ''}{' '.join(lists)}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, print a line for each figure, and write the JSON again after each section."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device_check", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small nets and images, few repetitions")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    parser.add_argument("--deadline", type=float, default=540, help="seconds after which no section is begun")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "device-check"))
    parser.add_argument("--list", action="store_true", help="show the sections and end")
    options = parser.parse_args(arguments)
    if options.list:
        for name, (seconds, section) in SECTIONS.items():
            print(f"{name:15} {seconds:3} s  {(section.__doc__ or '').splitlines()[0]}")
        return 0
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; the sections are {', '.join(SECTIONS)}")
    began = time.monotonic()
    setting = Setting(torch.device(options.device), options.quick, began + options.deadline)
    if setting.on_gpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu tries what needs none")
    name = torch.cuda.get_device_name(setting.device) if setting.on_gpu else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "quick": options.quick, "sections": {}}
    report |= {"seconds": {}, "left out": []}
    options.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("fcnproto.solver").addHandler(logging.NullHandler())  # solvers show their lines to nobody
    good = [run(section, setting, report, options.out / "device_check.json") for section in names]
    print(f"{time.monotonic() - began:.0f} s; left out for want of time: {', '.join(report['left out']) or 'nothing'}")
    return int(not all(good))


def run(name: str, setting: Setting, report: dict[str, Any], path: Path) -> bool:
    """Run a section into the report, which is then written; whether all of it is good."""
    seconds, section = SECTIONS[name]
    if setting.left < (0 if setting.quick else seconds / 2):
        report["left out"].append(name)
        write(report, path)
        return True
    rows: list[Figures] = report["sections"].setdefault(name, [])
    began, good = time.monotonic(), True
    try:
        for figures in section(setting):
            rows.append(figures)
            good &= figures.get("good", True)
            print(f"{name:15} {shown(figures)}", flush=True)
    except Exception as error:  # one section must not take the others' figures along
        good = False
        rows.append(
            {"what": "failed", "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-2000:]}
        )
        print(
            f"{name:15} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True
        )
    report["seconds"][name] = round(time.monotonic() - began, 1)
    write(report, path)
    setting.clean()
    return good


def write(report: dict[str, Any], path: Path) -> None:
    """Write what there is so far."""
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
