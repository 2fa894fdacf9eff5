"""Nets by name: the zoo's names where a prototxt may stand, in Python, in every command and in the shell's completion."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.shell_completion import ShellComplete
from PIL import Image

import fcnproto
from fcnproto import zoo
from fcnproto.cli import _nets
from fcnproto.cli._main import commands, main
from fcnproto.net import Net
from fcnproto.schema.text import read_net

MINI = zoo.info("fcn-mini")


def picture(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    return path


def test_load_by_name() -> None:
    net = fcnproto.load("fcn-mini", zoo.path("fcn-mini", "weights"))
    again = fcnproto.load(zoo.path("fcn-mini", "deploy"), "fcn-mini")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(net(x)["score"], again(x)["score"])
    assert net.meta.classes == MINI.classes


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fcn-mini").write_text(
        'layer { name: "d" type: "Input" top: "own" input_param { shape { dim: 1 } } }', encoding="utf-8"
    )
    assert fcnproto.load("fcn-mini").inputs == ["own"]
    with pytest.raises(fcnproto.PrototxtError, match='voc-fcn8: .*no such file.*did you mean "voc-fcn8s"'):
        fcnproto.load("voc-fcn8")
    with pytest.raises(fcnproto.WeightsError, match='fcn-min: .*did you mean "fcn-mini"'):
        fcnproto.load("voc-fcn8s", "fcn-min")
    with pytest.raises(fcnproto.UsageError, match="voc-fcn8s comes without a weights file; .*zoo fetch voc-fcn8s"):
        fcnproto.load("fcn-mini", "voc-fcn8s")


def test_a_folder_of_that_name_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FCN repository has a folder for each of its nets; there the names mean the zoo's nets as elsewhere."""
    monkeypatch.chdir(tmp_path)
    for folder in ("fcn-mini", "own"):
        Path(folder).mkdir()
    assert fcnproto.load("fcn-mini", "fcn-mini").meta.classes == MINI.classes
    assert main(["zoo", "path", "fcn-mini"]) == main(["summary", "fcn-mini"]) == 0
    with pytest.raises(fcnproto.Error, match="own"):
        fcnproto.load("own")


def test_the_phase_chooses_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """For training it is the train.prototxt, with its labels and its loss, in Python and in commands."""
    net = fcnproto.load("fcn-mini", "fcn-mini", phase="train")
    out = net(data=torch.zeros(1, 3, 64, 64), label=torch.zeros(1, 1, 64, 64))
    assert torch.isfinite(net.loss(out)) and net.meta.classes == MINI.classes
    assert "loss" not in fcnproto.load("fcn-mini").outputs
    for words, has_loss in (([], False), (["--phase", "TRAIN"], True)):
        assert main(["summary", "--model", "fcn-mini", *words]) == 0
        assert ("SoftmaxWithLoss" in capsys.readouterr().out) == has_loss


def test_train_takes_weights_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--solver", "fcn-mini", "--iterations", "0", "--device", "cpu", "--no-progress"]
    assert main([*words, "--weights", "fcn-mini"]) == 0
    given = _nets.ZooWeights().convert("own.caffemodel, fcn-mini", None, click.Context(commands))
    assert given == f"own.caffemodel,{zoo.path('fcn-mini', 'weights')}"
    assert main([*words, "--weights", "voc-fcn8s"]) == 2
    assert "zoo fetch voc-fcn8s" in capsys.readouterr().err


def test_check_takes_names() -> None:
    assert all(finding.level != "fault" for finding in fcnproto.check("fcn-mini", "fcn-mini"))


def test_list_models() -> None:
    assert fcnproto.list_models() == zoo.names() and "voc-fcn8s" in fcnproto.list_models()


