"""Pieces of work side by side: all done, in the caller's modes, errors raised, nothing left behind."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
import torch

from fcnproto.passes import team


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_piece_runs_once_on_one_core_of_several() -> None:
    seen: list[tuple[int, str, int]] = []
    meet = threading.Barrier(2, timeout=20)

    def piece(number: int) -> None:
        if number < 2:
            meet.wait()  # passes only where two run at once
        seen.append((number, threading.current_thread().name, torch.get_num_threads()))

    team.run([partial(piece, number) for number in range(9)])
    assert sorted(number for number, _, _ in seen) == list(range(9))
    assert len({name for _, name, _ in seen}) == 2
    assert {threads for _, _, threads in seen} == {1}
    assert torch.get_num_threads() == 2
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert others == [2]  # threads to come don't inherit the members' number


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_in_the_callers_mode(mode: type[torch.no_grad]) -> None:
    seen: list[tuple[bool, bool]] = []
    with mode():
        expected = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        team.run([lambda: seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))] * 4)
    assert seen == [expected] * 4


def test_errors_are_raised_when_all_have_ended() -> None:
    done: list[int] = []

    def piece(number: int) -> None:
        if number == 1:
            raise RuntimeError("piece 1")
        done.append(number)

    with pytest.raises(RuntimeError, match="piece 1"):
        team.run([partial(piece, number) for number in range(6)])
    assert sorted(done) == [0, 2, 3, 4, 5]


def test_pieces_may_have_pieces() -> None:
    done: list[int] = []
    team.run([lambda: team.run([lambda: done.append(1)] * 3)] * 4)
    assert len(done) == 12


def test_one_thread_is_the_callers_own() -> None:
    torch.set_num_threads(1)
    names: set[str] = set()
    team.run([lambda: names.add(threading.current_thread().name)] * 3)
    assert names == {threading.current_thread().name}


def test_from_several_threads_at_once_and_with_other_numbers() -> None:
    total: list[int] = []

    def caller(threads: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(20):
            team.run([lambda: total.append(1)] * 4)

    callers = [threading.Thread(target=caller, args=(2 + i % 2,)) for i in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert len(total) == 6 * 20 * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_team_of_its_own() -> None:
    team.run([int, int])
    child = os.fork()
    if child == 0:
        done: list[int] = []
        team.run([lambda: done.append(1)] * 4)
        os._exit(0 if len(done) == 4 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
