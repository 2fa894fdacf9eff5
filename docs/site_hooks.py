"""What the manual's pages get when the site is built: the commands' options, the pages that lie outside docs/, and the
addresses of files that aren't pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from fcnproto.cli._main import commands

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()([^)#:]+)((?:#[^)]*)?\))")


def on_config(config: Any) -> Any:
    """The commands' pages stand in the order of the alphabet, without a list of them in two places."""
    pages: list[Any] = ["commands/index.md"]
    pages += [f"commands/{page.name}" for page in sorted((ROOT / "docs/commands").glob("*.md")) if page.stem != "index"]
    for entry in config["nav"]:
        if entry.get("Commands") == "commands/":
            entry["Commands"] = pages
    return config


def on_files(files: Files, config: Any) -> Files:
    """Pages at the repository's top are pages of the site."""
    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Options for the mark in a command's page; links to other files of the repository lead there."""
    name = page.file.src_uri
    if name.startswith("commands/") and "<!-- options -->" in markdown:
        markdown = markdown.replace("<!-- options -->", "\n".join(_options(Path(name).stem)))
    folder = ROOT if name in OUTSIDE else (ROOT / "docs" / name).parent
    return LINK.sub(lambda match: _address(match, folder, name, config["repo_url"]), markdown)


def _address(match: re.Match[str], folder: Path, page: str, repository: str) -> str:
    """The link's target: a page of the site, relative to this one, or a file of the repository."""
    target = (folder / match[1]).resolve()
    outside = {ROOT / source: name for name, source in OUTSIDE.items()}
    if target in outside:
        return "../" * page.count("/") + outside[target] + match[2]
    if target.is_relative_to(ROOT / "docs"):
        return "../" * page.count("/") + target.relative_to(ROOT / "docs").as_posix() + match[2]
    if target.is_relative_to(ROOT) and target.exists():
        kind = "tree" if target.is_dir() else "blob"
        return f"{repository}/{kind}/main/{target.relative_to(ROOT).as_posix()}{match[2]}"
    return match[0]


def _options(name: str) -> Iterator[str]:
    """The command's usage and options as Markdown, those of nested commands after it."""
    context = click.Context(commands, info_name="fcnproto")
    command = commands.get_command(context, name)
    if command is None:
        raise ValueError(f"docs/commands/{name}.md: there is no such command")
    yield from _section(command, click.Context(command, parent=context, info_name=name))


def _section(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"\n## {context.command_path}\n" if context.parent and context.parent.parent else "\n## Options\n"
    yield "```\n" + " ".join([context.command_path, *command.collect_usage_pieces(context)]) + "\n```\n"
    if context.parent and context.parent.parent and command.help:
        yield inspect.cleandoc(command.help).replace("\b", "") + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            nested = command.get_command(context, name)
            assert nested is not None
            yield from _section(nested, click.Context(nested, parent=context, info_name=name))
        return
    records = [param.get_help_record(context) for param in command.get_params(context)]
    shown = [record for record in records if record and record[1]]
    if shown:
        yield "| option | |\n|---|---|"
    for option, text in shown:
        yield f"| `{option}` | {_escaped(text)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("\n", " ")
