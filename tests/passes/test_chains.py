"""More than two hundred random chains, `optimize` against the plain net, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("chains.py")


@pytest.mark.parametrize("first", [0, 86, *(pytest.param(first, marks=pytest.mark.slow) for first in (172, 258))])
def test_chains(first: int) -> None:
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(first), str(first + 86)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"chain {run.stderr.split()[-1:]} ended the process: {run.stderr[-500:]}"
    *faults, last = map(json.loads, run.stdout.splitlines())
    assert not faults, faults[0]
    assert last["tried"] >= 50
