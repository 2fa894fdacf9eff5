"""Scores of a semantic segmentation: a confusion matrix and the four metrics of the FCN papers.

The formulas are those that the FCN repository reports: rows are the truth, columns the prediction, pixels whose truth
is not a class (255 is void) do not count, and classes that never occur are left out of the means. Numpy only; this
module neither runs nets nor reads files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from fcnproto.errors import UsageError


@dataclass(frozen=True)
class Metrics:
    """The four published metrics, each in [0, 1] (NaN where no pixel counts), and IU and accuracy by class.

    `class_iu[i]` is NaN for a class that is neither in the truth nor predicted, `class_accuracy[i]` for one that is not
    in the truth; `mean_accuracy` averages the classes that the truth holds, `mean_iu` those that the truth or the
    prediction holds.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    class_iu: tuple[float, ...]
    class_accuracy: tuple[float, ...]

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


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, classes: int, ignore_label: int | None = None
) -> np.ndarray:
    """Pixel counts, int64 (classes, classes): rows truth, columns prediction.

    `truth` and `prediction` are integer arrays of one shape. Pixels with a truth outside [0, classes) are skipped, and
    those with the truth `ignore_label`.
    Raises `UsageError` for unlike shapes, or a prediction outside [0, classes) where the truth counts.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise UsageError(f"truth has shape {truth.shape}, prediction {prediction.shape}; they must be alike")
    counts = (truth >= 0) & (truth < classes)
    if ignore_label is not None:
        counts &= truth != ignore_label
    rows, columns = truth[counts].astype(np.int64), prediction[counts].astype(np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= classes):
        raise UsageError(f"the prediction has class {columns.min()} to {columns.max()}, expected 0 to {classes - 1}")
    return np.bincount(classes * rows + columns, minlength=classes * classes).reshape(classes, classes)


def absent(confusion: np.ndarray) -> tuple[int, ...]:
    """The classes that the truth of a confusion matrix doesn't hold."""
    return tuple(int(index) for index in np.flatnonzero(np.asarray(confusion).sum(axis=1) == 0))


def metrics(confusion: np.ndarray, leave_out: Collection[int] = ()) -> Metrics:
    """The metrics of a confusion matrix (rows truth, columns prediction), which may be a sum over images.

    `leave_out` are classes without a part in the means of classes. A pixel that is wrongly given such a class still is
    an error for its true class. The published SIFT Flow scores leave out the classes that its test split lacks (see
    `absent`), which would count with an IU of 0 as soon as one pixel is taken for them.
    """
    matrix = np.asarray(confusion, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UsageError(f"a confusion matrix is square, not of shape {matrix.shape}")
    hits, truth, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    total = truth.sum()
    if total == 0:
        nan = float("nan")
        return Metrics(nan, nan, nan, nan, (nan,) * len(hits), (nan,) * len(hits))
    with np.errstate(invalid="ignore"):
        accuracy, iu = hits / truth, hits / (truth + predicted - hits)
    present = truth > 0
    counted = np.ones(len(hits), dtype=bool)
    counted[list(leave_out)] = False
    if not (present & counted).any():
        raise UsageError("no class is left to score: all that the truth holds are left out")
    return Metrics(
        pixel_accuracy=float(hits.sum() / total),
        mean_accuracy=float(np.nanmean(accuracy[counted])),
        mean_iu=float(np.nanmean(iu[counted])),
        frequency_weighted_iu=float((truth[present] / total * iu[present]).sum()),
        class_iu=tuple(float(value) for value in iu),
        class_accuracy=tuple(float(value) for value in accuracy),
    )
