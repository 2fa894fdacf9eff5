"""The findings of the gallery again in nets of other makes: other names and sizes, V1 layers, stages, several data layers.

Each case is a code, its level, a place, a sick net and a healthy twin; what differs may also be the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from sick_nets import SOLVER, examined, grave, one, write

from fcnproto.schema.weights import write_blob

XAVIER, MSRA, BILINEAR = (f'weight_filler {{ type: "{name}" }}' for name in ("xavier", "msra", "bilinear"))
FROZEN = "param { lr_mult: 0 }"
MEAN = "mean_value: 104 mean_value: 117 mean_value: 123"


def maps(height: int = 20, width: int = 28) -> str:
    size = f"dim: {height} dim: {width}"
    return (
        'layer {\n name: "feed" type: "DummyData" top: "image" top: "truth" dummy_data_param {\n'
        f"  shape {{ dim: 1 dim: 3 {size} }} shape {{ dim: 1 dim: 1 {size} }}\n"
        '  data_filler { type: "gaussian" std: 1 } data_filler { value: 1 } } }\n'
    )


def conv(name: str, bottom: str, window: str = "kernel_size: 3 pad: 1", filler: str = MSRA, more: str = "") -> str:
    return (
        f'layer {{ {more}\n name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"\n'
        f"  convolution_param {{ {window} {'' if 'num_output' in window else 'num_output: 5'} {filler} }} }}\n"
    )


def deconv(name: str, bottom: str, window: str, filler: str = BILINEAR, rate: str = FROZEN) -> str:
    text = conv(name, bottom, f"{window} bias_term: false", filler, rate)
    return text.replace('"Convolution"', '"Deconvolution"')


def inner(name: str, bottom: str, outputs: int, filler: str = XAVIER) -> str:
    return (
        f'layer {{\n name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}"\n'
        f"  inner_product_param {{ num_output: {outputs} {filler} }} }}\n"
    )


def relu(blob: str) -> str:
    return f'layer {{ name: "{blob}_relu" type: "ReLU" bottom: "{blob}" top: "{blob}" }}\n'


def loss(score: str = "cls", label: str = "truth", name: str = "softmax", more: str = "") -> str:
    return f'layer {{\n name: "{name}" type: "SoftmaxWithLoss" bottom: "{score}" bottom: "{label}" top: "{name}" {more} }}\n'


def other_loss(kind: str, score: str, name: str, more: str = "") -> str:
    return loss(score, "truth", name, more).replace("SoftmaxWithLoss", kind)


def cut(bottom: str, param: str | None, reference: str = "image", top: str = "cls") -> str:
    said = "" if param is None else f"crop_param {{ {param} }}"
    return f'layer {{\n name: "cut" type: "Crop" bottom: "{bottom}" bottom: "{reference}" top: "{top}" {said} }}\n'


ENCODER = conv("enc", "image", "num_output: 8 kernel_size: 3 pad: 1") + relu("enc")
HALF = conv("low", "enc", "kernel_size: 2 stride: 2")
NET = maps() + ENCODER + conv("cls", "enc")
ENDS = NET + loss()
ROWS = (
    'layer {\n name: "feed" type: "DummyData" top: "x" top: "y" dummy_data_param {\n'
    '  shape { dim: 4 dim: 10 } shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { value: 1 } } }\n'
)
FLAT = ROWS + inner("fc", "x", 7) + loss("fc", "y")


def v1(first: str, second: str, rates: str = "") -> str:
    """A net in Caffe's first format."""
    size = "channels: 3 channels: 1 height: 12 height: 12 width: 12 width: 12"
    window = "num_output: 4 kernel_size: 1"
    return (
        f'layers {{\n name: "feed" type: DUMMY_DATA top: "image" top: "truth" dummy_data_param {{ num: 1 num: 1 {size}\n'
        '  data_filler { type: "gaussian" std: 1 } data_filler { value: 1 } } }\n'
        'layers {\n name: "one" type: CONVOLUTION bottom: "image" top: "one"\n'
        f"  convolution_param {{ {window} {first} }} }}\n"
        'layers {\n name: "r" type: RELU bottom: "one" top: "one" }\n'
        f'layers {{\n name: "two" type: CONVOLUTION bottom: "one" top: "two" {rates}\n'
        f"  convolution_param {{ {window} {second} }} }}\n"
        'layers {\n name: "loss" type: SOFTMAX_LOSS bottom: "two" bottom: "truth" }\n'
    )


