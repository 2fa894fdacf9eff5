"""Finding the item that ends its worker, or that never ends.

Ray restarts workers that died and gives their task to another; it can't know which item was the cause. A ledger, an
actor beside the driver, is told what is begun and what has ended: a task that was begun before and has not ended is
done with care, item by item, and an item that was alone at two deaths, or in time-out, is given up.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import IO, Any

from fcnproto.cluster.chunks import Failure
from fcnproto.errors import Error, UsageError, first_line
from fcnproto.escaping import one_line

_MOST_DEATHS = 2
_GRACE = 5.0
"""Seconds after a time-out in which a worker tells of it; one whose interpreter is stuck is ended without a word."""


class Ledger:
    """What is begun and has not ended, and what was in time-out. Runs as a Ray actor."""

    def __init__(self) -> None:
        self.open: dict[Hashable, int] = {}
        self.late: set[Hashable] = set()

    def begin(self, key: Hashable, parts: Sequence[Hashable] = ()) -> tuple[int, list[Hashable]]:
        """How often `key` was begun and has not ended, and which of its parts were in time-out. Begins it once more."""
        before = self.open.get(key, 0)
        self.open[key] = before + 1
        return before, [part for part in (key, *parts) if part in self.late] if self.late else []

    def end(self, key: Hashable) -> None:
        """`key` has ended well."""
        self.open.pop(key, None)

    def time_out(self, key: Hashable) -> None:
        """`key` took too long; its worker ends now."""
        self.late.add(key)


class Guard:
    """A worker's side: runs what it is given as the ledger says.

    Args:
        ledger: the ledger's handle.
        seconds: the time limit of an item, or of those that are run together; None for no limit.
        stage: what is done here.
    """

    def __init__(self, ledger: Any, seconds: float | None, stage: str) -> None:
        self.ledger, self.seconds, self.stage = ledger, seconds, stage

    def each(self, key: str, names: Mapping[int, str], work: Callable[[int], Any]) -> dict[int, Any]:
        """`work(place)` for each of the places, a `Failure` where that raises, ends its worker or takes too long."""
        parts = {place: (self.stage, name) for place, name in names.items()}
        task = (self.stage, key)
        before, late = self._begin(task, list(parts.values()))
        found: dict[int, Any] = {}
        for place, part in parts.items():
            if part in late:
                found[place] = self._too_late()
            elif before:
                found[place] = self._alone(part, lambda place=place: work(place))  # type: ignore[misc]
            else:
                with self._deadline(part):
                    found[place] = attempt(lambda place=place: work(place))  # type: ignore[misc]
        self._end(task)
        return found

    def together(self, names: Mapping[int, str], work: Callable[[list[int]], Sequence[Any]]) -> dict[int, Any]:
        """`work(places)` for all at once. Where a worker died at them each is tried alone first; those that pass are
        then run together again, so that their results are those of an undisturbed run (if that ends the worker, too,
        they are left as they came out alone)."""
        places = list(names)
        parts = {place: (self.stage, name) for place, name in names.items()}
        task = (self.stage, "together", *names.values())
        before, late = self._begin(task, list(parts.values()))
        if not before:
            with self._deadline(*([*parts.values()] if len(parts) == 1 else [task])):
                found = dict(zip(places, work(places), strict=True))
            self._end(task)
            return found
        found = {}
        for place in places:
            if parts[place] in late:
                found[place] = self._too_late()
            else:
                found[place] = self._alone(parts[place], lambda place=place: work([place])[0])  # type: ignore[misc]
        healthy = [place for place in places if type(found[place]) is not Failure]
        if len(places) > 1 and healthy:
            again = (*task, "again")
            if not self._begin(again, [])[0]:
                with self._deadline(again):
                    found |= dict(zip(healthy, work(healthy), strict=True))
            self._end(again)
        self._end(task)
        return found

    def _alone(self, part: Hashable, work: Callable[[], Any]) -> Any:
        deaths, late = self._begin(part, [])
        if late:
            return self._too_late()
        if deaths >= _MOST_DEATHS:
            limit = "" if self.seconds is None else f", or more than {self.seconds:g} s without a word"
            return Failure(f"{self.stage} ended its worker {_MOST_DEATHS} times (a crash, or too little memory{limit})")
        with self._deadline(part):
            found = attempt(work)
        self._end(part)
        return found

    def _too_late(self) -> Failure:
        return Failure(f"{self.stage} took more than {self.seconds:g} s (--item-timeout)")

    def _begin(self, key: Hashable, parts: list[Hashable]) -> tuple[int, list[Hashable]]:
        import ray

        before, late = ray.get(self.ledger.begin.remote(key, parts))
        return before, [tuple(part) if isinstance(part, list) else part for part in late]

    def _end(self, key: Hashable) -> None:
        self.ledger.end.remote(key)

    @contextlib.contextmanager
    def _deadline(self, *keys: Hashable) -> Iterator[None]:
        """End this process where the block takes too long, and tell the ledger what it was at."""
        if self.seconds is None:
            yield
            return

        def give_up() -> None:
            import ray

            with contextlib.suppress(Exception):
                ray.get([self.ledger.time_out.remote(key) for key in keys], timeout=_GRACE)
            os._exit(1)

        timer = threading.Timer(self.seconds, give_up)
        timer.daemon = True
        # A thread of C's, which ends the process also where Python's own threads can't run.
        faulthandler.dump_traceback_later(self.seconds + 2 * _GRACE, exit=True, file=_nowhere())
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` gives, or a `Failure` for what it raises; a `UsageError` means all items and goes on."""
    try:
        return work()
    except UsageError:
        raise
    except Exception as error:
        return failure(error)


def failure(error: Exception) -> Failure:
    """The failure that an error means."""
    text = str(error) if isinstance(error, (Error, OSError)) else f"{type(error).__name__}: {first_line(error)}"
    return Failure(one_line(text))


@functools.cache
def _nowhere() -> IO[str]:
    """What the traceback of an ended process is written to; open as long as the process lives."""
    return open(os.devnull, "w")