class TestCreate:
    def test_as_it_is(self) -> None:
        net = fcnproto.create_model("fcn-mini", weights=True)
        assert net.meta.classes == MINI.classes
        plain = fcnproto.load("fcn-mini", "fcn-mini")
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(net(x)["score"], plain(x)["score"])

    def test_other_classes(self, tmp_path: Path) -> None:
        """Classes of the old names keep their weights, others begin at zero; figures published for it are not its own."""
        names = ["background", "unicorn", "car"]
        net = fcnproto.create_model("fcn-mini", classes=names, weights="fcn-mini")
        assert net.meta.classes == tuple(names) and net.meta.inputs["data"].mean == MINI.mean and not net.meta.scores
        old = fcnproto.load("fcn-mini", "fcn-mini").params["score_fr"][0]
        score = net.params["score_fr"][0]
        assert score.shape[0] == 3 and not score[1].any()
        assert torch.equal(score[0], old[0]) and torch.equal(score[2], old[MINI.classes.index("car")])
        net.save(tmp_path / "w.safetensors")  # weights of as many classes keep them all, and their names
        again = fcnproto.create_model("fcn-mini", classes=3, weights=tmp_path / "w.safetensors")
        assert again.meta == net.meta and torch.equal(again.params["score_fr"][0], score)
        whole = fcnproto.create_model("fcn-mini", classes=11, weights=True)
        assert whole.meta.classes == MINI.classes and torch.equal(whole.params["score_fr"][0], old)
        assert net(torch.zeros(1, 3, 32, 40))["score"].shape == (1, 3, 32, 40)

    def test_a_number_of_classes(self) -> None:
        net = fcnproto.create_model("voc-fcn-alexnet", classes=3)
        assert net.meta.classes == ("class 0", "class 1", "class 2") and "nobody says" in net.meta.source
        assert net.meta.inputs[0].mean == zoo.info("voc-fcn-alexnet").mean

    def test_refusals(self) -> None:
        with pytest.raises(fcnproto.UsageError, match='did you mean "voc-fcn8s"'):
            fcnproto.create_model("voc-fcn8", classes=3)
        with pytest.raises(fcnproto.UsageError, match="by score blob; these are 'score_sem', 'score_geo'"):
            fcnproto.create_model("siftflow-fcn32s", classes=3)


def parameters(command: click.Command) -> list[tuple[str, click.Parameter]]:
    """The parameters of a command, or of a group's commands, with the command's name."""
    if isinstance(command, click.Group):
        inner = [
            command.get_command(click.Context(command), name) for name in command.list_commands(click.Context(command))
        ]
        return [pair for one in inner if one is not None for pair in parameters(one)]
    return [(command.name or "", parameter) for parameter in command.params]


def test_every_command_takes_names() -> None:
    """Wherever a net's or a solver's prototxt may be named, a name of the zoo may be; weights likewise."""
    found = set()
    for command, parameter in parameters(commands):
        if parameter.name in ("model", "net", "solver_file") and parameter.metavar != "NAME|FILE":
            assert isinstance(parameter.type, _nets.ZooFile), (command, parameter.name)
            found.add((command, parameter.type.kind))
    assert {("segment", "deploy"), ("test", "val"), ("train", "solver"), ("convert", "deploy")} <= found
    assert len(found) > 15


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["summary", "voc-fcn32s", "--json"]) == 0
    assert main(["segment", "fcn-mini", "fcn-mini", str(picture(tmp_path / "a.png")), "-o", "out"]) == 0
    assert "class 0" not in capsys.readouterr().out
    assert main(["convert", "fcn-mini", "fcn-mini", "net.safetensors"]) == 0
    assert main(["test", "--model", "fcn-mini", "--weights", "fcn-mini", "--iterations", "1"]) == 0
    assert "loss" in capsys.readouterr().out  # of val.prototxt
    assert main(["score", "net", "fcn-mini", "fcn-mini", "--iterations", "1"]) == 0
    assert "mean IU" in capsys.readouterr().out  # likewise
    assert main(["summary", "voc-fcn8"]) == 1
    fcnproto.load("fcn-mini").save("start.caffemodel")
    assert main(["train", "--solver", "fcn-mini", "--iterations", "0", "--device", "cpu"]) == 0
    assert fcnproto.Solver("fcn-mini", device="cpu").net.phase == "train"


@pytest.mark.parametrize(
    "line",
    [
        "segment voc-fcn8",
        "convert voc-fcn8",
        "train --solver voc-fcn8",
        "surgery transplant voc-fcn8",
        "train --weights voc-fcn8",
    ],
)
def test_the_shell_completes_names(line: str) -> None:
    *words, incomplete = line.split()
    found = ShellComplete(commands, {}, "fcnproto", "_FCNPROTO_COMPLETE").get_completions(words, incomplete)
    assert {"voc-fcn8s", "voc-fcn8s-atonce"} <= {item.value for item in found}
    assert "file" in {item.type for item in found}


