"""Weights that don't fit the net: the error names the command that solves it, and the command does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import fcnproto
from fcnproto.cli._main import main
from fcnproto.errors import WeightsError

INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }\n'
FILLER = 'weight_filler { type: "xavier" }'


def convolution(name: str, bottom: str, outputs: int, kernel: int = 1) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
        f"num_output: {outputs} kernel_size: {kernel} {FILLER} }} }}\n"
    )


CLASSIFIER = (
    'layer { name: "c" type: "InnerProduct" bottom: "data" top: "c" inner_product_param { num_output: 4 '
    + FILLER
    + " } }\n"
)


@pytest.mark.parametrize(
    ("old", "new", "command"),
    [
        (
            convolution("c", "data", 4) + convolution("score", "c", 21),
            convolution("c", "data", 4) + convolution("score", "c", 5),
            "transplant .* --leave-out score",
        ),
        (convolution("score", "data", 21), convolution("score", "data", 5), "set-classes .* --classes 21"),
        (CLASSIFIER, convolution("c", "data", 4, 8), "transplant"),
    ],
)
def test_the_command_in_the_message_solves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.prototxt").write_text(INPUT + old)
    Path("new net.prototxt").write_text(INPUT + new)
    fcnproto.load("old.prototxt").save("old.caffemodel")
    with pytest.raises(WeightsError, match=rf"the file's shape is .*`fcnproto surgery {command}") as caught:
        fcnproto.load("new net.prototxt", "old.caffemodel")
    (line,) = re.findall("`fcnproto (.*)`", str(caught.value))
    assert main(shlex.split(line)) == 0
    if "set-classes" in line:
        assert fcnproto.load("NEW.prototxt", "old.caffemodel").params["score"][0].shape[0] == 21
    else:
        fcnproto.load("new net.prototxt", "NEW.caffemodel")


def test_weights_of_another_net(tmp_path: Path) -> None:
    (tmp_path / "old.prototxt").write_text(INPUT + convolution("c", "data", 4) + convolution("d", "c", 4))
    (tmp_path / "new.prototxt").write_text(INPUT + convolution("c", "data", 5) + convolution("d", "c", 6))
    fcnproto.load(tmp_path / "old.prototxt").save(tmp_path / "old.caffemodel")
    with pytest.raises(WeightsError, match="none of its layers fits; is it the weight file of another net"):
        fcnproto.load(tmp_path / "new.prototxt", tmp_path / "old.caffemodel")
