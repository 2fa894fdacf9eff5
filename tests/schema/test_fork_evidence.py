"""Which fork wrote a definition is seen from all of it: one number is another field to each."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
from wire_bytes import field, tag

from fcnproto.cli._main import main
from fcnproto.errors import FcnprotoWarning, WeightsError
from fcnproto.graph.dialect import DIALECTS
from fcnproto.schema import fork_evidence, fork_numbers
from fcnproto.schema.definition import net_definition
from fcnproto.schema.text import format_message
from fcnproto.schema.weights import open_weights


def layer(kind: str, number: int = 0, content: bytes = b"") -> bytes:
    settings = field(number, content) if number else b""
    return field(100, field(1, kind.lower()) + field(2, kind) + field(3, "x") + field(4, "y") + settings)


def old_layer(number: int, settings: int = 0, content: bytes = b"", bottoms: int = 1) -> bytes:
    """A layer of the format before 2014, whose type is a number."""
    body = field(2, "x") * bottoms + field(3, "y") + field(4, f"l{number}") + field(5, number)
    return field(2, body + (field(settings, content) if settings else b""))


def real(number: int, value: float) -> bytes:
    return tag(number, 5) + struct.pack("<f", value)


def definition(folder: Path, content: bytes, dialect: str | None = None) -> str:
    (folder / "net.caffemodel").write_bytes(content)
    return " ".join(format_message(net_definition(folder / "net.caffemodel", dialect=dialect)).split())


MULTIBOX, POOLING, CONVOLUTION, LOSS = 201, 121, 106, 101
CASES = {
    # The same two bytes, or five, in MultiBoxLoss; and 14 in PriorBox.
    "textboxes++": (
        layer("PriorBox", 203, field(14, 1)) + layer("MultiBoxLoss", MULTIBOX, field(24, 0)),
        ["denser_prior_boxes: true", "use_polygon: false"],
    ),
    "nvidia": (
        layer("Pooling", POOLING, field(40, 1)) + layer("MultiBoxLoss", MULTIBOX, field(24, 1)),
        ["torch_pooling: true", "ignore_difficult_gt: true"],
    ),
    "refinedet": (
        layer("DetectionOutput", 204, real(24, 0.5)) + layer("MultiBoxLoss", MULTIBOX, real(24, 0.25)),
        ["detection_output_param { objectness_score: 0.5 }", "multibox_loss_param { objectness_score: 0.25 }"],
    ),
    "sstd": (
        layer("MaskResize", 147, field(1, 7)) + layer("MultiBoxLoss", MULTIBOX, real(24, 0.25)),
        ["mask_resize_param { output_height: 7 }", "oriented_weight: 0.25"],
    ),
    "synopsys": (
        layer("PriorBox", 203, field(14, 1) + field(17, 1)) + layer("Pooling", POOLING, field(14, 0)),
        ["prior_box_param { tf: true faceboxes: true }", "ceil_mode: false"],
    ),
    # 13 in Pooling: Caffe's rounding, cascade-rcnn's rounding the other way round, Intel's divisor.
    "caffe": (layer("Pooling", POOLING, field(13, 1)), ["pooling_param { round_mode: FLOOR }"]),
    "cascade-rcnn": (
        layer("DecodeBBox", 150, real(1, 0.5)) + layer("Pooling", POOLING, field(13, 0)),
        ["bbox_reg_param { bbox_mean: 0.5 }", "pooling_param { ceil_mode: false }"],
    ),
    "intel": (
        layer("PSROIPooling", 153, real(1, 0.5) + field(2, 3) + field(3, 7)) + layer("Pooling", POOLING, field(13, 0)),
        ["output_dim: 3", "pooling_param { avg_include_pad: false }"],
    ),
    # 16 to 18 in Convolution, 3 and 4 in a loss, 200 and 202 of layers.
    "yjxiong": (
        layer("BN", 137, field(5, 1)) + layer("Convolution", CONVOLUTION, field(16, 2)),
        ["bn_param { frozen: true }", "convolution_param { dilation: 2 }"],
    ),
    "segnet": (
        layer("BN", 45, field(3, 1)) + layer("SoftmaxWithLoss", LOSS, field(3, 1) + real(4, 2)),
        ["bn_mode: INFERENCE", "loss_param { weight_by_label_freqs: true class_weighting: 2 }"],
    ),
    "happynear": (
        layer("Insanity", 202, real(1, 3)) + layer("BN", 200, field(5, 1)),
        ["insanity_param { lb: 3 }", "bn_param { frozen: true }"],
    ),
    # The format before 2014: types 40 to 43, settings 42 to 45.
    "fcn": (old_layer(4) + old_layer(40, bottoms=2), ['type: "Crop"']),
    "deeplab1": (
        old_layer(39, 15, field(1, "list"), bottoms=0) + old_layer(41, 43, field(3, 2)) + old_layer(40, 42, field(2, 255)),
        ['type: "ImageSegData"', 'type: "Interp"', "interp_param { zoom_factor: 2 }", 'type: "SegAccuracy"'],
    ),
    "deconvnet": (
        old_layer(43, 45, field(3, 1)) + old_layer(42, 44, field(3, 2)),
        ['type: "BN"', "bn_param { bn_mode: INFERENCE }", 'type: "Unpooling"', "unpooling_param {"],
    ),
    "imcl": (
        old_layer(42, 43, field(4, 0)) + old_layer(44, 46, real(1, 3)),
        ['type: "BN"', "bn_param { moving_average: false }", 'type: "Insanity"', "insanity_param { lb: 3 }"],
    ),
    "c3d": (
        old_layer(30, 10, field(1, 64) + field(4, 3) + field(6, 3) + field(8, 1)) + old_layer(31, 19, field(2, 2) + field(5, 1)),
        ['type: "Convolution3D"', "kernel_depth: 3 temporal_stride: 1", 'type: "Pooling3D"', "kernel_depth: 1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fork", CASES)
def test_what_decides_is_the_rest_of_the_file(tmp_path: Path, fork: str) -> None:
    content, expected = CASES[fork]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*V1 format")
        text = definition(tmp_path, content)
    for words in expected:
        assert words in text, text


def test_what_nothing_decides_is_left_out_and_told(tmp_path: Path) -> None:
    content = layer("Permute", 202, field(1, 0)) + layer("MultiBoxLoss", MULTIBOX, field(4, 21) + field(24, 0))
    with pytest.warns(
        FcnprotoWarning,
        match=r"left out: layer 'multiboxloss'.*use_polygon: false.*ignore_difficult_gt: false by NVIDIA",
    ):
        text = definition(tmp_path, content)
    assert "num_classes: 21 }" in text and "order: 0" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "use_polygon: false" in definition(tmp_path, content, "textboxes++")
        assert "ignore_difficult_gt: false" in definition(tmp_path, content, "nvidia")
    with pytest.raises(WeightsError, match=r"doesn't follow the numbers of the dialect ssd"):
        definition(tmp_path, content, "ssd")
    out = tmp_path / "out.prototxt"
    assert main(["extract", str(tmp_path / "net.caffemodel"), "--dialect", "nvidia", "-o", str(out)]) == 0
    assert "ignore_difficult_gt: false" in out.read_text()
    assert main(["extract", str(tmp_path / "net.caffemodel"), "--dialect", "mine"]) == 2


def test_types_on_which_forks_disagree_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"type of layer 'l44' is .* by the numbers of .*--caffe-proto"):
        definition(tmp_path, old_layer(44))
    assert 'type: "MatRead"' in definition(tmp_path, old_layer(44), "deeplab1")


def test_every_dialect_has_its_numbers() -> None:
    assert set(fork_evidence.DIALECTS) == set(DIALECTS)
    known = fork_numbers.names()
    for forks in fork_evidence.DIALECTS.values():
        assert set(forks) <= set(known)
    for fork in known:
        assert fork_numbers.schema(fork).has("NetParameter", "name")


def test_what_the_package_wrote_is_its_own(tmp_path: Path) -> None:
    from fcnproto.schema import caffe_pb2
    from fcnproto.schema.text import parse

    text = 'layer { name: "b" type: "PriorBox" prior_box_param { faceboxes: true min_size: 4 } strange: 3 }'
    net = parse(text, caffe_pb2.NetParameter, strict=False)
    assert definition(tmp_path, net.SerializeToString()) == " ".join(format_message(net).split())


def test_upgrade_keeps_what_forks_have(tmp_path: Path) -> None:
    """A fork's binary file in the format before 2014 keeps its settings and values; C3D's blobs get a shape."""
    values = struct.pack("<4f", 1, 2, 3, 4)
    c3d = field(1, 1) + field(2, 1) + field(3, 1) + field(4, 2) + field(5, 2) + field(6, values)
    body = field(2, "x") + field(3, "y") + field(4, "c") + field(5, 30) + field(6, c3d)
    old, new, text = tmp_path / "old.caffemodel", tmp_path / "new.caffemodel", tmp_path / "net.prototxt"
    old.write_bytes(field(2, body + field(10, field(1, 1) + field(4, 2) + field(6, 1))))
    assert main(["upgrade", str(old), str(new)]) == 0
    with open_weights(new) as stored:
        assert stored.layers[0].type == "Convolution3D" and stored.layers[0].blobs[0].shape == (1, 1, 1, 2, 2)
        assert stored.layers[0].blobs[0].array().ravel().tolist() == [1, 2, 3, 4]
    assert "kernel_depth: 1" in " ".join(format_message(net_definition(new)).split())
    text.write_text('layers { name: "w" type: WARP bottom: "x" top: "y" warp_param { by: 2 } }')
    assert main(["upgrade", str(text), str(text)]) == 0
    assert 'type: "WARP"' in text.read_text() and "warp_param {\n    by: 2\n  }" in text.read_text()
