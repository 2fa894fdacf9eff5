"""Drawings of nets: what is folded, how boxes are placed, and the page in a real browser where there is one."""

from __future__ import annotations

import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import browser
import pytest
from PIL import Image
from tiny_nets import small_fcn

from fcnproto import zoo
from fcnproto.cli._main import main
from fcnproto.drawing import Diagram, Layout, lay_out, layer_params, make_diagram, to_svg
from fcnproto.inspect.summary import summarise
from fcnproto.schema import caffe_pb2
from fcnproto.schema.text import parse, read_net

SVG = "{http://www.w3.org/2000/svg}"

REPEATS = """
name: "a <b> & c"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }
""" + "".join(
    f"""
layer {{ name: "conv{i}" type: "Convolution" bottom: "{"data" if i == 1 else f"pool{i - 1}"}" top: "conv{i}"
  convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 }} }}
layer {{ name: "relu{i}" type: "ReLU" bottom: "conv{i}" top: "conv{i}" }}
layer {{ name: "pool{i}" type: "Pooling" bottom: "conv{i}" top: "pool{i}" pooling_param {{ kernel_size: 3 pad: 1 }} }}
"""
    for i in (1, 2, 3)
)


def diagram(param: caffe_pb2.NetParameter, fold: bool = True) -> Diagram:
    return make_diagram(summarise(param, (64, 64)), layer_params(param, "test"), fold=fold)


@pytest.fixture(scope="module")
def siftflow() -> Diagram:
    return diagram(read_net(zoo.path("siftflow-fcn8s", "deploy")))


def test_in_place_layers_share_a_box_and_repeats_fold() -> None:
    found = diagram(read_net(zoo.path("voc-fcn8s", "deploy")))
    boxes = {box.lines[0]: box for box in found.boxes}
    assert boxes["conv1_1"].layers == ("conv1_1", "relu1_1")
    assert boxes["conv1_1"].lines[1:] == ("Convolution 64 of 3×3, pad 100", "ReLU")
    folded = boxes["conv3_1 … conv3_3"]
    assert folded.count == 3
    assert folded.layers == ("conv3_1", "relu3_1", "conv3_2", "relu3_2", "conv3_3", "relu3_3")
    assert boxes["score"].kind == "shaping"
    labels = {(found.boxes[a.tail].lines[0], found.boxes[a.head].lines[0]): a.label for a in found.arrows}
    assert labels["input", "conv1_1"] == "3×64×64"
    assert labels["conv1_1", "conv1_2"] == "64×262×262"
    assert ("input", "score") in labels


def test_groups_of_several_layers_fold() -> None:
    found = diagram(parse(REPEATS, caffe_pb2.NetParameter))
    assert [box.count for box in found.boxes] == [1, 3]
    assert found.boxes[1].lines[0] == "2 layers, 3 times"
    assert len(found.boxes[1].layers) == 9
    assert len(found.arrows) == 1
    assert len(diagram(parse(REPEATS, caffe_pb2.NetParameter), fold=False).boxes) == 7


def residual(blocks: int) -> str:
    """Blocks of two convolutions beside a short cut, joined by a sum."""
    text = 'layer { name: "data" type: "Input" top: "b0" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }'
    for i in range(1, blocks + 1):
        shape = "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }"
        text += f"""
        layer {{ name: "conv{i}a" type: "Convolution" bottom: "b{i - 1}" top: "conv{i}a" {shape} }}
        layer {{ name: "relu{i}a" type: "ReLU" bottom: "conv{i}a" top: "conv{i}a" }}
        layer {{ name: "conv{i}b" type: "Convolution" bottom: "conv{i}a" top: "conv{i}b" {shape} }}
        layer {{ name: "b{i}" type: "Eltwise" bottom: "b{i - 1}" bottom: "conv{i}b" top: "b{i}" }}"""
    return text