def test_preprocess_and_segment(tmp_path: Path) -> None:
    """A path, an image and an array give the same tensors and labels; they are what the command computes."""
    path, net = picture(tmp_path / "a.png"), fcnproto.load("fcn-mini", "fcn-mini")
    with Image.open(path) as image:
        values = [net.preprocess(one) for one in (path, str(path), image, np.asarray(image))]
        pixels = np.asarray(image, np.float32)
        labels = [net.segment(one)[0].labels for one in (path, image, np.asarray(image))]
    assert all(torch.equal(one["data"], values[0]["data"]) for one in values)
    expected = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())[None] - 112
    torch.testing.assert_close(values[0]["data"], expected)
    assert all((one == labels[0]).all() for one in labels) and labels[0].shape == (40, 50)
    assert (net(**values[0])["score"].argmax(1)[0].numpy() == labels[0]).all()
    (found,) = net.segment(path, probabilities=True)
    assert found.probabilities is not None and found.names == MINI.classes


def test_several_inputs_and_refusals() -> None:
    file = zoo.path("nyud-fcn32s-color-hha", "deploy")
    net = Net(read_net(file), file=file, fill=False)
    assert [(one.blob, one.order, one.channels) for one in net.meta.inputs] == [("color", "BGR", 3), ("hha", "HHA", 3)]
    image = np.zeros((4, 5, 3), np.uint8)
    values = net.preprocess({"color": image, "hha": image})
    record = zoo.info("nyud-fcn32s-color-hha")
    for one in record.inputs:
        torch.testing.assert_close(values[one.blob][0, :, 0, 0], -torch.tensor(one.mean))
    with pytest.raises(fcnproto.UsageError, match="each of its inputs: 'color', 'hha'"):
        net.preprocess(image)
    with pytest.raises(fcnproto.DataError, match="differ in size"):
        net.preprocess({"color": image, "hha": image[1:]})


def test_classifiers_get_images_of_their_size(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 6 } } }'
        'layer { name: "s" type: "InnerProduct" bottom: "data" top: "s" inner_product_param { num_output: 4 } }'
    )
    net = fcnproto.load(tmp_path / "n.prototxt")
    assert net.preprocess(np.zeros((40, 50, 3), np.uint8))["data"].shape == (1, 3, 8, 6)
    assert net.meta.classes == ("class 0", "class 1", "class 2", "class 3")


def test_layers_called_as_new_attributes(tmp_path: Path) -> None:
    """They get other module names, and state dicts with the old names still load, also within another module."""
    layer = 'layer {{ name: "{0}" type: "Convolution" bottom: "{1}" top: "{0}" convolution_param {{ num_output: 3 kernel_size: 1 }} }}'
    text = 'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }'
    names = ["meta", "preprocess", "segment", "unknown"]
    for name, bottom in zip(names, ["data", *names], strict=False):
        text += layer.format(name, bottom)
    (tmp_path / "n.prototxt").write_text(text)
    net, twin = fcnproto.load(tmp_path / "n.prototxt"), fcnproto.load(tmp_path / "n.prototxt")
    new = net.state_dict()
    assert "segment_.weight" in new and callable(net.segment)
    with torch.no_grad():
        net.params["segment"][0].fill_(3)
    old = {key.replace("_.", "."): value for key, value in net.state_dict().items()}
    assert set(old) == {f"{name}.{blob}" for name in names for blob in ("weight", "bias")}
    twin.load_state_dict(old)
    assert (twin.params["segment"][0] == 3).all()
    outer = torch.nn.Sequential(fcnproto.load(tmp_path / "n.prototxt"))
    outer.load_state_dict({f"0.{key}": value for key, value in old.items()})
    assert (outer[0].params["segment"][0] == 3).all()
    from safetensors.torch import save_file

    save_file(old, tmp_path / "old.safetensors")
    assert (fcnproto.load(tmp_path / "n.prototxt", tmp_path / "old.safetensors").params["segment"][0] == 3).all()
