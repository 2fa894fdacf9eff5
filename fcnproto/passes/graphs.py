"""CUDA graphs: a plan recorded once for each size of its inputs, then replayed without launching kernel by kernel.

Only for calls without gradients on a GPU. What is recorded reads weights where they lie, so it is dropped when they
move or when anything made from them is made anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcnproto.errors import FcnprotoWarning
from fcnproto.net.locking import Lock
from fcnproto.passes.keeping import Latest

Run = Callable[..., Sequence[Tensor]]
_SIZES_KEPT = 4


class GraphedPlan(nn.Module):
    """A plan's module, recorded for the latest sizes.

    Args:
        module: takes tensors, returns tensors; computes the same for the same tensors, and keeps no state.
        state: what must stay equal for a recording to stay true, beside the inputs' shapes.
        record: makes a callable of the module for tensors like those given.
    """

    def __init__(
        self, module: nn.Module, state: Callable[[], Hashable], record: Callable[..., Run] | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self._state, self._record = state, record or record_cuda_graph
        self._needs_cuda = record is None
        self._seen: Hashable = None
        self._runs: Latest[Hashable, Run] = Latest(_SIZES_KEPT)
        self._refused = False
        self._lock = Lock()

    def forward(self, *values: Tensor) -> Any:
        if self._refused or torch.is_grad_enabled() or (self._needs_cuda and not all(v.is_cuda for v in values)):
            return self.module(*values)
        with self._lock:  # a recording has one set of inputs, and several threads may call
            return self._replayed(values)

    def _replayed(self, values: Sequence[Tensor]) -> Any:
        state = self._state()
        if state != self._seen:
            self._runs.clear()
            self._seen = state
        key = tuple((tuple(value.shape), value.dtype) for value in values)
        run = self._runs.get(key)
        if run is None:
            try:
                with torch.inference_mode(False), torch.no_grad():
                    run = self._record(self.module, values)
            except RuntimeError as error:
                self._refused = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"CUDA graphs can't be used with this net: {reason}", FcnprotoWarning, stacklevel=2)
                return self.module(*values)
            self._runs.put(key, run)
        return run(*values)


def record_cuda_graph(module: nn.Module, values: Sequence[Tensor]) -> Run:
    """Record `module` on inputs like `values`; the callable copies its inputs in and gives copies of the outputs."""
    inputs = [value.clone() for value in values]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries make their workspaces, and the net what it keeps for this size
        for _ in range(2):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = module(*inputs)

    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        for target, value in zip(inputs, given, strict=True):
            target.copy_(value)
        graph.replay()
        return tuple(output.clone() for output in outputs)

    return replay
