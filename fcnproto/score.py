"""Scores of a semantic segmentation: a confusion matrix and the four metrics of the FCN papers.

The formulas are those that the FCN repository reports: rows are the truth, columns the prediction, pixels whose truth
is not a class (255 is void) do not count, and classes that never occur are left out of the means. Numpy only; this
module neither runs nets nor reads files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcnproto.errors import UsageError


@dataclass(frozen=True)
class Metrics:
    """The four published metrics, each in [0, 1] (NaN where no pixel counts), and IU by class.

    `class_iu[i]` is NaN for a class that is neither in the truth nor predicted; `mean_accuracy` averages the classes
    that the truth holds, `mean_iu` those that the truth or the prediction holds.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    class_iu: tuple[float, ...]

    def named(self) -> Iterator[tuple[str, float]]:
        """The four metrics under the names that the command line and the zoo use."""
        yield "pixel accuracy", self.pixel_accuracy
        yield "mean accuracy", self.mean_accuracy
        yield "mean IU", self.mean_iu
        yield "frequency weighted IU", self.frequency_weighted_iu

    def lines(self) -> Iterator[str]:
        """One line per metric, as the command line prints it: `mean IU 0.8312`."""
        for name, value in self.named():
            yield f"{name} {value:.4f}"


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts, int64 (classes, classes): rows truth, columns prediction.

    `truth` and `prediction` are integer arrays of one shape. Pixels with a truth outside [0, classes) are skipped.
    Raises `UsageError` for unlike shapes, or a prediction outside [0, classes) where the truth counts.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise UsageError(f"truth has shape {truth.shape}, prediction {prediction.shape}; they must be alike")
    counts = (truth >= 0) & (truth < classes)
    rows, columns = truth[counts].astype(np.int64), prediction[counts].astype(np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= classes):
        raise UsageError(f"the prediction has class {columns.min()} to {columns.max()}, expected 0 to {classes - 1}")
    return np.bincount(classes * rows + columns, minlength=classes * classes).reshape(classes, classes)


def metrics(confusion: np.ndarray) -> Metrics:
    """The metrics of a confusion matrix (rows truth, columns prediction), which may be a sum over images."""
    matrix = np.asarray(confusion, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UsageError(f"a confusion matrix is square, not of shape {matrix.shape}")
    hits, truth, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    total = truth.sum()
    if total == 0:
        nan = float("nan")
        return Metrics(nan, nan, nan, nan, (nan,) * len(hits))
    with np.errstate(invalid="ignore"):
        accuracy, iu = hits / truth, hits / (truth + predicted - hits)
    present = truth > 0
    return Metrics(
        pixel_accuracy=float(hits.sum() / total),
        mean_accuracy=float(np.nanmean(accuracy)),
        mean_iu=float(np.nanmean(iu)),
        frequency_weighted_iu=float((truth[present] / total * iu[present]).sum()),
        class_iu=tuple(float(value) for value in iu),
    )
