"""Pages that are made from the code are current."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from fcnproto.graph import facts

DOCS = Path(__file__).parents[1] / "docs"


def page(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_dialects_is_current() -> None:
    made = page("make_dialects").document()
    assert (DOCS / "dialects.md").read_text() == made, "docs/dialects.md is out of date: run `make docs`"


def test_the_table_of_layers_is_current() -> None:
    module = page("make_layers")
    assert (DOCS / "layers.md").read_text() == module.document(), "docs/layers.md is out of date: run `make docs`"
    assert facts.RULES_FILE.read_text() == module.rules(), "fcnproto/graph/maps.json is out of date: run `make docs`"


def test_the_list_of_findings_is_current() -> None:
    assert (DOCS / "check.md").read_text() == page("make_check").document(), (
        "docs/check.md is out of date: run `make docs`"
    )
