"""Every report of a comparison says how to repeat it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from click.testing import CliRunner

from fcnproto import zoo
from fcnproto.cli._main import commands


def test_reports_say_how_to_repeat_them(tmp_path: Path) -> None:
    """Date, versions, the hash of every file, inputs, tolerances and the command stand in the JSON and in the page."""
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    model, weights = zoo.path("fcn-mini", "deploy"), zoo.path("fcn-mini", "weights")
    arguments = ["parity", str(model), str(weights), "--reference", "float64", "--input-size", "32x40"]
    result = CliRunner().invoke(commands, [*arguments, "--html", str(page), "--json-file", str(numbers)])
    assert result.exit_code == 0, result.output
    told = json.loads(numbers.read_text())["provenance"]
    assert [file["sha256"] for file in told["files"]] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, weights)
    ]
    assert told["inputs"] == {"data": [1, 3, 32, 40]} and told["tolerances"]["blobs"] == 1e-5
    assert told["versions"]["torch"] == torch.__version__ and told["date"].startswith("20")
    for text in (told["files"][1]["sha256"], told["date"], "How to repeat it"):
        assert text in page.read_text()
