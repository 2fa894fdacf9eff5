"""Running a corpus through Ray Data's stages: connecting, sharing out CPUs and GPUs, following the results.

Scheduling, back-pressure, restarts of workers and waiting before a refused write is tried again are Ray's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcnproto.cluster import places, stages
from fcnproto.cluster.chunks import PART, cut
from fcnproto.cluster.guard import Ledger
from fcnproto.cluster.sinks import REFUSES, Sink
from fcnproto.cluster.sources import Corpus
from fcnproto.cluster.stages import Plan
from fcnproto.cluster.summary import Summary
from fcnproto.cluster.work import Work
from fcnproto.errors import DataError, Error, UsageError, first_line

if TYPE_CHECKING:
    from fcnproto.cluster.sending import Parcel

Told = Callable[[Summary, int | None], None]
"""Called as results come, with what is done so far and how many items there are, if that is known."""

_WRITING_RETRIES = 12  # Ray waits 1, 2, 4, ... 32, 32 seconds between them: about four minutes
_STARTING_DEATHS = 20
_MOST_BLOCKS = 10_000
_FEW_CPUS = 16
_ROOMS = 8  # so many chunks of pixels fill a node's object store


def _nothing() -> None:
    """The setup of workers that need none."""


@dataclass(frozen=True)
class Cluster:
    """Where and how a corpus is worked on.

    Attributes:
        address: "local" for processes of this machine, "auto", or the address of a Ray cluster (`host:6379`). Where
            this process is connected to Ray already, that is used.
        workers: processes that compute the net; by default one for each GPU that is wanted, else three quarters of the
            cluster's CPUs (of "local", one).
        gpus_per_worker: GPUs of each worker, perhaps a part of one; 0 computes on CPUs.
        threads: threads of torch's arithmetic in each worker.
        resume: go on with a sink that holds results; only what is missing is done.
        item_timeout: seconds after which an item is given up; None for never.
        part: most items that go through the stages together and into one part of the sink.
        object_store: bytes of shared memory, for "local".
        setup: called in each worker before the net is unpacked, to import what registers its layers.
    """

    address: str = "local"
    workers: int | None = None
    gpus_per_worker: float = 0.0
    threads: int = 1
    resume: bool = False
    item_timeout: float | None = None
    part: int = PART
    object_store: int = 2**29
    setup: Callable[[], Any] = _nothing

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("threads", 1), ("part", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be {least} or more, not {value}")
        if self.item_timeout is not None and self.item_timeout <= 0:
            raise UsageError(f"item_timeout must be more than 0 seconds, not {self.item_timeout:g}")
        if self.gpus_per_worker < 0:
            raise UsageError(f"gpus_per_worker must not be negative, but is {self.gpus_per_worker:g}")


def cluster_of(given: Cluster | str, options: Mapping[str, Any]) -> Cluster:
    """The cluster that a caller means: one, or an address with further fields. Raises `UsageError`."""
    known = {field.name for field in dataclasses.fields(Cluster)}
    if strange := set(options) - known:
        raise UsageError(f"no option {min(strange)!r}; a cluster has {', '.join(sorted(known))}")
    if isinstance(given, Cluster):
        return dataclasses.replace(given, **options)
    return Cluster(given, **options)


@dataclass(frozen=True)
class Shares:
    """Who gets how much: `workers` nets with `net_cpus` each, tasks that decode with `task_cpus` each, and those that
    read and write, and wait for that, with `waiting_cpus`."""

    workers: int
    net_cpus: float
    net_gpus: float
    task_cpus: float
    waiting_cpus: float

    @property
    def most_cpus(self) -> float:
        """The CPUs that a run with so many workers has a use for, the rest being left to others: decoding for a net
        on CPUs takes one beside each worker at most, for one on a GPU sixteen; and every further stage has its own,
        since one without a share would wait until an earlier one has done the whole corpus."""
        decoding = self.workers * (16 if self.net_gpus else 1) * self.task_cpus
        return self.workers * self.net_cpus + decoding + self.task_cpus + 2 * self.waiting_cpus


def need_ray() -> Any:
    """Ray, imported with its data library. Raises `UsageError` that names the extra."""
    # What a killed driver had reserved of a cluster is free after so many seconds; Ray Data's own three minutes are
    # long for the run that resumes.
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    try:
        import fsspec  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"--cluster needs Ray ({first_line(error)}): pip install 'fcnproto[cluster]'") from None
    return ray


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected for the length of the block. Raises `UsageError` where there is none at the address."""
    ray = need_ray()
    if ray.is_initialized():
        yield ray
        return
    local = cluster.address == "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own remarks on restarts would stand among ours
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        cpus = (cluster.workers or 1) * cluster.threads + (os.cpu_count() or 1)
        settings |= {"num_cpus": cpus, "object_store_memory": cluster.object_store, "include_dashboard": False}
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main_thread else None
    try:
        with _without_remarks():
            ray.init(address=cluster.address, **settings)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        hint = "" if local or "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise UsageError(f"--cluster {cluster.address}: can't be reached: {first_line(error)}{hint}") from None
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process past everybody's cleaning up
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep off the terminal what Ray's core writes to stderr by itself when it starts; errors come as exceptions."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def shares(ray: Any, cluster: Cluster) -> Shares:
    """How a cluster's CPUs and GPUs are shared out. Raises `UsageError` for more than there are."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(what, 0.0) for node in nodes) for what in ("CPU", "GPU"))
    wanted = cluster.gpus_per_worker
    if wanted > 0:
        most = math.floor(
            sum(node.get("GPU", 0.0) // wanted if wanted >= 1 else node.get("GPU", 0.0) / wanted for node in nodes)
        )
        workers = cluster.workers or most
        if most < 1 or workers > most:
            raise UsageError(
                f"--gpus-per-worker {wanted:g}: the cluster has {gpus:g} GPUs, enough for {most} workers"
                + ("" if most < 1 else f", not {workers}")
            )
        net_cpus = 1.0
    else:
        local = cluster.address == "local"
        workers = cluster.workers or (1 if local else max(1, math.floor(cpus * 3 / 4) // cluster.threads))
        net_cpus = float(cluster.threads)
    if cpus <= 0:
        raise UsageError("the cluster has no CPUs")
    task_cpus = 1.0
    if workers * net_cpus + 2 > cpus or any(0 < node.get("CPU", 0.0) < net_cpus + 1 for node in nodes):
        task_cpus, net_cpus = 0.25, min(net_cpus, math.floor(500 * min(1.0, cpus / workers)) / 1000)
    # Where there are few CPUs reading shares a task with decoding, as encoding does with writing: fewer processes.
    return Shares(workers, net_cpus, wanted, task_cpus, task_cpus if cpus <= _FEW_CPUS else task_cpus / 4)


def record(work: Work, parcel: Parcel | None, corpus: Corpus, part: int) -> dict[str, Any]:
    """What makes a run another: by digests, the net with its settings, and the corpus; and the chunks' length."""
    net, items = hashlib.sha256(f"{work.command} {work.settings}".encode()), hashlib.sha256()
    for array in parcel.arrays if parcel is not None else ():
        net.update(array.tobytes())
    for item in corpus.items:
        items.update(json.dumps([str(item.place), item.name, item.size]).encode())
    for shard in corpus.shards:
        items.update(shard.address.encode())
    return {"net": net.hexdigest(), "corpus": items.hexdigest(), "part": part}