def staged(filler: str) -> str:
    """A net whose middle is there in the stage `deep` alone."""
    deep, plain = 'include { stage: "deep" }', 'include { not_stage: "deep" }'
    middle = conv("mid", "enc", filler=filler, more=deep) + relu("mid").replace("}", f"{deep} }}", 1)
    return (
        maps() + ENCODER + conv("cls", "enc", more=plain) + middle + conv("cls", "mid", filler="", more=deep) + loss()
    )


def skip(offset: int) -> str:
    """A coarse branch laid over a finer one."""
    down = conv("half", "enc", "kernel_size: 2 stride: 2") + conv("quarter", "half", "kernel_size: 2 stride: 2")
    up = deconv("up", "quarter", "kernel_size: 4 stride: 2 group: 5")
    both = 'layer { name: "sum" type: "Eltwise" bottom: "cut" bottom: "half" top: "sum" }\n'
    last = deconv("cls", "sum", "kernel_size: 2 stride: 2 group: 5", "weight_filler { value: 1 }")
    return (
        maps(32, 32)
        + ENCODER
        + down
        + up
        + cut("up", f"axis: 2 offset: {offset}", "half", "cut")
        + both
        + last
        + loss()
    )


def matrix(size: int) -> str:
    H = f'layer {{ name: "H" type: "DummyData" top: "H" dummy_data_param {{ shape {{ dim: {size} dim: {size} }} }} }}\n'
    return H + NET + other_loss("InfogainLoss", "cls", "info").replace('top: "info"', 'bottom: "H" top: "info"')


