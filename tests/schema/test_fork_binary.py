"""Definitions in caffemodels of forks, whose numbers mean other fields than Caffe's."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from wire_bytes import field

from fcnproto.errors import FcnprotoWarning
from fcnproto.schema.definition import net_definition
from fcnproto.schema.text import format_message

FILLER = field(1, "constant")


def layer(kind: str, number: int, content: bytes, name: str = "l") -> bytes:
    return field(100, field(1, name) + field(2, kind) + field(number, content))


CASES = [
    ("PriorBox", 203, field(4, 0) + field(5, 1), "prior_box_param { flip: false clip: true }"),
    ("PriorBox", 240, field(4, 0), "prior_box_param { flip: false }"),  # mini-caffe
    ("Permute", 202, field(1, 0) + field(1, 2), "permute_param { order: 0 order: 2 }"),
    ("Permute", 224, field(1, 1), "permute_param { order: 1 }"),  # happynear
    ("Interp", 143, field(3, 2), "interp_param { zoom_factor: 2 }"),  # PSPNet, Caffe's input_param
    ("Input", 143, field(1, field(1, 3)), "input_param { shape { dim: 3 } }"),
    ("SegAccuracy", 144, field(2, 255), "seg_accuracy_param { ignore_label: 255 }"),  # PSPNet, Caffe's crop_param
    ("Crop", 144, field(1, 1), "crop_param { axis: 1 }"),
    ("BN", 45, field(1, FILLER) + field(3, 1), 'bn_param { scale_filler { type: "constant" } bn_mode: INFERENCE }'),
    ("BN", 137, field(1, FILLER) + field(5, 1), 'bn_param { slope_filler { type: "constant" } frozen: true }'),
    ("BN", 139, field(2, FILLER) + field(4, 0), 'bn_param { shift_filler { type: "constant" } moving_average: false }'),
    ("BatchNorm", 139, field(1, 1), "batch_norm_param { use_global_stats: true }"),
    ("Upsample", 137, field(1, 2) + field(5, 1), "upsample_param { scale: 2 pad_out_w: true }"),  # Caffe's embed_param
    ("ROIPooling", 8266711, field(1, 7) + field(2, 6), "roi_pooling_param { pooled_h: 7 pooled_w: 6 }"),
    ("ROIPooling", 150, field(1, 7), "roi_pooling_param { pooled_h: 7 }"),
    ("Correlation", 150, field(2, 20), "correlation_param { pad: 20 }"),
    ("Pooling", 121, field(2, 3) + field(14, 0), "pooling_param { kernel_size: 3 ceil_mode: false }"),
    ("Convolution", 106, field(1, 4) + field(26, 1), "convolution_param { num_output: 4 pad_l: 1 }"),
    ("BatchNorm", 139, field(5, FILLER) + field(7, 1), 'batch_norm_param { scale_filler { type: "constant" } scale_bias: true }'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "number", "content", "text"), CASES, ids=lambda value: str(value)[:30])
def test_numbers_are_read_by_the_layers_type(tmp_path: Path, kind: str, number: int, content: bytes, text: str) -> None:
    (tmp_path / "net.caffemodel").write_bytes(layer(kind, number, content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = net_definition(tmp_path / "net.caffemodel")
    assert " ".join(format_message(net).split()) == f'layer {{ name: "l" type: "{kind}" {text} }}'


@pytest.mark.parametrize(
    ("kind", "number", "words"),
    [
        ("Warp", 143, "143: interp_param of"),  # Caffe's input_param by the number alone
        ("Interp", 137, "137: bn_param of yjxiong/caffe"),
        ("BN", 900, "900: no known fork"),
        ("Warp", 900, "900: no known fork's"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, kind: str, number: int, words: str) -> None:
    (tmp_path / "net.caffemodel").write_bytes(layer(kind, number, field(1, 3)))
    with pytest.warns(FcnprotoWarning, match=rf"left out \(numbers {number}\).*{words}"):
        net = net_definition(tmp_path / "net.caffemodel")
    assert [one.name for one, _ in net.layer[0].ListFields()] == ["name", "type"]


def test_numbers_within_caffes_messages_that_nobody_knows_are_told(tmp_path: Path) -> None:
    (tmp_path / "net.caffemodel").write_bytes(layer("Pooling", 121, field(2, 3) + field(77, 1)))
    with pytest.warns(FcnprotoWarning, match=r"left out \(numbers 77\)"):
        net = net_definition(tmp_path / "net.caffemodel")
    assert "77" not in format_message(net)
