"""One forward and backward pass of the train net: precision, memory layout, compiling, several workers.

The defaults compute what Caffe computes, in strict float32. Not for the update (`optimizers`) or the loop (`solver`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fcnproto import precision as float32_precision
from fcnproto.errors import FcnprotoWarning, SolverError, first_line
from fcnproto.net import Net, Outputs
from fcnproto.passes import optimize
from fcnproto.solver import distributed
from fcnproto.solver.feeding import Feeder, batch_size
from fcnproto.solver.optimizers import CaffeOptimizer
from fcnproto.solver.reach import all_get_gradients
from fcnproto.solver.sampling import LossSampling


@dataclass(frozen=True)
class Options:
    """How to compute. The defaults are Caffe's arithmetic.

    Attributes:
        precision: a name of `fcnproto.precision.PRECISIONS`, short or long. "fp32"; "tf32" (CUDA: products in TF32);
            "bf16" or "fp16" (mixed: parameters, gradients and the update stay in float32; fp16 scales the loss to keep
            small gradients).
        channels_last: keep images with channels innermost, which some processors convolve faster.
        compile: run the layers through `torch.compile`; where that fails a warning is given and they run as they are.
        sampling: sample the losses (patchwise training); batches grow accordingly.
        optimize: run the net as `fcnproto.optimize` rewrites it: faster, outputs and gradients the same to rounding.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    sampling: LossSampling | None = None
    optimize: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", float32_precision.canonical(self.precision))
        if self.compile and self.optimize:
            raise SolverError("compile and optimize rewrite the net in two ways; choose one")


class _WithLoss(nn.Module):
    """The net and its loss as one module, so that a data-parallel wrapper sees where gradients start."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Outputs]:
        outputs = self.net(inputs)
        return self.net.loss(outputs), outputs


class Engine:
    """Runs the train net forward and backward.

    `scaler` is the loss scaler of float16 (switched off for every other precision), `feeder` reads what the net works
    on, on a GPU ahead of it; `images` is the size of the last pass's batch.
    """

    def __init__(self, net: Net, options: Options) -> None:
        self.net, self.options = net, options
        self.images = 1
        device = net.device
        if options.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dtype = float32_precision.PRECISIONS[options.precision]
        if options.precision == "tf32" and device.type != "cuda":
            warnings.warn("precision tf32 has no effect on the CPU", FcnprotoWarning, stacklevel=3)
        self._autocast = None if dtype == torch.float32 else dtype
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        if options.compile:
            net.transform = _compiled
        self._called = optimize(net, tuning=False) if options.optimize else net
        self._module: nn.Module = _WithLoss(self._called)
        self.feeder = Feeder(self._called, reads_ahead=device.type == "cuda")
        trainable = any(parameter.requires_grad for parameter in net.parameters())
        if distributed.world_size() > 1 and trainable:
            with warnings.catch_warnings():
                # Newer torch versions name this option otherwise; older ones know no other name.
                warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
                # Buffers are BatchNorm's sums: in Caffe each worker keeps its own, and the first one's are saved.
                self._module = nn.parallel.DistributedDataParallel(
                    self._module,
                    device_ids=[device.index or 0] if device.type == "cuda" else None,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                    find_unused_parameters=not all_get_gradients(net),
                )
        elif distributed.world_size() > 1:
            distributed.broadcast(net)

    def forward(self, inputs: Mapping[str, Tensor], last: bool = True) -> tuple[Tensor, Outputs]:
        """The weighted loss and the outputs of one forward pass.

        `last` says that the iteration's gradients are complete after this pass's backward: then workers average them.
        """
        with self._no_sync(last), self._precision(), self._fed():
            loss, outputs = self._module(inputs)
        self.images = batch_size(self.batch, inputs)
        return loss, outputs

    @property
    def batch(self) -> dict[str, Tensor]:
        """What the data layers gave in the last forward pass, by top, as they gave it."""
        return self.feeder.batch

    def replay(self, inputs: Mapping[str, Tensor]) -> Any:
        """The last forward pass once more, layer by layer on the same data, for those who watch by hooks."""
        values = {**self.batch, **inputs}
        plan = self.net.plan(list(values))
        with self._precision():
            return plan.module(*(values[name].to(self.net.device, torch.float32) for name in plan.inputs))

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        mode = "tf32" if self.options.precision == "tf32" else "highest"
        lower = torch.autocast(self.net.device.type, self._autocast, enabled=self._autocast is not None)
        with lower, float32_precision.asking_for(mode):
            yield

    @contextlib.contextmanager
    def _fed(self) -> Iterator[None]:
        """Let the net's batches come from the feeder (only while a pass runs, so that nets pickle)."""
        self.feeder.batch = {}
        self._called.feed = self.feeder
        try:
            yield
        finally:
            self._called.feed = None

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add this pass's gradients to `.grad`. A net whose loss needs no gradient is left alone, as in Caffe."""
        if loss.requires_grad:
            with self._no_sync(last):
                self.scaler.scale(loss).backward()

    def unscale(self, optimizer: CaffeOptimizer) -> None:
        """Bring float16's scaled gradients to their true size, once all of an iteration's passes are done."""
        if self._scales(optimizer):
            self.scaler.unscale_(optimizer)

    def update(self, optimizer: CaffeOptimizer) -> None:
        """Let the optimizer change the parameters; with float16 a step whose gradients overflowed is left out."""
        if self._scales(optimizer):
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def _scales(self, optimizer: CaffeOptimizer) -> bool:
        return self.scaler.is_enabled() and any(p.grad is not None for g in optimizer.param_groups for p in g["params"])

    def _no_sync(self, last: bool) -> Any:
        if last or not isinstance(self._module, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._module.no_sync()


def _compiled(module: nn.Module) -> Callable[..., Any]:
    """`module` through `torch.compile`; if that fails at the first call, a warning and the module itself."""
    compiled = torch.compile(module)
    chosen: list[Callable[..., Any]] = [compiled]

    def call(*values: Tensor) -> Any:
        try:
            return chosen[0](*values)
        except Exception as error:  # the compiler's errors have no common base
            if chosen[0] is module:
                raise
            result = module(*values)  # an error of the net itself shows here, as it is
            chosen[0] = module
            message = f"torch.compile failed, going on without it: {first_line(error)}"
            warnings.warn(message, FcnprotoWarning, stacklevel=2)
            return result

    return call
