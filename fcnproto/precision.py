"""How products of float32 numbers are computed: exactly by default; in TF32, bfloat16 or float16 when asked.

Torch's switches for that are the process's. They are set while a net's work is launched, forward and backward, and are
the user's own again afterwards.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fcnproto.errors import UsageError

_MODES = ("highest", "tf32x3", "tf32")
_mode = "highest"
_wanted: ContextVar[str | None] = ContextVar("float32 products", default=None)

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32x3": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What convolutions and matrix products may be asked to be computed in, in inference and in training: the names that
every function and command takes, with the type of the factors.

tf32 rounds float32 factors, on CUDA alone. tf32x3 computes each float32 convolution of an optimised net as three
products of such factors, on CUDA and without gradients, to float32's rounding; all else in it is strict."""

_LONG_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def canonical(name: str) -> str:
    """The name in `PRECISIONS` that `name`, short or long, stands for; `UsageError` for others."""
    found = _LONG_NAMES.get(name, name)
    if found not in PRECISIONS:
        raise UsageError(f"precision {name!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    return found


@contextlib.contextmanager
def computing(name: str, device: torch.device) -> Iterator[None]:
    """Compute convolutions and matrix products in this precision of `PRECISIONS`, in the nets that this thread calls.

    bf16 and fp16 through torch's autocast: what needs float32 (normalisation, softmax, losses) stays in it, and
    parameters are not touched. tf32 has an effect on CUDA alone. In a net that is not float32, nothing changes.
    """
    dtype = PRECISIONS[name]
    # No cache of cast weights: each is read once in a pass, and a recorded CUDA graph would outlive it.
    lower = (
        contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=False)
    )
    with lower, asking_for(name) if name in _MODES else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def asking_for(mode: str) -> Iterator[None]:
    """Let float32 products be "highest", "tf32x3" or "tf32" in the nets that this thread calls, whatever the process's
    setting is."""
    before = _wanted.set(_checked(mode))
    try:
        yield
    finally:
        _wanted.reset(before)


def set_float32_precision(mode: str) -> None:
    """Choose "highest" (strict float32, the default), "tf32x3" or "tf32" for convolutions and matrix products on CUDA.

    Holds for every net of the process that isn't asked for another precision. Raises `UsageError` for another mode.
    """
    global _mode
    _mode = _checked(mode)


def _checked(mode: str) -> str:
    if mode not in _MODES:
        raise UsageError(f"precision {mode!r}: expected {' or '.join(map(repr, _MODES))}")
    return mode


def apply() -> None:
    """Put the chosen precision in force for all that follows, in nets and outside: what `in_force` does for a block."""
    _Switches.relax()
    _Switches.set(_switched(chosen()))


def chosen() -> str:
    """How this thread's nets compute float32 products now: "highest", "tf32x3" or "tf32"."""
    return _wanted.get() or _mode


def _switched(mode: str) -> str:
    """What torch's switches are set to: the products of tf32x3 are told by themselves, all else in it is strict."""
    return "tf32" if mode == "tf32" else "highest"


@contextlib.contextmanager
def in_force(device: torch.device) -> Iterator[Callable[[Iterable[Tensor]], None]]:
    """Compute float32 products on `device` as chosen within this block, whatever torch's switches say.

    Gives a function that takes results of the block and has their gradients computed likewise, whenever that is.
    Threads may do so at once, in different precisions: while one computes strictly, those that asked for TF32 do so
    too. When nobody computes any more, torch's switches are as they were before.
    """
    if torch.compiler.is_compiling() or (device.type != "cuda" and _strict_on_cpu()):
        yield lambda results: None
        return
    mode = _switched(chosen())
    hold = _Hold(mode)
    try:
        yield partial(_watch_backward, mode)
    finally:
        hold.release()


def _strict_on_cpu() -> bool:
    mkldnn = cast(Any, torch.backends.mkldnn)
    return all(part.fp32_precision in ("none", "ieee") for part in (mkldnn.conv, mkldnn.matmul))


def _watch_backward(mode: str, results: Iterable[Tensor]) -> None:
    for result in results:
        if result.requires_grad:
            result.register_hook(partial(_begin_backward, mode))


def _begin_backward(mode: str, gradient: Tensor) -> None:
    """Keep `mode` in force until the pass through the graph that reaches this tensor is over, or has failed."""
    key = (torch._C._current_graph_task_id(), mode)
    with _lock:
        if key in _passes:
            return
        _passes.add(key)
    # The engine drops its callbacks uncalled where a pass fails; then the hold goes with them.
    torch.autograd.Variable._execution_engine.queue_callback(_BackwardHold(mode, key))  # type: ignore[attr-defined]


