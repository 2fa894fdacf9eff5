"""Patchwise training by sampling the loss: section 3.4 of the CVPR paper.

Whole images go through the net, but each cell of the loss takes part with a given probability only. That is what
drawing patches does, without their cost; batches grow by the inverse, so that as many cells as before make a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fcnproto.errors import SolverError
from fcnproto.layers.base import Layer
from fcnproto.layers.loss import LossLayer
from fcnproto.net import Net
from fcnproto.schema import caffe_pb2

_LOSSES = ("SoftmaxWithLoss", "InfogainLoss", "SigmoidCrossEntropyLoss")


@dataclass(frozen=True)
class LossSampling:
    """Keep each cell of the losses' label maps with probability `keep`.

    Cells are squares of `cell` pixels, laid out anew at random for every image, so that no place is always at a cell's
    edge; 1 samples pixels. Cells that drop out count as the loss's ignored label. A loss that is a sum (normalize
    false) is divided by `keep`, so that its gradient stays the same on average; a mean over the labels stays one.
    Random numbers are torch's, of which a solver's snapshots keep the state.
    """

    keep: float
    cell: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise SolverError(f"sampling keeps cells with a probability above 0 and up to 1, not {self.keep:g}")
        if self.cell < 1:
            raise SolverError(f"a cell has 1 pixel a side or more, not {self.cell}")

    def adjusted(self, param: caffe_pb2.SolverParameter) -> caffe_pb2.SolverParameter:
        """The solver with `iter_size` multiplied by 1 / keep (rounded)."""
        result = caffe_pb2.SolverParameter()
        result.CopyFrom(param)
        result.iter_size = max(1, round(param.iter_size / self.keep))
        return result

    def install(self, net: Net) -> None:
        """Sample all losses over maps of labels in a train net from now on, once for all calls.

        Raises `SolverError` where there is none, or one has no `ignore_label`.
        """
        losses = [layer for layer in net.layers if layer.type in _LOSSES]
        if not losses:
            raise SolverError(f"{net.graph.title} has no loss to sample; sampled are {', '.join(_LOSSES)}")
        for layer in losses:
            assert isinstance(layer, LossLayer)
            if layer.ignore_label is None:
                raise SolverError(f"layer {layer.name!r} ({layer.type}): sampling needs an ignore_label")
            layer.register_forward_pre_hook(self._drop)
            if layer.mode != caffe_pb2.LossParameter.VALID and self.keep < 1:
                layer.register_forward_hook(self._rescale)

    def _drop(self, layer: Layer, bottoms: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The bottoms of a loss with the labels of dropped cells replaced."""
        scores, labels, *others = bottoms
        assert isinstance(layer, LossLayer) and layer.ignore_label is not None
        if labels.is_meta:
            return bottoms
        kept = self.mask(labels.shape).to(labels.device)
        return scores, torch.where(kept, labels, torch.full_like(labels, layer.ignore_label)), *others

    def _rescale(self, layer: Layer, bottoms: Any, loss: Any) -> Any:
        if isinstance(loss, tuple):
            return (loss[0] / self.keep, *loss[1:])
        return loss / self.keep

    def mask(self, shape: torch.Size) -> Tensor:
        """Which labels of a map (..., height, width) stay, bool."""
        if len(shape) < 2 or self.keep == 1:
            return torch.rand(shape, device="cpu") < self.keep
        height, width = shape[-2:]
        # One cell more each way, of which a random part is cut off.
        cells = [-(-extent // self.cell) + 1 for extent in (height, width)]
        kept = (torch.rand(shape[:-2].numel(), 1, *cells, device="cpu") < self.keep).float()
        pixels = functional.interpolate(kept, scale_factor=self.cell, mode="nearest").bool()
        down, across = torch.randint(0, self.cell, (2,), device="cpu").tolist()
        return pixels[:, :, down : down + height, across : across + width].reshape(shape)
