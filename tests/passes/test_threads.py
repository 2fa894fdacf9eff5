"""Nets and optimised nets called by several threads, while weights change, copied, pickled and forked meanwhile."""

from __future__ import annotations

import copy
import io
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden_cases import deviation

import fcnproto
from fcnproto.net.locking import Lock
from fcnproto.passes.keeping import Latest, Watch
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse

NET = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param { num_output: 4 kernel_size: 3 pad: 20
  weight_filler { type: "xavier" } bias_filler { type: "gaussian" } } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "p1" type: "Pooling" bottom: "c1" top: "p1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "c2" type: "Convolution" bottom: "p1" top: "c2" convolution_param { num_output: 2 kernel_size: 3 pad: 1
  weight_filler { type: "xavier" } } }
layer { name: "up" type: "Deconvolution" bottom: "c2" top: "up" convolution_param { num_output: 2 group: 2 kernel_size: 4
  stride: 2 bias_term: false weight_filler { type: "bilinear" } } }
"""
SIZES = [(20 + 2 * i, 28 - i) for i in range(12)]  # more than an optimised net keeps


@pytest.fixture
def net() -> fcnproto.Net:
    torch.manual_seed(0)
    return fcnproto.load(parse(NET, caffe_pb2.NetParameter))


@pytest.fixture
def hurried() -> object:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def kinds(net: fcnproto.Net) -> dict[str, fcnproto.Net]:
    return {"plain": net, "optimised": fcnproto.optimize(net)}


@pytest.mark.parametrize("kind", ["plain", "optimised"])
def test_many_threads_and_more_sizes_than_are_kept(hurried: object, net: fcnproto.Net, kind: str) -> None:
    called = kinds(net)[kind]
    images = [torch.rand(1, 3, *size) for size in SIZES]
    with torch.no_grad():
        expected = [copy.deepcopy(net)(data=x)["up"] for x in images]

    def work(thread: int) -> float:
        worst = 0.0
        with torch.no_grad():
            for turn in range(150):
                which = (turn * (thread % 5 + 1) + thread) % len(images)
                worst = max(worst, deviation(called(data=images[which])["up"], expected[which]))
        return worst

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) <= 1e-5


def test_calls_while_weights_change(hurried: object, net: fcnproto.Net) -> None:
    """No call fails, and those that begin after the last change give its numbers."""
    fast, images = fcnproto.optimize(net), [torch.rand(1, 3, *size) for size in SIZES[:3]]
    done = threading.Event()

    def work(thread: int) -> int:
        count = 0
        with torch.no_grad():
            while not done.is_set():
                fast(data=images[(count + thread) % 3])
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(work, thread) for thread in range(4)]
        for change in range(60):
            with torch.no_grad():
                for blobs in net.params.values():
                    blobs[0].mul_(1.01 if change % 2 else 0.99)
            time.sleep(0.005)
        with torch.no_grad():
            ours, plain = [[each(data=x)["up"] for x in images] for each in (fast, net)]
        done.set()
        assert all(count.result(60) > 0 for count in counts)
        with torch.no_grad():
            ours += [fast(data=x)["up"] for x in images]
    assert all(deviation(a, b) <= 1e-5 for a, b in zip(ours, plain * 2, strict=True))


def test_a_value_made_while_its_tensors_change_is_not_kept() -> None:
    weight, watch = torch.zeros(3), Watch()

    def make() -> float:
        value = float(weight[0])
        if value == 0:
            weight.fill_(7)  # another thread's write, and that thread's look
            watch.look()
        return value

    kept = watch.derived("first", make, lambda: [weight])
    assert kept.value == 0
    watch.look()
    assert kept.value == 7


def test_latest_values_under_many_threads(hurried: object) -> None:
    latest: Latest[int, int] = Latest(3, 40)

    def work(thread: int) -> None:
        for turn in range(3000):
            key = (turn * 7 + thread) % 9
            found = latest.get(key)
            assert found is None or found == key
            latest.put(key, key, 10)
            if turn % 50 == 0:
                latest.clear()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(latest) <= 3


@pytest.mark.parametrize("kind", ["plain", "optimised"])
@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), "torch.save"],
    ids=["deepcopy", "pickle", "save"],
)
def test_copies_made_while_others_call(net: fcnproto.Net, kind: str, twin: Callable[..., fcnproto.Net] | str) -> None:
    called, x = kinds(net)[kind], torch.rand(1, 3, 24, 26)
    done = threading.Event()

    def work() -> None:
        with torch.no_grad():
            for turn in range(10**9):
                if done.is_set():
                    return
                called(data=torch.rand(1, 3, *SIZES[turn % len(SIZES)]))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            if isinstance(twin, str):
                file = io.BytesIO()
                torch.save(called, file)
                file.seek(0)
                other = torch.load(file, weights_only=False)
            else:
                other = twin(called)
            with torch.no_grad():
                assert deviation(other(data=x)["up"], net(data=x)["up"]) <= 1e-5
            other.params["c1"][0].data.mul_(2)  # its own weights
            with torch.no_grad():
                assert deviation(other(data=x)["up"], net(data=x)["up"]) > 1e-3
    finally:
        done.set()
        thread.join(60)


def exit_status_of_a_fork(work: Callable[[], bool]) -> int:
    """0 where `work` is true in a forked process, within 30 seconds."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["plain", "optimised"])
def test_a_forked_process_calls_what_its_parent_has_used(net: fcnproto.Net, kind: str) -> None:
    """With one thread: with more, PyTorch itself hangs in a process forked after it has used several."""
    called, x = kinds(net)[kind], torch.rand(1, 3, 60, 70)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            expected = called(data=x)["up"]

        def work() -> bool:
            torch.set_num_threads(1)
            with torch.no_grad():
                same = deviation(called(data=x)["up"], expected) <= 1e-6
                called.params["c1"][0].mul_(2)
                return same and deviation(called(data=x)["up"], expected) > 1e-3

        assert exit_status_of_a_fork(work) == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_holds_every_lock(net: fcnproto.Net) -> None:
    fast, x = fcnproto.optimize(net), torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        expected = fast(data=x)["up"]
    chain = next(
        m
        for m in fast._fast_plans.get((("data",), (), (False,) * len(net.layers))).module.modules()
        if hasattr(m, "_sizes")
    )  # type: ignore[union-attr]
    locks = [fast._planning, fast._watch._lock, fast._fast_plans._lock, chain._sizes._lock]
    locks += [derived._lock for derived in fast._watch._derived.values()]
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.__enter__()
        held.set()
        done.wait(60)
        for lock in locks:
            lock.__exit__(None, None, None)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)

    def work() -> bool:
        torch.set_num_threads(1)
        with torch.no_grad():
            return deviation(fast(data=x, blobs=["p1"])["up"], expected) <= 1e-6

    try:
        assert exit_status_of_a_fork(work) == 0
    finally:
        done.set()
        thread.join(60)


def test_copies_of_a_held_lock_are_free() -> None:
    lock = Lock()
    with lock, lock:
        for twin in (copy.deepcopy(lock), copy.copy(lock), pickle.loads(pickle.dumps(lock))):
            seen: list[bool] = []

            def take(twin: Lock = twin, seen: list[bool] = seen) -> None:
                with twin:
                    seen.append(True)

            thread = threading.Thread(target=take)
            thread.start()
            thread.join(20)
            assert seen
