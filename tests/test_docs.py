"""Pages that are made from the code are current."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fcnproto.graph import facts

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_layers_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_layers", DOCS / "make_layers.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "layers.md").read_text() == module.document(), "docs/layers.md is out of date: run `make docs`"
    assert facts.RULES_FILE.read_text() == module.rules(), "fcnproto/graph/maps.json is out of date: run `make docs`"


def test_the_list_of_findings_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_check", DOCS / "make_check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "check.md").read_text() == module.document(), "docs/check.md is out of date: run `make docs`"
