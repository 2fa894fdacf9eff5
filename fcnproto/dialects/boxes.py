"""Boxes as detectors of Caffe's forks compute with them: overlaps, codes of boxes against priors, suppression.

Boxes are the last axis of a tensor: xmin, ymin, xmax, ymax.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fcnproto.schema import caffe_pb2

CORNER = caffe_pb2.PriorBoxParameter.CORNER
CENTER_SIZE = caffe_pb2.PriorBoxParameter.CENTER_SIZE
CORNER_SIZE = caffe_pb2.PriorBoxParameter.CORNER_SIZE

# So many boxes are compared with all that follow at a time.
_BLOCK = 256


def area(boxes: Tensor, one: float = 0) -> Tensor:
    """The boxes' areas, 0 where a box ends before it begins; `one` is 1 for boxes whose last pixel belongs to them."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return torch.where((width < 0) | (height < 0), 0, (width + one) * (height + one))


def overlaps(a: Tensor, b: Tensor, one: float = 0) -> Tensor:
    """Intersection over union of boxes `a` (N, 4) with boxes `b` (M, 4): (N, M)."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    extent = high - low + one
    shared = torch.where((extent > 0).all(2), extent.clamp(min=0).prod(2), 0)
    return shared / (area(a, one)[:, None] + area(b, one)[None] - shared).clamp(min=torch.finfo(a.dtype).tiny)


def decode(code: int, priors: Tensor, variances: Tensor | None, values: Tensor) -> Tensor:
    """Boxes from predicted `values` against `priors`; `variances` scale the values, None where they hold them already.

    CORNER: offsets of the corners; CORNER_SIZE: in units of the prior's size; CENTER_SIZE: of the centre in units of
    the size, and the logarithm of the ratio of sizes.
    """
    scaled = values if variances is None else values * variances
    if code == CORNER:
        return priors + scaled
    size = priors[..., 2:] - priors[..., :2]
    if code == CORNER_SIZE:
        return priors + scaled * torch.cat([size, size], -1)
    centre = (priors[..., :2] + priors[..., 2:]) / 2
    centre = scaled[..., :2] * size + centre
    half = scaled[..., 2:].exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)


def outlines(priors: Tensor, variances: Tensor, values: Tensor) -> Tensor:
    """What TextBoxes++ predicts beside boxes: from 8 values the corners of quadrilaterals x1, y1, ..., from the priors'
    own corners, clockwise; from 5 two corners, from the centre, and the height of rectangles that are turned.

    Priors (..., 4) as corners, their variances (..., 4), and values (..., 8 or 5).
    """
    size = priors[..., 2:] - priors[..., :2]
    if values.shape[-1] == 8:
        x, y = priors[..., [0, 2, 2, 0]], priors[..., [1, 1, 3, 3]]
        steps = variances[..., :2] * size
        return values * torch.cat([steps] * 4, -1) + torch.stack([x, y], -1).flatten(-2)
    centre, steps = (priors[..., :2] + priors[..., 2:]) / 2, variances[..., :2] * size
    corners = values[..., :4] * torch.cat([steps] * 2, -1) + torch.cat([centre] * 2, -1)
    return torch.cat([corners, (variances[..., 3:] * values[..., 4:]).exp() * size[..., 1:]], -1)


def encode(code: int, priors: Tensor, variances: Tensor | None, boxes: Tensor) -> Tensor:
    """The values that `decode` makes `boxes` of; `variances` None keeps them within the values."""
    if code == CORNER:
        values = boxes - priors
    else:
        size = priors[..., 2:] - priors[..., :2]
        if code == CORNER_SIZE:
            values = (boxes - priors) / torch.cat([size, size], -1)
        else:
            centre = (boxes[..., :2] + boxes[..., 2:] - priors[..., :2] - priors[..., 2:]) / 2
            values = torch.cat([centre / size, ((boxes[..., 2:] - boxes[..., :2]) / size).log()], -1)
    return values if variances is None else values / variances


def suppress(
    boxes: Tensor,
    threshold: float,
    eta: float = 1,
    one: float = 0,
    strict: bool = False,
    most: int | None = None,
    measure: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Greedy suppression: the indices of the boxes (best first) that overlap no kept one by more than `threshold`
    (`strict`: nor by as much), at most `most`. `measure` gives the overlaps of boxes (M, 4) with others (N, 4), as
    (M, N), where they are not those of `overlaps`.

    With `eta` below 1 the threshold shrinks by it after each kept box while it is above 0.5 (SSD's adaptive rule).
    """
    boxes = boxes.detach().cpu()
    worst = boxes.new_full((len(boxes),), -1.0).numpy()
    kept: list[int] = []
    for start in range(0, len(boxes), _BLOCK):
        # Of each block the boxes that are still free are compared with all that follow, in one go.
        rest = worst[start:]
        ahead = rest[:_BLOCK]
        rows = (ahead < threshold if strict else ahead <= threshold).nonzero()[0]
        free, others = boxes[start + rows], boxes[start:]
        shared = (overlaps(free, others, one) if measure is None else measure(free, others)).numpy()
        for row, own in zip(rows.tolist(), shared, strict=True):
            if most is not None and len(kept) >= most:
                return torch.tensor(kept, dtype=torch.long, device="cpu")
            if rest[row] < threshold or (rest[row] == threshold and not strict):
                kept.append(start + row)
                np.maximum(rest, own, out=rest)
                if eta < 1 and threshold > 0.5:
                    threshold *= eta
    return torch.tensor(kept, dtype=torch.long, device="cpu")
