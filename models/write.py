"""Writes the published nets' files into the folders beside this one: `python -m models.write`, or `make models`."""

from __future__ import annotations

import json
from pathlib import Path

from fcnproto.schema.text import format_message

from . import beyond, catalog, mini

HERE = Path(__file__).parent
HEADER = "# Written by models/write.py; change the definitions there, not this file.\n"


def files() -> dict[str, str]:
    """The text of every file to be written, by its path relative to this folder."""
    texts = {}
    for model in [*catalog.models(), *beyond.models()]:
        for kind, message in {**model.nets(), "solver": model.solver_message()}.items():
            texts[f"{model.name}/{kind}.prototxt"] = HEADER + format_message(message)
        texts[f"{model.name}/model.json"] = json.dumps(model.record(), indent=1) + "\n"
    # The rest of fcn-mini's folder comes from its training.
    for kind, message in {**mini.nets(), **mini.solvers()}.items():
        texts[f"{mini.NAME}/{kind}.prototxt"] = HEADER + format_message(message)
    return texts


def main() -> None:
    """Write what differs from the files as they stand, and name it."""
    for relative, text in files().items():
        path = HERE / relative
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote models/{relative}")


if __name__ == "__main__":
    main()
