"""Corpora over many processes and machines, on Ray Data: segmenting, scoring, features.

Ray schedules, retries and holds back; here is what the stages do, how a poisoned item is found, and how results reach a
sink once and whole. Needs the extra `fcnproto[cluster]`; importing this package doesn't. The names below are loaded on
first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnproto.lazy import lazily

if TYPE_CHECKING:
    from fcnproto.cluster.engine import Cluster
    from fcnproto.cluster.features import features
    from fcnproto.cluster.scoring import score_folders, score_net
    from fcnproto.cluster.segmenting import segment
    from fcnproto.cluster.summary import Summary

__all__ = ["Cluster", "Summary", "features", "score_folders", "score_net", "segment"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Cluster": "fcnproto.cluster.engine",
        "Summary": "fcnproto.cluster.summary",
        "features": "fcnproto.cluster.features",
        "score_folders": "fcnproto.cluster.scoring",
        "score_net": "fcnproto.cluster.scoring",
        "segment": "fcnproto.cluster.segmenting",
    },
)
