"""The walk through docs/finetune.md, pasted into a shell block by block, as a new user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_fine_tuning_walk_through(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "finetune.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("fcnproto", "-m fcnproto"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    outputs = []
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e"], input=block, text=True, cwd=tmp_path, env=environment, capture_output=True, timeout=600
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        outputs.append(done.stdout)
    assert "24 images: train 16, val 4, test 4" in outputs[1]
    found = re.search(r"^mean IU (\d\.\d+)$", outputs[2], re.MULTILINE)
    assert found and float(found[1]) > 0.5
    rows = [line.split(",") for line in (tmp_path / "out" / "validation.csv").read_text().splitlines()[1:]]
    assert float(rows[-1][1]) > float(rows[0][1]) + 0.1  # it ends better than it began
    further = re.search(r"^mean IU (\d\.\d+)$", outputs[3], re.MULTILINE)
    assert further and f"mean IU {further[1]}" in outputs[4]
    assert {"samples.png", "confusion.png", "curves.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "segmented" / "00_overlay.png").is_file()
