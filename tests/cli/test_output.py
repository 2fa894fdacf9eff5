"""Tables: whole numbers at any width of a terminal, names as they are, nothing cut where it is no terminal."""

from __future__ import annotations

import re

import pytest

from fcnproto.cli import _output
from fcnproto.cli._main import main

COLUMNS = ["layer", "type", "value", "count"]
ROWS = [("conv1_1", "Convolution", "1.234567e-07", "1,234,567"), ("a" * 40, "InnerProduct", "5.5e+01", "8")]


def table(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **options: object
) -> list[str]:
    """The lines of the table above on a terminal of that width, without colours."""
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", str(width))
    _output.print_table(COLUMNS, ROWS, numeric=["value", "count"], **options)  # type: ignore[arg-type]
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]


def test_wide_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(100, monkeypatch, capsys, optional=["type"])
    assert lines[0].split() == COLUMNS and lines[3].split() == list(ROWS[1])


def test_columns_give_way_before_texts_are_shortened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(75, monkeypatch, capsys, optional=["type", "count"])
    assert lines[0].split() == ["layer", "value", "count"] and lines[3].split() == ["a" * 40, "5.5e+01", "8"]
    lines = table(62, monkeypatch, capsys, optional=["type", "count"])
    assert lines[0].split() == ["layer", "value"]
    lines = table(50, monkeypatch, capsys, optional=["type", "count"])
    assert max(map(len, lines)) <= 50 and lines[2].split() == ["conv1_1", "1.234567e-07"]
    assert re.fullmatch(r"a+…a+ +5\.5e\+01", lines[3])


@pytest.mark.parametrize("width", [1, 10, 30])
def test_numbers_are_never_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(width, monkeypatch, capsys)
    assert len(lines) == 4 and "1.234567e-07" in lines[2] and "1,234,567" in lines[2]


def test_no_terminal_and_names_of_any_kind(capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold]x[/] :smile: \\[/x]"
    _output.print_table(["name", "n"], [(name, "1"), ("b" * 300, "2"), ("\x1b[31m\n", "3")], numeric=["n"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith(name) and "b" * 300 in lines[3] and lines[4].startswith("\\x1b[31m\\n ")


def test_the_list_of_nets_in_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["zoo", "list"]) == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("nyud-fcn32s-color-hha ") for line in lines) and max(map(len, lines)) <= 80


def test_signs_that_stdout_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    _output.print_line("Straße", "1")
    stream.flush()
    assert stream.buffer.getvalue() == b"Stra\\xdfe\t1\n"  # type: ignore[attr-defined]


def test_what_is_worked_on_is_shown_as_it_is() -> None:
    with _output.progress("images") as bar:
        bar.add_task("[/x] \x1b[31m\u202e" + "a" * 500)
        shown = bar.columns[-1].render(bar.tasks[0])
    assert str(shown).startswith("[/x] \\x1b[31m\\u202ea") and len(str(shown)) == 60