def run(
    work: Work,
    corpus: Corpus,
    sink: Sink | None,
    cluster: Cluster,
    *,
    net: Any = None,
    sources: Sequence[str] = (),
    column: str | None = None,
    told: Told | None = None,
    take: Callable[[str, list[Any]], None] | None = None,
) -> Summary:
    """Take every item of a corpus through the stages of `work`, with `net` in the workers; then write the manifest.

    `take` gets what `work.told` gives of the items of each chunk, with the chunk's key.

    Raises `UsageError` before anything is done, an `Error` of one line where the work as a whole fails.
    """
    from fcnproto.cluster.sending import pack

    ray = need_ray()
    summary = Summary(work.command, tuple(sources), None if sink is None else _shown(sink))
    parcel = None if net is None else pack(net)
    if sink is not None:
        if cluster.resume and sink.complete():
            return Summary.of(json.loads(places.read(sink.manifest)))
        sink.begin(record(work, parcel, corpus, cluster.part), cluster.resume)
    with connected(cluster), _quiet(), _own_context(ray) as context:
        share = shares(ray, cluster)
        if cluster.workers is not None:
            context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
                cpu=share.most_cpus
            )
        summary.workers = share.workers
        kept = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": _here(ray)}
        ledger = ray.remote(Ledger).options(**kept).remote()
        stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
        room = int(min(filter(None, stores), default=cluster.object_store)) // _ROOMS
        plan = Plan(work, sink, cluster.resume, cluster.part, column, ledger, cluster.item_timeout, room)
        follow = _Follower(plan, summary, None if corpus.shards else len(corpus.items), told, take)
        dataset = _pipeline(ray, plan, corpus, share, parcel, cluster)
        try:
            for row in dataset.iter_rows():
                follow(row)
        except Exception as error:
            raise _plain(error) from error
    summary.seconds = time.time() - summary.began
    if sink is not None:
        sink.finish(summary.as_dict())
    return summary


