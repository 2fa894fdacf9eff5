"""Mean average precision of a test net's detections, as SSD's solver makes it from what DetectionEvaluate gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fcnproto.errors import SolverError

AP_VERSIONS = ("11point", "101point", "MaxIntegral", "Integral")
"""The mean of the best precision at recalls from 0 to 1 in steps of 0.1 (VOC 2007), or of 0.01 (COCO; cascade-rcnn's);
the area under the best precision that is left at each recall (VOC 2012); the area under precision itself (SSD's
default)."""
_LEAST_STEP = 1e-6


class Precision(NamedTuple):
    """The average precision of an output's classes."""

    mean: float
    """Over all classes; those without detections count 0."""
    classes: dict[int, float | None]
    """By label; None where nothing was detected."""


def average_precision(scores: np.ndarray, hits: np.ndarray, objects: int, version: str) -> float:
    """A class's average precision, from its detections' scores, whether each is a hit, and the number of objects."""
    if not len(scores) or not objects:
        return 0.0
    right = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    # SSD's recall is a float32, which falls short of some tenths.
    recall = (right / objects).astype(np.float32).astype(np.float64)
    if version.endswith("point"):
        steps = int(version.removesuffix("point")) - 1
        at = [precision[recall >= step / steps] for step in range(steps + 1)]
        return float(sum(found.max() if len(found) else 0.0 for found in at) / (steps + 1))
    if version == "MaxIntegral":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        gained = np.diff(recall)
        return float((precision[:-1] * np.where(gained > _LEAST_STEP, gained, 0)).sum() + precision[0] * recall[0])
    gained = np.diff(recall, prepend=0)
    return float((precision * np.where(gained > _LEAST_STEP, gained, 0)).sum())


class Detections:
    """Rows of DetectionEvaluate (image, label, score, right, wrong) gathered over batches, by output."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[int, int]] = {}
        self._found: dict[str, dict[int, list[np.ndarray]]] = {}

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Take in the outputs of a pass. SolverError where one has not DetectionEvaluate's rows of 5."""
        for name, value in outputs.items():
            if value.dim() != 4 or value.shape[3] != 5:
                raise SolverError(
                    f"eval_type 'detection' needs DetectionEvaluate's rows of 5 numbers; the test net's output "
                    f"{name!r} has shape {tuple(value.shape)}"
                )
            rows = value.detach().double().cpu().numpy().reshape(-1, 5)
            objects = self.objects.setdefault(name, {})
            found = self._found.setdefault(name, defaultdict(list))
            counts = rows[:, 0].astype(int) == -1
            for label, count in rows[counts][:, 1:3].astype(int).tolist():
                objects[label] = objects.get(label, 0) + count
            # Neither right nor wrong is what lies on a difficult object.
            judged = rows[~counts & (rows[:, 3:] != 0).any(1)]
            for label in np.unique(judged[:, 1].astype(int)).tolist():
                found[label].append(judged[judged[:, 1].astype(int) == label][:, 2:4])

    def result(self, version: str) -> dict[str, Precision]:
        """The precision of each output."""
        results = {}
        for name, objects in self.objects.items():
            classes: dict[int, float | None] = {}
            for label in sorted(objects):
                parts = self._found[name].get(label)
                if parts is None:
                    classes[label] = None
                    continue
                rows = np.concatenate(parts)
                classes[label] = average_precision(rows[:, 0], rows[:, 1], objects[label], version)
            total = sum(value or 0.0 for value in classes.values())
            results[name] = Precision(total / max(len(classes), 1), classes)
        return results