def test_groups_with_branches_fold() -> None:
    found = diagram(parse(residual(4), caffe_pb2.NetParameter))
    assert [(box.lines[0], box.count, len(box.layers)) for box in found.boxes] == [
        ("data", 1, 1),
        ("3 layers, 4 times", 4, 16),
    ]
    assert [(arrow.tail, arrow.head, arrow.label) for arrow in found.arrows] == [(0, 1, "4×64×64")]
    # A block whose inside is read elsewhere stays open, and so does what comes before it.
    side = 'layer { name: "side" type: "TanH" bottom: "conv2a" top: "side" }'
    open_ = diagram(parse(residual(4) + side, caffe_pb2.NetParameter))
    assert [box.count for box in open_.boxes if box.count > 1] == [2]
    assert next(box for box in open_.boxes if box.count == 2).layers[0] == "conv3a"


def check(found: Diagram, layout: Layout) -> None:
    """Boxes don't overlap, lie within the picture and below all they read; arrows start and end at their boxes."""
    for (x0, y0, w0, h0), (x1, y1, w1, h1) in combinations(layout.boxes, 2):
        assert x0 + w0 <= x1 + 0.5 or x1 + w1 <= x0 + 0.5 or y0 + h0 <= y1 + 0.5 or y1 + h1 <= y0 + 0.5
    for x, y, width, height in layout.boxes:
        assert min(x, y) >= 0
        assert x + width <= layout.width + 0.5
        assert y + height <= layout.height + 0.5
    for arrow, path in zip(found.arrows, layout.paths, strict=True):
        assert layout.boxes[arrow.tail][1] < layout.boxes[arrow.head][1]
        assert len(path) % 3 == 1
        for point, number in ((path[0], arrow.tail), (path[-1], arrow.head)):
            x, y, width, height = layout.boxes[number]
            assert x - 3 <= point[0] <= x + width + 3
            assert y - 3 <= point[1] <= y + height + 3


def test_own_layout(siftflow: Diagram) -> None:
    check(siftflow, lay_out(siftflow, graphviz=False))


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_layout(siftflow: Diagram) -> None:
    check(siftflow, lay_out(siftflow, graphviz=True))


