"""Which of several exact ways is taken: the fastest of those that were timed at the first calls of a size.

A rule says which ways are close enough to be worth timing, and which one comes first. What was found holds for the
process, for the same work on as many threads; where the environment variable `FCNPROTO_TUNING_CACHE` names a file, for
later processes on such a machine as well. With `FCNPROTO_TUNING=off` nothing is timed and the rule alone decides.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fcnproto
from fcnproto.atomic import atomic_write
from fcnproto.errors import FcnprotoWarning, UsageError, first_line

SWITCH, CACHE = "FCNPROTO_TUNING", "FCNPROTO_TUNING_CACHE"

_TIMED = 3
"""How many runs of each way are timed, after one that is not: it may prepare what the others find."""
_BETTER = 0.95
"""Another way takes the place of the rule's only where it needs no more than this part of its time."""

clock: Callable[[], float] = time.perf_counter
"""Seconds; tests put a clock of their own in its place."""


def is_on(wanted: bool | None = None) -> bool:
    """Whether ways are timed: as `wanted`, else as `FCNPROTO_TUNING` says ("on", the default, or "off").

    Raises `UsageError` for another value of the variable.
    """
    said = os.environ.get(SWITCH, "on").strip().lower()
    if said not in ("on", "off"):
        raise UsageError(f"{SWITCH} is {said!r}; it can be 'on' or 'off'")
    return said == "on" if wanted is None else wanted


class Trial:
    """Ways that take turns, the rule's first, until each has been timed; then `chosen` is the fastest."""

    noted = 0
    """How many runs have been timed in this process: what takes longer for the sake of others is known by that."""

    def __init__(self, key: str, ways: Sequence[str]) -> None:
        self.key = key
        self._ways = tuple(ways)
        self._seconds: dict[str, list[float]] = {way: [] for way in ways}
        self._lock = threading.Lock()
        self.chosen: str | None = self._ways[0] if len(self._ways) == 1 else _choices.get(key, self._ways)

    def turn(self) -> str:
        """The way that is to be taken now."""
        if self.chosen is not None:
            return self.chosen
        return min(self._open() or self._ways, key=lambda way: len(self._seconds[way]))

    def note(self, way: str, seconds: float) -> None:
        """A run of `way` took so long."""
        with self._lock:
            Trial.noted += 1
            self._seconds[way].append(seconds)
            if self.chosen is not None or self._open():
                return
            best = {each: min(times[1:]) for each, times in self._seconds.items()}
            fastest, first = min(best, key=lambda each: best[each]), self._ways[0]
            self.chosen = fastest if best[fastest] <= _BETTER * best[first] else first
            _choices.put(self.key, self.chosen)

    def _open(self) -> list[str]:
        """The ways that have to be timed yet: one that took twice as long as the rule's has not."""
        first = min(self._seconds[self._ways[0]][1:], default=math.inf)
        return [
            way
            for way, times in self._seconds.items()
            if len(times) <= _TIMED and not min(times[1:], default=0) > 2 * first
        ]


class _Choices:
    """What was found in this process, and in the file that the environment names, if any."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._read: set[str] = set()
        self._new: set[str] = set()
        self._lock = threading.RLock()

    def get(self, key: str, ways: Sequence[str]) -> str | None:
        """The choice among these ways that is known for a key."""
        with self._lock:
            path = os.environ.get(CACHE)
            if path and path not in self._read:
                self._read.add(path)
                self._found = {**_read(path).get(machine(), {}), **self._found}
            found = self._found.get(key)
            return found if found in ways else None

    def put(self, key: str, way: str) -> None:
        """Keep a choice; it goes to the file when the process ends, or by `save`."""
        with self._lock:
            self._found[key] = way
            self._new.add(key)

    def save(self) -> None:
        """Add what was found since the last time to the file that the environment names, if any."""
        with self._lock:
            path = os.environ.get(CACHE)
            if not path or not self._new:
                return
            known = _read(path, tell=False)
            known[machine()] = {**known.get(machine(), {}), **{key: self._found[key] for key in sorted(self._new)}}
            self._new.clear()
        try:
            with atomic_write(path, "w") as file:
                json.dump({"fcnproto": known}, file, indent=1, sort_keys=True)
        except OSError as error:
            warnings.warn(f"{path}: choices of ways can't be kept there: {error}", FcnprotoWarning, stacklevel=2)

    def forget(self) -> None:
        """Begin anew, as a new process does."""
        with self._lock:
            self._found.clear()
            self._read.clear()
            self._new.clear()


def machine() -> str:
    """What choices depend on beside the work and the threads: the processor, and the versions of torch and of this."""
    return "; ".join([_processor(), f"torch {torch.__version__}", f"fcnproto {fcnproto.__version__}"])


def _processor() -> str:
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:  # another system
        pass
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _read(path: str, tell: bool = True) -> dict[str, dict[str, str]]:
    """The choices by machine in a file; none, with a warning, where it is there and is no such file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))["fcnproto"]
        for choices in content.values():
            if not all(isinstance(text, str) for pair in choices.items() for text in pair):
                raise TypeError("a choice is no text")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if tell:
            warnings.warn(
                f"{path} is ignored and will be written anew: it holds no choices of ways ({first_line(error)})",
                FcnprotoWarning,
                stacklevel=2,
            )
        return {}
    return dict(content)


_choices = _Choices()
save, forget = _choices.save, _choices.forget
atexit.register(save)