def pictures(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for list_name, count in (("list", 3), ("val", 5)):
        for index in range(count):
            pixels = draw.integers(0, 255, (24, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{list_name}{index}.png")
        (folder / f"{list_name}.txt").write_text("".join(f"{list_name}{index}.png 0\n" for index in range(count)))
    for name, means in (("bgr", (104, 117, 123)), ("rgb", (123, 117, 104))):
        write_blob(
            folder / f"{name}.binaryproto", np.repeat(np.array(means, np.float32), 24 * 24).reshape(1, 3, 24, 24)
        )


def read(
    transform: str, more: str = "", tops: str = 'top: "image" top: "kind"', name: str = "pics", rule: str = ""
) -> str:
    return (
        f'layer {{\n name: "{name}" type: "ImageData" {tops} {rule} transform_param {{ {transform} }}\n'
        f'  image_data_param {{ source: "list.txt" batch_size: 1 {more} }} }}\n'
    )


TRUTH = (
    'layer {\n name: "maps" type: "DummyData" top: "truth"\n'
    "  dummy_data_param { shape { dim: 1 dim: 1 dim: 24 dim: 24 } data_filler { value: 1 } } }\n"
    'layer { name: "quiet" type: "Silence" bottom: "kind" }\n'
)


def seen(transform: str, between: str = "") -> str:
    """A net for pictures with layers between them and what is learned."""
    return read(transform) + TRUTH + between + conv("cls", "changed" if between else "image") + loss()


def power(param: str) -> str:
    return f'layer {{\n name: "change" type: "Power" bottom: "image" top: "changed" power_param {{ {param} }} }}\n'


def scale(factor: float, bias: float | None = None, rate: str = FROZEN) -> str:
    more = "" if bias is None else f"bias_term: true bias_filler {{ value: {bias} }}"
    return (
        f'layer {{\n name: "change" type: "Scale" bottom: "image" top: "changed" {rate} {rate if more else ""}\n'
        f"  scale_param {{ filler {{ value: {factor} }} {more} }} }}\n"
    )


def pair(of_images: str, of_maps: str, more: str = "") -> str:
    """Pictures and label maps from two layers; the labels go through a third layer on their way to the loss."""
    labels = read(of_maps, "is_color: false", 'top: "grey" top: "other"', "gt")
    zero = 'layer { name: "zero" type: "Power" bottom: "grey" top: "truth" power_param { scale: 0 } }\n'
    quiet = 'layer { name: "quiet" type: "Silence" bottom: "kind" bottom: "other" }\n'
    return read(f"{MEAN} {of_images}", more) + labels + zero + quiet + conv("cls", "image") + loss()


def rows(folder: Path) -> None:
    with h5py.File(folder / "rows.h5", "w") as file:
        file["x"] = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
        file["y"] = np.arange(6, dtype=np.float32) % 3
    (folder / "list.txt").write_text("rows.h5\n")
    (folder / "longer.txt").write_text("rows.h5\nno.h5\n")


HDF5 = (
    'layer {\n name: "rows" type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "list.txt" batch_size: 2 } }\n'
    + inner("fc", "x", 3)
    + loss("fc", "y")
)
VALIDATED = (
    read(MEAN, rule="include { phase: TRAIN }")
    + read(MEAN, rule='include { phase: TEST stage: "other" }', name="no")
    + read(MEAN, rule='include { phase: TEST stage: "val" }', name="val").replace("list.txt", "val.txt")
    + TRUTH
    + conv("cls", "image")
    + loss()
)
LARGE = maps(200, 300) + ENCODER + conv("cls", "enc")


@dataclass(frozen=True)
class Case:
    code: str
    level: str
    place: str
    sick: str
    healthy: str
    solver: str = SOLVER
    healthy_solver: str | None = None
    files: Callable[[Path], None] | None = None


def rate(value: str, more: str = "") -> str:
    return SOLVER.replace("0.01", value).replace("max_iter: 100", "max_iter: 100000") + more


def validated(count: int, stage: str) -> str:
    return SOLVER + f"test_interval: 10 test_iter: {count} {stage}\n"


VAL = 'test_state { stage: "val" }'
CASES = [
    Case("never-learns", "fault", "'one'", v1("", XAVIER), v1(XAVIER, "")),
    Case("never-learns", "fault", "'fc1'", *(ROWS + inner("fc1", "x", 7, filler) + relu("fc1") + inner("fc2", "fc1", 3, "")
         + loss("fc2", "y") for filler in ("", XAVIER))),
    Case("never-learns", "fault", "'mid'", staged(""), staged(XAVIER), SOLVER + 'train_state { stage: "deep" }\n'),
    Case("unfilled", "fault", "'two'", *(v1(XAVIER, filler, "blobs_lr: 0 blobs_lr: 0") for filler in ("", XAVIER))),
    Case("no-weights", "suspect", "'enc'", *(maps() + conv("enc", "image", more=f) + relu("enc") + conv("cls", "enc") + loss()
         for f in (2 * FROZEN, ""))),
    Case("ungrouped-bilinear", "fault", "'cls'", *(maps() + ENCODER + conv("low", "enc", "num_output: 6 kernel_size: 2 stride: 2")
         + deconv("cls", "low", f"num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: {n}") + loss() for n in (2, 6))),
    Case("upsampling-gain", "fault", "'cls'", *(maps() + ENCODER + HALF + deconv("cls", "low", window) + loss()
         for window in ("kernel_size: 2 stride: 2 group: 5", "kernel_size: 4 stride: 2 pad: 1 group: 5"))),
    Case("upsampling-gain", "suspect", "'cls'", *(maps() + ENCODER + HALF + deconv(
         "cls", "low", "kernel_h: 2 kernel_w: 2 stride_h: 2 stride_w: 2 group: 5", f"weight_filler {{ value: {v} }}", "") + loss()
         for v in (2, 1))),
    Case("crop-offset", "fault", "'cut'", *(maps() + ENCODER + conv("wide", "enc", "kernel_size: 3 pad: 7")
         + cut("wide", f"axis: 2 offset: {offset}") + loss() for offset in (2, 6))),
    Case("crop-offset", "fault", "'cut'", *(maps() + ENCODER + conv("wide", "enc", "kernel_size: 3 pad: 4")
         + cut("wide", param) + loss() for param in ("axis: -2 offset: 0", "axis: -2 offset: 3"))),
    Case("crop-offset", "fault", "'cut'", *(maps() + ENCODER + conv("wide", "enc", "kernel_size: 3 pad: 4")
         + cut("wide", param) + loss() for param in (None, "offset: 3"))),
    Case("crop-offset", "fault", "'cut'", *(maps() + ENCODER + conv("wide", "enc", "kernel_size: 3 pad: 3")
         + cut("wide", f"axis: 2 offset: 2 offset: {column}", "truth") + loss() for column in (4, 2))),
    Case("crop-offset", "fault", "'cut'", skip(0), skip(1)),
    Case("padding", "suspect", "'enc'", *(maps() + conv("enc", "image", f"kernel_h: {2 * pad + 1} kernel_w: 3 pad_h: {pad} pad_w: 1 num_output: 5")
         + loss("enc") for pad in (10, 1))),
    Case("padding", "suspect", "'cls'", *(maps() + power("scale: 0.5") + conv("cls", "changed", window) + loss()
         for window in ("kernel_size: 41 pad: 20", "kernel_size: 3 pad: 1"))),
    Case("no-loss", "fault", "net.prototxt", NET + loss(more="include { phase: TEST }"), ENDS),
    Case("no-loss", "fault", "net.prototxt", NET + loss(more="loss_weight: 0"), NET + loss(more="loss_weight: 0.5")),
    Case("no-loss", "fault", "net.prototxt", NET + loss(more="propagate_down: false propagate_down: false"), ENDS),
    Case("loss-scales", "suspect", "'depth'", *(NET + loss() + conv("far", "enc", "num_output: 1 kernel_size: 1")
         + other_loss("EuclideanLoss", "far", "depth", f"loss_weight: {weight}") for weight in (1, 0.005))),
    Case("loss-scales", "suspect", "'aux'", *(NET + conv("side", "enc") + loss() + loss("side", "truth", "aux",
         f"loss_weight: {weight}") for weight in (5000, 0.3))),
    Case("score-stride", "suspect", "'softmax'", maps() + ENCODER + HALF + loss("low"), ENDS),
    Case("score-stride", "suspect", "'sig'", *(maps() + ENCODER + conv("cls", "enc", f"num_output: 1 {window}")
         + other_loss("SigmoidCrossEntropyLoss", "cls", "sig") for window in ("kernel_size: 2 stride: 2", "kernel_size: 1"))),
    Case("infogain-size", "suspect", "'info'", matrix(4), matrix(5)),
    Case("loss-normalisation", "fault", "solver.prototxt", LARGE + loss(more="loss_param { normalization: NONE }"),
         LARGE + loss(), rate("1e-4")),
    Case("loss-normalisation", "fault", "solver.prototxt", LARGE + loss(),
         LARGE + loss(more="loss_param { normalization: BATCH_SIZE }"), rate("1e-10").replace("0.9", "0.99")),
    Case("rate-too-small", "fault", "solver.prototxt", FLAT, FLAT, rate("1e-12", 'type: "Adam" momentum2: 0.999'),
         rate("1e-4", 'type: "Adam" momentum2: 0.999')),
    Case("momentum", "suspect", "solver.prototxt", LARGE + loss(), LARGE + loss(),
         rate("1e-3", 'type: "Nesterov"').replace("0.9", "0.995"), rate("1e-3", 'type: "Nesterov"')),
    Case("steps-beyond", "suspect", "solver.prototxt", FLAT, FLAT,
         *(SOLVER.replace('"fixed"', f'"multistep" gamma: 0.1 stepvalue: 50 stepvalue: {last}') for last in (150, 100))),
    Case("mean-twice", "fault", "'change'", seen(MEAN, power("scale: 0.017 shift: -1.99")), seen(MEAN, power("scale: 0.017")),
         files=pictures),
    Case("mean-twice", "fault", "'change'", seen(MEAN, scale(0.02, -2.2)), seen(MEAN, scale(0.02, -2.2, "")), files=pictures),
    Case("scale-twice", "suspect", "'change'", *(seen(f"{MEAN} scale: {by}", scale(0.0039)) for by in (0.0039, 1)),
         files=pictures),
    Case("no-mean", "suspect", "'pics'", seen(""), seen(MEAN), files=pictures),
    Case("channel-order", "suspect", "'pics'", *(seen(f'mean_file: "{order}.binaryproto"') for order in ("rgb", "bgr")),
         files=pictures),
    Case("unaligned-random", "fault", "'gt'", pair("mirror: true", "mirror: true"), pair("", ""), files=pictures),
    Case("unaligned-random", "fault", "'gt'", pair("", "", "shuffle: true"), pair("", ""), files=pictures),
    Case("crop-larger", "suspect", "'pics'", *(read(f"{MEAN} crop_size: {crop}") + inner("fc", "image", 5) + loss("fc", "kind")
         for crop in (30, 20)), files=pictures),
    Case("missing-files", "suspect", "'rows'", HDF5.replace("list.txt", "longer.txt"), HDF5, files=rows),
    Case("test-leaves-out", "suspect", "solver.prototxt", HDF5, HDF5, validated(2, ""), validated(3, ""), rows),
    Case("test-leaves-out", "suspect", "solver.prototxt", VALIDATED, VALIDATED, validated(4, VAL), validated(5, VAL), pictures),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_a_case(case: Case, tmp_path: Path) -> None:
    for name, net, solver in (
        ("sick", case.sick, case.solver),
        ("healthy", case.healthy, case.healthy_solver or case.solver),
    ):
        folder = tmp_path / name
        folder.mkdir()
        if case.files is not None:
            case.files(folder)
        findings = examined(write(folder, net, solver))
        if name == "healthy":
            assert not grave(findings)
        else:
            finding = one(findings, case.code)
            assert finding.level == case.level and case.place in finding.where
            assert finding.where.startswith(str(folder))


def test_labels_whose_sizes_are_not_known_yet(tmp_path: Path) -> None:
    """A loss over data that aren't there is no obstacle to what can be said of the rest."""
    net = HDF5.replace('layer {\n name: "rows"', 'layer { name: "rows"')
    assert {finding.code for finding in examined(write(tmp_path, net))} == {"missing-files"}


def test_losses_of_forks_may_have_other_labels(tmp_path: Path) -> None:
    """The labels of a detector's loss are boxes, whatever the size of its maps."""
    net = maps(20, 20) + ENCODER + conv("cls", "enc", "num_output: 25 kernel_size: 2 stride: 2")
    anchors = "region_loss_param { num: 1 classes: 20 biases: 1 biases: 1 }"
    for kind, sick in (("RegionLoss", False), ("SoftmaxWithLoss", True)):
        loss_layer = other_loss(kind, "cls", "boxes", anchors if kind == "RegionLoss" else "")
        codes = {finding.code for finding in examined(write(tmp_path, net + loss_layer))}
        assert ("score-stride" in codes) is sick
