"""What notebooks show of nets, segmentations, reports and solvers; and the notebook of the documentation, which runs."""

from __future__ import annotations

import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_nets import colour_net, small_fcn

import fcnproto
from fcnproto.meta import ByBlob, Meta, ScoreOutput
from fcnproto.parity import compare, float64_reference, random_inputs
from fcnproto.segment import Segmentation

DOCS = Path(__file__).parents[1] / "docs"
HOSTILE = '<script>alert("x")</script>\n\u202e"\'&'


class Seen(HTMLParser):
    """The elements and the text of a piece of HTML; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_net(tmp_path: Path) -> None:
    seen = Seen(fcnproto.load(*small_fcn(tmp_path))._repr_html_())
    assert seen.elements.count("details") == 2 and "table" in seen.elements and "img" in seen.elements
    assert "6 layers" in seen.text or "7 layers" in seen.text
    assert "Deconvolution" in seen.text and "1×5×20×20" in seen.text and "class 0, class 1" in seen.text


def test_hostile_names(tmp_path: Path) -> None:
    net = fcnproto.load(colour_net(tmp_path)[0])
    net.meta = Meta(HOSTILE, ByBlob(), ByBlob([ScoreOutput("score", (HOSTILE, "b", "c"), True)]))
    image = np.zeros((6, 8, 3), np.uint8)
    for text in (net._repr_html_(), net.segment(image)[0]._repr_html_()):
        seen = Seen(text)
        assert "script" not in seen.elements and 'alert("x")' in seen.text and "\u202e" not in text


def test_a_net_that_waits(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 8 } } }'
        'layer { name: "x" type: "Strange" bottom: "data" top: "x" }'
    )
    with pytest.warns(fcnproto.FcnprotoWarning):
        net = fcnproto.load(tmp_path / "n.prototxt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "Strange" in Seen(net._repr_html_()).text


def test_a_segmentation() -> None:
    labels = np.repeat(np.arange(3, dtype=np.uint8), 4)[None].repeat(4, axis=0)
    seen = Seen(Segmentation("score", labels, ("background", "cat", "dog"))._repr_html_())
    assert seen.elements.count("img") == 2 and "cat0.333" in seen.text
    many = np.arange(100, dtype=np.uint8).reshape(10, 10)
    assert "and 76 more" in Seen(Segmentation("score", many, None)._repr_html_()).text


def test_a_report(tmp_path: Path) -> None:
    net = fcnproto.load(*small_fcn(tmp_path))
    recording = float64_reference(net, random_inputs(net, (20, 20)))
    seen = Seen(compare(net, recording)._repr_html_())
    assert "agrees" in seen.text and "score" in seen.text
    with torch.no_grad():
        net.params["class"][0].mul_(2)
    assert "departs first at class" in Seen(compare(net, recording)._repr_html_()).text


def test_a_solver(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent / "solver"))
    import solver_toy as toy

    solver = fcnproto.Solver(toy.write(tmp_path, iter_size=2))
    assert "no step was done yet" in Seen(solver._repr_html_()).text
    solver.step(3)
    seen = Seen(solver._repr_html_())
    assert "iteration 3" in seen.text and "img" in seen.elements


def test_the_notebook_of_the_documentation_runs(tmp_path: Path) -> None:
    """Cell by cell in a kernel of its own; what is shown at the ends of cells is HTML."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(DOCS / "first-hour.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept clean; it is run to be read
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(DOCS.parent))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(tmp_path))
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 4  # a net, a segmentation, a report, a solver
    assert "agrees" in shown[2] and "iteration 6" in shown[3]
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "True"
