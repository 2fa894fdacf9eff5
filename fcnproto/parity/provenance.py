"""What a report must say to be repeated: date, versions, files with their hashes, tolerances, the command."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import fcnproto
from fcnproto.zoo.cache import sha256

PathLike = str | os.PathLike[str]

_PACKAGES = ("torch", "numpy", "protobuf", "onnx", "onnxruntime", "opencv-python-headless", "opencv-python")


def file_record(path: PathLike, name: str | None = None) -> dict[str, Any]:
    """A file by the name that it was given, its size in bytes and its hash."""
    return {"path": os.fspath(path) if name is None else name, "bytes": os.path.getsize(path), "sha256": sha256(path)}


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the packages that numbers depend on, where they are installed."""
    found = {"fcnproto": fcnproto.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def command_line(words: Iterable[str] | None = None) -> str:
    """The command that is running, as a shell takes it."""
    return shlex.join(["fcnproto", *(sys.argv[1:] if words is None else words)])


def provenance(files: Iterable[PathLike], **more: Any) -> dict[str, Any]:
    """All of it for one report; `more` are facts of its own (tolerances, inputs)."""
    return {
        "date": now(),
        "versions": versions(),
        "command": command_line(),
        "files": [file_record(path) for path in dict.fromkeys(os.fspath(path) for path in files)],
        **more,
    }


def lines(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A provenance as names and texts, for pages."""
    told = [("date", str(record["date"])), ("command", str(record["command"]))]
    told.append(("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())))
    told += [
        ("file", f"{one['path']} ({one['bytes']:,} bytes), sha256 {one['sha256']}") for one in record.get("files", ())
    ]
    known = ("date", "command", "versions", "files")
    return told + [(name, str(value)) for name, value in record.items() if name not in known]
