"""Where nets compute: pycaffe's `set_mode_cpu`, `set_mode_gpu`, `set_device`, and what goes with several processes.

As in Caffe the mode is one for the whole process and may change at any time; nets follow at their next forward or
backward. Without a GPU the mode "gpu" warns once and the CPU computes.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch

from fcnproto.errors import FcnprotoWarning, UsageError

_CPU = torch.device("cpu")


class _Mode:
    """The process's choice: GPU or not, and which."""

    gpu = False
    index = 0
    warned = False


def set_mode_cpu() -> None:
    """Compute on the CPU from now on (the default)."""
    _Mode.gpu = False


def set_mode_gpu() -> None:
    """Compute on the GPU from now on; where there is none, the CPU goes on computing, and a warning says so once."""
    _Mode.gpu = True
    _usable()


def set_device(device_id: int) -> None:
    """Choose the GPU of this number. A number that no GPU has warns, and the first GPU (or the CPU) computes."""
    _Mode.index = int(device_id)
    _usable()


def device() -> torch.device:
    """The device that nets compute on now."""
    if not _Mode.gpu or not torch.cuda.is_available():
        return _CPU
    return torch.device("cuda", _Mode.index if 0 <= _Mode.index < torch.cuda.device_count() else 0)


def _usable() -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if _Mode.warned or 0 <= _Mode.index < count:
        return
    _Mode.warned = True
    instead = "GPU 0 computes" if count else "the CPU computes"
    warnings.warn(f"caffe: there is no GPU {_Mode.index} here; {instead}", FcnprotoWarning, stacklevel=3)


def set_random_seed(seed: int) -> None:
    """Seed everything that the layers and fillers draw (torch's generators). The numbers aren't Caffe's."""
    torch.manual_seed(int(seed))


def solver_count() -> int:
    """The number of solvers in this process: always one."""
    return 1


def set_solver_count(count: int) -> None:
    """Accepts 1 alone; more workers are started with torchrun."""
    if int(count) != 1:
        _several()


def solver_rank() -> int:
    """This process's number among the solvers: 0."""
    return 0


def set_solver_rank(rank: int) -> None:
    """Accepts 0 alone; more workers are started with torchrun."""
    if int(rank) != 0:
        _several()


def set_multiprocess(multiprocess: bool) -> None:
    """Nothing to do for one process."""


def has_nccl() -> bool:
    """Whether `NCCL` can be used: no."""
    return False


class NCCL:
    """Caffe's gradients over several GPUs, which this module doesn't do: making one says what does."""

    def __init__(self, *arguments: Any) -> None:
        _several()

    @staticmethod
    def new_uid() -> str:
        """As the class itself."""
        _several()


def _several() -> NoReturn:
    raise UsageError(
        "caffe.NCCL: several GPUs work through torchrun, one process each: "
        "torchrun --nproc_per_node 2 -m fcnproto train --solver solver.prototxt"
    )


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Caffe's logging goes through Python's here: lines of level INFO (0) and above are shown on stderr."""
    from fcnproto.solver.log import LOGGER, log_to

    if not LOGGER.hasHandlers():
        log_to()


def log(text: str) -> None:
    """Write a line to Caffe's log."""
    from fcnproto.solver.log import LOGGER

    LOGGER.info("%s", text)
