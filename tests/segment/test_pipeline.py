"""Overlapped reading, computing and writing: order, batches, bounds, and failures."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fcnproto.segment.pipeline import Stages, overlap

WAIT = 60  # seconds after which a thread that should have been let on gives up: then the test fails


class Work:
    """Stages on numbers: reading doubles, running adds one, writing gives (job, item, result)."""

    def __init__(self, kinds: int = 1, most: int = 1) -> None:
        self.kinds, self.most = kinds, most
        self.batches: list[list[int]] = []
        self.lock = threading.Lock()
        self.alive = self.most_alive = 0

    def read(self, job: int) -> int:
        with self.lock:
            self.alive += 1
            self.most_alive = max(self.most_alive, self.alive)
        return 2 * job

    def run(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append([item // 2 for item in items])
        return [item + 1 for item in items]

    def write(self, job: int, item: int, result: int) -> Any:
        with self.lock:
            self.alive -= 1
        return job, item, result

    def failed(self, job: int, error: Exception) -> Any:
        if isinstance(error, KeyError):
            raise error
        return job, str(error)

    def stages(self) -> Stages[int, int, int, Any]:
        return Stages(
            self.read,
            self.run,
            self.write,
            self.failed,
            kind=lambda item: item // 2 % self.kinds,
            most=lambda item: self.most,
            size=lambda job: 1,
        )

    def results(self, count: int, ahead: int = 4, limit: int = 100, workers: int = 2) -> list[Any]:
        return list(overlap(range(count), self.stages(), ahead=ahead, limit=limit, workers=workers))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 50])
@pytest.mark.parametrize(("kinds", "most"), [(1, 1), (1, 3), (3, 2), (50, 8)])
def test_results_are_in_order(count: int, kinds: int, most: int) -> None:
    assert Work(kinds, most).results(count) == [(job, 2 * job, 2 * job + 1) for job in range(count)]


def test_batches_are_of_one_kind_and_always_the_same() -> None:
    work = Work(kinds=2, most=3)
    work.results(8, ahead=4)
    assert work.batches == [[0, 2], [1, 3], [4, 6], [5, 7]]  # none reaches over a multiple of `ahead`
    for _ in range(5):
        again = Work(kinds=2, most=3)
        again.results(8, ahead=4)
        assert again.batches == work.batches


@pytest.mark.parametrize("limit", [2, 5, 100])
def test_a_part_that_begins_at_a_group_has_the_batches_of_the_whole(limit: int) -> None:
    def batches(jobs: range) -> list[list[int]]:
        work = Work(kinds=3, most=4)
        stages = replace(work.stages(), size=lambda job: 1 + job % 3)
        list(overlap(jobs, stages, ahead=8, limit=limit, workers=2))
        return work.batches

    whole = batches(range(40))
    assert [batch for batch in whole if batch[0] >= 16] == batches(range(16, 40))
    assert all(len({job // 8 for job in batch}) == 1 for batch in whole)
    assert sorted(job for batch in whole for job in batch) == list(range(40))


def test_the_next_are_read_while_the_net_works() -> None:
    work, read = Work(), [threading.Event() for _ in range(6)]

    def reading(job: int) -> int:
        read[job].set()
        return 2 * job

    def run(items: list[int]) -> list[int]:
        job = items[0] // 2
        assert read[min(job + 4, 5)].wait(WAIT), "the next image was not read while this one was computed"
        return [item + 1 for item in items]

    work.read, work.run = reading, run  # type: ignore[method-assign, assignment]
    assert len(work.results(6, ahead=4)) == 6


def test_the_last_are_written_while_the_net_works() -> None:
    work, computed = Work(), [threading.Event() for _ in range(4)]

    def run(items: list[int]) -> list[int]:
        computed[items[0] // 2].set()
        return [item + 1 for item in items]

    def write(job: int, item: int, result: int) -> Any:
        assert computed[min(job + 1, 3)].wait(WAIT), "the next image was not computed while this one was written"
        return job

    work.run, work.write = run, write  # type: ignore[method-assign, assignment]
    assert work.results(4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("ahead", "limit", "workers"), [(4, 100, 1), (4, 100, 2), (100, 3, 1), (1, 1, 1), (8, 0, 2)])
def test_no_more_than_so_many_are_in_memory(ahead: int, limit: int, workers: int) -> None:
    work = Work()
    assert len(work.results(60, ahead, limit, workers)) == 60
    # read and not run, run now, and to be written
    assert work.most_alive <= max(1, min(ahead, limit)) + 1 + 2 * workers + 1


def test_failures_are_results_in_their_place() -> None:
    work = Work(most=4)

    def read(job: int) -> int:
        if job == 1:
            raise ValueError("unreadable")
        return 2 * job

    def run(items: list[int]) -> list[int | Exception]:
        return [ValueError("uncomputable") if item == 6 else item + 1 for item in items]

    def write(job: int, item: int, result: int) -> Any:
        if job == 4:
            raise ValueError("unwritable")
        return job

    work.read, work.run, work.write = read, run, write  # type: ignore[method-assign, assignment]
    assert work.results(6) == [0, (1, "unreadable"), 2, (3, "uncomputable"), (4, "unwritable"), 5]


@pytest.mark.parametrize("stage", ["read", "run", "write"])
def test_what_ends_all_ends_all(stage: str) -> None:
    work = Work()

    def fail(*arguments: Any) -> Any:
        raise KeyError(stage)

    setattr(work, stage, fail)
    with pytest.raises(KeyError, match=stage):
        work.results(20)


def test_a_caller_that_stops_leaves_no_threads() -> None:
    before = threading.active_count()
    results = overlap(range(50), Work().stages(), ahead=4, limit=100, workers=3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before
