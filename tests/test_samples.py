"""The samples under docs/ are what the package writes now, and the pycaffe page names what there is."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import fcnproto
from fcnproto.cli._main import commands

DOCS = Path(__file__).resolve().parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the docs are not here")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_samples", DOCS / "make_samples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_rounding(text: str) -> str:
    """A report less what the machine's arithmetic decides: measures, bars, the encoding of pictures."""
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PICTURE", text)
    text = re.sub(r'<span class="(bar|steps)".*?</span>', "BAR", text)
    text = re.sub(r"\b\d+(\.\d+)?e[-+]\d+\b", "NUMBER", text)
    return re.sub(r'fill="#[0-9a-f]{6}" stroke', "COLOUR", text)


def test_module_is_current(maker: ModuleType) -> None:
    assert maker.exported_module() == (DOCS / "samples" / "voc_fcn8s.py").read_text(), "run docs/make_samples.py"


@pytest.mark.parametrize(("name", "round_down"), [("parity-report.html", False), ("parity-departure.html", True)])
def test_reports_are_current(maker: ModuleType, name: str, round_down: bool) -> None:
    made, kept = maker.parity_report(round_down), (DOCS / "samples" / name).read_text()
    assert without_rounding(made) == without_rounding(kept), "run docs/make_samples.py"
    expected = "off by one, pooling rule" if round_down else "arrays agree"
    assert expected in made


def test_pycaffe_page_names_what_there_is() -> None:
    page = (DOCS / "from-pycaffe.md").read_text()
    known = set(commands.list_commands(None))  # type: ignore[arg-type]
    for name in set(re.findall(r"`fcnproto ([a-z-]+) ", page)):
        assert name in known, name
    for path in set(re.findall(r"fcnproto\.([A-Za-z0-9_.]+)", page)):
        parts = path.strip(".").split(".")
        value: object = fcnproto
        for index, part in enumerate(parts):
            try:
                value = getattr(value, part)
            except AttributeError:
                value = importlib.import_module("fcnproto." + ".".join(parts[: index + 1]))
    for name in set(re.findall(r"`(samples/[a-z0-9_.-]+|[a-z-]+\.md)`", page)):
        assert (DOCS / name).is_file(), name


def test_names_in_the_pycaffe_page_exist(tmp_path: Path) -> None:
    import fcnproto.data.io as io

    for name in ("load_image", "resize_image", "oversample", "Transformer", "blobproto_to_array", "array_to_datum"):
        assert hasattr(io, name), name
    for name in ("NetSpec", "layers", "params"):
        assert hasattr(fcnproto.netspec, name), name
    for name in ("step", "solve", "snapshot", "restore"):
        assert hasattr(fcnproto.Solver, name), name
