"""Which of Caffe's forks have which fields of `LayerParameter`, and under which numbers: the table in `forks.txt`.

For messages (who knows this field, this type?) and for reading the definitions in forks' caffemodels, where one number
means different fields (`fork_binary.py`). Text needs none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fcnproto.schema.settings import field_name

TABLE_FILE = Path(__file__).with_name("forks.txt")
_MOST_NAMED = 2
# Settings that go by another name than their type.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "BoxOutput": ("bbox_reg_param",),
    "Convolution3D": ("convolution3d_param",),
    "DecodeBBox": ("decode_bbox_param", "bbox_reg_param"),
    "Deconvolution3D": ("convolution3d_param",),
    "ImageLabelmapData": ("image_label_data_param",),
    "LSTM": ("recurrent_param",),
    "MultiBoxLoss": ("multibox_loss_param",),
    "Normalize": ("norm_param", "normalize_param"),
    "Pooling3D": ("pooling3d_param",),
    "RNN": ("recurrent_param",),
    "ROIAlign": ("roi_pooling_param",),
    "ReLU6": ("relu6_param",),
    "SoftmaxWithLoss": ("softmax_param", "softmaxloss_param"),
}
# Types without settings of their own.
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


def by_number(number: int) -> dict[str, tuple[str, ...]]:
    """The fields that forks have under a number, with the forks."""
    return {name: found[number] for name, found in fields().items() if number in found}


def having_field(name: str) -> tuple[str, ...]:
    """The forks whose layers have a field of that name."""
    return tuple(dict.fromkeys(fork for forks in fields().get(name, {}).values() for fork in forks))


def having_type(type_name: str) -> tuple[str, ...]:
    """The forks that have a layer type, as far as its settings tell."""
    if type_name in _TYPES:
        return _TYPES[type_name]
    return tuple(dict.fromkeys(fork for name in settings_of(type_name) for fork in having_field(name)))


def settings_of(type_name: str) -> tuple[str, ...]:
    """The names that the settings of a layer type may have: made of the type's, or others that are known."""
    return (field_name(type_name), *_SETTINGS.get(type_name, ()))


def named(forks: Sequence[str]) -> str:
    """`known to A, B and others`, or nothing."""
    if not forks:
        return ""
    more = " and others" if len(forks) > _MOST_NAMED else ""
    return f"known to {', '.join(forks[:_MOST_NAMED])}{more}"
