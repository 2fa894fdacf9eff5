"""Scores that the first FCN paper prints, to be shown beside those that a net reaches here.

Those of the authors' repository and of the second paper stand in each net's record (`zoo.info(name).scores`); these are
the first paper's, for its own weights, which were trained in another way (batches of 20) and never published.
"""

from __future__ import annotations

from dataclasses import dataclass

CVPR = "Long, Shelhamer, Darrell, CVPR 2015"
VALIDATION = "PASCAL VOC 2011 validation"


@dataclass(frozen=True)
class PaperScore:
    """One figure of a paper, from 0 to 1. `model` is the zoo's name of the net, None where it has none."""

    method: str
    data: str
    mean_iu: float
    table: str
    model: str | None = None

    @property
    def source(self) -> str:
        """The paper and the table."""
        return f"{CVPR}, {self.table}"


SCORES: tuple[PaperScore, ...] = (
    PaperScore("FCN-AlexNet", VALIDATION, 0.398, "table 1", "voc-fcn-alexnet"),
    PaperScore("FCN-VGG16", VALIDATION, 0.560, "table 1", "voc-fcn32s"),
    PaperScore("FCN-GoogLeNet", VALIDATION, 0.425, "table 1", "voc-fcn-googlenet"),
    PaperScore("FCN-32s-fixed", VALIDATION, 0.454, "table 2", "voc-fcn32s-fixed"),
    PaperScore("FCN-32s", VALIDATION, 0.594, "table 2", "voc-fcn32s"),
    PaperScore("FCN-16s", VALIDATION, 0.624, "table 2", "voc-fcn16s"),
    PaperScore("FCN-8s", VALIDATION, 0.627, "table 2", "voc-fcn8s"),
    PaperScore("R-CNN", "PASCAL VOC 2011 test", 0.479, "table 3"),
    PaperScore("SDS", "PASCAL VOC 2011 test", 0.526, "table 3"),
    PaperScore("SDS", "PASCAL VOC 2012 test", 0.516, "table 3"),
    PaperScore("FCN-8s", "PASCAL VOC 2011 test", 0.627, "table 3", "voc-fcn8s"),
    PaperScore("FCN-8s", "PASCAL VOC 2012 test", 0.622, "table 3", "voc-fcn8s"),
)