def _shown(sink: Sink) -> str:
    return str(getattr(sink, "target", "") or sink.address)


def _here(ray: Any) -> Any:
    """The driver's node: where the ledger stands, which must not go with another."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the lines that Ray Data logs about each execution off the terminal."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _own_context(ray: Any) -> Iterator[Any]:
    """Ray Data's settings for these stages, for the length of the block."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 2**20  # a chunk a block: rows are large
    context.raise_original_map_exception = True  # and not one that tells of it
    context.retried_map_errors = [REFUSES]
    context.max_map_retries = _WRITING_RETRIES
    context.max_consecutive_actor_init_deaths = _STARTING_DEATHS
    context.execution_no_progress_timeout_s = -1  # an item may take long; --item-timeout is for those that don't end
    with ray.data.DataContext.current(context):
        yield context


def _pipeline(ray: Any, plan: Plan, corpus: Corpus, share: Shares, parcel: Parcel | None, cluster: Cluster) -> Any:
    """The dataset of the last stage's rows, not yet begun."""
    rows: list[dict[str, Any]] = [
        {**chunk.row(), "shard": None} for chunk in cut(corpus.items, plan.work.step, plan.part)
    ]
    rows += [{"chunk": None, "shard": pickle.dumps(shard)} for shard in corpus.shards]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS))
    arguments = {"plan": plan}
    light, heavy = share.waiting_cpus, share.task_cpus
    if corpus.shards:
        data = data.flat_map(stages.listing, fn_kwargs=arguments, num_cpus=light / 2)
    if corpus.shards or len(rows) > _MOST_BLOCKS:
        data = data.repartition(target_num_rows_per_block=1)
    data = data.map(stages.reading, fn_kwargs=arguments, num_cpus=light)
    data = data.map(stages.decoding, fn_kwargs=arguments, num_cpus=heavy)
    if parcel is not None:
        data = data.map(
            stages.Net,
            fn_constructor_kwargs={"plan": plan, "parcel": [ray.put(parcel)], "setup": _Setup(cluster)},
            compute=ray.data.ActorPoolStrategy(size=share.workers),
            num_cpus=share.net_cpus,
            num_gpus=share.net_gpus,
            memory=max(parcel.size, 1),
        )
    data = data.map(stages.encoding, fn_kwargs=arguments, num_cpus=heavy)
    if plan.sink is None or not places.in_memory(plan.sink.address):
        data = data.map(stages.writing, fn_kwargs=arguments, num_cpus=light)
    return data


@dataclass(frozen=True)
class _Setup:
    """What a worker does before it unpacks the net."""

    cluster: Cluster

    def __call__(self) -> None:
        import torch

        torch.set_num_threads(self.cluster.threads)
        self.cluster.setup()


@dataclass
class _Follower:
    """Takes the rows of the last stage: counts, tells, and writes where only the driver can."""

    plan: Plan
    summary: Summary
    total: int | None
    told: Told | None
    take: Callable[[str, list[Any]], None] | None

    def __call__(self, row: dict[str, Any]) -> None:
        if "done" not in row:  # the sink is in this process's memory
            row = stages.writing(row, self.plan)
        summary = self.summary
        summary.done += int(row["done"])
        if not summary.seconds_to_first:
            summary.seconds_to_first, summary.done_at_first = time.time() - summary.began, summary.done
        summary.kept += int(row["kept"])
        summary.bytes_read += int(row["bytes_read"])
        summary.bytes_written += int(row["bytes_written"])
        summary.failed += pickle.loads(row["failed"])
        summary.seconds = time.time() - summary.began
        if self.take is not None:
            self.take(row["key"], pickle.loads(row["told"]))
        if self.told is not None:
            self.told(summary, self.total)


def _plain(error: BaseException) -> BaseException:
    """The error of the package that is behind one of Ray's, else one line about the one that began it."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        if isinstance(found, Error):
            return found
        chain.append(found)
        found = getattr(found, "cause", None) or found.__cause__ or found.__context__
    return DataError(f"the cluster can't go on: {type(chain[-1]).__name__}: {first_line(chain[-1])}")
