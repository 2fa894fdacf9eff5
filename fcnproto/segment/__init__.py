"""Segmenting images with a net: `Segmenter` for images, `segment` for files and folders.

The names below are loaded on first use, so that a module of this room can be imported alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcnproto.lazy import lazily

if TYPE_CHECKING:
    from fcnproto.net.roles import score_blobs
    from fcnproto.segment.files import segment
    from fcnproto.segment.results import Result, Segmentation
    from fcnproto.segment.segmenter import Scene, Segmenter, is_out_of_memory

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
        "Result": "fcnproto.segment.results",
        "Scene": "fcnproto.segment.segmenter",
        "Segmentation": "fcnproto.segment.results",
        "Segmenter": "fcnproto.segment.segmenter",
        "is_out_of_memory": "fcnproto.segment.segmenter",
        "score_blobs": "fcnproto.net.roles",
        "segment": "fcnproto.segment.files",
    },
)
