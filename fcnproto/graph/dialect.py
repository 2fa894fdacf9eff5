"""Which fork of Caffe a net was written for: where the same words mean something else to it, layers ask.

Most texts say it by themselves: a field or a type that one fork alone has. Where they don't, the caller does.
"""

from __future__ import annotations

from fcnproto.errors import UsageError

DIALECTS = (
    "cascade-rcnn",
    "ctpn",
    "deconvnet",
    "deeplab1",
    "faceboxes",
    "happynear",
    "hed",
    "imcl",
    "intel",
    "mscnn",
    "nvidia",
    "pspnet",
    "segnet",
    "ssd",
    "sstd",
    "synopsys",
    "textboxes",
    "textboxes++",
    "yolo",
)
"""The forks by the names that `dialect` takes."""

ALIGNED_CROPS = ("hed",)
"""The forks whose Crop takes the offset of the coordinate map."""


def checked(dialect: str | None) -> str | None:
    """The name as it is. Raises `UsageError` for one that isn't known."""
    if dialect is not None and dialect not in DIALECTS:
        raise UsageError(f"dialect={dialect!r}: expected one of {', '.join(DIALECTS)}")
    return dialect
