"""A gallery of nets and solvers that can't learn, each found at its level and place; healthy twins give nothing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sick_nets import DUMMY, LOSS, SCORE, SOLVER, SUMMED, examined, grave, one, write

import fcnproto
from fcnproto.cli._main import main
from fcnproto.data.writing import new_database
from fcnproto.errors import FcnprotoWarning, PrototxtError
from fcnproto.schema import caffe_pb2

DOWN = (
    'layer { name: "down" type: "Convolution" bottom: "data" top: "down"\n'
    '  convolution_param { num_output: 3 kernel_size: 2 stride: 2 weight_filler { type: "xavier" } } }\n'
)
UP = (
    'layer { name: "score" type: "Deconvolution" bottom: "down" top: "score" param { lr_mult: 0 } convolution_param {\n'
    "  num_output: 3 group: 3 bias_term: false kernel_size: KERNEL stride: 2 pad: PAD weight_filler { FILLER } } }\n"
)


def up(kernel: int = 4, pad: int = 1, filler: str = 'type: "bilinear"') -> str:
    return UP.replace("KERNEL", str(kernel)).replace("PAD", str(pad)).replace("FILLER", filler)


CROPPED = (
    DUMMY
    + SCORE.replace('top: "score"', 'top: "wide"').replace("pad: 1", "pad: 4")
    + 'layer { name: "crop" type: "Crop" bottom: "wide" bottom: "data" top: "score"\n'
    "  crop_param { axis: 2 offset: OFFSET } }\n" + LOSS
)
PYTHON = (
    'layer { name: "mine" type: "Python" bottom: "score" bottom: "label" top: "my_loss" WEIGHT\n'
    '  python_param { module: "my_losses" layer: "MyLoss" } }\n'
)
MODULE = """
import caffe
class MyLoss(caffe.Layer):
    def setup(self, bottom, top): pass
    def reshape(self, bottom, top): top[0].reshape(1)
    def forward(self, bottom, top): top[0].data[...] = (bottom[0].data ** 2).sum()
    def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = 2 * bottom[0].data
