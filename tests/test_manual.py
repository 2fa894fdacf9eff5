"""The manual: every command and page has its place, examples name options that exist, addresses agree."""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest
from test_docs import page

import fcnproto
from fcnproto import errors
from fcnproto.checking.kinds import GROUPS
from fcnproto.cli._main import commands

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONTEXT = click.Context(commands)
NAMES = commands.list_commands(CONTEXT)
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def findings() -> ModuleType:
    return page("make_check")


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    assert {path.stem for path in (DOCS / "commands").glob("*.md")} == {*NAMES, "index"}
    listed = re.findall(r"^\| \[([a-z-]+)\]\(\1\.md\)", (DOCS / "commands" / "index.md").read_text(), re.MULTILINE)
    assert listed == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_examples_name_options_that_exist(name: str) -> None:
    text = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# fcnproto {name}\n")
    assert "<!-- options -->" in text
    lines = [line for line in text.splitlines() if re.match(rf"(torchrun .* )?(-m )?fcnproto {name}\b", line)]
    assert lines
    for line in lines:
        words = shlex.split(line.split("  #")[0])
        words = words[words.index("fcnproto") + 1 :]
        command = commands.get_command(CONTEXT, words.pop(0))
        while isinstance(command, click.Group):
            command = command.get_command(CONTEXT, words.pop(0))
        assert command is not None, line
        if not command.context_settings.get("allow_interspersed_args", True):
            continue  # what follows is the script's
        known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        assert {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, line


def test_every_page_is_in_the_navigation() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    pages -= {name for name in pages if name.startswith(("commands/", "samples/"))}
    assert pages == {name for name in re.findall(r"[\w/-]+\.md", NAVIGATION) if (DOCS / name).exists()}


def test_the_page_of_symptoms_is_current_and_has_every_finding(findings: ModuleType) -> None:
    assert (DOCS / "troubleshooting.md").read_text() == findings.troubleshooting(), "run `make docs`"
    told = {code for codes in findings.SYMPTOMS.values() for code in codes.split()}
    assert told == {code for group in GROUPS.values() for code in group}


def test_the_reference_names_what_there_is() -> None:
    """The site is built from names; what has moved would break it."""
    names = [name for file in DOCS.glob("reference/*.md") for name in re.findall(r"^::: (\S+)", file.read_text(), re.M)]
    assert len(names) > 20
    missing = []
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_the_repository_has_one_address() -> None:
    (address,) = re.findall(r"^repo_url: (\S+)$", NAVIGATION, re.MULTILINE)
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert address in text, name
        found = set(re.findall(r"https://github\.com/[\w-]+/[\w-]+(?=[/\")#]|$)", text))
        assert found <= {address, "https://github.com/shelhamer/fcn"}, name
    assert f"version: {fcnproto.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_messages_name_pages_that_exist() -> None:
    assert Path(errors.page("custom-layers")).read_text().startswith("# ")
    assert "source distribution" in errors.page("no-such-page")
    for path in (ROOT / "fcnproto").rglob("*.py"):
        for name in re.findall(r"\bpage\(['\"]([a-z-]+)['\"]\)", path.read_text(encoding="utf-8")):
            assert (DOCS / f"{name}.md").exists(), path
