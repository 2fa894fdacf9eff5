"""Several workers training one net, as `torchrun` starts them: who is who, and what they agree on.

Caffe's multi-GPU meaning: gradients are averaged over the workers before the update, each reads its own data (the data
layers see to that), rank 0 tests, writes and prints. Gloo connects processes, NCCL GPUs. Averaging itself is in
`engine`.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fcnproto.errors import SolverError, UsageError

#: How long a worker waits for the others. They wait while rank 0 tests and writes, which may take hours; a worker that
#: has died is noticed at once all the same, by its closed connection and by `torchrun`.
_PATIENCE = datetime.timedelta(days=2)


def is_running() -> bool:
    """Whether this process is one of a group of workers."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This worker's number, 0 where there is one only."""
    return dist.get_rank() if is_running() else 0


def world_size() -> int:
    """The number of workers."""
    return dist.get_world_size() if is_running() else 1


def restarted() -> bool:
    """Whether `torchrun` has started any of the workers again, because one was lost (`--max-restarts`). All agree."""
    return any_of([int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0])[0]


@contextmanager
def worker_group(device: str | None = None) -> Iterator[str | None]:
    """Join the workers that `torchrun` started, for the length of the block; does nothing in a process of its own.

    Gives the device to use: `device` as asked for, or the worker's own GPU where all are on GPUs.
    Raises `UsageError` where a machine has fewer GPUs than workers, `SolverError` where another worker has gone.
    """
    if "LOCAL_RANK" not in os.environ or is_running():
        yield device
        return
    local, kind = int(os.environ["LOCAL_RANK"]), (device or "").partition(":")[0]
    here, workers = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    # The same answer on all workers of a machine: were some on GPUs and others not, they would wait for each other.
    on_gpu = kind == "cuda" or (kind == "" and here > 0)
    if on_gpu:
        if max(workers, local + 1) > here:
            raise UsageError(
                f"worker {local} of {workers} on this machine: there are not as many GPUs ({here} here); "
                "start fewer with --nproc-per-node, or take --device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group(
        f"cpu:gloo,cuda:{'nccl' if dist.is_nccl_available() else 'gloo'}"
        if on_gpu
        else "gloo",  # what workers agree on doesn't wait for their GPUs
        timeout=_PATIENCE,
        device_id=torch.device(device) if on_gpu and device else None,
    )
    try:
        yield device
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = " ".join(str(error).split())
        raise SolverError(f"another worker has ended or can't be reached, see its own message ({reason})") from error
    finally:
        dist.destroy_process_group()
        if not on_gpu:
            # Gloo's threads live on (torch keeps them once there was a DistributedDataParallel). One that still has
            # a tensor to free waits for Python's lock, and would abort the process if Python ended first: here it gets
            # the lock.
            time.sleep(0.3)


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo's errors are bare RuntimeErrors with the place in its source.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def any_of(flags: list[bool]) -> list[bool]:
    """For each flag whether any worker has set it: all get the same answer at the same iteration."""
    if world_size() == 1:
        return flags
    values = torch.tensor([int(flag) for flag in flags], device="cpu")
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def gather(value: Any) -> list[Any]:
    """Every worker's value, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: Exception | None) -> None:
    """Raise the error on all workers if any of them has one (the first by rank); else go on once all are here."""
    (failed,) = any_of([error is not None])
    if failed:
        raise next(found for found in gather(error) if found is not None)


def broadcast(module: nn.Module) -> None:
    """Give every worker rank 0's parameters and buffers."""
    if world_size() > 1:
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, 0)
