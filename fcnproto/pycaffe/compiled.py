"""The compiled parts of the R-CNN repositories (`nms.gpu_nms`, `utils.cython_bbox`, ...), where they are not compiled.

They are Cython and CUDA of 2015, which today's compilers refuse. Their scripts and Python layers import them by name;
where the source lies in the package's folder and nothing built from it does, these functions take their place.
"""

from __future__ import annotations

import importlib.abc
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fcnproto.escaping import printable

_PIXEL = 1.0  # boxes name their last pixels: width is x2 - x1 + 1


def gpu_nms(dets: Any, thresh: float, device_id: int = 0) -> list[int]:
    """The rows of `dets` (N, 5: x1, y1, x2, y2, score), best first, that overlap no better one by more than a share."""
    return _suppressed(dets, thresh, False)


def cpu_nms(dets: Any, thresh: float) -> list[int]:
    """The same but for rows that overlap a better one by just that share, which go, too."""
    return _suppressed(dets, thresh, True)


def _suppressed(dets: Any, thresh: float, strict: bool) -> list[int]:
    from fcnproto.dialects.boxes import suppress

    rows = np.asarray(dets, np.float32)
    order = rows[:, 4].argsort(kind="stable")[::-1].copy()
    boxes = torch.from_numpy(rows[order, :4].copy())
    kept: list[int] = order[suppress(boxes, thresh, one=_PIXEL, strict=strict).numpy()].tolist()
    return kept


def bbox_overlaps(boxes: Any, query_boxes: Any) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with others (K, 4): (N, K), in float64."""
    from fcnproto.dialects.boxes import overlaps

    ours, theirs = (torch.from_numpy(np.array(one, np.float64)[:, :4]) for one in (boxes, query_boxes))
    found: np.ndarray = overlaps(ours, theirs, _PIXEL).numpy()
    return found


_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpu_nms": ("gpu_nms.pyx", {"gpu_nms": gpu_nms}),
    "cpu_nms": ("cpu_nms.pyx", {"cpu_nms": cpu_nms}),
    "cython_nms": ("nms.pyx", {"nms": cpu_nms}),
    "cython_bbox": ("bbox.pyx", {"bbox_overlaps": bbox_overlaps}),
}
"""Modules by the last part of their name: the source that tells them, and what they hold."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Is asked last, when no built module was found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec where a package's folder has the source of such a part."""
        source, _ = _PARTS.get(fullname.rpartition(".")[2], ("", {}))
        if not source or not any(os.path.isfile(os.path.join(folder, source)) for folder in path or ()):
            return None
        print(f"{printable(fullname)}: not compiled; fcnproto's own takes its place", file=sys.stderr)
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> None:
        """Python makes it."""

    def exec_module(self, module: ModuleType) -> None:
        """Give it its functions."""
        module.__dict__.update(_PARTS[module.__name__.rpartition(".")[2]][1])


def provide() -> None:
    """Have those parts found from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
