"""Scores of segmentations: the metrics, what reads, runs and sums, and the scores that the papers print.

The names below are loaded on first use, so that a module of this room can be imported alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnproto.lazy import lazily

if TYPE_CHECKING:
    from fcnproto.net.roles import judged_blobs
    from fcnproto.scoring.metrics import Metrics, absent, confusion_matrix, metrics
    from fcnproto.scoring.scoring import (
        Scored,
        confusion_picture,
        own_batches,
        own_length,
        score_folders,
        score_net,
    )

__all__ = [
    "Metrics",
    "Scored",
    "absent",
    "confusion_matrix",
    "confusion_picture",
    "judged_blobs",
    "metrics",
    "own_batches",
    "own_length",
    "score_folders",
    "score_net",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Metrics": "fcnproto.scoring.metrics",
        "Scored": "fcnproto.scoring.scoring",
        "absent": "fcnproto.scoring.metrics",
        "confusion_matrix": "fcnproto.scoring.metrics",
        "confusion_picture": "fcnproto.scoring.scoring",
        "judged_blobs": "fcnproto.net.roles",
        "metrics": "fcnproto.scoring.metrics",
        "own_batches": "fcnproto.scoring.scoring",
        "own_length": "fcnproto.scoring.scoring",
        "score_folders": "fcnproto.scoring.scoring",
        "score_net": "fcnproto.scoring.scoring",
    },
)
