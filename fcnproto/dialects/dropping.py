"""ENet's Python layer that drops whole channels, known by its module and class names; none of its code is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fcnproto.data.python_layer import register_python_layer
from fcnproto.dialects.rcnn import number, read_param_str, warn_others
from fcnproto.graph import maps
from fcnproto.layers.base import SameShape, Shape
from fcnproto.layers.plain import Piece, Request
from fcnproto.layers.plain import number as said


def drop_channels(x: Tensor, ratio: float, drop: bool) -> Tensor:
    """x / (1 - ratio), with `drop` each channel of each item 0 with probability `ratio`."""
    if drop:
        shape = (*x.shape[:2], *[1] * (x.dim() - 2))
        x = x * (torch.rand(shape, device=x.device) >= ratio).to(x.dtype)
    return x / (1 - ratio)


@register_python_layer("spatial_dropout", "SpatialDropoutLayer")
class SpatialDropout(SameShape):
    """spatial_dropout.SpatialDropoutLayer: `param_str` has `phase` and `p`, 0 < p < 1. The phase there counts, not the
    net's: in TRAIN channels are dropped; in TEST nothing is, but values are divided by 1 - p all the same, as there.
    """

    type: ClassVar[str] = "Python"  # type: ignore[assignment]
    config_field = "python_param"
    kind = "activation"
    coordinates = staticmethod(maps.same)

    def draws_numbers(self) -> bool:
        return self.drops

    def keeps_images_apart(self) -> bool:
        return not self.drops

    def setup(self, shapes: Sequence[Shape]) -> None:
        options = read_param_str(self)
        warn_others(self, options, ("phase", "p"))
        if len(shapes[0]) < 2:
            self.fail(f"takes a bottom with channels (N, C, ...), got {tuple(shapes[0])}")
        if options.get("phase") not in ("TRAIN", "TEST"):
            self.fail(f"param_str: 'phase' is 'TRAIN' or 'TEST', got {options.get('phase')!r}")
        self.drops = options["phase"] == "TRAIN"
        try:
            given = options["p"]
            self.ratio = float(given) if isinstance(given, str) else number(self, options, "p", 0)
        except (KeyError, ValueError):
            self.fail(f"param_str: 'p' takes a number above 0 and below 1, got {options.get('p')!r}")
        if not 0 < self.ratio < 1:
            self.fail(f"param_str: 'p' takes a number above 0 and below 1, got {self.ratio:g}")

    def forward(self, x: Tensor) -> Tensor:
        return drop_channels(x, self.ratio, self.drops)

    def plain(self, request: Request) -> Piece:
        return Piece(("drop_channels", [request.x, said(self.ratio), str(self.drops)]), None, (drop_channels,))
