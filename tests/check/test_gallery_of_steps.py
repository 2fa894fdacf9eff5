"""A gallery of nets whose first steps show that they can't learn; healthy twins give nothing, nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import browser
import pytest
import torch
from sick_nets import DUMMY, LOSS, SCORE, SOLVER, examined, grave, one, write
from test_gallery_of_data import draw

import fcnproto
from fcnproto.cli._main import main

CONVOLUTION = (
    'layer { name: "NAME" type: "Convolution" bottom: "BOTTOM" top: "NAME"\n'
    "  convolution_param { num_output: 8 kernel_size: 1 weight_filler { FILLER } } }\n"
)
MSRA = 'type: "msra"'


def stack(filler: str, between: str, depth: int = 8) -> str:
    """Convolutions of one filler with a layer in place behind each, under the scores."""
    text, below = "", "data"
    for index in range(depth):
        name = f"c{index}"
        text += CONVOLUTION.replace("NAME", name).replace("BOTTOM", below).replace("FILLER", filler)
        if between:
            text += f'layer {{ name: "r{index}" type: "{between}" bottom: "{name}" top: "{name}" }}\n'
        below = name
    return DUMMY + text + SCORE.replace('bottom: "data"', f'bottom: "{below}"') + LOSS


def scores(filler: str, bias: str = "", between: str = "") -> str:
    score = SCORE.replace('weight_filler { type: "xavier" }', f"weight_filler {{ {filler} }} {bias}")
    return DUMMY + score + between + LOSS


LABELS = DUMMY.replace("data_filler { value: 1 }", 'data_filler { type: "uniform" min: 0 max: 2.99 }')
NAN = 'layer { name: "log" type: "Log" bottom: "data" top: "log" }\n' + SCORE.replace('"data"', '"log"')
DEAD = CONVOLUTION.replace("NAME", "c").replace("BOTTOM", "data").replace(
    "weight_filler { FILLER }", 'weight_filler { type: "msra" } bias_filler { value: BIAS }')  # fmt: skip
DEAD = DUMMY + DEAD + 'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }\n' + SCORE.replace('"data"', '"c"') + LOSS
NETS = {
    "constant-loss": ("blob 'score'", LABELS + scores("value: 0")[len(DUMMY) :], "base_lr: 1e-30"),
    "vanishing-gradient": ("'c0'", stack('type: "xavier"', "Sigmoid", 14), "base_lr: 1e-3"),
    "exploding-gradient": ("'c0'", stack('type: "gaussian" std: 4', "", 8), "base_lr: 1e-12"),
    "dead-relu": ("'r'", DEAD.replace("BIAS", "-90"), "base_lr: 1e-3"),
    "saturated-scores": ("blob 'score'", scores('type: "gaussian" std: 60'), "base_lr: 1e-3"),
    "constant-scores": ("blob 'score'", scores("value: 0", 'bias_filler { type: "gaussian" std: 1 }'), "base_lr: 1e-9"),
    "update-ratio": ("'score'", scores(MSRA), "base_lr: 20"),
    "not-a-number": ("'log'", DUMMY + NAN + LOSS, "base_lr: 1e-3"),
}


@pytest.mark.parametrize("code", NETS)
def test_steps(code: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    place, net, rate = NETS[code]
    path = write(tmp_path, net, SOLVER.replace("base_lr: 0.01", rate))
    before = sorted(os.listdir(tmp_path))
    finding = one(examined(path, steps=6), code)
    assert finding.level == "suspect" and place in finding.where
    assert code not in {other.code for other in examined(path)}  # no steps, no finding
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    "net",
    [stack(MSRA, "ReLU"), DEAD.replace("BIAS", "0.1"), scores(MSRA), scores("value: 0")],
    ids=["stack", "relu", "scores", "zero scores"],
)
def test_healthy_steps(net: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    assert not grave(examined(write(tmp_path, net), steps=6))


@pytest.mark.parametrize(("std", "sick"), [(0.8, False), (1.3, True)])
def test_gradients_that_grow_within_bounds(std: float, sick: bool, tmp_path: Path) -> None:
    """Eight layers that each make the gradient twice as large are no reason to worry, 3.7 times is one."""
    torch.manual_seed(3)
    path = write(tmp_path, stack(f'type: "gaussian" std: {std}', "", 8), SOLVER.replace("0.01", "1e-9"))
    codes = [finding.code for finding in examined(path, steps=2)]
    assert ("exploding-gradient" in codes) is sick


def test_updates_that_move_nothing(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = write(tmp_path, scores(MSRA), SOLVER.replace("0.01", "1e-9"))
    assert "of the weights (smallest" in one(examined(path, steps=3), "update-ratio").seen
    long = SOLVER.replace("0.01", "1e-6").replace("max_iter: 100", "max_iter: 1000000")
    assert "update-ratio" not in {finding.code for finding in examined(write(tmp_path, scores(MSRA), long), steps=3)}


def test_a_step_that_throws_a_net_off(tmp_path: Path) -> None:
    """After a first step that is far too large the later ones may be nothing."""
    torch.manual_seed(1)
    path = write(tmp_path, stack(MSRA, "ReLU", 2), SOLVER.replace("0.01", "300"))
    finding = one(examined(path, steps=8), "update-ratio")
    assert "(largest" in finding.seen and finding.level == "suspect"


def test_one_batch_by_heart(tmp_path: Path) -> None:
    """Images that can be told by their colours are learned by heart; labels that don't depend on the image are not."""
    images, masks = draw(tmp_path)
    path = write(tmp_path)
    torch.manual_seed(1)
    assert not grave(examined(path, images=images, masks=masks, overfit=True))
    net = LABELS.replace('data_filler { type: "gaussian" std: 1 }', "data_filler { value: 1 }") + SCORE + LOSS
    finding = one(examined(write(tmp_path, net), overfit=True, steps=20), "not-memorised")
    assert finding.level == "suspect" and "constant answer costs 1." in finding.seen


