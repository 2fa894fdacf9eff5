"""What README.md says exists."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import fcnproto
from fcnproto.cli._main import commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = commands.list_commands(click.Context(commands))


def test_commands_exist() -> None:
    shell = "\n".join(re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL))
    assert re.findall(r"^fcnproto ([a-z-]+)", shell, flags=re.MULTILINE) == ["segment"]
    described = re.findall(r"^\| `fcnproto ([a-z-]+)", README, flags=re.MULTILINE)
    assert len(described) >= 11
    assert set(described) <= set(NAMES)


@pytest.mark.parametrize("row", [row for row in README.splitlines() if row.startswith("| `fcnproto")])
def test_options_in_the_table_exist(row: str) -> None:
    name = re.findall(r"fcnproto ([a-z-]+)", row)[0]
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    known = {option for param in command.params for option in param.opts}
    assert set(re.findall(r"(?<=[ `])(--[a-z-]+|-o)\b", row)) <= known


def test_links() -> None:
    """An index of packages shows the file too, without the repository around it: links and pictures are absolute."""
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        match = re.fullmatch(
            r"https://(github\.com/[\w-]+/[\w-]+/blob|raw\.githubusercontent\.com/[\w-]+/[\w-]+)/main/(.+)", target
        )
        assert match, target
        assert (ROOT / match[2]).exists(), target


def test_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE) or target == "a", target


def test_python_names() -> None:
    for name in re.findall(r"fcnproto\.([a-z_]+)\(", README):
        assert hasattr(fcnproto, name), name
    for name in re.findall(r"^(?:out = )?net\.([a-z_]+)", README, flags=re.MULTILINE):
        assert hasattr(fcnproto.Net, name), name
