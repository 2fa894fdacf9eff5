"""Each function of `escaping` on hostile names: what its target may never get, and what must come through."""

from __future__ import annotations

import copy
import html
import json
import pickle
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import hostile_names as hostile
import pytest

import fcnproto
from fcnproto import escaping
from fcnproto.errors import PrototxtError
from fcnproto.pictures.chart import Curves, write_chart

NAMES = [*hostile.NAMES, *hostile.fuzzed(300, seed=2), "", "lone \ud800 surrogate \udcff", "\x00"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1/7x7_s2", "conv1/7x7_s2"),
        ("Straße 東京 🚲", "Straße 東京 🚲"),
        ("C:\\new", "C:\\new"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\u202eabc", "\\u202eabc"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert escaping.printable(text) == shown


def test_printable_is_printable_short_and_final() -> None:
    for name in NAMES:
        for longest in (None, 4, 60):
            shown = escaping.printable(name, longest)
            assert shown.isprintable() and (longest is None or len(shown) <= longest)
            assert escaping.printable(shown, longest) == shown
            shown.encode()
    assert escaping.printable("a" * 500 + "b" * 500, 10) == "aaaaaa…bbb"


def test_one_line() -> None:
    assert escaping.one_line("  a\n   b\tc  d ") == "a b c  d"
    path = "/deep" * 50 + "/net.prototxt:1:2:"
    assert escaping.one_line(f"{path} no such layer") == f"{path} no such layer"
    for name in NAMES:
        line = escaping.one_line(f"layer {name}: what to do\n{name!r}")
        assert line.isprintable() and len(line) <= 4000 and escaping.one_line(line) == line
    assert escaping.one_line("x" * 5000 + " expected y").endswith("xxx expected y")


@pytest.mark.parametrize("kind", [fcnproto.Error, fcnproto.LayerError, fcnproto.UsageError, fcnproto.FcnprotoWarning])
def test_errors_and_warnings(kind: type[Exception]) -> None:
    error = kind("layer '\x1b[31m\u202e'\n  has no blob " + "b" * 10_000)
    assert str(error).isprintable() and len(str(error)) < 400
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is kind and str(twin) == str(error)


def test_errors_with_a_place() -> None:
    error = PrototxtError("no field '\x1b[31m'", "a\n.prototxt", 3, 4)
    assert str(error) == "a .prototxt:3:4: no field '\\x1b[31m'" and error.file == "a\n.prototxt"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_warnings_by_text() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("layer \x1b[2J\nx", fcnproto.FcnprotoWarning, stacklevel=1)
    assert str(caught[0].message) == "layer \\x1b[2J x"


def test_markup() -> None:
    for name in NAMES:
        text = escaping.markup(name)
        root = ElementTree.fromstring(f'<a title="{text}"><b>{text}</b></a>')
        assert (len(root) == 1 and root.get("title") == root[0].text) or not name
        assert html.unescape(text) == escaping.printable(name)
        value = ElementTree.fromstring(f'<a data="{escaping.attribute_json([name])}"/>').get("data")
        assert json.loads(value or "") == [name]
        value = ElementTree.fromstring(f'<a data="{escaping.attribute_text(name)}"/>').get("data")
        assert json.loads(f'"{value}"') == name


def test_json() -> None:
    table = {name: [name, {"x": name}] for name in NAMES}
    for text in (escaping.json_text(table), escaping.json_text(table, indent=2), escaping.script_json(table)):
        assert json.loads(text) == table and hostile.is_clean(text)
        text.encode()
    assert "<" not in escaping.script_json(table)
    assert escaping.json_text({"Straße": "東京"}) == '{"Straße": "東京"}'


def test_csv_cells() -> None:
    for name in NAMES:
        cell = escaping.csv_cell(name)
        assert cell.isprintable() and not cell.startswith(("=", "+", "-", "@"))
    assert escaping.csv_cell("loss") == "loss"


def test_file_names(tmp_path: Path) -> None:
    taken: set[str] = set()
    for name in NAMES:
        made = escaping.file_name(name, taken)
        assert made.lower() not in taken and made.isprintable()
        assert made not in (".", "..") and not made.startswith((".", "-", "~", " ")) and not made.endswith((".", " "))
        assert not set('/\\:*?"<>|') & set(made) and len(made.encode()) < 110
        (tmp_path / f"{made}.png").write_bytes(b"")
        taken.add(made.lower())
    assert len(list(tmp_path.iterdir())) == len(NAMES)
    assert escaping.file_name("conv1/7x7") == "conv1_7x7" and escaping.file_name("NUL.png") == "_NUL.png"
    assert escaping.file_name("é" * 80).encode().decode() == "é" * 50


@pytest.mark.parametrize("library", ["matplotlib", "Pillow"])
def test_plots(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "matplotlib":
        pytest.importorskip("matplotlib", reason="needs matplotlib (the extra of that name)")
    else:
        monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    curves = Curves([0, 1, 2], [3.0, 2.0, 1.0], [3.0, 2.5, 2.0])
    for number in range(0, len(hostile.NAMES), 12):
        curves.tests = {name: [(0, 1.0), (2, 3.0)] for name in hostile.NAMES[number : number + 12]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # signs that the font lacks
            write_chart(tmp_path / "a.png", curves, "$\\bad$ " + hostile.NAMES[number])
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_plot_text_holds_no_formula() -> None:
    for name in NAMES:
        text = escaping.plot_text(name)
        assert text.count("$") == text.count("\\$") and text.replace("\\$", "$") == escaping.printable(name)