def test_the_net_itself_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path)
    solver = fcnproto.Solver(path)
    before = [entry.tensor.detach().clone() for entry in solver.net.learnable]
    fcnproto.check(solver, steps=3, overfit=True)
    assert solver.iter == 0
    assert all(torch.equal(old, entry.tensor) for old, entry in zip(before, solver.net.learnable, strict=True))


def test_nets_for_use_run_on_drawn_images(tmp_path: Path) -> None:
    net = 'layer { name: "i" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }\n'
    assert not grave(examined(write(tmp_path, net + SCORE, None), steps=2))
    flat = SCORE.replace('type: "xavier"', "value: 0").replace("kernel_size", "bias_filler { value: 1 } kernel_size")
    assert one(examined(write(tmp_path, net + flat, None), steps=2), "constant-scores").level == "suspect"


def test_the_page(tmp_path: Path) -> None:
    """One file with findings, histogram, worst images and bars; names stand in it as text."""
    images, masks = draw(tmp_path, classes=2)
    (tmp_path / "classes.txt").write_text("ground\n<b>cat</b>\ndog\n")
    arguments = ["check", str(write(tmp_path)), "--images", str(images), "--masks", str(masks), "--steps", "5"]
    arguments += ["--classes", str(tmp_path / "classes.txt"), "--html", str(tmp_path / "check.html")]
    assert main(arguments) == 1
    text = (tmp_path / "check.html").read_text()
    assert "class-never-occurs" in text and "&lt;b&gt;cat" in text and "<b>cat" not in text
    assert "http" not in text and "@@" not in text
    if browser.find() is None:
        pytest.skip("no Chromium is installed: the page is not looked at")
    with browser.Browser(tmp_path) as page:
        page.open(tmp_path / "check.html")
        assert page.run("document.querySelectorAll('.finding.fault').length") >= 1
        assert page.run("document.querySelectorAll('table.classes tr').length") == 3
        assert page.run("document.querySelectorAll('table.layers tr').length") == 2
        assert page.run("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.run("document.images.length") == 8
        width = "document.querySelector('table.classes .bar i').getBoundingClientRect().width"
        assert page.run(width) > 100
        page.picture(tmp_path / "page.png")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = draw(tmp_path)
    torch.manual_seed(1)
    arguments = ["check", str(write(tmp_path)), "--images", str(images), "--masks", str(masks), "--overfit"]
    assert main(arguments) == 0
    assert "one batch by heart: " in capsys.readouterr().out
