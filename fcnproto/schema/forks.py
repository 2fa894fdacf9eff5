"""Which of Caffe's forks have which fields of `LayerParameter`, and under which numbers: the table in `forks.txt`.

For messages (who knows this field, this type?) and for reading the definitions in forks' caffemodels, where one number
means different fields (`fork_binary.py`). Text needs none of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

TABLE_FILE = Path(__file__).with_name("forks.txt")
_SUFFIX = "_param"
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_MOST_NAMED = 2
# Types whose settings go by another name, or that have none.
_TYPES: dict[str, tuple[str, ...]] = {
    "AutoCrop": ("Derteanoo/caffe-bilinear-upsample",),
    "BoxData": ("yeahkun/caffe-yolo",),
    "CConvolution": ("yiwenguo/Dynamic-Network-Surgery",),
    "CInnerProduct": ("yiwenguo/Dynamic-Network-Surgery",),
    "ConvolutionRistretto": ("pmgysel/caffe",),
    "DetectNetTransformation": ("NVIDIA/caffe",),
    "FcRistretto": ("pmgysel/caffe",),
    "PoolingND": ("DlutMedimgGroup/MouseCTSegmentation",),
}


@cache
def fields() -> dict[str, dict[int, tuple[str, ...]]]:
    """By the names of fields the numbers that forks gave them, and by those the forks. Caffe's own are left out."""
    table: dict[str, dict[int, tuple[str, ...]]] = {}
    for line in TABLE_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            number, name, *forks = line.split()
            table.setdefault(name, {})[int(number)] = tuple(forks)
    return table


def numbers_of(fork: str) -> dict[int, str]:
    """The fields of one fork by number, Caffe's own left out."""
    return {number: name for name, found in fields().items() for number, forks in found.items() if fork in forks}


def having_field(name: str) -> tuple[str, ...]:
    """The forks whose layers have a field of that name."""
    return tuple(dict.fromkeys(fork for forks in fields().get(name, {}).values() for fork in forks))


def having_type(type_name: str) -> tuple[str, ...]:
    """The forks that have a layer type, as far as its settings tell."""
    if type_name in _TYPES:
        return _TYPES[type_name]
    return having_field("_".join(_WORDS.split(type_name)).lower() + _SUFFIX)


def named(forks: Sequence[str]) -> str:
    """`known to A, B and others`, or nothing."""
    if not forks:
        return ""
    more = " and others" if len(forks) > _MOST_NAMED else ""
    return f"known to {', '.join(forks[:_MOST_NAMED])}{more}"
