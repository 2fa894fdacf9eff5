"""Segmenting images with a net: `Segmenter` for images, `segment` for files and folders.

The names below are loaded on first use, so that a module of this room can be imported alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnproto.lazy import lazily

if TYPE_CHECKING:
    from fcnproto.net.roles import score_blobs
    from fcnproto.segment.segmenter import (
        Result,
        Scene,
        Segmentation,
        Segmenter,
        is_out_of_memory,
        segment,
    )

__all__ = [
    "Result",
    "Scene",
    "Segmentation",
    "Segmenter",
    "is_out_of_memory",
    "score_blobs",
    "segment",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Result": "fcnproto.segment.segmenter",
        "Scene": "fcnproto.segment.segmenter",
        "Segmentation": "fcnproto.segment.segmenter",
        "Segmenter": "fcnproto.segment.segmenter",
        "is_out_of_memory": "fcnproto.segment.segmenter",
        "score_blobs": "fcnproto.net.roles",
        "segment": "fcnproto.segment.segmenter",
    },
)