"""
TWO = LOSS + LOSS.replace('name: "loss"', 'name: "other"').replace('top: "loss"', 'top: "other"')
POWER = (
    'layer { name: "shift" type: "Power" bottom: "data" top: "shifted" power_param { shift: -110 } }\n'
    + SCORE.replace('bottom: "data"', 'bottom: "shifted"')
)  # fmt: skip
WINDOWS = (
    'layer { name: "data" type: "ImageData" top: "data" top: "class" TRANSFORM\n'
    '  image_data_param { source: "list.txt" batch_size: 1 new_height: 16 new_width: 16 } }\n'
    'layer { name: "truth" type: "DummyData" top: "label"\n'
    "  dummy_data_param { shape { dim: 1 dim: 1 dim: 16 dim: 16 } } }\n"
    'layer { name: "quiet" type: "Silence" bottom: "class" }\n'
)
MEAN = "mean_value: 104 mean_value: 117 mean_value: 123"


def images(folder: Path, count: int = 2, mark: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((16, 16, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    (folder / "list.txt").write_text(mark + "".join(f"{index}.png 0\n" for index in range(count)), encoding="utf-8")


def with_images(transform: str, rest: str = SCORE) -> str:
    return WINDOWS.replace("TRANSFORM", f"transform_param {{ {transform} }}" if transform else "") + rest + LOSS


# code, level, the layer or file it is at, the sick net, its healthy twin
NETS = {
    "never-learns": (
        "fault", "'score'", DUMMY + SCORE.replace("num_output: 3", "num_output: 3 group: 1").replace(
            'weight_filler { type: "xavier" }', "")
        + 'layer { name: "r" type: "ReLU" bottom: "score" top: "score" }\n' + LOSS, DUMMY + SCORE + LOSS),
    "unfilled": ("fault", "'score'", DUMMY + DOWN + up(filler='type: "constant"') + LOSS, DUMMY + DOWN + up() + LOSS),
    "ungrouped-bilinear": (
        "fault", "'score'", DUMMY + DOWN + up().replace("group: 3", "") + LOSS, DUMMY + DOWN + up() + LOSS),
    "upsampling-gain": (
        "fault", "'score'", DUMMY + DOWN + up(2, 0, 'type: "constant" value: 0.5') + LOSS,
        DUMMY + DOWN + up(2, 0, 'type: "constant" value: 1') + LOSS),
    "crop-offset": ("fault", "'crop'", CROPPED.replace("OFFSET", "0"), CROPPED.replace("OFFSET", "3")),
    "padding": (
        "suspect", "'score'", DUMMY + SCORE.replace("pad: 1", "pad: 9").replace("kernel_size: 3", "kernel_size: 19")
        + LOSS, DUMMY + SCORE + LOSS),
    "no-loss": ("fault", "net", DUMMY + SCORE, DUMMY + SCORE + LOSS),
    "loss-weight-forgotten": (
        "suspect", "'mine'", DUMMY + SCORE + LOSS + PYTHON.replace("WEIGHT", ""),
        DUMMY + SCORE + LOSS + PYTHON.replace("WEIGHT", "loss_weight: 0.1")),
    "loss-scales": (
        "suspect", "'other'", DUMMY + SCORE + TWO.replace('top: "other"',
            'top: "other" loss_param { normalize: false }'), DUMMY + SCORE + TWO),
    "score-stride": ("suspect", "'loss'", DUMMY + DOWN + LOSS.replace('"score"', '"down"'), DUMMY + DOWN + up() + LOSS),
    "mean-twice": (
        "fault", "'shift'", with_images(MEAN, POWER), with_images("", POWER)),
    "scale-twice": (
        "suspect", "'shift'",
        with_images(MEAN + " scale: 0.0039", POWER.replace("shift: -110", "scale: 0.0039")),
        with_images(MEAN, POWER.replace("shift: -110", "scale: 0.0039"))),
    "no-mean": ("suspect", "'data'", with_images(""), with_images(MEAN)),
    "channel-order": (
        "suspect", "'data'", with_images("mean_value: 123 mean_value: 117 mean_value: 104"), with_images(MEAN)),
    "unaligned-random": ("fault", "'truth'", with_images(MEAN + " mirror: true"), with_images(MEAN)),
    "crop-larger": (
        "suspect", "'data'", with_images(MEAN + " crop_size: 20").replace("dim: 16", "dim: 20").replace(
            'type: "ImageData" top: "data" top: "class"', 'type: "ImageData" top: "data" top: "class"'),
        with_images(MEAN)),
}  # fmt: skip


@pytest.mark.parametrize("code", NETS)
def test_a_net(code: str, tmp_path: Path) -> None:
    level, place, sick, healthy = NETS[code]
    for name, net in (("sick", sick), ("healthy", healthy)):
        images(tmp_path / name)
        (tmp_path / name / "my_losses.py").write_text(MODULE)
        findings = examined(write(tmp_path / name, net), allow_python=True)
        if name == "healthy":
            assert not grave(findings)
            continue
        finding = one(findings, code)
        assert finding.level == level and place in finding.where
        if finding.layers:
            line = 1 + net[: net.index(f'name: "{finding.layers[0]}"')].count("\n")
            assert finding.where.startswith(f"{tmp_path / name / 'net.prototxt'}:{line}: ")


SOLVERS = {
    "rate-too-small": ("fault", "base_lr: 1e-9 ", "base_lr: 0.01 "),
    "momentum": ("suspect", "momentum: 0.99", "momentum: 0.9"),
    "iter-size": ("suspect", "iter_size: 0", "iter_size: 2"),
    "steps-beyond": ("suspect", 'lr_policy: "step" gamma: 0.1 stepsize: 100', 'lr_policy: "step" gamma: 0.1 stepsize: 50'),
}  # fmt: skip


@pytest.mark.parametrize("code", SOLVERS)
def test_a_solver(code: str, tmp_path: Path) -> None:
    level, sick, healthy = SOLVERS[code]
    net = DUMMY + SCORE + LOSS
    if code == "rate-too-small":  # not of a mean over many pixels, which is `loss-normalisation`
        net = net.replace("dim: 16 dim: 16", "dim: 3 dim: 3")
    for name, text in (("sick", sick), ("healthy", healthy)):
        fields = {field.split(":")[0] for field in text.split()}
        kept = [part for part in ("base_lr: 0.01", 'lr_policy: "fixed"', "momentum: 0.9") if part[:6] not in text]
        solver = f"{text} {' '.join(kept)} max_iter: 100 solver_mode: CPU snapshot_after_train: false\n"
        assert fields
        findings = examined(write(tmp_path / name, net, solver))
        if name == "healthy":
            assert not grave(findings)
        else:
            finding = one(findings, code)
            assert finding.level == level and str(tmp_path / "sick" / "solver.prototxt") in finding.where


@pytest.mark.parametrize(
    ("loss", "rate", "level"),
    [
        (SUMMED, "1e-2", "fault"),
        (SUMMED, "1.5e-4", "suspect"),
        (SUMMED, "1e-6", None),
        (LOSS, "1e-10", "fault"),
        (LOSS, "1e-2", None),
    ],
)
def test_rates_of_sums_and_means(loss: str, rate: str, level: str | None, tmp_path: Path) -> None:
    """A rate made for the one kind of loss is found with the other one, and not with its own."""
    solver = SOLVER.replace("base_lr: 0.01", f"base_lr: {rate}").replace("max_iter: 100", "max_iter: 10000")
    findings = examined(write(tmp_path, DUMMY + SCORE + loss, solver))
    if level is None:
        assert not grave(findings)
    else:
        (finding,) = [one for one in grave(findings) if one.code != "rate-too-small"]
        assert (finding.code, finding.level) == ("loss-normalisation", level) and "256 labels" in finding.seen


def test_iter_size_with_statistics_of_batches(tmp_path: Path) -> None:
    norm = 'layer { name: "norm" type: "BatchNorm" bottom: "score" top: "score" WHICH }\n'
    for which, expected in (("", ["iter-size"]), ("batch_norm_param { use_global_stats: true }", [])):
        net = DUMMY + SCORE + norm.replace("WHICH", which) + LOSS
        findings = grave(examined(write(tmp_path, net, SOLVER + "iter_size: 4\n")))
        assert [finding.code for finding in findings] == expected


def test_tests_that_leave_images_out(tmp_path: Path) -> None:
    images(tmp_path, 6)
    test = "test_interval: 10 test_iter: {}\n"
    for count, expected in ((3, True), (6, False)):
        findings = examined(write(tmp_path, with_images(MEAN), SOLVER + test.format(count)))
        codes = {finding.code for finding in grave(findings)}
        assert codes == {"duplicates", *(["test-leaves-out"] if expected else [])}  # tested on what is trained on
        if expected:
            finding = one(findings, "test-leaves-out")
            assert "3 of 6 images" in finding.seen and finding.remedy == "test_iter: 6" and finding.level == "suspect"


def test_snapshot_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for prefix, level in (("new/x", "note"), ("file/x", "fault"), ("x", None)):
        solver = SOLVER.replace("snapshot_after_train: false", f'snapshot_prefix: "{tmp_path / prefix}"')
        found = [one.level for one in examined(write(tmp_path, solver=solver)) if one.code == "snapshot-folder"]
        assert found == ([level] if level else [])
    assert not (tmp_path / "new").exists()


def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    finding = one(examined(write(tmp_path, solver=SOLVER.replace("CPU", "GPU"))), "no-gpu")
    assert finding.level == "note"


def test_lists(tmp_path: Path) -> None:
    images(tmp_path, mark="\ufeff")
    path = write(tmp_path, with_images(MEAN))
    assert one(examined(path), "list-bom").level == "suspect"
    (tmp_path / "list.txt").write_text("0.png 0\nnowhere.png 0\n")
    finding = one(examined(path), "missing-files")
    assert finding.level == "suspect" and "1 of 2" in finding.seen and "nowhere.png" in finding.seen
    (tmp_path / "list.txt").unlink()
    assert one(examined(path), "missing-files").level == "note"


def database(path: Path, count: int, size: int, channels: int) -> None:
    with new_database(str(path)) as target:
        for index in range(count):
            values = bytes(place * 3 // size**2 % 3 for place in range(channels * size**2))  # each class occurs
            datum = caffe_pb2.Datum(channels=channels, height=size, width=size, data=values)
            target.put(f"{index:08}".encode(), datum.SerializeToString())


@pytest.mark.parametrize(("count", "size", "sick"), [(3, 16, False), (2, 16, True), (3, 12, True)])
def test_databases_that_differ(count: int, size: int, sick: bool, tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    database(tmp_path / "images", 3, 16, 3)
    database(tmp_path / "labels", count, size, 1)
    layer = (
        'layer { name: "NAME" type: "Data" top: "NAME" transform_param { WHAT }'
        ' data_param { source: "SOURCE" backend: LMDB batch_size: 1 } }\n'
    )
    data = layer.replace("NAME", "data").replace("SOURCE", "images").replace("WHAT", MEAN)
    label = layer.replace("NAME", "label").replace("SOURCE", "labels").replace("WHAT", "")
    findings = examined(write(tmp_path, data + label + SCORE + LOSS))
    assert ("database-size" in {finding.code for finding in findings}) is sick
    assert bool(grave(findings)) is sick


def matrix(path: Path, count: int) -> None:
    blob = caffe_pb2.BlobProto(data=[1.0] * count)
    blob.shape.dim.extend([1, 1, 1, count])
    path.write_bytes(blob.SerializeToString())


def test_the_matrix_of_an_infogain_loss(tmp_path: Path) -> None:
    loss = LOSS.replace("SoftmaxWithLoss", "InfogainLoss").replace(
        'top: "loss"', 'top: "loss" infogain_loss_param { source: "H.binaryproto" }'
    )
    for count, sick in ((9, False), (4, True)):
        matrix(tmp_path / "H.binaryproto", count)
        findings = examined(write(tmp_path, DUMMY + SCORE + loss))
        assert bool(grave(findings)) is sick
        if sick:
            finding = one(findings, "infogain-size")
            assert finding.level == "suspect" and "4 values" in finding.seen and "'loss'" in finding.where


def test_labels_that_are_void(tmp_path: Path) -> None:
    path = fcnproto.zoo.path("voc-fcn32s", "train")
    text = re.sub(r"num_output: (4096|512|256|128|64)\b", "num_output: 4", path.read_text())
    assert "ignore_label: 255" in text
    (tmp_path / "net.prototxt").write_text(text.replace("ignore_label: 255", ""))
    assert one(examined(tmp_path / "net.prototxt"), "void-not-ignored").level == "fault"
    (tmp_path / "net.prototxt").write_text(text)
    assert "void-not-ignored" not in {finding.code for finding in examined(tmp_path / "net.prototxt")}


def test_forgotten_weights() -> None:
    finding = one(fcnproto.check(fcnproto.zoo.path("voc-fcn-alexnet", "solver")), "no-weights")
    assert finding.level == "suspect" and "voc-fcn-alexnet" in finding.seen


def test_classes_by_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    path = write(tmp_path)
    assert "3 scores for 2 classes" in one(examined(path, classes=tmp_path / "classes.txt"), "old-classes").seen
    assert not grave(examined(path, classes=["background", "cat", "dog"]))


def test_nets_for_use_need_no_loss(tmp_path: Path) -> None:
    net = (
        'layer { name: "i" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }\n' + SCORE
    )
    assert not grave(examined(write(tmp_path, net, None)))


def test_inputs_are_the_callers_to_fill(tmp_path: Path) -> None:
    """Nets with Input layers: maps of labels, and one label an image."""
    layer = 'layer {{ name: "{0}" type: "Input" top: "{0}" input_param {{ shape {{ {1} }} }} }}\n'
    data, size = layer.format("data", "dim: 1 dim: 3 dim: 16 dim: 16"), "dim: 1 dim: 1 dim: 16 dim: 16"
    findings = examined(write(tmp_path, data + layer.format("label", size) + SCORE + LOSS))
    assert not grave(findings) and "'data', 'label'" in one(findings, "unfed-input").where  # a note under a solver
    score = (
        'layer { name: "score" type: "InnerProduct" bottom: "data" top: "score"\n'
        '  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }\n'
    )
    net = data + layer.format("label", "dim: 1") + score + LOSS
    assert not examined(write(tmp_path, net, None))


def test_a_mean_taken_off_by_layers_that_are_not_learned(tmp_path: Path) -> None:
    """Bias and Scale stand for the Power layer; what they learn is their own."""
    bias = 'layer { name: "shift" type: "Bias" bottom: "data" top: "shifted" RATE bias_param { filler { value: -110 } } }\n'
    scale = (
        'layer { name: "shift" type: "Scale" bottom: "data" top: "shifted" RATE\n'
        "  scale_param { bias_term: true bias_filler { value: -110 } } }\n"
    )
    images(tmp_path)
    rest = SCORE.replace('bottom: "data"', 'bottom: "shifted"')
    fixed = "param { lr_mult: 0 } "
    for layer, rates in ((bias, fixed), (scale, 2 * fixed)):
        finding = one(examined(write(tmp_path, with_images(MEAN, layer.replace("RATE", rates) + rest))), "mean-twice")
        assert finding.level == "fault" and "'shift'" in finding.where and "110" in finding.seen
        for mean, learned in ((MEAN, ""), ("scale: 0.5", rates)):
            assert not grave(examined(write(tmp_path, with_images(mean, layer.replace("RATE", learned) + rest))))


def test_a_net_of_a_file_is_named_by_it(tmp_path: Path) -> None:
    finding = one(examined(write(tmp_path, DUMMY + SCORE)), "no-loss")
    assert finding.where.startswith(str(tmp_path / "net.prototxt"))


def test_lists_of_different_length(tmp_path: Path) -> None:
    images(tmp_path, 3)
    lists = WINDOWS.replace('top: "data" top: "class"', 'top: "more" top: "kind"').replace('"data"', '"again"')
    both = with_images(MEAN) + lists.split('layer { name: "truth"')[0].replace("TRANSFORM", "").replace(
        "list.txt", "short.txt"
    )
    both += 'layer { name: "no" type: "Silence" bottom: "more" bottom: "kind" }\n'
    for count, sick in ((2, True), (3, False)):
        (tmp_path / "short.txt").write_text("".join(f"{index}.png 0\n" for index in range(count)))
        found = [one for one in examined(write(tmp_path, both)) if one.code == "database-size"]
        assert bool(found) is sick


def test_images_stored_as_red_green_blue(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    layer = (
        'layer { name: "data" type: "Data" top: "data" transform_param { MEAN }'
        ' data_param { source: "SOURCE" backend: LMDB batch_size: 2 } }\n'
        'layer { name: "truth" type: "DummyData" top: "label"\n'
        "  dummy_data_param { shape { dim: 2 dim: 1 dim: 16 dim: 16 } } }\n"
    )
    rng = np.random.default_rng(1)
    for name, means in (("rgb", (130, 120, 100)), ("bgr", (100, 120, 130)), ("alike", (121, 120, 119))):
        with new_database(str(tmp_path / name)) as target:
            for index in range(10):
                values = np.stack([rng.normal(mean, 20, (16, 16)).clip(0, 255) for mean in means]).astype(np.uint8)
                datum = caffe_pb2.Datum(channels=3, height=16, width=16, data=values.tobytes())
                target.put(f"{index:08}".encode(), datum.SerializeToString())
        net = layer.replace("SOURCE", name).replace("MEAN", MEAN) + SCORE + LOSS
        findings = examined(write(tmp_path, net))
        if name == "rgb":
            finding = one(findings, "channel-order")
            assert finding.level == "suspect" and "'data'" in finding.where and "1.00 of 10 images" in finding.seen
        assert bool(grave(findings)) is (name == "rgb")


def test_training_says_that_labels_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image layer that mirrors, beside labels that don't: said before the first iteration."""
    images(tmp_path)
    monkeypatch.chdir(tmp_path)
    solver = fcnproto.Solver(write(tmp_path, with_images(MEAN + " mirror: true")))
    with pytest.warns(FcnprotoWarning, match="'data' mirrors by itself, so images and label maps"):
        solver.step(1)