_lock = threading.RLock()  # may be taken again: a hold can be dropped in the middle of anything


def _renew_lock() -> None:
    """In a forked process, where the thread that holds the lock may not be."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

_passes: set[tuple[int, str]] = set()


class _Hold:
    """The wish of one call, or of one backward pass, for a mode. The strictest of all wishes holds."""

    _counts = dict.fromkeys(_MODES, 0)
    _before: _Switches | None = None

    def __init__(self, mode: str) -> None:
        self._held: str | None = None
        with _lock:
            if _Hold._before is None:
                _Hold._before = _Switches.relax()
            _Hold._counts[mode] += 1
            self._held = mode
            self._settle()

    def release(self) -> None:
        """Take the wish back; torch's switches are as before when it was the last one."""
        with _lock:
            if self._held is None:
                return
            _Hold._counts[self._held] -= 1
            self._held = None
            self._settle()

    @staticmethod
    def _settle() -> None:
        assert _Hold._before is not None
        if any(_Hold._counts.values()):
            _Switches.set("highest" if _Hold._counts["highest"] else "tf32")
        else:
            _Hold._before.restore()
            _Hold._before = None


class _BackwardHold(_Hold):
    def __init__(self, mode: str, key: tuple[int, str]) -> None:
        self._key = key
        super().__init__(mode)

    def __call__(self) -> None:
        self.release()

    def release(self) -> None:
        _passes.discard(self._key)
        super().release()

    __del__ = release


def _parts() -> dict[str, Any]:
    """Where torch's newer switches stand, from the general ones to the special ones; "none" asks the more general."""
    cudnn, mkldnn = cast(Any, torch.backends.cudnn), cast(Any, torch.backends.mkldnn)
    return {
        "all": torch.backends,
        "cudnn": cudnn,
        "mkldnn": mkldnn,
        "cudnn.conv": cudnn.conv,
        "cudnn.rnn": cudnn.rnn,
        "cuda.matmul": torch.backends.cuda.matmul,
        "mkldnn.conv": mkldnn.conv,
        "mkldnn.rnn": mkldnn.rnn,
        "mkldnn.matmul": mkldnn.matmul,
    }


def _say(name: str, value: str) -> None:
    if name == "mkldnn":  # its attribute, when set, changes the most general switch
        torch.backends.mkldnn.set_flags(_fp32_precision=value)  # type: ignore[no-untyped-call]
    else:
        _parts()[name].fp32_precision = value


class _Switches:
    """Torch's switches, newer and older, as they stood at one time.

    The older interface raises where the newer one says something else, so what is put in force is said in both.
    """

    def __init__(self, newer: dict[str, str], convolutions: bool, products: str) -> None:
        self._newer, self._convolutions, self._products = newer, convolutions, products

    @classmethod
    def relax(cls) -> _Switches:
        """Note all switches, and take the general ones back, which stand for special ones that say nothing."""
        newer = {}
        for name, part in _parts().items():
            newer[name] = part.fp32_precision
            if name in ("all", "cudnn", "mkldnn") and newer[name] != "none":
                _say(name, "none")
        convolutions = _read(lambda: torch.backends.cudnn.allow_tf32, ("cudnn.conv", "cudnn.rnn"), _ALIKE[:2])
        products = _read(torch.get_float32_matmul_precision, ("cuda.matmul", "mkldnn.matmul"), _ALIKE)
        return cls(newer, bool(convolutions), str(products))

    @staticmethod
    def set(mode: str) -> None:
        """Put "highest" or "tf32" in force; on CPUs strict float32 in any case."""
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
        torch.backends.cudnn.allow_tf32 = mode == "tf32"
        _say("mkldnn.conv", "ieee")
        _say("mkldnn.rnn", "ieee")

    def restore(self) -> None:
        """Put all switches back."""
        torch.set_float32_matmul_precision(self._products)
        torch.backends.cudnn.allow_tf32 = self._convolutions
        for name, value in reversed(self._newer.items()):
            if _parts()[name].fp32_precision != value or value != "none":
                _say(name, value)


# Values of two newer switches, one of which agrees with whatever the older interface was told.
_ALIKE = (("none", "none"), ("tf32", "tf32"), ("tf32", "bf16"))


def _read(older: Callable[[], object], names: tuple[str, str], values: Iterable[tuple[str, str]]) -> object:
    """What the older interface was told, which it doesn't say while the newer `names` (which may be changed) differ."""
    for pair in (None, *values):
        for name, value in zip(names, pair or (), strict=False):
            _say(name, value)
        try:
            return older()
        except RuntimeError:  # its way to say that they differ
            continue
    raise AssertionError(f"torch doesn't say how {' and '.join(names)} are set")
