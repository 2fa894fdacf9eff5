"""Fine-tuning on drawn scenes: the plan, the files, the training and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fcnproto
from fcnproto import finetune, surgery, zoo
from fcnproto.cli._main import main
from fcnproto.data.augmentation import Augmentation
from fcnproto.data.datasets import ImageFolder
from fcnproto.errors import DataError, PrototxtError, UsageError, WeightsError
from fcnproto.finetune.data import balanced_weights, split
from fcnproto.finetune.nets import read_base
from fcnproto.meta import of_record
from fcnproto.netspec import NetSpec
from fcnproto.netspec import layers as L
from fcnproto.scenes.scenes import draw_scene
from fcnproto.schema.text import read_net, read_solver, write_message
from fcnproto.schema.weights import read_blob
from fcnproto.solver.signals import SecondInterrupt

fcn, sources = zoo.definitions("fcn"), zoo.definitions("sources")
WIDTHS = (4, 4, 6, 6, 6, 8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen scenes with two classes, background and object; void along the left edge."""
    root = tmp_path_factory.mktemp("scenes")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for index in range(14):
        scene = draw_scene((5, index), 128)
        mask = (scene.label > 0).astype(np.uint8)
        mask[:, :2] = 255
        image = np.where((mask == 1)[:, :, None], scene.image // 2 + 127, scene.image // 2)  # objects are bright
        small = Image.fromarray(image.astype(np.uint8)).resize((64, 48))
        small.save(root / "images" / f"{index:02}.png")
        Image.fromarray(mask).resize((64, 48), Image.Resampling.NEAREST).save(root / "masks" / f"{index:02}.png")
    (root / "classes.txt").write_text("background\nobject\n")
    return root


def slim_net(folder: Path) -> Path:
    """A net with skip and interpolation, but without the wide padding: a step takes milliseconds."""
    net = sources.inputs({"data": (1, 3, 48, 64)})
    top = net.conv1 = L.Convolution(net.data, num_output=8, kernel_size=3, pad=3)
    top = net.relu1 = L.ReLU(top, in_place=True)
    top = net.pool1 = L.Pooling(top, pool="MAX", kernel_size=2, stride=2)
    top = net.fc2 = L.Convolution(top, num_output=12, kernel_size=3, pad=1)
    top = net.relu2 = L.ReLU(top, in_place=True)
    top = net.drop2 = L.Dropout(top, dropout_ratio=0.1, in_place=True)
    top = net.score_fr = L.Convolution(top, num_output=21, kernel_size=1, param=fcn.LEARNED)
    net.upscore = fcn.upsampling(top, 21, 2)
    from fcnproto.netspec import crop

    net.score = crop(net.upscore, net.data)
    path = folder / "slim.prototxt"
    write_message(path, net.to_proto())
    return path


def slim_zoo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put slim nets in the place of the zoo's FCN-32s and FCN-16s, under their names."""
    for name, build in (("voc-fcn32s", fcn.fcn32s), ("voc-fcn16s", fcn.fcn16s)):
        (folder / name).mkdir()
        spec = sources.inputs({"data": (1, 3, 32, 32), "label": (1, 1, 32, 32)})
        write_message(folder / name / "train.prototxt", build(spec, 21, WIDTHS).to_proto())
    real = zoo.path

    def path(name: str, kind: str) -> Path:
        return folder / name / "train.prototxt" if kind == "train" else real(name, kind)

    monkeypatch.setattr(zoo, "path", path)
    monkeypatch.setattr(zoo.nets, "path", path)  # `located` asks it there


def settings(scenes: Path, output: Path, model: Path, **options: object) -> finetune.Settings:
    chosen: dict[str, object] = {
        "model": str(model),
        "weights": None,
        "images": scenes / "images",
        "masks": scenes / "masks",
        "classes": ("background", "object"),
        "output": output,
        "optimization": "adam",
        "iterations": 60,
        "interval": 20,
        "device": "cpu",
        **options,
    }
    return finetune.Settings(**chosen)  # type: ignore[arg-type]


def test_learns_and_leaves_everything_behind(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    made = finetune.plan(settings(scenes, output, slim_net(tmp_path), augmentation=Augmentation(mirror=True)))
    assert not output.exists()
    said: list[str] = []
    outcome = finetune.run(made, said.append)
    assert [step for step, _ in outcome.validations] == [0, 20, 40, 60]
    assert len(said) == 4 and "validation mean IU" in said[-1]
    values = dict(outcome.validations)
    assert values[outcome.best] == max(values.values()) > 0.6 > values[0]  # it began with background everywhere
    assert outcome.score is not None and outcome.score.images == len(made.splits["test"])
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "train.prototxt", "test.prototxt", "deploy.prototxt", "solver.prototxt", "classes.txt", "train.txt", "val.txt", "test.txt",
        "initial.caffemodel", "weights.caffemodel", "validation.csv", "curves.png", "scores.json", "confusion.png",
        "samples.png",
    }  # fmt: skip
    scores = json.loads((output / "scores.json").read_text())
    assert scores["held out"]["mean IU"] == pytest.approx(outcome.score.metrics.mean_iu)
    assert scores["best iteration"] == outcome.best
    with pytest.raises(UsageError, match="has done its 60 iterations"):
        finetune.run(made)
    # The held-out score once more, from the files alone.
    capsys.readouterr()
    assert main(["score", "net", str(output / "test.prototxt"), str(output / "weights.caffemodel"), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)["results"]
    assert again["confusion"] == scores["held out"]["confusion"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_learns_on_a_gpu(device: str, scenes: Path, tmp_path: Path) -> None:
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        pytest.skip("one CUDA device only")
    outcomes = []
    for place in ("cpu", device):
        output = tmp_path / place.replace(":", "")
        made = finetune.plan(settings(scenes, output, slim_net(tmp_path), iterations=4, interval=2, device=place))
        outcomes.append(finetune.run(made))
        fcnproto.load(output / "deploy.prototxt", output / "weights.caffemodel")
    assert [step for step, _ in outcomes[1].validations] == [0, 2, 4]
    assert outcomes[1].validations[0][1] == pytest.approx(outcomes[0].validations[0][1], abs=0.01)
    assert outcomes[1].score is not None


def test_the_files_train_by_themselves_alike(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fcnproto train` on the folder does the same steps, also from a folder with files of the same names."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("train.prototxt", "train.txt", "initial.caffemodel", "test.txt"):
        (elsewhere / name).write_text("something else")
    monkeypatch.chdir(elsewhere)
    output = tmp_path / "out"
    made = finetune.plan(settings(scenes, output, slim_net(tmp_path), iterations=4, interval=2))
    finetune.run(made)
    solver = fcnproto.Solver(output / "solver.prototxt", device="cpu")
    assert solver.net.params["conv1"][0].equal(made.net.params["conv1"][0])
    solver.step(4)
    assert solver.iter == 4 and all(np.isfinite(solver.losses))
    net = fcnproto.load(output / "deploy.prototxt", output / "weights.caffemodel")
    assert net(torch.zeros(1, 3, 31, 45))["score"].shape == (1, 2, 31, 45)
    assert net.meta.classes == made.classes["score"] and net.meta.inputs[0].why == "said in weights.caffemodel.json"
    assert fcnproto.load(output / "deploy.prototxt").meta == net.meta  # said by its comment
    for name in ("weights.caffemodel.json", "deploy.prototxt"):
        assert str(tmp_path) not in (output / name).read_text()
    assert not list(output.glob("snapshot*model.json"))
    assert not any(layer.type == "Dropout" for layer in net.layers)


def test_an_interrupt_ends_the_training_well(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = fcnproto.Solver.step

    def interrupted(solver: fcnproto.Solver, iterations: int) -> None:
        if solver.iter >= 2:
            raise KeyboardInterrupt
        step(solver, iterations)

    monkeypatch.setattr(fcnproto.Solver, "step", interrupted)
    made = finetune.plan(settings(scenes, tmp_path / "out", slim_net(tmp_path), iterations=6, interval=2))
    said: list[str] = []
    outcome = finetune.run(made, said.append)
    assert [number for number, _ in outcome.validations] == [0, 2] and outcome.score is not None
    assert said[-1].startswith("interrupted in iteration 2") and (tmp_path / "out" / "scores.json").exists()

    def interrupted_twice(solver: fcnproto.Solver, iterations: int) -> None:
        raise SecondInterrupt

    monkeypatch.setattr(fcnproto.Solver, "step", interrupted_twice)
    made = finetune.plan(settings(scenes, tmp_path / "again", slim_net(tmp_path), iterations=6, interval=2))
    with pytest.raises(SecondInterrupt):
        finetune.run(made, said.append)
    assert not (tmp_path / "again" / "scores.json").exists()


def test_split_is_complete_and_repeatable(scenes: Path, tmp_path: Path) -> None:
    chosen = settings(scenes, tmp_path, slim_net(tmp_path))
    ids = [f"{index:02}" for index in range(20)]
    parts = split(ids, chosen)
    assert sorted(id for part in parts.values() for id in part) == ids and split(ids, chosen) == parts
    assert {name: len(part) for name, part in parts.items()} == {"train": 14, "val": 3, "test": 3}
    assert [len(part) for part in split(ids[:3], chosen).values()] == [1, 1, 1]
    with pytest.raises(UsageError, match="2 images; 3 are needed"):
        split(ids[:2], chosen)


def test_weights_of_the_old_classes_by_name(tmp_path: Path) -> None:
    """From a net of 21 VOC classes to three, of which two are known."""
    folder = tmp_path / "voc-fcn8s"
    folder.mkdir()
    old_net = fcn.fcn8s(sources.inputs({"data": (1, 3, 32, 32), "label": (1, 1, 32, 32)}), 21, WIDTHS).to_proto()
    write_message(folder / "train.prototxt", old_net)
    old = fcnproto.load(folder / "train.prototxt")
    with torch.no_grad():
        for blobs in old.params.values():
            for blob in blobs:
                blob.normal_()
    old.meta = of_record(zoo.info("voc-fcn8s"), "given")  # written beside the weights; names of folders say nothing
    old.save(folder / "old.caffemodel")
    base = read_base(str(folder / "train.prototxt"), 3)
    assert base.record is not None and list(base.images["data"].mean) == pytest.approx(
        (104.00699, 116.66877, 122.67892)
    )
    from fcnproto.finetune.nets import first_weights

    classes = {"score": ("background", "robot", "cat")}
    net, report, has_scores = first_weights(base, {"": folder / "old.caffemodel"}, classes)
    assert not has_scores
    torch.testing.assert_close(net.params["fc6"][0], old.params["fc6"][0])
    for layer in ("score_fr", "score_pool4", "score_pool3"):
        torch.testing.assert_close(net.params[layer][0][[0, 2]], old.params[layer][0][[0, 8]])
        assert not net.params[layer][0][1].any()
    torch.testing.assert_close(net.params["upscore2"][0][1, 1].double(), torch.from_numpy(surgery.bilinear_filter(4)))
    assert {"score_fr", "upscore8"} <= set(report.layers("changed"))
    assert not report.layers("dropped")  # each found its values in another way


def test_class_weights(scenes: Path, tmp_path: Path) -> None:
    data = ImageFolder(scenes / "images", scenes / "masks", 2)
    masks = np.stack([data.read(id)[1] for id in data.ids])
    shares = np.array([(masks == 0).sum(), (masks == 1).sum()]) / (masks != 255).sum()
    expected = np.median(shares) / shares
    np.testing.assert_allclose(balanced_weights(data, "label"), expected)
    output = tmp_path / "out"
    options = {"class_weights": "balanced", "iterations": 2, "interval": 2}
    made = finetune.plan(settings(scenes, output, slim_net(tmp_path), **options))
    finetune.run(made)
    stored = read_blob(output / "class-weights.binaryproto")
    np.testing.assert_allclose(stored.reshape(2, 2), np.diag(made.class_weights["score"]).astype(np.float32))
    net = fcnproto.load(output / "train.prototxt", output / "initial.caffemodel", phase="train")
    labels = torch.randint(0, 2, (1, 1, 48, 64)).float()
    out = net(data=torch.randn(1, 3, 48, 64), label=labels, blobs=["score"])
    log = out["score"].detach().log_softmax(1)
    weight = torch.from_numpy(made.class_weights["score"])[labels[0, 0].long()]
    cost = -(weight * log[0].gather(0, labels[0].long())[0]).mean()  # the mean over the pixels, as the loss is one
    assert float(net.loss(out).detach()) == pytest.approx(float(cost), rel=1e-4)


def test_heavy_is_the_published_setting(scenes: Path, tmp_path: Path) -> None:
    chosen = settings(scenes, tmp_path / "out", slim_net(tmp_path), optimization="heavy", solver={"base_lr": 1e-6})
    made = finetune.plan(chosen)
    published = read_solver(zoo.path("voc-fcn32s", "solver"))
    for name in ("momentum", "iter_size", "weight_decay", "lr_policy", "type"):
        assert getattr(made.solver, name) == getattr(published, name)
    assert made.solver.base_lr == pytest.approx(1e-6)
    finetune.run(
        finetune.plan(settings(scenes, tmp_path / "b", slim_net(tmp_path), optimization="heavy", iterations=1))
    )
    loss = read_net(tmp_path / "b" / "train.prototxt").layer[-1]
    assert loss.type == "SoftmaxWithLoss" and not loss.loss_param.normalize and loss.loss_param.ignore_label == 255


def test_stages_of_the_published_nets(scenes: Path, tmp_path: Path) -> None:
    steps = finetune.staged(settings(scenes, tmp_path / "out", Path("voc-fcn8s")))
    assert [step.model for step in steps] == ["voc-fcn32s", "voc-fcn16s", "voc-fcn8s"]
    assert [step.output.name for step in steps] == ["1-voc-fcn32s", "2-voc-fcn16s", "out"]

    def rates(model: str, **options: object) -> list[float | None]:
        chosen = settings(scenes, tmp_path / "out", Path(model), **options)
        return [step.solver.get("base_lr") for step in finetune.staged(chosen)]

    # By a hundredth from stage to stage, as published; SIFT Flow's last stage was published with its second one's rate.
    assert rates("voc-fcn8s", optimization="heavy") == [None, pytest.approx(1e-12), pytest.approx(1e-14)]
    assert rates("siftflow-fcn8s", optimization="heavy")[1:] == pytest.approx([1e-12, 1e-12])
    assert rates("voc-fcn8s", optimization="accumulated") == [None, pytest.approx(1e-6), pytest.approx(1e-8)]
    assert rates("voc-fcn8s", optimization="heavy", solver={"base_lr": 1e-9}) == pytest.approx([1e-9, 1e-11, 1e-13])
    assert rates("voc-fcn8s", solver={"base_lr": 1e-3}) == [1e-3, 1e-3, 1e-3]
    for name in ("voc-fcn8s", "voc-fcn8s-atonce", "voc-fcn-alexnet", "pascalcontext-fcn16s"):  # on their data layers
        base = read_base(name, 2)
        assert (base.name, list(base.images), base.scores[0].blob) == (name, ["data"], "score")
        assert "data" not in {layer.name for layer in base.layers.layer}
    with pytest.raises(UsageError, match="no finer net"):
        finetune.staged(settings(scenes, tmp_path, Path("voc-fcn32s")))


def test_stages_begin_where_the_coarser_net_ended(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staged recipe with slim nets in place of the zoo's files."""
    slim_zoo(tmp_path, monkeypatch)
    said: list[str] = []
    output = tmp_path / "out"
    options = {"optimization": "heavy", "iterations": 1, "interval": 1}
    finetune.run_staged(settings(scenes, output, Path("voc-fcn16s"), **options), said.append)
    assert [line for line in said if line.startswith("stage")] == [
        "stage 1: voc-fcn32s, base_lr 1e-10",
        "stage 2: voc-fcn16s, base_lr 1e-12",
    ]
    coarse = fcnproto.load(output / "1-voc-fcn32s" / "deploy.prototxt", output / "1-voc-fcn32s" / "weights.caffemodel")
    fine = fcnproto.load(output / "deploy.prototxt", output / "initial.caffemodel")
    assert fine.params["score_fr"][0].equal(coarse.params["score_fr"][0])
    assert fine.params["fc6"][0].equal(coarse.params["fc6"][0]) and not fine.params["score_pool4"][0].any()


def test_command(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = slim_net(tmp_path)
    weights = tmp_path / "slim.caffemodel"
    fcnproto.load(model).save(weights)
    files = ["--images", str(scenes / "images"), "--masks", str(scenes / "masks"), "--device", "cpu"]
    command = ["finetune", "--model", str(model), *files, "-o", str(tmp_path / "out"), "--weights", str(weights)]
    command += ["--classes", str(scenes / "classes.txt"), "--iterations", "4", "--interval", "2"]
    command += ["--optimization", "accumulated", "--iter-size", "2", "--augment", "mirror,crop=40"]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for line in (
        "2 classes: background, object",
        "14 images: train 10, val 2, test 2",
        "changed  score_fr: 21 -> 2 classes",
        "copied   conv1",
        "augmentation: mirror, crop (40, 40)",
        "4 iterations, validated every 2",
    ):
        assert line in out
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("pixel accuracy ") and "2 held-out images" in printed.err
    assert read_solver(tmp_path / "out" / "solver.prototxt").iter_size == 2
    assert main([*command, "--from-scratch"]) == 2
    assert main([*command[:-2], "--augment", "flip"]) == 2


def test_weights_of_another_net(scenes: Path, tmp_path: Path) -> None:
    weights = zoo.path("fcn-mini", "weights")
    with pytest.raises(WeightsError, match=r"'conv1_1' has weights of shape .* they are the weights of another net"):
        finetune.plan(settings(scenes, tmp_path / "out", Path("voc-fcn32s"), weights=weights))


def test_refusals(scenes: Path, tmp_path: Path) -> None:
    model = slim_net(tmp_path)
    with pytest.raises(PrototxtError, match="no net of the zoo; did you mean"):
        finetune.plan(settings(scenes, tmp_path, Path("voc-fcn7s")))
    with pytest.raises(UsageError, match="neither a prototxt nor a net of the zoo"):
        finetune.plan(settings(scenes, tmp_path, Path("no such net")))
    with pytest.raises(UsageError, match="same name"):
        settings(scenes, tmp_path, model, classes=("a", "a"))
    with pytest.raises(UsageError, match="below 1 together"):
        settings(scenes, tmp_path, model, validation=0.6, held_out=0.5)
    for name, message in (
        ("nyud-fcn32s-color-hha", r"images: the net has color, hha; say it for 'hha' too \(hha=...\)"),
        ("siftflow-fcn8s", "classes: the net has sem, geo; say it for 'geo' too"),
    ):
        with pytest.raises(UsageError, match=message):
            finetune.plan(settings(scenes, tmp_path, Path(name)))
    with pytest.raises(DataError, match="no such folder"):
        finetune.plan(settings(scenes, tmp_path, model, masks=tmp_path / "none"))
    net = NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, 8, 8]})
    net.fc = L.InnerProduct(net.data, num_output=4)
    write_message(tmp_path / "c.prototxt", net.to_proto())
    with pytest.raises(UsageError, match="surgery convolutionalise"):
        finetune.plan(settings(scenes, tmp_path, tmp_path / "c.prototxt"))


def binary_scenes(scenes: Path, folder: Path) -> Path:
    """The scenes' masks as people have them: black and white."""
    (folder / "binary").mkdir()
    for path in (scenes / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(
            folder / "binary" / path.name
        )
    return folder / "binary"


def test_binary_masks(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read as labels they are void where the object is, and a net that says "background" everywhere scores 1.0000."""
    masks, model = binary_scenes(scenes, tmp_path), slim_net(tmp_path)
    options = {"masks": masks, "iterations": 2, "interval": 2}
    with pytest.raises(
        DataError, match=r"binary: the masks hold nothing but label 0 \('background'\) and void .*--binary"
    ):
        finetune.plan(settings(scenes, tmp_path / "out", model, **options))
    assert finetune.plan(settings(scenes, tmp_path / "out", model, allow_empty_classes=True, **options))
    made = finetune.plan(settings(scenes, tmp_path / "out", model, binary_masks=True, **options))
    (line,) = (line for line in made.lines() if line.startswith("pixels"))
    counts = made.pixels["label"]["train"]
    assert f"object {counts[1]} ({counts[1] / counts.sum():.2g}), void 0" in line and counts[1] > 0
    outcome = finetune.run(made)
    assert outcome.score is not None and outcome.score.confusion[1].sum() > 0
    net = fcnproto.load(tmp_path / "out" / "train.prototxt", phase="train")  # the files read the masks so, too
    assert set(np.unique(net(blobs=["label"])["label"].numpy())) == {0, 1}
    with pytest.raises(UsageError, match="binary masks hold two classes"):
        settings(scenes, tmp_path, model, classes=("a", "b", "c"), binary_masks=True)
    command = ["finetune", "--model", str(model), "--from-scratch", "--images", str(scenes / "images")]
    command += ["--masks", str(masks), "--classes", str(scenes / "classes.txt"), "-o", str(tmp_path / "two")]
    assert main([*command, "--dry-run"]) == 1
    assert main([*command, "--dry-run", "--binary-masks"]) == 0
    assert "pixels to train on: background" in capsys.readouterr().out


def test_classes_that_no_training_mask_holds(scenes: Path, tmp_path: Path) -> None:
    options = {"classes": ("background", "object", "unicorn"), "iterations": 1, "interval": 1}
    model = slim_net(tmp_path)
    with pytest.raises(DataError, match=r"masks: no mask of the training part holds 'unicorn' \(label 2\); masks of 0"):
        finetune.plan(settings(scenes, tmp_path / "out", model, **options))
    made = finetune.plan(settings(scenes, tmp_path / "out", model, allow_empty_classes=True, **options))
    assert any("unicorn 0 (0)" in line for line in made.lines())


def test_a_map_as_large_as_the_image_without_interpolation(scenes: Path, tmp_path: Path) -> None:
    net = sources.inputs({"data": (1, 3, 48, 64)})
    top = net.conv = L.Convolution(net.data, num_output=4, kernel_size=3, pad=2, dilation=2)
    net.score = L.Convolution(top, num_output=2, kernel_size=1)
    write_message(tmp_path / "full.prototxt", net.to_proto())
    made = finetune.plan(settings(scenes, tmp_path / "out", tmp_path / "full.prototxt", iterations=2, interval=2))
    outcome = finetune.run(made)
    assert outcome.score is not None and outcome.score.confusion.sum() > 0
    net.score = L.Convolution(top, num_output=2, kernel_size=1, stride=4)
    write_message(tmp_path / "coarse.prototxt", net.to_proto())
    with pytest.raises(
        UsageError, match=r"'score' are \(1, 2, 12, 16\) for an image of 64x48; .*surgery convolutionalise"
    ):
        finetune.plan(settings(scenes, tmp_path / "o", tmp_path / "coarse.prototxt"))


def test_crops_begin_where_they_were_read_to_begin(tmp_path: Path, scenes: Path) -> None:
    """A net of 2015, whose Crop says no offset, and whose score layer belongs to a stage."""
    definition = read_net(slim_net(tmp_path))
    cut = next(layer for layer in definition.layer if layer.type == "Crop")
    offset = list(cut.crop_param.offset)
    assert any(offset)
    cut.ClearField("crop_param")
    cut.include.add(stage=["maps"])
    old = tmp_path / "old.prototxt"
    write_message(old, definition)
    base = read_base(str(old), {"score": 2}, reading={"crop": "aligned", "stages": ("maps",)})
    made = next(layer for layer in base.deploy().layer if layer.type == "Crop")
    assert list(made.crop_param.offset) == offset and not made.include[0].stage
    command = ["finetune", "--model", str(old), "--from-scratch", "--images", str(scenes / "images"), "--masks"]
    command += [str(scenes / "masks"), "--classes", str(scenes / "classes.txt"), "-o", str(tmp_path / "out")]
    assert main([*command, "--crop", "aligned", "--stage", "maps", "--dry-run"]) == 0
