"""Reading, computing and writing at the same time: results in order, bounded memory, the same batches in every run.

Reading and writing have threads of their own; computing stays in the thread that asks for the results. Knows nothing of
nets and images.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Job = TypeVar("Job")
Item = TypeVar("Item")
Done = TypeVar("Done")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Stages(Generic[Job, Item, Done, Out]):
    """What is done with each job.

    Attributes:
        read: the item of a job; runs in a thread.
        run: what becomes of items of one kind, an exception for those that fail; runs in the caller's thread.
        write: the result of a job; runs in a thread.
        failed: the result of a job whose reading, running or writing raised; it may raise itself, which ends all.
        kind: items of one kind may be run together.
        most: how many items like this one may be run together.
        size: of a job, in any unit, known before it is read.
    """

    read: Callable[[Job], Item]
    run: Callable[[list[Item]], Sequence[Done | Exception]]
    write: Callable[[Job, Item, Done], Out]
    failed: Callable[[Job, Exception], Out]
    kind: Callable[[Item], Hashable]
    most: Callable[[Item], int]
    size: Callable[[Job], int]


class Grouping:
    """Which jobs may be run together: those of one group.

    A group has at most `ahead` jobs, of at most `limit` in size (or is one job), and reaches over no multiple of
    `ahead`: a part of the jobs that begins at such a multiple has the groups that it has among all of them.
    """

    def __init__(self, ahead: int, limit: int) -> None:
        self.ahead, self.limit = ahead, limit
        self.count = self.size = self.group = 0

    def place(self, size: int) -> int:
        """The number of the group of the next job, whose size is given."""
        if self.count % self.ahead == 0 or self.size + size > self.limit:
            self.group, self.size = self.group + 1, 0
        self.count, self.size = self.count + 1, self.size + size
        return self.group


def alike(items: Mapping[int, Item], kind: Callable[[Item], Hashable], most: Callable[[Item], int]) -> list[int]:
    """The keys of those of a group's items (one or more) that are run together first: the first and others of its
    kind."""
    first = next(iter(items.values()))
    wanted = kind(first)
    return [key for key, item in items.items() if kind(item) == wanted][: max(1, most(first))]


def overlap(
    jobs: Sequence[Job], stages: Stages[Job, Item, Done, Out], *, ahead: int, limit: int, workers: int
) -> Iterator[Out]:
    """The jobs' results, in the jobs' order.

    At most `ahead` jobs, and of at most `limit` in size (but always one), are read before they are run; those run
    together are of one group (`Grouping`), so that batches depend neither on how fast things go nor on what comes
    before a multiple of `ahead`. Running waits while more results than two for each of the `workers` that write are not
    written yet.
    """
    line = _Line(stages, list(jobs), ahead, limit, workers)
    try:
        yield from line.results()
    finally:
        line.close()


@dataclass
class _Line(Generic[Job, Item, Done, Out]):
    """The state of one `overlap`: jobs by number, each in one of the dictionaries."""

    stages: Stages[Job, Item, Done, Out]
    jobs: list[Job]
    ahead: int
    limit: int
    workers: int
    submitted: int = 0
    given: int = 0
    reading: dict[int, Future[Item]] = field(default_factory=dict)
    ready: dict[int, Item] = field(default_factory=dict)
    writing: dict[int, Future[Out]] = field(default_factory=dict)
    finished: dict[int, Out] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.grouping = Grouping(self.ahead, self.limit)
        self.readers = ThreadPoolExecutor(self.workers, thread_name_prefix="read")
        self.writers = ThreadPoolExecutor(self.workers, thread_name_prefix="write")

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        for pool in (self.readers, self.writers):
            pool.shutdown(wait=True, cancel_futures=True)

    def results(self) -> Iterator[Out]:
        while self.given < len(self.jobs):
            self.read_ahead()
            self.take_what_is_read()
            batch = self.choose()
            self.read_ahead()  # while these are run
            self.run(batch)
            yield from self.settled()

    def read_ahead(self) -> None:
        while self.submitted < len(self.jobs) and len(self.sizes) < self.ahead:
            number, job = self.submitted, self.jobs[self.submitted]
            size = self.stages.size(job)
            if self.sizes and sum(self.sizes.values()) + size > self.limit:
                return
            self.sizes[number] = size
            self.groups[number] = self.grouping.place(size)
            self.reading[number] = self.readers.submit(self.stages.read, job)
            self.submitted += 1

    def take_what_is_read(self) -> None:
        for number, future in list(self.reading.items()):
            try:
                self.ready[number] = future.result()
            except Exception as error:
                self.fail(number, error)
            del self.reading[number]

    def choose(self) -> dict[int, Item]:
        """The first item that is ready and those of its kind in its group, taken out of the others."""
        if not self.ready:
            return {}
        group = self.groups[next(iter(self.ready))]
        members = {number: item for number, item in self.ready.items() if self.groups[number] == group}
        batch = {number: self.ready.pop(number) for number in alike(members, self.stages.kind, self.stages.most)}
        for number in batch:
            del self.sizes[number], self.groups[number]
        return batch

    def run(self, batch: dict[int, Item]) -> None:
        if not batch:
            return
        for (number, item), result in zip(batch.items(), self.stages.run(list(batch.values())), strict=True):
            if isinstance(result, Exception):
                self.fail(number, result)
            else:
                self.writing[number] = self.writers.submit(self.stages.write, self.jobs[number], item, result)

    def fail(self, number: int, error: Exception) -> None:
        self.sizes.pop(number, None)
        self.groups.pop(number, None)
        self.finished[number] = self.stages.failed(self.jobs[number], error)

    def settled(self) -> Iterator[Out]:
        """The results that are next in order, waiting for one where too many are being written, or nothing is left."""
        while True:
            future = self.writing.get(self.given)
            last = not self.sizes and self.submitted == len(self.jobs)
            if future is not None and (future.done() or last or len(self.writing) > 2 * self.workers):
                del self.writing[self.given]
                try:
                    self.finished[self.given] = future.result()
                except Exception as error:
                    self.fail(self.given, error)
            if self.given not in self.finished:
                return
            yield self.finished.pop(self.given)
            self.given += 1
