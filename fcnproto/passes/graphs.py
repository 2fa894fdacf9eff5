"""CUDA graphs: a plan recorded once for each size of its inputs, then replayed without launching kernel by kernel.

Only for calls without gradients on a GPU, from the second call of a size on. What is recorded reads weights where they
lie, so it is dropped when they move or when anything made from them is made anew. Plans whose layers keep a state, or
need the host while they run, are refused by name: they run as they are.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcnproto import precision
from fcnproto.errors import FcnprotoWarning, first_line
from fcnproto.layers.base import Layer
from fcnproto.net.calling import failing_layer, is_own
from fcnproto.net.locking import Lock
from fcnproto.passes.keeping import Latest

Run = Callable[..., Sequence[Tensor]]
_SIZES_KEPT, _BYTES_KEPT = 64, 512 * 2**20  # the bytes are those of inputs and outputs; all else is shared

_recording = Lock()  # of the process: CUDA has one recording at a time


class GraphedPlan(nn.Module):
    """A plan's module, recorded for the latest sizes.

    Args:
        module: takes tensors, returns tensors; computes the same for the same tensors.
        state: what must stay equal for a recording to stay true, beside the inputs' shapes.
        record: makes a callable of the module for tensors like those given; for plans on a GPU a `Recorder`.
        layers: those of the plan, which are asked whether they keep a state.
    """

    def __init__(
        self,
        module: nn.Module,
        state: Callable[[], Hashable],
        record: Callable[[nn.Module, Sequence[Tensor]], Run],
        layers: Sequence[Layer] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self._state, self._record = state, record
        self._layers = tuple(layers)  # not submodules, the net owns them
        self._seen: Hashable = None
        self._runs: Latest[Hashable, Run] = Latest(_SIZES_KEPT, _BYTES_KEPT)
        self._known: Latest[Hashable, int] = Latest(_SIZES_KEPT)  # sizes that came once, with their bytes
        self._refused = False
        self._lock = Lock()

    def forward(self, *values: Tensor) -> Any:
        if self._refused or torch.is_grad_enabled() or not self._can_record(values):
            return self.module(*values)
        with self._lock:
            run = self._run_for(values)
        return self._run_plainly(values) if run is None else run(*values)

    def _can_record(self, values: Sequence[Tensor]) -> bool:
        if not isinstance(self._record, Recorder):
            return True
        return bool(values) and all(v.is_cuda for v in values) and not torch.cuda.is_current_stream_capturing()

    def _run_for(self, values: Sequence[Tensor]) -> Run | None:
        """The recording for inputs like these, made if their size came before; None where there is none."""
        state = self._state()
        if state != self._seen:
            self._runs.clear()
            self._seen = state
        key = _key(values)
        run, size = self._runs.get(key), self._known.get(key)
        if run is None and size is not None:
            run = self._recorded(values)
            if run is None:
                self._known.clear()
            else:
                self._runs.put(key, run, size)
        return run

    def _recorded(self, values: Sequence[Tensor]) -> Run | None:
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self._record(self.module, values)
        except RuntimeError as error:
            reasons = _chain(error)
            if not any(isinstance(reason, torch.OutOfMemoryError) for reason in reasons):
                layer = next(filter(None, map(failing_layer, reasons)), None)
                self._refuse(layer, first_line(reasons[-1]))
            return None  # where memory ran out another call may find more of it

    def _run_plainly(self, values: Sequence[Tensor]) -> Any:
        """Run the module as it is, and see what a recording must know: the results' bytes, and who keeps a state."""
        before = [_kept_by(layer) for layer in self._layers]
        results = self.module(*values)
        for layer, kept in zip(self._layers, before, strict=True):
            if _kept_by(layer) != kept and not self._refused:
                self._refuse(layer, "it keeps a state from call to call")
        tensors = [*values, *(r for r in results if isinstance(r, Tensor))]
        self._known.put(_key(values), sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        return results

    def _refuse(self, layer: Layer | None, reason: str) -> None:
        self._refused = True
        who = "" if layer is None else f"layer {layer.name!r} ({layer.type}): "
        warnings.warn(f"CUDA graphs can't be used with this net: {who}{reason}", FcnprotoWarning, stacklevel=3)


def _key(values: Sequence[Tensor]) -> Hashable:
    """What makes another recording: the inputs' shapes and dtypes, and how products are computed."""
    lower = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return precision.chosen(), lower, *((tuple(value.shape), value.dtype) for value in values)


def _kept_by(layer: Layer) -> Hashable:
    """What a layer that keeps a state changes when it runs: its buffers, in a user's layer any attribute."""
    buffers = tuple((b.data_ptr(), None if b.is_inference() else b._version) for b in layer.buffers())
    if is_own(layer):
        return buffers
    simple = (int, float, str, bool, type(None))
    return buffers, tuple(
        (name, value if isinstance(value, simple) else id(value)) for name, value in sorted(vars(layer).items())
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those in whose handling it was raised: ending a recording that failed raises one of its own."""
    found: list[BaseException] = [error]
    while (before := found[-1].__cause__ or found[-1].__context__) is not None and before not in found:
        found.append(before)
    return found


class Recorder:
    """Records modules of one net as CUDA graphs, all in one pool of memory.

    Of graphs that share memory one runs at a time: each waits, on the GPU, for the one before, whichever streams and
    threads they are called from.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._pool: Any = None
        self._done: Any = None

    def __reduce__(self) -> tuple[type[Recorder], tuple[()]]:
        return Recorder, ()  # a copy begins with none

    def __call__(self, module: nn.Module, values: Sequence[Tensor]) -> Run:
        """Record `module` on inputs like `values`; the callable copies its inputs in and gives copies of the outputs.

        The device and the stream that are current stay so, whatever fails.
        """
        device = values[0].device
        with _recording, self._lock, torch.cuda.device(device):
            inputs = [value.clone() for value in values]
            current = torch.cuda.current_stream(device)
            graph: Any = torch.cuda.CUDAGraph()
            try:
                outputs = self._record(graph, module, inputs, device, current)
            finally:
                torch.cuda.set_stream(current)
            self._graphs.add(graph)

        def replay(*given: Tensor) -> tuple[Tensor, ...]:
            with self._lock, torch.cuda.device(device):
                stream = torch.cuda.current_stream(device)
                if self._done is None:
                    self._done = torch.cuda.Event()
                else:
                    stream.wait_event(self._done)
                for target, value in zip(inputs, given, strict=True):
                    target.copy_(value)
                graph.replay()
                results = tuple(output.clone() for output in outputs)
                self._done.record(stream)
                return results

        return replay

    def _record(
        self, graph: Any, module: nn.Module, inputs: Sequence[Tensor], device: torch.device, current: Any
    ) -> Sequence[Tensor]:
        stream: Any = torch.cuda.Stream(device)
        stream.wait_stream(current)
        if self._done is not None:
            stream.wait_event(self._done)
        with torch.cuda.stream(stream):  # libraries make their workspaces, and the net what it keeps for this size
            for _ in range(2):
                module(*inputs)
        current.wait_stream(stream)
        if not len(self._graphs):  # a pool goes with the last graph in it
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs: Sequence[Tensor] = module(*inputs)
        return outputs