def test_for_the_original_caffe(tmp_path: Path) -> None:
    sigmoid = 'layer { name: "s" type: "Sigmoid" bottom: "score" top: "score" }\n'
    net = DUMMY + SCORE + sigmoid + 'layer { name: "r" type: "ReLU" bottom: "score" top: "score" }\n' + LOSS
    path = write(tmp_path, net)
    assert not grave(examined(path))
    assert "'s'" in one(examined(path, for_caffe=True), "caffe-gradient").where
    refused = SCORE.replace('type: "xavier"', 'type: "gaussian" std: 0')
    path = write(tmp_path, DUMMY + refused + LOSS)
    assert "caffe-refuses" in {finding.code for finding in examined(path, for_caffe=True)}


def test_nets_and_solvers_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path, DUMMY + SCORE)
    net = fcnproto.load(tmp_path / "net.prototxt", phase="train")
    assert not grave(fcnproto.check(net))
    assert [finding.code for finding in grave(fcnproto.check(fcnproto.Solver(path)))] == ["no-loss"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, DUMMY + SCORE)
    before = sorted(os.listdir(tmp_path))
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert f"fault: {tmp_path / 'net.prototxt'}: the net [no-loss]" in out and out.endswith("1 fault\n")
    assert main(["check", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"fault": 1, "suspect": 0, "note": 0}
    assert {"level", "code", "where", "seen", "why", "remedy"} <= set(found["findings"][0])
    assert main(["check", str(write(tmp_path))]) == 0
    assert capsys.readouterr().out == "nothing found\n"
    assert sorted(os.listdir(tmp_path)) == before


def test_what_is_no_net(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text("layer { name: }")
    with pytest.raises(PrototxtError, match="net.prototxt:1"):
        fcnproto.check(tmp_path / "net.prototxt")
