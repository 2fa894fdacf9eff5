"""The floors of the house: docs/architecture.md says them, and every import goes upwards."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fcnproto"
ENTRANCES = ("__init__", "__main__")
"""They hand on names of every room."""


def table() -> dict[str, tuple[int, bool]]:
    """For each room of the page's table its floor, and whether it is said to be free of torch."""
    rows = re.findall(
        r"^\| (\d+) \| ([^|]+) \| [^|]+ \| ([^|]*) \|$", (ROOT / "docs/architecture.md").read_text(), re.M
    )
    return {
        room: (int(floor), torch.strip() == "no")
        for floor, rooms, torch in rows
        for room in re.findall(r"`(\w+)`", rooms)
    }


FLOORS = table()


def rooms() -> dict[str, list[Path]]:
    """The package's rooms, folders and single modules, with their files."""
    found = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem not in ENTRANCES}
    for folder in PACKAGE.iterdir():
        if (folder / "__init__.py").exists():
            found[folder.name] = sorted(folder.rglob("*.py"))
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, also within functions and for type checkers."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1] + [base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def test_the_page_names_every_room() -> None:
    assert set(FLOORS) == set(rooms())


@pytest.mark.parametrize("room", sorted(rooms()))
def test_no_room_imports_one_beside_or_below_it(room: str) -> None:
    wrong = []
    for path in rooms()[room]:
        for line, name in imports(path):
            parts = name.split(".")
            other = parts[1] if parts[0] == "fcnproto" and len(parts) > 1 else room
            if other in FLOORS and other != room and FLOORS[other][0] >= FLOORS[room][0]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("room", sorted(room for room, (_, without_torch) in FLOORS.items() if without_torch))
def test_the_upper_floors_are_free_of_torch(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in rooms()[room]
        for line, name in imports(path)
        if name.split(".")[0] == "torch"
    ]
    assert not wrong


def test_the_checks_can_fail() -> None:
    assert FLOORS["schema"] == (4, True) and FLOORS["net"][0] > FLOORS["layers"][0] > FLOORS["graph"][0]
    found = {name.split(".")[0] for _, name in imports(PACKAGE / "layers" / "base.py")}
    assert {"torch", "fcnproto", "math"} <= found


def test_few_modules_stand_outside_of_the_rooms() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 16


def test_layer_types_are_named_where_a_rule_is_about_that_very_type() -> None:
    """Facts of layers are asked of their classes: names of types stand where they are registered, in the upgrades of old
    formats, and where a net of such layers is built or taken apart."""
    allowed = (
        "schema/upgrade",
        "surgery/",
        "layers/",
        "dialects/",
        "export/",
        "finetune/nets.py",
        "netspec.py",
    )
    pattern = re.compile(r'"(ReLU|Dropout|Concat|Eltwise)"')
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.relative_to(PACKAGE).as_posix().startswith(allowed)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