def test_without_graphviz(siftflow: Diagram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    check(siftflow, lay_out(siftflow))
    with pytest.raises(FileNotFoundError, match="not installed"):
        lay_out(siftflow, graphviz=True)


def test_svg_is_well_formed() -> None:
    found = diagram(parse(REPEATS, caffe_pb2.NetParameter))
    tree = ElementTree.fromstring(to_svg(found, lay_out(found, graphviz=False), {"conv1": "#123456"}))
    assert tree.find(f"{SVG}title").text == "a <b> & c"  # type: ignore[union-attr]
    assert len(tree.findall(f"{SVG}g[@class='box']")) == 2
    fills = {rect.get("fill") for rect in tree.iter(f"{SVG}rect")}
    assert "#123456" in fills


def test_command_writes_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, weights = small_fcn(tmp_path)
    assert main(["draw", str(model), "-o", str(tmp_path / "a.svg"), "--layout", "own"]) == 0
    assert main(["draw", str(model), "-o", str(tmp_path / "a.png"), "--input-size", "33x44"]) == 0
    assert main(["draw", str(model), str(weights), "-o", str(tmp_path / "a.html")]) == 0
    assert "6 boxes for 7 layers" in capsys.readouterr().err
    with Image.open(tmp_path / "a.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    page = (tmp_path / "a.html").read_text()
    assert "4 of 3×3, pad 10" in page
    assert not re.search(r"""(src|href)=["']http""", page)


@pytest.mark.parametrize("options", [["-o", "a.pdf"], ["w.caffemodel", "-o", "a.svg"], []])
def test_wrong_usage(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = small_fcn(tmp_path)
    assert main(["draw", str(model), *options]) == 2


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")
class TestPageInABrowser:
    """The page as a visitor uses it, with mouse, wheel and keys."""

    @pytest.fixture
    def page(self, tmp_path: Path, chromium: browser.Browser) -> browser.Browser:
        model, weights = small_fcn(tmp_path)
        assert main(["draw", str(model), str(weights), "-o", str(tmp_path / "a.html")]) == 0
        chromium.open(tmp_path / "a.html")
        return chromium

    def details(self, page: browser.Browser) -> str:
        return str(page.run("document.getElementById('details').innerText"))

    def width(self, page: browser.Browser) -> float:
        """How wide the first box is on the screen."""
        return float(page.run("document.querySelector('.box').getBoundingClientRect().width"))

    def test_click_shows_settings_and_weights(self, page: browser.Browser) -> None:
        assert "Click a layer" in self.details(page)
        page.click(".box[data-layers*=conv]")
        shown = self.details(page)
        assert "conv (Convolution)" in shown
        assert "num_output: 4" in shown
        assert "4×3×3×3" in shown
        assert "relu (ReLU)" in shown  # in place, in the same box
        assert page.run("document.querySelectorAll('#details .histogram').length") >= 1
        mean = page.run("facts.conv.weights[0].mean")
        assert abs(mean) < 0.1
        assert page.run("document.querySelectorAll('.box.chosen').length") == 1

    def test_search_finds_layers_types_and_blobs(self, page: browser.Browser) -> None:
        page.click("#search")
        page.type("deconv")
        found = page.run("[...document.querySelectorAll('.box.found')].map(box => box.dataset.layers)")
        assert found == ['["up"]']
        assert page.run("document.getElementById('hits').textContent") == "1 found"
        x, y = page.place(".box.found")  # brought to the middle of the view
        assert page.run(f"document.elementFromPoint({x}, {y}).closest('.box')?.dataset.layers") == '["up"]'
        page.type("xyz")
        assert page.run("document.getElementById('hits').textContent") == "0 found"

    def test_wheel_and_buttons_zoom_and_dragging_moves(self, page: browser.Browser) -> None:
        before = self.width(page)
        page.wheel((300, 300), -250)
        page.wait(f"document.querySelector('.box').getBoundingClientRect().width > {before * 1.2}")
        assert self.width(page) == pytest.approx(before * math.exp(0.5), rel=0.01)
        page.click("#in")
        assert self.width(page) == pytest.approx(before * math.exp(0.5) * 1.3, rel=0.01)
        page.click("#out")
        page.click("#fit")
        x, y = page.place(".box[data-layers*=data]")
        page.drag((x, y), (x + 120, y + 60))
        assert page.place(".box[data-layers*=data]") == pytest.approx((x + 120, y + 60), abs=1)
        assert "Click a layer" in self.details(page)  # a drag is no click

    def test_address_names_a_layer(self, tmp_path: Path, page: browser.Browser) -> None:
        page.open(tmp_path / "a.html", "#relu")
        page.wait("document.getElementById('details').innerText.includes('conv (Convolution)')")
        page.run("location.hash = '#pool'")
        page.wait("document.getElementById('details').innerText.includes('pool (Pooling)')")

    def test_parity_report_leads_from_the_drawing_to_the_row(self, tmp_path: Path, page: browser.Browser) -> None:
        model, weights = small_fcn(tmp_path)
        report = tmp_path / "r.html"
        assert main(["parity", str(model), str(weights), "--reference", "float64", "--html", str(report)]) == 0
        page.open(report)
        assert "All 5 arrays agree" in page.run("document.body.innerText")
        assert page.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        page.run("document.querySelector('.box[data-layers*=pool]').scrollIntoView({block: 'center'})")
        page.click(".box[data-layers*=pool]")
        row = "document.querySelector('tr[data-layer=pool]').getBoundingClientRect()"
        page.wait(f"{row}.top >= 0 && {row}.bottom <= innerHeight")
